"""What a sound measures by itself, and how far two sounds of equal length are apart.

Audio is an array (n,) or (channels, n) of full scale 1; comparisons and spectra are of the mean of the channels.
Decibels below are of power, and silence is held at a floor relative to the louder part of the sound, since a difference
between two inaudible levels is no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .mel import PRESETS

Array = NDArray[np.floating]

SILENT = -60.0  # dBFS: a clip whose loudest moment is below this is silent
_RANGE = 80.0  # dB below the reference's loudest bin: the floor of comparisons
_RESOLUTIONS = (512, 1024, 2048)


def mono(audio: Array) -> NDArray[np.float64]:
    """(n,) or (channels, n) to (n,), float64: the mean of the channels."""
    channels = np.atleast_2d(np.asarray(audio, np.float64))
    mean: NDArray[np.float64] = channels.mean(0)
    return mean


def spectrum(audio: Array, n_fft: int, hop: int | None = None) -> NDArray[np.float64]:
    """Magnitudes (frames, n_fft / 2 + 1) under a Hann window, a sinusoid of amplitude a peaking at a / 2; frames are
    centred on every ``hop``-th sample (by default n_fft / 4), with silence outside the sound."""
    hop = hop or n_fft // 4
    padded = np.pad(mono(audio), n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, (0, max(n_fft - len(padded), 0))), n_fft)[::hop]
    window = np.hanning(n_fft + 1)[:-1]
    magnitude: NDArray[np.float64] = np.abs(np.fft.rfft(frames * window / window.sum(), axis=-1))
    return magnitude


def log_spectral_distance(audio: Array, reference: Array, n_fft: int = 1024) -> float:
    """The root mean square over bins of the difference of two spectra in dB, its mean over frames (Gray, Markel 1976).

    Both are held at 80 dB below the reference's loudest bin. A gain of g dB is a distance of g.

    Raises:
        ValueError: the lengths differ.
    """
    a, b = (20 * np.log10(s) for s in _pair(audio, reference, n_fft))
    return float(np.sqrt(((a - b) ** 2).mean(1)).mean())


def multi_resolution_stft(audio: Array, reference: Array) -> float:
    """The multi-resolution STFT distance (Yamamoto et al. 2020), over windows of 512, 1024 and 2048 samples:

        mean over resolutions of  ||R - A||_F / ||R||_F  +  mean |ln R - ln A|

    Raises:
        ValueError: the lengths differ.
    """
    values = []
    for n_fft in _RESOLUTIONS:
        a, r = _pair(audio, reference, n_fft)
        values.append(np.linalg.norm(r - a) / np.linalg.norm(r) + np.abs(np.log(r) - np.log(a)).mean())
    return float(np.mean(values))


def mel_distance(audio: Array, reference: Array, preset: str) -> float:
    """Mean absolute difference of two log-mel spectrograms of a preset, in nats.

    Raises:
        ValueError: the lengths differ.
    """
    _same_length(audio, reference)
    a, b = (PRESETS[preset].log_mel(torch.from_numpy(mono(x))) for x in (audio, reference))
    return float((a - b).abs().mean())


def is_silent(audio: Array, rate: int) -> bool:
    """Whether the loudest 50 ms stay below ``SILENT`` dBFS."""
    power = mono(np.square(np.asarray(audio, np.float64)))
    size = min(max(round(0.05 * rate), 1), len(power))
    sums = np.cumsum(np.concatenate([[0.0], power]))
    return not len(power) or bool((sums[size:] - sums[:-size]).max() / size < 10 ** (SILENT / 10))


def is_clipped(audio: Array, level: float = 0.999, run: int = 3) -> bool:
    """Whether a channel is beyond full scale, or stays at it for ``run`` samples: one sample at 1 is a peak."""
    channels = np.abs(np.atleast_2d(np.asarray(audio)))
    if channels.max(initial=0) > 1.0001:
        return True
    if channels.shape[-1] < run:
        return False
    at_scale = np.lib.stride_tricks.sliding_window_view(channels >= level, run, axis=-1)
    return bool(at_scale.all(-1).any())


@dataclass(frozen=True)
class Timbre:
    """The mean over the audible frames of a sound (within 60 dB of its loudest).

    Attributes:
        flatness: geometric over arithmetic mean of the power: near 0 for a tone, 0.56 for white noise.
        centroid: the mean frequency, weighted by magnitude, in Hz.
        bandwidth: the deviation around it, in Hz.
    """

    flatness: float
    centroid: float
    bandwidth: float


def timbre(audio: Array, rate: int) -> Timbre | None:
    """Flatness, centroid and bandwidth; None for digital silence. Windows are of about 46 ms."""
    n_fft = 1 << max(round(float(np.log2(rate * 0.046))), 5)
    magnitude = spectrum(audio, n_fft)
    power = magnitude**2
    energy = power.sum(1)
    if not energy.max() > 0:
        return None
    audible = energy >= 1e-6 * energy.max()
    magnitude, power = magnitude[audible], power[audible]
    held = np.maximum(power, 1e-12 * power.max())
    flatness = np.exp(np.log(held).mean(1)) / held.mean(1)
    frequencies = np.fft.rfftfreq(n_fft, 1 / rate)
    weights = magnitude / magnitude.sum(1, keepdims=True)
    centroid = weights @ frequencies
    bandwidth = np.sqrt((weights * (frequencies - centroid[:, None]) ** 2).sum(1))
    return Timbre(float(flatness.mean()), float(centroid.mean()), float(bandwidth.mean()))


def _pair(audio: Array, reference: Array, n_fft: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two spectra, not below the floor of the reference's."""
    _same_length(audio, reference)
    a, r = spectrum(audio, n_fft), spectrum(reference, n_fft)
    floor = max(float(r.max()), 1e-6) * 10 ** (-_RANGE / 20)
    return np.maximum(a, floor), np.maximum(r, floor)


def _same_length(audio: Array, reference: Array) -> None:
    if (n := np.shape(audio)[-1]) != (m := np.shape(reference)[-1]):
        raise ValueError(f"sounds of {n} and {m} samples cannot be compared sample by sample")
