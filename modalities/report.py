"""A report of metrics: no number without its protocol, its count, its error and the figure of real data beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Z95 = 1.959964  # standard deviations of a two-sided 95 % interval


@dataclass(frozen=True)
class Row:
    """One metric.

    Attributes:
        name: snake_case key; underscores print as spaces.
        value: None where it could not be computed (the protocol or a note says why).
        n: how many items the value is of.
        protocol: how it was measured, in one line.
        unit: "%", a physical unit, or "".
        real: the same metric on real data; for a distance between sets, that of two sets of real data.
        error: half the width of the 95 % interval.
        better: the direction; "real" means as close to real data as possible.
    """

    name: str
    value: float | None
    n: int
    protocol: str
    unit: str = ""
    real: float | None = None
    error: float | None = None
    better: Literal["higher", "lower", "real"] = "higher"


def share(name: str, count: float, n: int, protocol: str, **options: Any) -> Row:
    """A percentage ``count / n`` with Wilson's 95 % interval, which stays open at 0 and 100 %. n = 0: no value."""
    if not n:
        return Row(name, None, 0, protocol, unit="%", **options)
    p = count / n
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + (Z95 / (2 * n)) ** 2)
    return Row(name, 100 * p, n, protocol, unit="%", **{"error": 100 * half, **options})


def mean_row(name: str, values: Sequence[float], protocol: str, unit: str = "", **options: Any) -> Row:
    """The mean with its 95 % interval; by default it should be that of real data. No values: no value."""
    if not len(values):
        return Row(name, None, 0, protocol, unit, **{"better": "real", **options})
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    error = Z95 * math.sqrt(variance / len(values))
    return Row(name, mean, len(values), protocol, unit, **{"error": error, "better": "real", **options})


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        title: what was scored.
        rows: the metrics, in the order in which they are printed.
        failed: how many items failed, by reason; each is counted in the rows' n, never left out.
        notes: what a reader must know: what was skipped or assumed.
        real: what the real data of the rows is.
        items: one entry for each item scored, in its order; for the modality's own ``save``, not for JSON.
    """

    title: str
    rows: Sequence[Row]
    failed: dict[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    real: str = ""
    items: Sequence[Any] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> Row:
        """The row of this name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no metric {name!r}. Metrics: {', '.join(row.name for row in self.rows)}")

    def values(self) -> dict[str, float]:
        """The values that exist, by name: what trackers take."""
        return {row.name: row.value for row in self.rows if row.value is not None}

    def to_json(self) -> str:
        """Everything but ``items``, as JSON text without NaN."""
        content = {
            "title": self.title,
            "real": self.real,
            "metrics": {row.name: {key: v for key, v in asdict(row).items() if key != "name"} for row in self.rows},
            "failed": self.failed,
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def cells(self) -> list[tuple[str, str, str, str, str]]:
        """The table as text: metric, value with its error, real data, n, protocol."""
        return [
            (
                row.name.replace("_", " "),
                number(row.value, row.unit, row.error),
                number(row.real, row.unit),
                f"{row.n:,}",
                row.protocol,
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        table = [("metric", "value", "real data", "n", "protocol"), *self.cells()]
        widths = [max(len(line[column]) for line in table) for column in range(4)]
        lines = [self.title, *([f"real data: {self.real}"] if self.real else []), ""]
        for name, value, real, n, protocol in table:
            columns = (name.ljust(widths[0]), value.rjust(widths[1]), real.rjust(widths[2]), n.rjust(widths[3]))
            lines.append("  ".join((*columns, protocol)).rstrip())
        if self.failed:
            lines += ["", "failed: " + ", ".join(f"{count:,} {reason}" for reason, count in self.failed.items())]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def number(value: float | None, unit: str = "", error: float | None = None) -> str:
    """A figure for people: percentages with two decimals, others with three significant digits, "-" for none."""
    if value is None:
        return "-"
    size = abs(value) if error in (None, 0) else min(abs(value), error * 10)
    digits = 2 if unit == "%" or size == 0 else min(max(2 - math.floor(math.log10(size)), 0), 6)
    text = f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"
    return f"{text} {unit}".rstrip()
