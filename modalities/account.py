"""What a source of clips gave, as a table for people: the rows that every modality's report has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from .splits import Columns

_NAMES = 3  # shown behind each reason
_CLASSES = 20  # labels shown with a line each
_BINS = 10  # about as many of lengths
_BAR = 40  # characters of the fullest bin

Row: TypeAlias = tuple[str, str, str]  #: what, how many, more about it


def table(rows: Sequence[Row]) -> str:
    """The rows in columns."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def value_rows(columns: Columns) -> list[Row]:
    """A row for each column of values, or for each label where they are few."""
    rows = []
    for name, column in columns.items():
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


def histogram(seconds: np.ndarray) -> list[Row]:
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


def grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The names by reason, the commonest first; what follows a ":" or " (" in a reason is of that clip alone."""
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(_kind(reason), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def reason_rows(title: str, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each reason: how often, the first names, and what is told of each alone."""
    rows = []
    for kind, names in grouped(pairs).items():
        details = [reason.removeprefix(kind).strip(" :()") for reason, _ in pairs if _kind(reason) == kind]
        shown = [f"{name} ({detail})" if detail else name for name, detail in zip(names[:_NAMES], details)]
        rows.append((f"{title}: {kind}", f"{len(names):,}", ", ".join(shown) + ", ..." * (len(names) > _NAMES)))
    return rows


def _kind(reason: str) -> str:
    return reason.partition(":")[0].partition(" (")[0]


def _short(word: str) -> str:
    return word if len(word) <= 24 else f"{word[:23]}…"
