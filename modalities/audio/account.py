"""What a source of sounds gave, as one table for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .prepare import TARGETS, Preparation

_NAMES = 3  # shown behind each reason
_CLASSES = 20  # labels shown with a line each
_BINS = 10  # about as many of lengths
_BAR = 40  # characters of the fullest bin


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
    values: Mapping[str, np.ndarray | list[str]]
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
        return _grouped(self.dropped)

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
            rows += self._sound_rows() + self._value_rows()
        limited = sum(self.before["limited"])
        if limited:
            rows.append(("note: below the target level", f"{limited:,}", "else the peak would pass full scale"))
        rows += _reason_rows("note", self.notes) + _reason_rows("dropped", self.dropped)
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)

    def _sound_rows(self) -> list[tuple[str, str, str]]:
        rates, channels = Counter(self.before["rate"]), Counter(self.before["channels"])
        rows = [("rate before", f"{count:,}", f"{rate:,} Hz") for rate, count in rates.most_common()]
        rows += [("channels before", f"{count:,}", _channels(number)) for number, count in channels.most_common()]
        for name in ("peak", "rms"):
            low, middle, high = np.quantile(self.before[name], (0, 0.5, 1))
            rows.append((f"{name} before", "", f"{low:.1f} to {high:.1f} dB, median {middle:.1f}"))
        low, middle, high = np.quantile(self.seconds, (0, 0.5, 1))
        rows.append(("length", "", f"{low:.2f} to {high:.2f} s, median {middle:.2f}"))
        return rows + histogram(self.seconds)

    def _value_rows(self) -> list[tuple[str, str, str]]:
        rows = []
        for name, column in self.values.items():
            if not isinstance(column, list):
                known = column[~np.isnan(column)]
                if len(known):
                    low, middle, high = np.quantile(known, (0, 0.5, 1))
                    rows.append((name, f"{len(known):,}", f"{low:g} to {high:g}, median {middle:g}"))
                continue
            counts = Counter(word for word in column if word)
            unknown = len(column) - counts.total()
            if name == "label" and len(counts) <= _CLASSES:
                rows += [(f"{name} {word}", f"{count:,}", "") for word, count in sorted(counts.items())]
            elif counts:
                shown = ", ".join(f"{_short(word)} {count:,}" for word, count in counts.most_common(6))
                rows.append(
                    (name, f"{counts.total():,}", f"{len(counts):,} different: {shown}" + ", ..." * (len(counts) > 6))
                )
            if counts and unknown:
                rows.append((f"{name} not known", f"{unknown:,}", ""))
        return rows


def histogram(seconds: np.ndarray) -> list[tuple[str, str, str]]:
    """Rows of a histogram in round steps; what is beyond the 99th percentile joins its last bin."""
    low, high = float(seconds.min()), float(np.quantile(seconds, 0.99))
    rough = max((high - low) / _BINS, 0.01)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    places = np.floor(seconds / step + 1e-9).astype(int)
    first, last = int(places.min()), int(np.floor(high / step + 1e-9))
    counts = np.bincount(np.minimum(places, last) - first, minlength=last - first + 1)
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    rows = []
    for place, count in enumerate(counts, first):
        end = "" if place == last and places.max() > last else f"{(place + 1) * step:.{digits}f}"
        bar = "#" * math.ceil(_BAR * count / counts.max())
        rows.append((f"  {place * step:.{digits}f} - {end or 'more'} s", f"{count:,}", bar))
    return rows


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(_kind(reason), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def _reason_rows(title: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """A row for each reason: how often, the first names, and what is told of each alone."""
    rows = []
    for kind, names in _grouped(pairs).items():
        details = [reason.removeprefix(kind).strip(" :()") for reason, _ in pairs if _kind(reason) == kind]
        shown = [f"{name} ({detail})" if detail else name for name, detail in zip(names[:_NAMES], details)]
        rows.append((f"{title}: {kind}", f"{len(names):,}", ", ".join(shown) + ", ..." * (len(names) > _NAMES)))
    return rows


def _kind(reason: str) -> str:
    return reason.partition(":")[0].partition(" (")[0]


def _short(word: str) -> str:
    return word if len(word) <= 24 else f"{word[:23]}…"


def _channels(number: int) -> str:
    return {1: "mono", 2: "stereo"}.get(number, f"{number} channels")
