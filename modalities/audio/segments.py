"""The clips that components train on, of several sources together, and short random pieces of them."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, repeat
from typing import Any

import torch
from torch import Generator, Tensor

from .data import open_audio
from .prepare import Preparation
from .waveform import Waveform

_QUIETEST = 0.03  # of the random levels of training segments (-30 dB)
_HELD_OUT = 0.5  # the level of held-out ones


class Clips:
    """The clips of several sources, one after another, all of one rate, number of channels and peak.

    Args:
        rate: samples a second.
        channels: 1 or 2.
        sources: names or paths.
        split: "train", "valid" or "test".
        options: of reading: the fields of ``Preparation`` and the options of ``data.open_audio``.
    """

    def __init__(self, rate: int, channels: int, sources: Sequence[str], split: str, **options: Any) -> None:
        names = {field.name for field in fields(Preparation)}
        told: dict[str, Any] = {"rate": rate, "channels": channels, "level": "peak"}
        preparation = Preparation(**told | {key: value for key, value in options.items() if key in names})
        rest = {key: value for key, value in options.items() if key not in names}
        self.sets = [open_audio(source, split, preparation=preparation, **rest) for source in sources]
        self.ends = list(accumulate(map(len, self.sets)))
        self.report = "\n\n".join(str(one.report) for one in self.sets)

    @property
    def sizes(self) -> Sequence[int] | None:
        return [size for one in self.sets for size in one.sizes]

    def labels(self, name: str) -> list[str]:
        """The distinct values of a column of words, sorted.

        Raises:
            ValueError: a source has no such column.
        """
        return sorted({value for one in self.sets for value in one.labels(name)})

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Waveform:
        which = bisect.bisect_right(self.ends, index)
        return self.sets[which][index - (self.ends[which - 1] if which else 0)]


@dataclass(frozen=True)
class Segment:
    """A clip, and how many samples of it an example takes."""

    wave: Waveform
    length: int


class Segments(Clips):
    """Clips that examples take a segment of.

    Args:
        rate, channels, sources, split, options: see ``Clips``.
        length: samples of a segment.
    """

    sizes = None

    def __init__(
        self, rate: int, channels: int, sources: Sequence[str], split: str, length: int, **options: Any
    ) -> None:
        super().__init__(rate, channels, sources, split, **options)
        self.length = length

    def __getitem__(self, index: int) -> Segment:  # type: ignore[override]
        return Segment(super().__getitem__(index), self.length)


@dataclass(frozen=True)
class AudioBatch:
    """Sounds (batch, channels, n)."""

    audio: Tensor


def segments(items: Sequence[Segment], generators: Sequence[Generator] | None) -> AudioBatch:
    """A piece of each clip: from a random place and at a random level, or (held out) the middle at a fixed one. What
    is shorter lies somewhere in silence."""
    length = items[0].length
    audio = torch.zeros(len(items), items[0].wave.channels, length)
    for row, item, generator in zip(audio, items, generators or repeat(None, len(items)), strict=True):
        place, level = 0.5, _HELD_OUT
        if generator is not None:
            place, exponent = torch.rand(2, generator=generator).tolist()
            level = _QUIETEST**exponent
        samples = item.wave.samples
        spare = samples.shape[1] - length
        start, offset = round(max(spare, 0) * place), round(max(-spare, 0) * place)
        piece = torch.from_numpy(samples[:, start : start + length] * level)
        row[:, offset : offset + piece.shape[1]] = piece
    return AudioBatch(audio)
