"""What a source of videos gave, as one table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..account import Row, grouped, histogram, reason_rows, table, value_rows
from ..splits import Columns
from .prepare import Preparation

_MOST = 6  # sizes, rates or containers shown with a line each


@dataclass(frozen=True, eq=False, repr=False)
class VideoReport:
    """What was kept of a source, and what was dropped and why; ``str`` of it is a table.

    Attributes:
        preparation: what was done.
        frames: ``(clips,)``: how many each clip has after it.
        seconds: ``(clips,)``: the lengths after it.
        shapes: ``(windows, 3)``: frames, height and width of each window.
        before: by "frames", "fps", "height", "width", "rotation", "audio" and "container": of each clip, how it was.
        values: the columns of values of the clips.
        dropped: (reason, name) of each clip left out; what follows a ":" or "(" in a reason is of that clip alone.
        notes: likewise of clips that were kept.
    """

    preparation: Preparation
    frames: np.ndarray
    seconds: np.ndarray
    shapes: np.ndarray
    before: Mapping[str, Sequence[Any]]
    values: Columns
    dropped: Sequence[tuple[str, str]] = ()
    notes: Sequence[tuple[str, str]] = ()

    @property
    def kept(self) -> int:
        """How many clips there are."""
        return len(self.frames)

    def reasons(self) -> dict[str, list[str]]:
        """The names of the clips dropped, by reason."""
        return grouped(self.dropped)

    def __str__(self) -> str:
        p, images = self.preparation, int((self.frames == 1).sum())
        total = self.seconds[self.frames > 1].sum()
        amount = f"{total / 60:.1f} minutes" if total >= 60 else f"{total:.1f} s"
        made = f"{'grey' if p.channels == 1 else 'RGB'}, {f'{p.fps:g} fps' if p.fps else 'rate as it was'}"
        rows: list[Row] = [("clips kept", f"{self.kept:,}", f"{amount}, {self.frames.sum():,} frames; {made}")]
        if images:
            rows.append(("images among them", f"{images:,}", "clips of one frame"))
        if self.kept:
            rows += self._window_rows() + self._before_rows() + value_rows(self.values)
        return table(rows + reason_rows("note", self.notes) + reason_rows("dropped", self.dropped))

    def _window_rows(self) -> list[Row]:
        """A row for each shape of windows: how many, and of how many pixels in time and space."""
        factor = self.preparation.factor
        told = f"{factor}k + 1 frames, " if factor > 1 else ""
        shapes = Counter(map(tuple, self.shapes.tolist()))
        rows = [
            (f"windows of {t} x {h} x {w}", f"{count:,}", f"{told}{t * h * w:,} pixels each")
            for (t, h, w), count in sorted(shapes.items())
        ]
        extra = int(self.shapes[:, 0].sum() - self.frames.sum())
        return rows + ([("frames in two windows", f"{extra:,}", "")] if extra > 0 else [])

    def _before_rows(self) -> list[Row]:
        b = self.before
        sizes = [f"{height} x {width}" for height, width in zip(b["height"], b["width"], strict=True)]
        rows = _counted("height x width before", sizes)
        rates = [f"{fps:.4g} fps" for fps, frames in zip(b["fps"], b["frames"], strict=True) if frames > 1]
        rows += _counted("rate before", rates)
        rows += _counted("file", b["container"])
        rows += _counted("rotated, as the file says", [f"by {turn} degrees" for turn in b["rotation"] if turn])
        rows.append(("with sound", f"{sum(b['audio']):,}", "which is not used" if any(b["audio"]) else ""))
        low, middle, high = np.quantile(b["frames"], (0, 0.5, 1))
        rows.append(("frames before", "", f"{low:g} to {high:g}, median {middle:g}"))
        low, middle, high = np.quantile(self.frames, (0, 0.5, 1))
        rows.append(("frames", "", f"{low:g} to {high:g}, median {middle:g}"))
        moving = self.seconds[self.frames > 1]
        return rows + ([("length", "", ""), *histogram(moving)] if len(moving) else [])


def _counted(title: str, values: Sequence[Hashable]) -> list[Row]:
    counts = Counter(values)
    rows = [(title, f"{count:,}", str(value)) for value, count in counts.most_common(_MOST)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MOST))
    return rows + ([(title, f"{rest:,}", f"{len(counts) - _MOST} others")] if rest else [])
