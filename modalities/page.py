"""What the pages that show samples have in common: their look, the headline figures, the table of scores, the links."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from .report import Report, Row, number

STYLE = Path(__file__).parent / "assets" / "page.css"
SCRIPT = Path(__file__).parent / "assets" / "page.js"


def fill(template: Path, parts: Mapping[str, str]) -> str:
    """The template with ``{{name}}`` replaced by HTML; ``{{style}}`` and ``{{script}}`` are what all pages share."""
    parts = {"style": STYLE.read_text(encoding="utf-8"), "script": SCRIPT.read_text(encoding="utf-8"), **parts}
    # one pass, so that nothing a part contains is taken for a place to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template.read_text(encoding="utf-8"))


def script_data(value: Any) -> str:
    """JSON that can stand in a script element.

    Raises:
        ValueError: a number that JSON cannot hold.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")


def tile(row: Row, label: str) -> str:
    """One headline figure, over that of real data."""
    value, real = (number(figure, row.unit).removesuffix(row.unit) for figure in (row.value, row.real))
    below = f"of {row.n:,}" if row.real is None else f"real data {real}"
    return (
        f"<div class=tile><span>{escape(label)}</span>"
        f"<b>{escape(value)}<small>{escape(row.unit)}</small></b><small>{escape(below)}</small></div>"
    )


def score_table(report: Report) -> str:
    """Every metric with its protocol, real data beside it; what failed; the notes."""
    lines = "".join(
        f"<tr><th scope=row>{escape(name)}<small>{escape(protocol)}</small></th>"
        f"<td>{escape(value)}</td><td>{escape(real)}</td><td>{escape(n)}</td></tr>"
        for name, value, real, n, protocol in report.cells()
    )
    failed = [f"{count:,} {reason}" for reason, count in report.failed.items()]
    remarks = ["Failed: " + ", ".join(failed)] if failed else []
    remarks += report.notes
    return (
        "<details open><summary>All scores</summary><div class=scroll><table><thead><tr><th scope=col>metric</th>"
        "<th scope=col>value ± 95 %</th><th scope=col>real data</th><th scope=col>n</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
        + "".join(f"<p class=note>{escape(remark)}</p>" for remark in remarks)
        + (f"<p class=note>Real data: {escape(report.real)}.</p>" if report.real else "")
        + "</details>"
    )


def links(names: Iterable[str]) -> str:
    """Links to files beside the page."""
    return "".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in names)
