"""Clips to score, from anyone's folder, tar or table, and what each measures by itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import TABLE, listed
from ..splits import split_clips
from .files import COLUMNS
from .levels import decibels, loudness, rms
from .pitch import hz_of_midi, pitch
from .sources import find_clips
from .spectral import Timbre, is_clipped, is_silent, timbre
from .waveform import AudioError, Waveform, read

BLOCK = 0.4  # s, of ITU-R BS.1770: a shorter clip has no loudness

_ELSEWHERE = ("not in the metadata", "listed twice")  # files that are no item
_PITCH_HZ, _PITCH_MIDI = ("pitch_hz", "f0_hz"), ("pitch", "midi")
_DURATION = ("duration",)


@dataclass
class Scores:
    """What one clip measures; all but ``failure`` as far as it could be measured.

    Attributes:
        failure: why there is nothing to measure, or "".
        seconds: its length; ``asked_seconds``: what was asked.
        level: root mean square in dBFS; ``lufs``: its loudness, where it is long enough.
        clipped, silent, timbre: see :mod:`.spectral`.
        pitch: in Hz; ``asked_pitch``: what was asked. Only where one was asked.
        heard: the class that a classifier hears, by label name; ``asked``: the class that was asked.
        nearest: its distance to the nearest training clip.
    """

    failure: str = ""
    seconds: float = 0.0
    asked_seconds: float | None = None
    level: float = -np.inf
    lufs: float | None = None
    clipped: bool = False
    silent: bool = False
    timbre: Timbre | None = None
    pitch: float | None = None
    asked_pitch: float | None = None
    heard: dict[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    nearest: float | None = None


def load(source: Path | str, split: str = "all") -> list[Waveform | None]:
    """The clips of a folder, a tar, a table, or a named data set, with their labels; None for each that is unreadable.

    Labels come from the ``samples.csv`` that our own ``save`` writes, else as for training: from ``metadata.csv`` or
    ``.jsonl``, files beside the sound, or its folder's name. Each unreadable file is named in a warning.

    Args:
        split: "train", "valid" or "test", as training divides the source; or "all".

    Raises:
        FileNotFoundError, ValueError: see :func:`.sources.find_clips`.
    """
    path = Path(source).expanduser()
    table = path / TABLE if path.is_dir() else path
    if table.name == TABLE and table.is_file():
        return _own(table)
    listing = find_clips(source)
    clips = listing.clips if split == "all" else split_clips(listing.clips, listing.valid_fraction)[split]
    found = [_read(clip.place.read(), clip.name, clip.values) for clip in clips]
    lost = [(reason, name) for reason, name in listing.dropped if reason not in _ELSEWHERE]
    for reason, name in lost if split == "all" else ():
        _warn(f"{name}: {reason}")
        found.append(None)
    return found


def score(clips: Sequence[Waveform | None], tracker: str = "yin") -> list[Scores]:
    """Measure each clip by itself."""
    return [_score(clip, tracker) for clip in clips]


def word(value: Any) -> str:
    """A class as its name: 7, 7.0 and "7" are one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def failure(wave: Waveform | None) -> str:
    """Why there is nothing to measure, or ""."""
    if wave is None:
        return "unreadable"
    if not wave.samples.size:
        return "no samples"
    return "" if np.isfinite(wave.samples).all() else "not finite"


def _score(wave: Waveform | None, tracker: str) -> Scores:
    base = Scores(failure(wave))
    if wave is None:
        return base
    base.asked = {name: word(value) for name, value in wave.values.items()}
    base.asked_pitch, base.asked_seconds = _asked_pitch(wave), _number(wave, _DURATION)
    if base.failure:
        return base
    return replace(
        base,
        seconds=wave.seconds,
        level=decibels(rms(wave.samples)),
        lufs=loudness(wave.samples, wave.rate) if wave.seconds >= BLOCK else None,
        clipped=is_clipped(wave.samples),
        silent=is_silent(wave.samples, wave.rate),
        timbre=timbre(wave.samples, wave.rate),
        pitch=None if base.asked_pitch is None else pitch(wave.samples, wave.rate, tracker),
    )


def _asked_pitch(wave: Waveform) -> float | None:
    """In Hz: "pitch" and "midi" are numbers of MIDI keys, "pitch_hz" and "f0_hz" are Hz."""
    if (hz := _number(wave, _PITCH_HZ)) is not None:
        return hz if hz > 0 else None
    return None if (key := _number(wave, _PITCH_MIDI)) is None else hz_of_midi(key)


def _number(wave: Waveform, names: Sequence[str]) -> float | None:
    """The first of these values that is a finite number."""
    for name in names:
        try:
            value = float(wave.values.get(name, np.nan))
        except (TypeError, ValueError):
            continue
        if np.isfinite(value):
            return value
    return None


def _own(table: Path) -> list[Waveform | None]:
    """The sounds of our own table, in its order, each with what was asked of it."""
    found: list[Waveform | None] = []
    for name, values in listed(table, COLUMNS):
        try:
            found.append(_read((table.parent / name).read_bytes(), name, values) if name else None)
        except OSError as error:
            _warn(f"{name}: {error.strerror}")
            found.append(None)
    return found


def _warn(text: str) -> None:
    warnings.warn(f"not a clip: {text}", stacklevel=3)


def _read(content: bytes, name: str, values: Any) -> Waveform | None:
    try:
        wave = read(content, name)
    except AudioError as error:
        _warn(str(error))
        return None
    return Waveform(wave.samples, wave.rate, name, dict(values))
