"""Random changes to clips that leave what they say: for classifiers that must generalise, and that must not mistake the
traces of a vocoder for another voice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_SPEED = 0.1  # faster or slower by at most
_SHIFT = 0.05  # s, of silence added to or cut from either end at most
_NOISE = (-50.0, -15.0)  # dB below the clip
_LEVEL = 26.0  # dB, how much quieter at most
_TILT = 0.8  # nats, the deviation of a random equaliser over the bands
_KNOTS = 6  # of it
_ROUGH = 0.3  # nats, the deviation of noise on a spectrogram at most
_FREQUENCIES, _TIMES = 0.15, 0.1  # the share of bands and of frames that a mask hides at most


def augmented_wave(audio: Tensor, rate: int, generator: Generator) -> Tensor:
    """A mono clip (n,) at another speed, with other ends, noise and level."""

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if uniform() < 0.7:
        size = max(round(len(audio) * uniform(1 - _SPEED, 1 + _SPEED)), 1)
        audio = F.interpolate(audio[None, None], size=size, mode="linear", align_corners=False)[0, 0]
    for side in range(2):
        shift = round(rate * uniform(-_SHIFT, _SHIFT))
        if len(audio) + shift > 4 * rate * _SHIFT or shift > 0:
            audio = F.pad(audio, (shift, 0) if side else (0, shift))
    if uniform() < 0.6:
        level = float(audio.square().mean().sqrt()) * 10 ** (uniform(*_NOISE) / 20)
        audio = audio + level * torch.randn(audio.shape, generator=generator)
    return audio * 10 ** (-_LEVEL * uniform() / 20)


def augmented_mel(mel: Tensor, generator: Generator) -> Tensor:
    """A log-mel spectrogram (frames, bands) under another equaliser, blurred or rough, with parts hidden (SpecAugment,
    Park et al. 2019)."""

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    frames, bands = mel.shape
    if uniform() < 0.5:
        knots = _TILT * torch.randn(1, 1, _KNOTS, generator=generator)
        mel = mel + F.interpolate(knots, size=bands, mode="linear", align_corners=True)[0]
    if uniform() < 0.3:
        share = 0.3 * uniform()
        mel = mel + share * (torch.roll(mel, 1, 1) + torch.roll(mel, -1, 1) - 2 * mel) * _inner(bands)
    if uniform() < 0.5:
        mel = mel + _ROUGH * uniform() * torch.randn(mel.shape, generator=generator)
    mel, hidden = mel.clone(), mel.mean()
    for _ in range(2):
        width = round(bands * _FREQUENCIES * uniform())
        start = round((bands - width) * uniform())
        mel[:, start : start + width] = hidden
        width = round(frames * _TIMES * uniform())
        start = round((frames - width) * uniform())
        mel[start : start + width] = hidden
    return mel


def _inner(bands: int) -> Tensor:
    """1 for each band but the first and the last, which have one neighbour."""
    inner = torch.ones(bands)
    inner[[0, -1]] = 0
    return inner
