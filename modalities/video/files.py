"""Clips to and from files that people open: MP4, a contact sheet and a preview of each, a sheet of all, CSV, a page.

Every file is whole or not there. A sample that failed keeps its place: a number without a file, a row in the CSV and a
card on the page that says why.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..atomic import make_folder, write, write_all
from ..report import Report
from ..samples import TABLE, caption, described, file_stem, listed, remove_earlier, table
from ..splits import in_split
from .clip import Clip, VideoError
from .page import page
from .reading import read
from .sheets import contact_sheet, overview
from .sources import find_clips
from .writing import QUALITY, animation, check_quality, write_mp4

SHOWN = 24  # clips on the sheet of all
COLUMNS = ("index", "file", "frames", "fps", "height", "width", "seconds", "seed", "failure")
_ELSEWHERE = ("not in the metadata", "listed twice", "a picture beside a video of its name")  # files that are no item


def save(
    artifacts: Sequence[Clip | None],
    directory: Path,
    *,
    seeds: Sequence[int],
    report: Report | None,
    quality: int = QUALITY,
    title: str = "Clips",
) -> list[Path]:
    """Write ``NNN-label.mp4``, its contact sheet ``.png`` and its preview ``.webp`` for each clip, ``samples.png`` (ten
    frames each of the first 24), ``samples.csv``, ``metrics.json`` (with a report) and ``index.html``.

    Args:
        artifacts: None for samples that failed; a clip of no frames fails here.
        directory: made if need be; clips that an earlier ``samples.csv`` in it lists are removed.
        seeds: one for each.
        report: for the page's table and ``metrics.json``.
        quality: see :func:`.writing.write_mp4`.
        title: the page's heading.

    Returns:
        The paths written: the clips first, then the sheet of all, the page the last.

    Raises:
        ValueError: not one seed for each clip, or a quality that there is not.
        CannotWrite: a full disk, no permission, a file in the folder's place.
    """
    check_quality(quality)
    if len(seeds) != len(artifacts):
        raise ValueError(f"{len(seeds)} seeds for {len(artifacts)} clips")
    make_folder(directory)
    remove_earlier(directory, (".mp4", ".png", ".webp"))
    clips: list[Path] = []
    pictures: list[Path] = []
    cards = []
    for index, (clip, seed) in enumerate(zip(artifacts, seeds, strict=True)):
        values, name = (None, "") if clip is None else (clip.values, clip.name)
        card = {"index": index, "seed": int(seed), **described(values, name, "clip")}
        if clip is None:
            card["failure"] = "not decoded"
        else:
            path = directory / f"{file_stem(index, len(seeds), card['title'])}.mp4"
            try:
                clips.append(write_mp4(path, clip, quality=quality))
            except VideoError as error:
                card["failure"] = error.reason
            else:
                pictures.append(write(path.with_suffix(".png"), _png(contact_sheet(clip))))
                pictures.append(write(path.with_suffix(".webp"), animation(clip)))
                card |= {"file": path.name, "sheet": pictures[-2].name, "preview": pictures[-1].name}
                card |= {"frames": len(clip), "fps": round(clip.fps, 6), "height": clip.size[0], "width": clip.size[1]}
                card["seconds"] = round(clip.seconds, 6)
        cards.append(card)
    first = [
        (clip if "file" in card else None, caption(card, f"{card.get('frames')} frames"))
        for clip, card in zip(artifacts[:SHOWN], cards, strict=False)
    ]
    contents: dict[str, Iterable[str] | bytes | None] = {
        "samples.png": _png(overview(*zip(*first, strict=True))) if first else None,
        TABLE: [table(cards, COLUMNS)],
        "metrics.json": None if report is None else [report.to_json()],
    }
    contents["index.html"] = [page(title, cards, report, [name for name, its in contents.items() if its is not None])]
    written = write_all(directory, contents)
    return [*clips, *written[:-1], *pictures, written[-1]]


def load(source: Path | str, split: str = "all") -> list[Clip | None]:
    """The clips of a folder, a tar, a table, a file or a named data set, with their labels; None for each that is
    unreadable, which is also named in a warning.

    Labels come from the ``samples.csv`` that :func:`save` writes, else as for training.

    Args:
        split: "train", "valid" or "test", as training divides the source; or "all".

    Raises:
        FileNotFoundError, ValueError: see :func:`.sources.find_clips`.
    """
    path = Path(source).expanduser()
    own = path / TABLE if path.is_dir() else path
    if own.name == TABLE and own.is_file():
        rows = listed(own, COLUMNS)
        return [_read(own.parent / name, name, values) if name else None for name, values in rows]
    listing = find_clips(source)
    found = [_read(clip.place.read(), clip.name, clip.values) for clip in in_split(listing, split)[0]]
    for reason, name in listing.dropped if split == "all" else ():
        if reason not in _ELSEWHERE:
            _warn(f"{name}: {reason}")
            found.append(None)
    return found


def _read(content: bytes | Path, name: str, values: Any) -> Clip | None:
    try:
        clip = read(content, name)
    except VideoError as error:
        _warn(str(error))
    except OSError as error:
        _warn(f"{name}: {error.strerror}")
    else:
        return Clip(clip.frames, clip.fps, name, dict(values))
    return None


def _warn(text: str) -> None:
    warnings.warn(f"not a clip: {text}", stacklevel=4)


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
