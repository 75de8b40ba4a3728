"""What a source of sounds gave, as one table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..account import Row, grouped, histogram, reason_rows, table, value_rows
from ..splits import Columns
from .prepare import TARGETS, Preparation


@dataclass(frozen=True, eq=False, repr=False)
class AudioReport:
    """What was kept of a source, and what was dropped and why; ``str`` of it is a table.

    Attributes:
        preparation: what was done.
        seconds: ``(clips,)``: the lengths after it.
        before: by "rate", "channels", "peak" and "rms" (dB), "limited": of each clip, how it was.
        values: the columns of values of the clips.
        dropped: (reason, name) of each clip left out; what follows a ":" or "(" in a reason is of that clip alone.
        notes: likewise of clips that were kept.
    """

    preparation: Preparation
    seconds: np.ndarray
    before: Mapping[str, Sequence[Any]]
    values: Columns
    dropped: Sequence[tuple[str, str]] = ()
    notes: Sequence[tuple[str, str]] = ()

    @property
    def kept(self) -> int:
        """How many clips there are."""
        return len(self.seconds)

    @property
    def hours(self) -> float:
        """How long they are in all."""
        return float(self.seconds.sum()) / 3600

    def reasons(self) -> dict[str, list[str]]:
        """The names of the clips dropped, by reason."""
        return grouped(self.dropped)

    def __str__(self) -> str:
        p = self.preparation
        target = TARGETS[p.level] if p.target is None else p.target
        level = (
            "level as it was"
            if p.level == "none"
            else f"{p.level} {target:g} {'LUFS' if p.level == 'loudness' else 'dB'}"
        )
        made = f"as {p.rate:,} Hz {_channels(p.channels)}, {level}"
        amount = f"{self.hours:.2f} hours" if self.hours >= 0.1 else f"{self.seconds.sum():.1f} s"
        rows = [("clips kept", f"{self.kept:,}", f"{amount} {made}")]
        if self.kept:
            rows += self._sound_rows() + value_rows(self.values)
        limited = sum(self.before["limited"])
        if limited:
            rows.append(("note: below the target level", f"{limited:,}", "else the peak would pass full scale"))
        return table(rows + reason_rows("note", self.notes) + reason_rows("dropped", self.dropped))

    def _sound_rows(self) -> list[Row]:
        rates, channels = Counter(self.before["rate"]), Counter(self.before["channels"])
        rows = [("rate before", f"{count:,}", f"{rate:,} Hz") for rate, count in rates.most_common()]
        rows += [("channels before", f"{count:,}", _channels(number)) for number, count in channels.most_common()]
        for name in ("peak", "rms"):
            low, middle, high = np.quantile(self.before[name], (0, 0.5, 1))
            rows.append((f"{name} before", "", f"{low:.1f} to {high:.1f} dB, median {middle:.1f}"))
        low, middle, high = np.quantile(self.seconds, (0, 0.5, 1))
        rows.append(("length", "", f"{low:.2f} to {high:.2f} s, median {middle:.2f}"))
        return rows + histogram(self.seconds)


def _channels(number: int) -> str:
    return {1: "mono", 2: "stereo"}.get(number, f"{number} channels")
