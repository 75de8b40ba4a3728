"""Training what turns a sound into another form and back (vocoder, autoencoder): distances of spectra, judged by
discriminators that are trained at the same time.

    L = mel |ln mel(x) - ln mel(y)| + stft S(x, y) + adversarial (generator + features weight) + kl KL

with the multi-resolution distance of Yamamoto et al. 2020, averaged over windows of about 8 to 64 ms:

    S = || |X| - |Y| ||_F / || |X| ||_F  +  mean | ln|X| - ln|Y| |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from noiseloom.core.objectives import OBJECTIVES, Losses, Objective
from noiseloom.core.randomness import StepRandomness

from ..report import Report, Row
from .adversarial import Discriminators
from .mel import MelPreset
from .segments import AudioBatch, Segments
from .spectral import log_spectral_distance, mono, multi_resolution_stft

_WINDOWS = (0.064, 0.032, 0.016, 0.008)  # s, of the multi-resolution distance
_JUDGED = (0.064, 0.032, 0.016)  # s, of the spectrum discriminators
_PERIODS = (2, 3, 5, 7, 11)  # samples, of the period discriminators
_EPSILON = 1e-9  # added to powers
_FLOOR = 1e-5  # of magnitudes whose logarithm is taken, in relation to the window: about 80 dB below a loud sound
_EVALUATED = 200  # held-out clips that a report is of


class Reconstructing(Protocol):
    """A component that makes sounds again."""

    rate: int
    channels: int
    mel: MelPreset

    def reconstruct(self, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sounds (batch, channels, n) made again, and penalties (batch,) by name."""
        ...


@OBJECTIVES.register("reconstruction")
class Reconstruction(Objective):
    """Sounds made again should look the same in every spectrum, and pass for real.

    Args:
        component: what is trained (given by the run).
        mel, stft, features, kl: weights; that of the discriminators' verdict is ``adversarial``.
        adversarial: 0 trains without discriminators.
        adversarial_start: the step from which discriminators take part.
        adversarial_ramp: steps over which their weight then rises.
        width: channels of the discriminators' first layers.
    """

    def __init__(
        self,
        component: Reconstructing,
        mel: float = 15.0,
        stft: float = 2.0,
        adversarial: float = 1.0,
        features: float = 2.0,
        kl: float = 1e-3,
        adversarial_start: int = 1000,
        adversarial_ramp: int = 1000,
        width: int = 16,
    ) -> None:
        super().__init__()
        self.mel, self.n_ffts = component.mel, window_sizes(component.rate, _WINDOWS)
        self.weights = {"mel": mel, "stft": stft, "kl": kl}
        self.adversarial, self.features = adversarial, features
        self.start, self.ramp = adversarial_start, adversarial_ramp
        self.discriminators: Discriminators | None = None
        if adversarial:
            judged = window_sizes(component.rate, _JUDGED)
            self.discriminators = Discriminators(component.channels, _PERIODS, judged, width)

    def forward(self, model: Any, example: AudioBatch, random: StepRandomness) -> Losses:
        made, parts = self._compare(model, example)
        total = self._weighted(parts)
        share = min(max((random.step - self.start + 1) / max(self.ramp, 1), 0.0), 1.0)
        if self.discriminators is not None and share > 0:
            judged = self.discriminators.losses(example.audio, made)
            parts |= judged
            pull = judged["generator"] + self.features * judged["features"]
            total = total + judged["discriminator"] + share * self.adversarial * pull
        return Losses(total, parts)

    def held_out(
        self, model: Any, example: AudioBatch, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """Without discriminators: their verdict is not comparable from one step to another."""
        _, parts = self._compare(model, example)
        yield "", Losses(self._weighted(parts), parts)

    def _compare(self, model: Any, example: AudioBatch) -> tuple[Tensor, dict[str, Tensor]]:
        made, penalties = model.reconstruct(example.audio)
        with torch.autocast(made.device.type, enabled=False):
            made = made.float()
            mel = (self.mel.log_mel(example.audio) - self.mel.log_mel(made)).abs().flatten(1).mean(1)
            return made, {"mel": mel, "stft": stft_distance(example.audio, made, self.n_ffts), **penalties}

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(0)


def window_sizes(rate: int, seconds: Sequence[float]) -> list[int]:
    """Powers of two, in samples, that are nearest to windows in seconds."""
    return [1 << round(math.log2(rate * one)) for one in seconds]


def stft_distance(target: Tensor, made: Tensor, n_ffts: Sequence[int]) -> Tensor:
    """The multi-resolution distance of sounds (batch, channels, n), float32: (batch,)."""
    distances = []
    for n_fft in n_ffts:
        x, y = (_magnitude(audio, n_fft) for audio in (target, made))
        floor = _FLOOR * n_fft
        quiet = 10 * floor * x.shape[1] ** 0.5  # silence is no unit to measure in
        convergence = torch.linalg.vector_norm(x - y, dim=1) / torch.linalg.vector_norm(x, dim=1).clamp(min=quiet)
        logarithms = (x.clamp(min=floor).log() - y.clamp(min=floor).log()).abs().mean(1)
        distances.append(convergence + logarithms)
    return torch.stack(distances).mean(0)


def _magnitude(audio: Tensor, n_fft: int) -> Tensor:
    """(batch, channels, n) to (batch, all bins of all frames)."""
    window = _window(n_fft, audio.device)
    spectrum = torch.stft(audio.flatten(0, 1), n_fft, n_fft // 4, window=window, return_complex=True)
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + _EPSILON).reshape(len(audio), -1)


@cache
def _window(n_fft: int, device: torch.device) -> Tensor:
    return torch.hann_window(n_fft, device=device)


@torch.no_grad()
def reconstruction_report(component: Any, held_out: Segments) -> Report:
    """Spectral distances between held-out clips, whole, and their reconstructions."""
    device, rows = next(component.parameters()).device, {"mel": 0.0, "stft": 0.0, "lsd": 0.0}
    step = max(len(held_out) // _EVALUATED, 1)
    chosen = range(0, len(held_out), step)
    for index in chosen:
        audio = torch.tensor(held_out[index].wave.samples)
        whole = torch.nn.functional.pad(audio, (0, -audio.shape[1] % component.hop))
        made = component.reconstruct(whole[None].to(device))[0][0].float().cpu()[:, : audio.shape[1]]
        rows["mel"] += float((component.mel.log_mel(audio) - component.mel.log_mel(made)).abs().mean())
        rows["stft"] += multi_resolution_stft(mono(audio.numpy()), mono(made.numpy()))
        rows["lsd"] += log_spectral_distance(mono(audio.numpy()), mono(made.numpy()))
    n = len(chosen)
    mean = {name: value / n if n else None for name, value in rows.items()}
    return Report(
        f"{component.name} on held-out clips",
        [
            Row("mel_distance", mean["mel"], n, "mean |difference| of log-mel spectrograms, nats", better="lower"),
            Row("stft_distance", mean["stft"], n, "multi-resolution STFT, windows 512, 1024, 2048", better="lower"),
            Row("log_spectral_distance", mean["lsd"], n, "windows of 1024", unit="dB", better="lower"),
        ],
    )
