"""Where clips are and what is known of them, before any is decoded.

What is known comes from ``metadata.csv`` or ``metadata.jsonl``, else from files beside a clip (``x.json``, ``x.txt``,
``x.cls``: webdataset's layout) and from the name of its folder.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from .extras import data_folder
from .places import Part, Place, open_parts

SPLITS = ("train", "valid", "test")

_SPLIT_WORDS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid"}
_SPLIT_WORDS |= {"dev": "valid", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_COLUMNS = ("file", "file_name", "filename", "path", "name")
_OWN_COLUMNS = ("split", "group")  # what the columns of these names say is not a value of the clip
_WORDS = ("label", "text", "voice", "speaker")  # columns that are words even where all are digits


@dataclass(frozen=True)
class Found:
    """A clip that was found, and not opened yet.

    Attributes:
        name: unique in its source, whatever the folder is called.
        place: where its bytes are.
        values: what is known: words or finite numbers.
        split: "train", "valid", "test", or "" where nothing says.
        group: clips of one group (one recording, cut) belong into one split; by default its name.
    """

    name: str
    place: Place
    values: Mapping[str, str | float]
    split: str
    group: str


@dataclass
class Listing:
    """What a source holds.

    Attributes:
        clips: in the order of the metadata, or of their names.
        dropped: (reason, name) of each that is none.
        notes: (what is odd, name) of each that is a clip all the same.
        valid_fraction: the share of training clips to hold out, where no clip is marked for it.
    """

    clips: list[Found]
    dropped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    valid_fraction: float = 0.05


@dataclass(frozen=True)
class Named:
    """A known data set.

    Attributes:
        about: where it comes from, in words.
        columns: which columns of its metadata are kept, under which names.
        kinds: of the clips that are taken, where it has several.
        valid_fraction: as in :class:`Listing`.
        amend: what is made of a row of its metadata before that.
        stem: its tar or folder in ``data_folder()`` is called so, where not as the set.
        archive: gives the tar or folder of a set that comes with the package, or is made by it.
    """

    about: str
    columns: Mapping[str, str]
    kinds: Sequence[str] | None = None
    valid_fraction: float = 0.05
    amend: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row
    stem: str = ""
    archive: Callable[[], Path] | None = None


@dataclass(frozen=True)
class Sought:
    """What a modality looks for.

    Attributes:
        word: what the files are called, in the plural.
        suffixes: of the files, lower case.
        named: its known data sets.
        refused: suffixes of files that are alike but cannot be read.
        advice: to what those should be converted.
    """

    word: str
    suffixes: tuple[str, ...]
    named: Mapping[str, Named]
    refused: tuple[str, ...] = ()
    advice: str = ""


@dataclass
class _Row:
    """A clip with its raw values, before they have types."""

    name: str
    place: Place
    raw: dict[str, Any]
    split: str


def find_clips(
    source: str | os.PathLike[str],
    sought: Sought,
    columns: Mapping[str, str] | None = None,
    kinds: Sequence[str] | None = None,
) -> Listing:
    """The clips of a named source, a folder, a tar, several of either, a metadata file, or a single file.

    Args:
        source: a name among ``sought.named``, a path or a pattern. ``./name`` is a folder of that name.
        sought: what counts as a clip.
        columns: which columns of the metadata are kept, under which names: ``{"label": "digit"}``; "file", "split" and
            "group" may be among the names. By default all are kept as they are called. A column whose every value is a
            number is one of numbers, but for "label", "text", "voice" and "speaker".
        kinds: only clips whose column "kind" is one of these.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: no clip, metadata that cannot be read, a column or split that does not exist.
    """
    name = os.fspath(source)
    named = sought.named.get(name)
    if named is not None:
        source, columns, kinds = _archive(name, named, sought), columns or named.columns, kinds or named.kinds
    listing = Listing([], valid_fraction=named.valid_fraction if named else 0.05)
    rows = [
        row for part, metadata in _parts(source, sought) for row in _part_rows(part, metadata, sought, columns, listing)
    ]
    if not rows:
        told = "; ".join(f"{reason}: {file}" for reason, file in listing.dropped[:3])
        looked = f"{', '.join(sought.suffixes)}, in folders or .tar files, or in {' or '.join(_METADATA)}"
        raise ValueError(f"{name} holds no {sought.word} (looked for {looked})" + (f". {told}" if told else ""))
    if named is not None:
        try:
            for row in rows:
                row.raw = named.amend(row.raw)
        except KeyError as error:
            raise ValueError(f"{source} is not {name}: its metadata has no column {error}") from error
    if kinds is not None:
        have = sorted({str(row.raw.get("kind", "")) for row in rows} - {""})
        if missing := [kind for kind in kinds if kind not in have]:
            raise ValueError(f"{name} has no clips of kind {missing[0]!r}. Kinds: {', '.join(have) or 'none'}")
        rows = [row for row in rows if row.raw.get("kind") in kinds]
    _type(rows, columns, name, listing)
    return listing


def _parts(source: str | os.PathLike[str], sought: Sought) -> Iterator[tuple[Part, str | None]]:
    """The parts of a source, each with the name of its metadata file where the source is that file."""
    path = Path(source).expanduser()
    own = path.name if path.suffix.lower() in (".csv", ".jsonl") and path.is_file() else None
    for part in open_parts(path.parent if own else path, sought.suffixes):
        if own is None or own in part.files:
            yield part, own


def _part_rows(
    part: Part, metadata: str | None, sought: Sought, columns: Mapping[str, str] | None, listing: Listing
) -> Iterator[_Row]:
    """The clips of a part with all that is known of each."""
    clips = [name for name in part.files if name.lower().endswith(sought.suffixes)]
    tables = [metadata] if metadata else [name for name in part.files if posixpath.basename(name) in _METADATA]
    seen: dict[str, list[dict[str, Any]]] = {}
    if not metadata:
        listing.dropped += [
            (f"{PurePosixPath(name).suffix} cannot be decoded: convert it to {sought.advice}", part.prefix + name)
            for name in part.files
            if name.lower().endswith(sought.refused)
        ]
    if not tables:
        yield from _loose_rows(part, clips, listing)
        return
    stems = {stem(name): name for name in reversed(clips)}
    for table in tables:
        base, label = posixpath.dirname(table), f"{part.prefix}{table}"
        rows = list(_table(label, part.files[table].read(), listing))
        key = _file_column(label, rows, columns)
        for number, raw in rows:
            told = str(raw.pop(key, None) or "").strip()
            wanted = posixpath.normpath(posixpath.join(base, told.replace("\\", "/")))
            name = wanted if wanted in part.files else stems.get(wanted, "")
            if not told or not name:
                listing.dropped.append(("file is missing", told or f"{label} line {number}"))
            elif raw in seen.get(name, ()):
                listing.dropped.append(("listed twice", part.prefix + name))
            else:
                if name in seen:
                    listing.notes.append(("listed again with other values", part.prefix + name))
                seen.setdefault(name, []).append(raw)
                split = _SPLIT_WORDS.get(name.partition("/")[0].lower(), "")
                yield _Row(part.prefix + name, part.files[name], dict(raw), split)
    if not metadata:
        listing.dropped += [("not in the metadata", part.prefix + name) for name in clips if name not in seen]


def _loose_rows(part: Part, clips: Sequence[str], listing: Listing) -> Iterator[_Row]:
    """Clips without metadata: split and label by folder, values by sidecar."""
    has_splits = all(name.partition("/")[0].lower() in _SPLIT_WORDS and "/" in name for name in clips)
    for name in clips:
        folders = name.split("/")[:-1]
        split = _SPLIT_WORDS[folders.pop(0).lower()] if has_splits else ""
        raw: dict[str, Any] = {"label": folders[0]} if folders else {}
        for suffix in (".json", ".txt", ".cls"):
            place = part.files.get(stem(name) + suffix)
            if place is None:
                continue
            try:
                text = place.read().decode("utf-8-sig").strip()
                if suffix == ".json":
                    raw |= json.loads(text)
                else:
                    raw["text" if suffix == ".txt" else "label"] = text
            except (UnicodeDecodeError, ValueError, TypeError):
                listing.notes.append((f"its {suffix} cannot be read", part.prefix + name))
        yield _Row(part.prefix + name, part.files[name], raw, split)


def _table(name: str, content: bytes, listing: Listing) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV or JSON-lines file, each with its line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start:,})") from error
    if name.lower().endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        for row in reader:
            if None in row or None in row.values():
                listing.dropped.append(("a row without one value for each column", f"{name} line {reader.line_num}"))
            else:
                yield reader.line_num, row
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{name} line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{name} line {number}: not an object with a value for each column")
            yield number, row


def _file_column(name: str, rows: Sequence[tuple[int, Mapping[str, Any]]], columns: Mapping[str, str] | None) -> str:
    """Which column names the file."""
    have = list(dict.fromkeys(key for _, row in rows for key in row))
    for wanted in [columns["file"]] if columns and "file" in columns else _FILE_COLUMNS:
        if wanted in have:
            return wanted
    if not rows:
        return ""
    raise ValueError(f"{name}: no column for the file ({', '.join(_FILE_COLUMNS)}). Columns: {', '.join(have)}")


def _type(rows: Sequence[_Row], columns: Mapping[str, str] | None, source: str, listing: Listing) -> None:
    """Put clips with renamed and typed values into the listing."""
    have = list(dict.fromkeys(key for row in rows for key in row.raw))
    chosen = {key: key for key in have} if columns is None else {k: v for k, v in columns.items() if k != "file"}
    if columns is not None:
        chosen |= {own: own for own in _OWN_COLUMNS if own in have and own not in chosen}
        if unknown := [column for column in chosen.values() if column not in have]:
            raise ValueError(f"{source} has no column {unknown[0]!r}. Columns: {', '.join(have)}")
    numeric = {
        name: name not in (*_WORDS, *_OWN_COLUMNS) and _all_numbers(row.raw.get(column) for row in rows)
        for name, column in chosen.items()
    }
    for row in rows:
        known = {name: row.raw[column] for name, column in chosen.items() if not _missing(row.raw.get(column))}
        values = {name: float(value) if numeric[name] else _word(value) for name, value in known.items()}
        split, group = str(values.pop("split", "")).strip(), str(values.pop("group", row.name))
        if split and split.lower() not in _SPLIT_WORDS:
            raise ValueError(f"{source}: unknown split {split!r} of {row.name}. Choices: {', '.join(SPLITS)}")
        split = _SPLIT_WORDS[split.lower()] if split else row.split
        listing.clips.append(Found(row.name, row.place, values, split, group))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def _word(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _all_numbers(values: Iterable[Any]) -> bool:
    known = [value for value in values if not _missing(value)]
    try:
        return bool(known) and all(math.isfinite(float(value)) for value in known)
    except (TypeError, ValueError):
        return False


def stem(name: str) -> str:
    """A name without its last suffix: what a clip shares with the files beside it."""
    return posixpath.splitext(name)[0]


def hashed(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _archive(name: str, named: Named, sought: Sought) -> Path:
    if named.archive is not None:
        return named.archive()
    stem = named.stem or name
    for path in (data_folder() / f"{stem}.tar", data_folder() / stem):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{name} was not found: it is {named.about}. Put {stem}.tar, or a folder {stem} with the {sought.word} and "
        f"their metadata, into {data_folder()}; NOISELOOM_DATA=FOLDER names another place"
    )
