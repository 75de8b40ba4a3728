"""Where videos come from: a name or a path becomes a :class:`VideoSet` of windows of clips, in a memory map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from noiseloom.core.registry import named_options

from ..cache import Arrays, Writer, cached_arrays
from ..listing import Found, Listing
from ..splits import Columns, check_split, columns_of, in_split, known, words
from ..threads import parallel
from .account import VideoReport
from .clip import Clip, VideoError
from .prepare import Preparation
from .reading import VideoInfo, probe, read
from .sources import find_clips

__all__ = ["Preparation", "VideoReport", "VideoSet", "open_video"]

_RAW = 1 << 25  # bytes of a clip that are decoded at once: long ones are read in parts
_AHEAD = 8  # clips decoded ahead of the one that is written
_BEFORE = ("index", "frames", "fps", "height", "width", "rotation", "audio", "container")


@dataclass(frozen=True, eq=False, repr=False)
class VideoSet:
    """Windows of the prepared clips of one split.

    Attributes:
        arrays: the pixels of each clip, one after another.
        preparation: what was done to them.
        clip_shapes: ``(clips, 3)``: frames, height and width of each clip.
        rates: ``(clips,)``: frames a second.
        windows: ``(windows, 3)``: the clip of each window, its first frame and its number of frames.
        names: of the windows: that of the clip, with "@" and the first frame where it has several.
        values: by name of the column, a value for each window: ``(windows,)`` float64 with NaN where it is not known,
            or strings, "" where it is not known.
        report: what was kept, and what was dropped and why.
    """

    arrays: Arrays
    preparation: Preparation
    clip_shapes: np.ndarray
    rates: np.ndarray
    windows: np.ndarray
    names: Sequence[str]
    values: Columns
    report: VideoReport

    def __repr__(self) -> str:
        shapes = sorted({"x".join(map(str, shape)) for shape in self.shapes.tolist()})
        return f"VideoSet({len(self)} windows of {', '.join(shapes)}, values={list(self.values)})"

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Clip:
        """A window; its frames are a read-only view of the file on disk."""
        clip, start, length = self.windows[index].tolist()
        shape = (*self.clip_shapes[clip].tolist(), self.preparation.channels)
        frames = self.arrays[clip].reshape(shape)[start : start + length]
        return Clip(frames, float(self.rates[clip]), self.names[index], known(self.values, index))

    def __iter__(self) -> Iterator[Clip]:
        return (self[index] for index in range(len(self)))

    @property
    def shapes(self) -> np.ndarray:
        """``(windows, 3)`` int64: frames, height and width of each window."""
        return np.column_stack([self.windows[:, 2], self.clip_shapes[self.windows[:, 0], 1:]])

    @property
    def sizes(self) -> Sequence[int] | None:
        """Pixels in time and space of each window, for batches of like size; None where all have one shape."""
        shapes = self.shapes
        return None if len(np.unique(shapes, axis=0)) < 2 else shapes.prod(1).tolist()

    @property
    def fingerprint(self) -> str:
        """What the windows' pixels depend on, hashed: for the cache of what is made from them."""
        told = json.dumps([self.arrays.key, asdict(self.preparation)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def labels(self, name: str = "label") -> list[str]:
        """The distinct classes in a column of words, sorted; "3,8" shows two of them.

        Raises:
            ValueError: there is no such column.
        """
        return sorted({part.strip() for word in words(self.values, name) for part in word.split(",")} - {""})


@named_options("option of data")
def open_video(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    preparation: Preparation,
    columns: Mapping[str, str] | None = None,
    kinds: Sequence[str] | None = None,
    valid_fraction: float | None = None,
    limit: int | None = None,
) -> VideoSet:
    """The clips of a source, prepared and cut into windows: from the cache, else decoded now.

    Args:
        source: see :func:`.sources.find_clips`; ``columns`` and ``kinds`` too.
        split: "train", "valid", "test" or "all"; see :func:`noiseloom.modalities.splits.in_split` for it,
            ``valid_fraction`` and ``limit``, which counts clips, not windows.
        preparation: what is done to each clip.

    Raises:
        FileNotFoundError, ValueError: see :func:`.sources.find_clips`; also where no training clip is usable. The
            other splits may be empty.
    """
    check_split(split, valid_fraction, limit)
    listing = find_clips(source, columns, kinds)
    clips, told = in_split(listing, split, valid_fraction, limit)
    video = _prepared(clips, preparation, listing)
    if not len(video) and split in ("train", "all"):
        raise ValueError(f"{source} has no usable clip for {split!r} (clips found: {told})\n{video.report}")
    return video


def _prepared(clips: Sequence[Found], preparation: Preparation, listing: Listing) -> VideoSet:
    places = [(c.name, str(c.place.path), c.place.size, c.place.modified, c.place.offset) for c in clips]
    fingerprint = {"clips": places, "preparation": preparation.stored, "told": _BEFORE}
    build = partial(_build, clips, preparation)
    arrays = cached_arrays("video", fingerprint, build, dtype="uint8", total=len(clips))
    before = arrays.meta["before"]
    kept = [clips[index] for index in before["index"]]
    shapes = np.array(arrays.meta["shapes"], np.int64).reshape(-1, 3)
    rates = np.array([preparation.rate(fps) for fps in before["fps"]])
    windows = [
        (clip, start, length)
        for clip, frames in enumerate(shapes[:, 0].tolist())
        for starts, length in [preparation.windows(frames)]
        for start in starts
    ]
    table = np.array(windows, np.int64).reshape(-1, 3)
    several = np.bincount(table[:, 0], minlength=len(kept)) > 1
    names = [f"{kept[clip].name}@{start}" if several[clip] else kept[clip].name for clip, start, _ in windows]
    columns = columns_of(kept, listing.clips)
    values = {
        name: [column[clip] for clip, _, _ in windows] if isinstance(column, list) else column[table[:, 0]]
        for name, column in columns.items()
    }
    dropped = [*listing.dropped, *((reason, clips[index].name) for index, reason in arrays.meta["dropped"])]
    notes = [*listing.notes, *((note, clips[index].name) for index, note in arrays.meta["notes"])]
    window_shapes = np.column_stack([table[:, 2], shapes[table[:, 0], 1:]])
    frames = shapes[:, 0]
    report = VideoReport(preparation, frames, frames / rates, window_shapes, before, columns, dropped, notes)
    return VideoSet(arrays, preparation, shapes, rates, table, names, values, report)


def _build(clips: Sequence[Found], preparation: Preparation, writer: Writer) -> None:
    before: dict[str, list] = {name: [] for name in _BEFORE}
    shapes: list[tuple[int, ...]] = []
    dropped: list[tuple[int, str]] = []
    notes: list[tuple[int, str]] = []
    for index, result in enumerate(parallel(partial(_prepare, preparation), clips, _AHEAD)):
        if isinstance(result, VideoError):
            dropped.append((index, result.reason))
            writer.skip()
            continue
        info, frames = result
        writer.add(frames.reshape(-1))
        shapes.append(frames.shape[:3])
        values = (index, info.frames, info.fps, *info.size, info.rotation, info.audio, info.container)
        for column, value in zip(before.values(), values, strict=True):
            column.append(value)
        notes += [(index, note) for note in (*info.notes, *_changes(preparation, info))]
    writer.meta = {"before": before, "shapes": shapes, "dropped": dropped, "notes": notes}


def _prepare(preparation: Preparation, clip: Found) -> tuple[VideoInfo, np.ndarray] | VideoError:
    """What a clip is, and its frames as they are trained on."""
    try:
        return prepared(clip.place.path if clip.place.offset == 0 else clip.place.read(), clip.name, preparation)
    except VideoError as error:
        return error
    except OSError as error:
        return VideoError(clip.name, f"cannot be read ({error.strerror})")


def prepared(content: bytes | Path, name: str, preparation: Preparation) -> tuple[VideoInfo, np.ndarray]:
    """What a video is, and its frames as ``preparation`` makes them. It is read in parts, for a long one at its own
    size would not fit into memory.

    Raises:
        VideoError: it cannot be read, or has too few frames.
    """
    info = probe(content, name)
    moments = preparation.moments(info.frames, info.fps)
    if len(moments) < preparation.min_frames:
        raise VideoError(name, f"too few frames: {len(moments)}, of at least {preparation.min_frames}")
    most = max(_RAW // (3 * info.size[0] * info.size[1]), 1)
    parts = []
    for group in np.split(moments, np.flatnonzero(np.diff(moments // most)) + 1):
        frames = read(content, name, start=int(group[0]), stop=int(group[-1]) + 1).frames
        parts.append(preparation.fit(frames[group - group[0]]))
    return info, np.concatenate(parts)


def _changes(preparation: Preparation, info: VideoInfo) -> list[str]:
    """What a person may want to know of what was done to a clip."""
    height, width = preparation.bucket(*info.size)
    changes = []
    if info.frames > 1 and preparation.rate(info.fps) > info.fps * 1.001:
        changes.append(f"frames repeated: from {info.fps:.4g} to {preparation.rate(info.fps):.4g} fps")
    if height > info.size[0] or width > info.size[1]:
        changes.append(f"enlarged: {info.size[0]} x {info.size[1]} to {height} x {width}")
    return changes
