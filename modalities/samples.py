"""Folders of samples that people open: how files are called, the table that lists them, what an earlier run left."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic import remove

TABLE = "samples.csv"


def described(values: Mapping[str, Any] | None, name: str, kind: str) -> dict[str, Any]:
    """What a sample is called, from what was asked of it: its ``title``, which values that ``said``, its ``values``.

    Args:
        values: what was asked; None for a sample that failed.
        name: of the file it is from, or "".
        kind: its title where nothing else is known.
    """
    plain = {str(key): _plain(value) for key, value in (values or {}).items()}
    plain = {key: value for key, value in plain.items() if value is not None and value != ""}
    said = [key for key in ("label", "text") if key in plain][:1]
    title = str(plain[said[0]]) if said else Path(name).stem
    return {"title": title or ("failed" if values is None else kind), "said": said, "values": plain}


def file_stem(index: int, count: int, title: str) -> str:
    """``007-title``: the number of a sample out of ``count``, and at most 40 letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-")
    return f"{index:0{max(3, len(str(count - 1)))}d}" + (f"-{words}" if words else "")


def caption(card: Mapping[str, Any], measure: str) -> str:
    """A line for a picture: the title and the other words that were asked, or why the sample failed."""
    if "failure" in card:
        return f"#{card['index']}  {card['failure']}"
    others = [value for key, value in card["values"].items() if isinstance(value, str) and key not in card["said"]]
    return "  ".join([card["title"], *others, measure])


def table(cards: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The CSV; a value whose name is a column's own is called ``asked_`` and its name."""
    rows = [
        {key: card[key] for key in columns if key in card}
        | {f"asked_{key}" if key in columns else key: value for key, value in card["values"].items()}
        for card in cards
    ]
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def listed(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of such a table: the file beside it, "" of a sample that failed, and what was asked."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {k.removeprefix("asked_"): v for k, v in row.items() if k not in columns and v not in (None, "")}
            yield Path(row.get("file") or "").name, values


def remove_earlier(directory: Path, suffixes: Sequence[str]) -> None:
    """Remove the files that an earlier table lists, and those of their names with other ``suffixes``, so that nobody
    takes them for this run's. Only names that :func:`file_stem` gives are removed."""
    own = re.compile(rf"\d{{3,}}(-[\w-]+)?({'|'.join(map(re.escape, suffixes))})", re.ASCII)
    try:
        names = [name for name, _ in listed(directory / TABLE, ())]
    except (OSError, ValueError, csv.Error):
        return
    for name in filter(own.fullmatch, names):
        for suffix in suffixes:
            remove((directory / name).with_suffix(suffix))


def _plain(value: Any) -> str | float | int | bool | None:
    """A value that JSON has: NumPy's numbers as Python's, NaN as None, anything else as text."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
