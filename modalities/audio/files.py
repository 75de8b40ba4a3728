"""Sounds to files that people open: WAV or FLAC, a picture of each, a sheet of them, CSV, a page, the metrics as JSON.

Every file is whole or not there. A sample that failed keeps its place: a number without a file, a row in the CSV and a
card on the page that says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ..atomic import make_folder, write, write_all
from ..report import Report
from ..samples import TABLE, caption, described, file_stem, remove_earlier, table
from . import waveform
from .page import page
from .spectrogram import picture, sheet
from .waveform import AudioError, Waveform

SHOWN = 48  # sounds on the sheet
COLUMNS = ("index", "file", "seconds", "rate", "channels", "seed", "clipped", "failure")


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
    remove_earlier(directory, (*waveform.WRITTEN, ".png"))
    sounds: list[Path] = []
    pictures: list[Path] = []
    cards = []
    for index, (wave, seed) in enumerate(zip(artifacts, seeds, strict=True)):
        values, name = (None, "") if wave is None else (wave.values, wave.name)
        card = {"index": index, "seed": int(seed), **described(values, name, "sound")}
        if wave is None:
            card["failure"] = "not decoded"
        else:
            stem = file_stem(index, len(seeds), card["title"])
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
    first = [
        (wave, caption(card, f"{wave.seconds:.2f} s")) if wave and "file" in card else (None, caption(card, ""))
        for wave, card in zip(artifacts, cards, strict=True)
    ]
    contents: dict[str, Iterable[str] | bytes | None] = {
        "samples.png": sheet(*zip(*first[:SHOWN], strict=True)) if first else None,
        TABLE: [table(cards, COLUMNS)],
        "metrics.json": None if report is None else [report.to_json()],
    }
    contents["index.html"] = [page(title, cards, report, [name for name, its in contents.items() if its is not None])]
    written = write_all(directory, contents)
    return [*sounds, *written[:-1], *pictures, written[-1]]
