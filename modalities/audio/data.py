"""Where sounds come from: a name or a path becomes an :class:`AudioSet` of prepared clips, in a memory map."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..cache import Arrays, Writer, cached_arrays
from .account import AudioReport
from .prepare import Preparation, Prepared
from .sources import SPLITS, Clip, Listing, find_clips, hashed
from .waveform import AudioError, Waveform, read

__all__ = ["AudioReport", "AudioSet", "Preparation", "open_audio"]

_TEST_FRACTION = 0.05
_FEW = 20  # clips that are not marked for a split: so few are all trained on
_AHEAD = 64  # clips decoded ahead of the one that is written


@dataclass(frozen=True, eq=False, repr=False)
class AudioSet:
    """Prepared clips of one split.

    Attributes:
        preparation: what was done to them.
        names: of the clips.
        values: by name of the column, a value for each clip: ``(clips,)`` float64 with NaN where it is not known, or
            strings, "" where it is not known.
        report: what was kept, and what was dropped and why.
    """

    arrays: Arrays
    preparation: Preparation
    names: Sequence[str]
    values: Mapping[str, np.ndarray | list[str]]
    report: AudioReport

    def __repr__(self) -> str:
        return f"AudioSet({len(self)} clips, {self.preparation.rate} Hz, values={list(self.values)})"

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Waveform:
        """A clip; its samples are a read-only view of the file on disk."""
        samples = self.arrays[index].T
        known = {name: column[index] for name, column in self.values.items() if column[index] == column[index] != ""}
        values = {name: value if isinstance(value, str) else float(value) for name, value in known.items()}
        return Waveform(samples, self.preparation.rate, self.names[index], values)

    def __iter__(self) -> Iterator[Waveform]:
        return (self[index] for index in range(len(self)))

    @property
    def samples(self) -> np.ndarray:
        """``(clips,)`` int64: the length of each clip."""
        return self.arrays.lengths

    @property
    def sizes(self) -> Sequence[int]:
        """The lengths as a list, for batches of like size."""
        return self.samples.tolist()

    @property
    def fingerprint(self) -> str:
        """What the clips' samples depend on, hashed: for the cache of what is made from them."""
        return self.arrays.key

    def labels(self, name: str = "label") -> list[str]:
        """The distinct values of a column of words, sorted.

        Raises:
            ValueError: there is no such column.
        """
        column = self.values.get(name)
        if not isinstance(column, list):
            words = [key for key, values in self.values.items() if isinstance(values, list)]
            raise ValueError(f"no column of words {name!r}. Columns: {', '.join(words) or 'none'}")
        return sorted(set(column) - {""})


