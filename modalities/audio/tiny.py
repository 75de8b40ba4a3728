"""The bundled notes: a part of ``notes``, file by file as it is there."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

from ..extras import data_folder

NOTES_TINY = Path(__file__).parent / "assets" / "notes-tiny.tar"
INSTRUMENTS = ("piano", "guitar", "vibraphone", "flute")
KEYS = range(55, 73)  # MIDI
VELOCITY = "60"


def make_notes_tiny(archive: Path | None = None, out: Path = NOTES_TINY) -> None:
    """Write the bundled tar, the same bytes each time.

    Args:
        archive: notes.tar; by default that of ``data_folder()``.
    """
    with (
        tarfile.open(archive or data_folder() / "notes.tar") as notes,
        tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as to,
    ):

        def content(name: str) -> bytes:
            member = notes.extractfile(f"notes/{name}")
            assert member is not None
            return member.read()

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(f"notes-tiny/{name}")
            info.size = len(data)
            to.addfile(info, io.BytesIO(data))

        rows = list(csv.DictReader(io.StringIO(content("metadata.csv").decode())))
        kept = [
            row
            for row in rows
            if row["label"] in INSTRUMENTS and row["velocity"] == VELOCITY and int(row["midi"]) in KEYS
        ]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        add("README.txt", content("README.txt"))
        add("metadata.csv", table.getvalue().encode())
        for row in kept:
            add(row["file"], content(row["file"]))
