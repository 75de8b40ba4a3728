"""Which of the clips found are trained on, and what is known of those that are used, by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from .listing import SPLITS, Found, Listing, hashed

_TEST_FRACTION = 0.05
_FEW = 20  # clips that are not marked for a split: so few are all trained on

#: by name, a value for each clip: ``(clips,)`` float64 with NaN where it is not known, or strings, "" where it is not
Columns: TypeAlias = Mapping[str, np.ndarray | list[str]]


def in_split(
    listing: Listing, split: str, valid_fraction: float | None = None, limit: int | None = None
) -> tuple[list[Found], str]:
    """The clips of a split, and how many each split has, in words.

    Args:
        split: "train", "valid", "test" or "all". Where the source marks no clip as "valid" or "test", a fixed share
            of the others goes there, by a hash of the clip's name (or "group"); a source of fewer than 20 clips is all
            trained on. A clip stays in its split whatever else is in the source.
        valid_fraction: that share, for "valid"; by default the listing's. For "test" it is 0.05 where nothing is
            marked at all.
        limit: at most so many clips of the split, drawn by a hash of the name.

    Raises:
        ValueError: an unknown split, a value out of range.
    """
    check_split(split, valid_fraction, limit)
    placed = split_clips(listing.clips, listing.valid_fraction if valid_fraction is None else valid_fraction)
    clips = listing.clips if split == "all" else placed[split]
    if limit is not None and limit < len(clips):
        chosen = {clip.name for clip in sorted(clips, key=lambda clip: hashed(f"limit {clip.name}"))[:limit]}
        clips = [clip for clip in clips if clip.name in chosen]
    return clips, ", ".join(f"{name} {len(its)}" for name, its in placed.items())


def check_split(split: str, valid_fraction: float | None, limit: int | None) -> None:
    """Refuse values that no source could satisfy, before one is read.

    Raises:
        ValueError: an unknown split, a value out of range.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"unknown split {split!r}. Choices: {', '.join(SPLITS)}, all")
    if valid_fraction is not None and not 0 <= valid_fraction <= 0.5:
        raise ValueError(f"valid_fraction={valid_fraction}: from 0 to 0.5")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least 1")


def split_clips(clips: Sequence[Found], valid_fraction: float) -> dict[str, list[Found]]:
    """The clips of each split: as marked, else by a hash."""
    marked = {clip.split for clip in clips} - {""}
    few = len(clips) < _FEW
    valid = 0.0 if few or "valid" in marked else valid_fraction
    test = 0.0 if few or marked else _TEST_FRACTION
    parts: dict[str, list[Found]] = {name: [] for name in SPLITS}
    for clip in clips:
        split = clip.split or "train"
        if split == "train":
            place = hashed(clip.group)
            split = "valid" if place < valid else "test" if place >= 1 - test else "train"
        parts[split].append(clip)
    return parts


def columns_of(kept: Sequence[Found], found: Sequence[Found]) -> dict[str, np.ndarray | list[str]]:
    """The values of the clips kept, by column; what kind a column is, the whole source says."""
    kinds = {name: type(value) for clip in found for name, value in clip.values.items()}
    columns: dict[str, np.ndarray | list[str]] = {}
    for name, kind in kinds.items():
        if kind is float:
            columns[name] = np.array([clip.values.get(name, np.nan) for clip in kept], np.float64)
        else:
            columns[name] = [str(clip.values.get(name, "")) for clip in kept]
    return columns


def known(columns: Columns, index: int) -> dict[str, str | float]:
    """What is known of one clip."""
    values = {name: column[index] for name, column in columns.items() if column[index] == column[index] != ""}
    return {name: value if isinstance(value, str) else float(value) for name, value in values.items()}


def words(columns: Columns, name: str) -> list[str]:
    """The distinct values of a column of words, sorted.

    Raises:
        ValueError: there is no such column.
    """
    column = columns.get(name)
    if not isinstance(column, list):
        have = [key for key, values in columns.items() if isinstance(values, list)]
        raise ValueError(f"no column of words {name!r}. Columns: {', '.join(have) or 'none'}")
    return sorted(set(column) - {""})
