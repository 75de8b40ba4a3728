"""The artifact of the audio modality: a :class:`Waveform`, read from and written to files."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import atomic
from ..extras import require

WRITTEN = (".wav", ".flac")

_STEPS = 32768  # of 16-bit PCM: a value k is k / 32768, so that reading and writing again changes nothing
_BLOCK = 1 << 20  # frames decoded at a time: a header that lies about the length cannot claim memory
_UNKNOWN = 0x7FFFF000  # a data chunk said to be as long is one of unknown length, from a program that streamed
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_CROSSINGS = 64  # zero crossings of the resampling filter on each side: flat up to 0.94 of the Nyquist frequency
_ATTENUATION = 96.0  # dB, of its stop band
_BETA = 0.1102 * (_ATTENUATION - 8.7)  # Kaiser's shape parameter for it


class AudioError(ValueError):
    """A sound that cannot be used; the message names the file and the reason, which is also in ``reason``."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, eq=False)
class Waveform:
    """A sound and what is known of it.

    Attributes:
        samples: ``(channels, n)`` float32, full scale at -1 and 1.
        rate: samples a second.
        name: of the file, or "".
        values: what is known or was asked of it: labels ("label", "voice"), "text", numbers ("pitch").

    Raises:
        ValueError: samples that are not two-dimensional, or a rate below one.
    """

    samples: np.ndarray
    rate: int
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", np.asarray(self.samples, dtype=np.float32))
        if self.samples.ndim != 2:
            raise ValueError(f"a waveform's samples are (channels, n), not of shape {self.samples.shape}")
        if self.rate < 1:
            raise ValueError(f"a waveform has a rate of at least one sample a second, not {self.rate}")

    def __repr__(self) -> str:
        return f"Waveform({self.name!r}, {self.seconds:.3f} s, {self.rate} Hz, channels={self.channels})"

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.samples.shape[0]

    @property
    def seconds(self) -> float:
        """The length."""
        return self.samples.shape[1] / self.rate


def read(file: str | os.PathLike[str] | bytes, name: str = "") -> Waveform:
    """Decode WAV, FLAC, OGG, MP3 and whatever else libsndfile knows. A float file may pass full scale.

    Args:
        file: a path, or the content of a file.
        name: of the waveform and in messages; by default the path's.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it is no sound, is cut short, has no samples, or holds values that are not finite.
    """
    soundfile = require("soundfile", "audio")
    if not isinstance(file, bytes):
        name = name or Path(file).name
        file = Path(file).read_bytes()
    name = name or "a sound"
    if not file:
        raise AudioError(name, "the file is empty")
    try:
        sound = soundfile.SoundFile(io.BytesIO(file))
    except RuntimeError as error:
        raise AudioError(name, f"not a sound that can be read ({_told(error)})") from error
    with sound:
        rate, said = sound.samplerate, _frames_said(sound)
        blocks = [np.zeros((0, sound.channels), np.float32)]
        try:
            while len(block := sound.read(_BLOCK, "float32", always_2d=True)):
                blocks.append(block)
        except RuntimeError as error:
            raise AudioError(name, f"damaged or cut short ({_told(error)})") from error
    samples = np.ascontiguousarray(np.concatenate(blocks).T)
    if samples.shape[1] < said:
        raise AudioError(name, f"cut short: {samples.shape[1]:,} of {said:,} samples")
    if samples.shape[1] == 0:
        raise AudioError(name, "no samples")
    if not np.isfinite(samples).all():
        raise AudioError(name, "samples that are not finite")
    return Waveform(samples, rate, name)


def write(wave: Waveform, path: str | os.PathLike[str]) -> int:
    """Write 16-bit ``.wav`` or ``.flac``, whole or not at all; what was read from 16 bits is written bit for bit.

    Returns:
        How many samples were beyond full scale and were limited to it.

    Raises:
        ValueError: a file of another kind.
        AudioError: no samples, samples that are not finite, or more channels than the format has.
        CannotWrite: a full disk, no permission.
    """
    soundfile = require("soundfile", "audio")
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in WRITTEN:
        raise ValueError(f"{path.name}: sounds are written as {' or '.join(WRITTEN)}, not {kind or 'without a suffix'}")
    if not wave.samples.size:
        raise AudioError(path.name, "no samples to write")
    if not np.isfinite(wave.samples).all():
        raise AudioError(path.name, "samples to write that are not finite")
    steps = np.rint(wave.samples.astype(np.float64) * _STEPS).clip(-_STEPS, _STEPS - 1).astype(np.int16)
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, steps.T, wave.rate, format=kind[1:], subtype="PCM_16")
    except (RuntimeError, ValueError) as error:
        raise AudioError(path.name, f"cannot be written ({_told(error)})") from error
    atomic.write(path, buffer.getvalue())
    return int((np.abs(wave.samples) > 1).sum())


def resample(samples: np.ndarray, source: int, target: int) -> np.ndarray:
    """``(..., n)`` at one rate to ``(..., round(n target / source))`` float32 at another, by a Kaiser-windowed sinc.

    Any two rates: 44,101 to 8,000 Hz is no special case. What lies above the lower rate's Nyquist frequency is removed.
    """
    if source < 1 or target < 1:
        raise ValueError(f"rates are at least one sample a second, not {source} and {target}")
    samples = np.asarray(samples, np.float32)
    if source == target or samples.shape[-1] == 0:
        return samples
    from scipy.signal import resample_poly

    step = math.gcd(source, target)
    up, down = target // step, source // step
    length = round(samples.shape[-1] * target / source)
    out: np.ndarray = resample_poly(samples, up, down, axis=-1, window=_filter(max(up, down)))
    return np.ascontiguousarray(out[..., :length], np.float32)


def with_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """``(1 or 2, n)`` to ``(channels, n)``: mono is the mean of stereo, stereo twice the mono.

    Raises:
        ValueError: other than one or two channels, given or asked for.
    """
    if channels not in (1, 2) or samples.shape[0] not in (1, 2):
        raise ValueError(f"one or two channels, not {samples.shape[0]} to {channels}")
    if samples.shape[0] == channels:
        return samples
    return samples.mean(0, keepdims=True) if channels == 1 else samples.repeat(2, 0)


@lru_cache(maxsize=8)
def _filter(factor: int) -> np.ndarray:
    """A low-pass of ``1 / factor`` of the Nyquist frequency, whose transition band ends there; float32."""
    from scipy.signal import firwin

    half = _CROSSINGS * factor
    # Kaiser's width of the transition, in units of the Nyquist frequency: the pass band gives way, not the stop band.
    width = (_ATTENUATION - 7.95) / (2.285 * 2 * half) / math.pi
    return firwin(2 * half + 1, 1 / factor - width / 2, window=("kaiser", _BETA)).astype(np.float32)


def _frames_said(sound: Any) -> int:
    """How many frames the header of an open file promises at least."""
    if sound.format == "WAV":  # libsndfile corrects the count of a WAV that was cut, and says so in its log
        told = re.search(r"^data : (\d+) \(should be \d+\)", sound.extra_info, re.MULTILINE)
        width = _BYTES.get(sound.subtype)
        if told is None or width is None or int(told[1]) >= _UNKNOWN:
            return 0
        return int(told[1]) // (width * sound.channels)
    if sound.format == "MP3":  # the count is of whole frames, and not exact in every file
        return sound.frames - 2 * 1152
    return sound.frames


def _told(error: Exception) -> str:
    """What libsndfile said, without the name of the buffer that it was given."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".") or "no reason given"
