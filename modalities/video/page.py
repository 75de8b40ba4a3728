"""The page that plays clips: every one in a loop with what was asked of it, the scores, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..page import fill, links, score_table, script_data, tile
from ..report import Report

TEMPLATE = Path(__file__).parent / "assets" / "page.html"
TILES = 6  # headline figures: the first rows of a report that have a value


def page(title: str, cards: Sequence[Mapping[str, Any]], report: Report | None, files: Sequence[str]) -> str:
    """The HTML text.

    Args:
        title: the heading.
        cards: one for each sample: ``index``, ``seed``, ``title``, ``values`` by name, ``said`` (names of those the
            title says), and either ``file``, ``sheet`` and ``preview`` (pictures of it), ``frames``, ``fps``,
            ``height``, ``width``, ``seconds``, or ``failure``.
        report: for the figures and the table; None: neither is shown.
        files: names of other files beside the page.
    """
    clips = [card for card in cards if "file" in card]
    rows = [] if report is None else [row for row in report.rows if row.value is not None]
    parts = {
        "title": escape(title),
        "summary": escape(_summary(clips, len(cards) - len(clips))),
        "tiles": "".join(tile(row, row.name.replace("_", " ")) for row in rows[:TILES]),
        "table": "" if report is None or not cards else score_table(report),
        "files": links(files),
        "clips": " ".join(f'<a href="{escape(card["file"])}">{escape(card["file"])}</a>' for card in clips),
        "data": script_data(cards),
    }
    return fill(TEMPLATE, parts)


def _summary(clips: Sequence[Mapping[str, Any]], failed: int) -> str:
    if not clips and not failed:
        return "no clips"
    parts = [f"{len(clips):,} clips"]
    for values, unit in (
        ({card["frames"] for card in clips}, "frames"),
        ({f"{card['width']} × {card['height']}" for card in clips}, "pixels"),
        ({card["fps"] for card in clips}, "fps"),
    ):
        if values and isinstance(least := min(values), str):
            parts.append(f"{least} {unit}" if len(values) == 1 else f"{len(values)} sizes")
        elif values:
            parts.append(f"{least:g} {unit}" if len(values) == 1 else f"{least:g} to {max(values):g} {unit}")
    return " · ".join([*parts, *([f"{failed:,} failed"] if failed else [])])
