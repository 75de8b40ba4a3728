"""What is done to a clip before training: its own functions, and :class:`Preparation`, which puts them in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .levels import decibels, loudness, peak, rms
from .waveform import AudioError, Waveform, resample, with_channels

Level = Literal["peak", "rms", "loudness", "none"]
TARGETS = {"peak": -1.0, "rms": -20.0, "loudness": -23.0, "none": 0.0}  # dB of full scale; loudness in LUFS
SILENCE = -80.0  # dB of full scale: a clip whose peak stays below it is silent
MARGIN = 0.02  # seconds that trimming keeps on either side


@dataclass(frozen=True)
class Preparation:
    """How clips are prepared. All values are plain; each is part of the fingerprint of the cache.

    Attributes:
        rate: samples a second.
        channels: 1 or 2.
        level: what is made equal: "peak", "rms", "loudness" (ITU-R BS.1770), or "none". No peak passes full scale: a
            clip that would is left below its target.
        target: the level aimed at, in dB of full scale (LUFS for loudness); by default -1, -20 and -23.
        trim: silence at the ends is what stays this many dB below the clip's peak; None keeps the ends.
        remove_dc: subtract the mean of each channel.
        min_seconds: shorter clips, after trimming, are left out.
        max_seconds: longer clips, after trimming, are left out; None keeps them.

    Raises:
        ValueError: a value out of range.
    """

    rate: int
    channels: int = 1
    level: Level = "rms"
    target: float | None = None
    trim: float | None = None
    remove_dc: bool = True
    min_seconds: float = 0.05
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.rate < 1 or self.rate != int(self.rate):
            raise ValueError(f"rate={self.rate}: a whole number of samples a second")
        if self.channels not in (1, 2):
            raise ValueError(f"channels={self.channels}. Choices: 1, 2")
        if self.level not in TARGETS:
            raise ValueError(f"unknown level {self.level!r}. Choices: {', '.join(TARGETS)}")
        if self.target is not None and not -60 <= self.target <= 0:
            raise ValueError(f"target={self.target}: from -60 to 0 dB of full scale")
        if self.trim is not None and not self.trim > 0:
            raise ValueError(f"trim={self.trim}: a positive number of dB below the peak")
        if not 0 <= self.min_seconds < math.inf:
            raise ValueError(f"min_seconds={self.min_seconds}: not negative")
        if self.max_seconds is not None and not self.max_seconds > self.min_seconds:
            raise ValueError(f"max_seconds={self.max_seconds}: above min_seconds={self.min_seconds}")

    def __call__(self, wave: Waveform) -> Prepared:
        """The clip as it is trained on.

        Raises:
            AudioError: wrong channels, not finite, silent, too short or too long; ``reason`` says which.
        """
        samples = wave.samples
        if wave.channels not in (1, 2):
            raise AudioError(wave.name, f"wrong channels: {wave.channels}, not 1 or 2")
        if not np.isfinite(samples).all():
            raise AudioError(wave.name, "samples that are not finite")
        self._check_length(wave.name, samples.shape[1] / wave.rate)
        if self.remove_dc:
            samples = without_dc(samples)
        before = decibels(peak(samples)), decibels(rms(samples))
        samples = resample(with_channels(samples, self.channels), wave.rate, self.rate)
        if decibels(peak(samples)) < SILENCE:
            raise AudioError(wave.name, f"silent: peak below {SILENCE:.0f} dB")
        if self.trim is not None:
            samples = trimmed(samples, self.trim, round(MARGIN * self.rate))
            self._check_length(wave.name, samples.shape[1] / self.rate, " after trimming")
        if samples.shape[1] == 0:
            raise AudioError(wave.name, f"too short: nothing is left at {self.rate} Hz")
        gain, most = self._gain(samples), 1 / peak(samples)
        return Prepared((samples * min(gain, most)).astype(np.float32), *before, limited=gain > most)

    def _gain(self, samples: np.ndarray) -> float:
        """The factor to the target level."""
        if self.level == "none":
            return 1.0
        target = TARGETS[self.level] if self.target is None else self.target
        return 10 ** ((target - measured(samples, self.rate, self.level)) / 20)

    def _check_length(self, name: str, seconds: float, when: str = "") -> None:
        if seconds < self.min_seconds:
            raise AudioError(name, f"too short: {seconds:.3f} s{when}, of at least {self.min_seconds:g} s")
        trims_later = self.trim is not None and not when
        if self.max_seconds is not None and seconds > self.max_seconds and not trims_later:
            raise AudioError(name, f"too long: {seconds:.3f} s{when}, of at most {self.max_seconds:g} s")


@dataclass(frozen=True)
class Prepared:
    """A clip as it is trained on, and what it was.

    Attributes:
        samples: ``(channels, n)`` float32 within full scale.
        peak: before its level was changed, in dB of full scale.
        rms: likewise.
        limited: it is below the target level, as its peak would have passed full scale.
    """

    samples: np.ndarray
    peak: float
    rms: float
    limited: bool


def measured(samples: np.ndarray, rate: int, level: Level) -> float:
    """The level of a clip in dB of full scale, or LUFS."""
    if level == "loudness":
        return loudness(samples, rate)
    return decibels(peak(samples) if level == "peak" else rms(samples))


def without_dc(samples: np.ndarray) -> np.ndarray:
    """Each channel without its mean."""
    return samples - samples.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)


def trimmed(samples: np.ndarray, below: float, margin: int) -> np.ndarray:
    """Without the ends that stay ``below`` dB under the peak, but for ``margin`` samples of them."""
    loud = np.flatnonzero((np.abs(samples) >= peak(samples) * 10 ** (-below / 20)).any(0))
    return samples[:, max(loud[0] - margin, 0) : loud[-1] + 1 + margin]
