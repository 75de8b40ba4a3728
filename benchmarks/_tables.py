"""What the benchmarks share: tables for people, and figures for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noiseloom.modalities.report import Row, number


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers get three significant digits, what is missing a dash."""
    cells = [[one if isinstance(one, str) else number(one) for one in row] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """The figures as JSON, where a file is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def plain_rows(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Rows of a report for JSON, by name."""
    return {
        row.name: {"value": row.value, "real": row.real, "error": row.error, "n": row.n, "protocol": row.protocol}
        for row in rows
    }
