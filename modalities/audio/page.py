"""The page that plays sounds: every clip with its spectrogram and what was asked of it, the scores, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..page import fill, links, score_table, script_data, tile
from ..report import Report
from .spectrogram import BACKGROUND, HEIGHT, LEFT, PLOTS, RIGHT, WIDTH

TEMPLATE = Path(__file__).parent / "assets" / "page.html"
TILES = 6  # headline figures: the first rows of a report that have a value


def page(title: str, cards: Sequence[Mapping[str, Any]], report: Report | None, files: Sequence[str]) -> str:
    """The HTML text.

    Args:
        title: the heading.
        cards: one for each sample: ``index``, ``seed``, ``title``, ``values`` by name, ``said`` (names of those the
            title says), and either ``file``, ``picture``, ``seconds``, ``rate``, ``clipped`` (samples limited to full
            scale), or ``failure``.
        report: for the figures and the table; None: neither is shown.
        files: names of other files beside the page.
    """
    sounds = [card for card in cards if "file" in card]
    rows = [] if report is None else [row for row in report.rows if row.value is not None]
    parts = {
        "title": escape(title),
        "summary": escape(_summary(sounds, len(cards) - len(sounds))),
        "tiles": "".join(tile(row, row.name.replace("_", " ")) for row in rows[:TILES]),
        "table": "" if report is None or not cards else score_table(report),
        "files": links(files),
        "sounds": " ".join(f'<a href="{escape(card["file"])}">{escape(card["file"])}</a>' for card in sounds),
        "back": "#" + bytes(BACKGROUND).hex(),
        "aspect": f"{WIDTH} / {HEIGHT}",
        "top": f"{100 * PLOTS[0] / HEIGHT:.2f}",
        "bottom": f"{100 - 100 * PLOTS[1] / HEIGHT:.2f}",
        "data": script_data({"left": LEFT / WIDTH, "right": RIGHT / WIDTH, "cards": cards}),
    }
    return fill(TEMPLATE, parts)


def _summary(sounds: Sequence[Mapping[str, Any]], failed: int) -> str:
    if not sounds and not failed:
        return "no sounds"
    seconds = sum(card["seconds"] for card in sounds)
    rates = sorted({card["rate"] for card in sounds})
    parts = [f"{len(sounds):,} sounds", f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"]
    parts += [" and ".join(f"{rate / 1000:g}" for rate in rates) + " kHz"] if sounds else []
    return " · ".join([*parts, *([f"{failed:,} failed"] if failed else [])])