def open_audio(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    preparation: Preparation,
    columns: Mapping[str, str] | None = None,
    kinds: Sequence[str] | None = None,
    valid_fraction: float | None = None,
    limit: int | None = None,
) -> AudioSet:
    """The clips of a source, prepared: from the cache, else decoded now.

    Args:
        source: see :func:`.sources.find_clips`; ``columns`` and ``kinds`` too.
        split: "train", "valid", "test" or "all". Where the source marks no clip as "valid" or "test", a fixed share
            of the others goes there, by a hash of the clip's name (or "group"); a source of fewer than 20 clips is all
            trained on. A clip stays in its split whatever else is in the source.
        preparation: what is done to each clip.
        valid_fraction: that share, for "valid"; by default 0.05 (fsdd 0.04). For "test" it is 0.05 where nothing is
            marked at all.
        limit: at most so many clips of the split, drawn by a hash of the name.

    Raises:
        FileNotFoundError, ValueError: see :func:`.sources.find_clips`; also where no training clip is usable. The
            other splits may be empty.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"unknown split {split!r}. Choices: {', '.join(SPLITS)}, all")
    if valid_fraction is not None and not 0 <= valid_fraction <= 0.5:
        raise ValueError(f"valid_fraction={valid_fraction}: from 0 to 0.5")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least 1")
    listing = find_clips(source, columns, kinds)
    placed = split_clips(listing.clips, listing.valid_fraction if valid_fraction is None else valid_fraction)
    clips = listing.clips if split == "all" else placed[split]
    if limit is not None and limit < len(clips):
        chosen = {clip.name for clip in sorted(clips, key=lambda clip: hashed(f"limit {clip.name}"))[:limit]}
        clips = [clip for clip in clips if clip.name in chosen]
    audio = _prepared(clips, preparation, listing)
    if not len(audio) and split in ("train", "all"):
        others = ", ".join(f"{name} {len(its)}" for name, its in placed.items())
        raise ValueError(f"{source} has no usable clip for {split!r} (clips found: {others})\n{audio.report}")
    return audio


def split_clips(clips: Sequence[Clip], valid_fraction: float) -> dict[str, list[Clip]]:
    """The clips of each split: as marked, else by a hash."""
    marked = {clip.split for clip in clips} - {""}
    few = len(clips) < _FEW
    valid = 0.0 if few or "valid" in marked else valid_fraction
    test = 0.0 if few or marked else _TEST_FRACTION
    parts: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for clip in clips:
        split = clip.split or "train"
        if split == "train":
            place = hashed(clip.group)
            split = "valid" if place < valid else "test" if place >= 1 - test else "train"
        parts[split].append(clip)
    return parts


def _prepared(clips: Sequence[Clip], preparation: Preparation, listing: Listing) -> AudioSet:
    def build(writer: Writer) -> None:
        kept: dict[str, list] = {name: [] for name in ("index", "rate", "channels", "peak", "rms", "limited")}
        dropped = []
        for index, result in enumerate(_parallel(lambda clip: _prepare(clip, preparation), clips)):
            if isinstance(result, AudioError):
                dropped.append((index, result.reason))
                writer.skip()
                continue
            wave, ready = result
            writer.add(ready.samples.T)
            values = (index, wave.rate, wave.channels, round(ready.peak, 2), round(ready.rms, 2), ready.limited)
            for column, value in zip(kept.values(), values, strict=True):
                column.append(value)
        writer.meta = {"kept": kept, "dropped": dropped}

    places = [(c.name, str(c.place.path), c.place.size, c.place.modified, c.place.offset) for c in clips]
    fingerprint = {"clips": places, "preparation": asdict(preparation)}
    arrays = cached_arrays("audio", fingerprint, build, shape=(preparation.channels,), total=len(clips))
    before = arrays.meta["kept"]
    kept = [clips[index] for index in before["index"]]
    values = _columns(kept, listing.clips)
    dropped = [*listing.dropped, *((reason, clips[index].name) for index, reason in arrays.meta["dropped"])]
    report = AudioReport(preparation, arrays.lengths / preparation.rate, before, values, dropped, listing.notes)
    return AudioSet(arrays, preparation, [clip.name for clip in kept], values, report)


def _columns(kept: Sequence[Clip], found: Sequence[Clip]) -> dict[str, np.ndarray | list[str]]:
    """The values of the clips kept, by column; what kind a column is, the whole source says."""
    kinds = {name: type(value) for clip in found for name, value in clip.values.items()}
    columns: dict[str, np.ndarray | list[str]] = {}
    for name, kind in kinds.items():
        if kind is float:
            columns[name] = np.array([clip.values.get(name, np.nan) for clip in kept], np.float64)
        else:
            columns[name] = [str(clip.values.get(name, "")) for clip in kept]
    return columns


def _prepare(clip: Clip, preparation: Preparation) -> tuple[Waveform, Prepared] | AudioError:
    try:
        wave = read(clip.place.read(), clip.name)
        return wave, preparation(wave)
    except AudioError as error:
        return error
    except OSError as error:
        return AudioError(clip.name, f"cannot be read ({error.strerror})")


def _parallel(function: Callable[[Clip], Any], clips: Iterable[Clip]) -> Iterator[Any]:
    """``map`` in threads (decoding and filtering release the interpreter's lock), in order and not far ahead."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        waiting: deque[Future] = deque()
        try:
            for clip in clips:
                waiting.append(pool.submit(function, clip))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
