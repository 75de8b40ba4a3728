"""Sounds to files that people open: WAV or FLAC, a picture of each, a sheet of them, CSV, a page, the metrics as JSON.

Every file is whole or not there. A sample that failed keeps its place: a number without a file, a row in the CSV and a
card on the page that says why.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..atomic import make_folder, remove, write, write_all
from ..report import Report
from . import waveform
from .page import page
from .spectrogram import picture, sheet
from .waveform import AudioError, Waveform

SHOWN = 48  # sounds on the sheet
COLUMNS = ("index", "file", "seconds", "rate", "channels", "seed", "clipped", "failure")
_OWN = re.compile(r"\d{3,}(-[\w-]+)?\.(wav|flac)", re.ASCII)  # names that save gives


def save(
    artifacts: Sequence[Waveform | None],
    directory: Path,
    *,
    seeds: Sequence[int],
    report: Report | None,
    format: Literal["wav", "flac"] = "wav",
    title: str = "Sounds",
) -> list[Path]:
    """Write ``NNN-label.wav`` and ``.png`` for each sound, ``samples.png`` (the first 48), ``samples.csv``,
    ``metrics.json`` (with a report) and ``index.html``.

    Args:
        artifacts: None for samples that failed; a sound of no samples, or with one that is not finite, fails here.
        directory: made if need be; sounds that an earlier ``samples.csv`` in it lists are removed.
        seeds: one for each.
        report: for the page's table and ``metrics.json``.
        format: of the sounds.
        title: the page's heading.

    Returns:
        The paths written: the sheet is the first PNG, the page the last path.

    Raises:
        ValueError: not one seed for each sound, or another format.
        CannotWrite: a full disk, no permission, a file in the folder's place.
    """
    if len(seeds) != len(artifacts):
        raise ValueError(f"{len(seeds)} seeds for {len(artifacts)} sounds")
    if f".{format}" not in waveform.WRITTEN:
        raise ValueError(f"sounds are written as wav or flac, not {format!r}")
    make_folder(directory)
    _remove_earlier(directory)
    sounds: list[Path] = []
    pictures: list[Path] = []
    cards = []
    for index, (wave, seed) in enumerate(zip(artifacts, seeds, strict=True)):
        card = {"index": index, "seed": int(seed), **_described(wave)}
        if wave is None:
            card["failure"] = "not decoded"
        else:
            stem = f"{index:0{max(3, len(str(len(seeds) - 1)))}d}{_slug(card['title'])}"
            path = directory / f"{stem}.{format}"
            try:
                card["clipped"] = waveform.write(wave, path)
            except AudioError as error:
                card["failure"] = error.reason
            else:
                sounds.append(path)
                pictures.append(write(directory / f"{stem}.png", picture(wave)))
                card |= {"file": path.name, "picture": pictures[-1].name, "seconds": round(wave.seconds, 6)}
                card |= {"rate": wave.rate, "channels": wave.channels}
        cards.append(card)
    first = [(wave if "file" in card else None, _caption(card)) for wave, card in zip(artifacts, cards, strict=True)]
    contents: dict[str, Iterable[str] | bytes | None] = {
        "samples.png": sheet(*zip(*first[:SHOWN], strict=True)) if first else None,
        "samples.csv": [_table(cards)],
        "metrics.json": None if report is None else [report.to_json()],
    }
    contents["index.html"] = [page(title, cards, report, [name for name, its in contents.items() if its is not None])]
    written = write_all(directory, contents)
    return [*sounds, *written[:-1], *pictures, written[-1]]


def _described(wave: Waveform | None) -> dict[str, Any]:
    """What a sound is called, from what was asked of it; its values as plain ones."""
    values = {} if wave is None else {str(key): _plain(value) for key, value in wave.values.items()}
    values = {key: value for key, value in values.items() if value is not None and value != ""}
    said = [key for key in ("label", "text") if key in values][:1]
    name = str(values[said[0]]) if said else "" if wave is None else Path(wave.name).stem
    return {"title": name or ("failed" if wave is None else "sound"), "said": said, "values": values}


def _plain(value: Any) -> str | float | int | bool | None:
    """A value that JSON has: NumPy's numbers as Python's, NaN as None, anything else as text."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


def _slug(text: str) -> str:
    """``-text`` of letters, digits and hyphens, at most 40, for a file's name; "" where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-")
    return f"-{words}" if words else ""


def _caption(card: Mapping[str, Any]) -> str:
    if "failure" in card:
        return f"#{card['index']}  {card['failure']}"
    others = [value for key, value in card["values"].items() if isinstance(value, str) and key not in card["said"]]
    return "  ".join([card["title"], *others, f"{card['seconds']:.2f} s"])


def _table(cards: Sequence[Mapping[str, Any]]) -> str:
    """The CSV; a value whose name is a column's own is called ``asked_`` and its name."""
    rows = [
        {key: card[key] for key in COLUMNS if key in card}
        | {f"asked_{key}" if key in COLUMNS else key: value for key, value in card["values"].items()}
        for card in cards
    ]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)])), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _remove_earlier(directory: Path) -> None:
    """Remove the sounds and pictures of an earlier run, so that nobody takes them for this one's."""
    try:
        with (directory / "samples.csv").open(newline="", encoding="utf-8") as file:
            names = [row.get("file") or "" for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return
    for name in filter(_OWN.fullmatch, names):
        remove(directory / name)
        remove((directory / name).with_suffix(".png"))
