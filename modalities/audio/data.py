"""Where sounds come from: a name or a path becomes an :class:`AudioSet` of prepared clips, in a memory map."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from noiseloom.core.registry import named_options

from ..cache import Arrays, Writer, cached_arrays
from ..listing import Found, Listing
from ..splits import Columns, check_split, columns_of, in_split, known, words
from ..threads import parallel
from .account import AudioReport
from .prepare import Preparation, Prepared
from .sources import find_clips
from .waveform import AudioError, Waveform, read

__all__ = ["AudioReport", "AudioSet", "Preparation", "open_audio"]


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
    values: Columns
    report: AudioReport

    def __repr__(self) -> str:
        return f"AudioSet({len(self)} clips, {self.preparation.rate} Hz, values={list(self.values)})"

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Waveform:
        """A clip; its samples are a read-only view of the file on disk."""
        samples = self.arrays[index].T
        return Waveform(samples, self.preparation.rate, self.names[index], known(self.values, index))

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
        return words(self.values, name)


@named_options("option of data")
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
        split: "train", "valid", "test" or "all"; see :func:`noiseloom.modalities.splits.in_split` for it,
            ``valid_fraction`` (by default 0.05, fsdd 0.04) and ``limit``.
        preparation: what is done to each clip.

    Raises:
        FileNotFoundError, ValueError: see :func:`.sources.find_clips`; also where no training clip is usable. The
            other splits may be empty.
    """
    check_split(split, valid_fraction, limit)
    listing = find_clips(source, columns, kinds)
    clips, told = in_split(listing, split, valid_fraction, limit)
    audio = _prepared(clips, preparation, listing)
    if not len(audio) and split in ("train", "all"):
        raise ValueError(f"{source} has no usable clip for {split!r} (clips found: {told})\n{audio.report}")
    return audio


def _prepared(clips: Sequence[Found], preparation: Preparation, listing: Listing) -> AudioSet:
    def build(writer: Writer) -> None:
        kept: dict[str, list] = {name: [] for name in ("index", "rate", "channels", "peak", "rms", "limited")}
        dropped = []
        for index, result in enumerate(parallel(lambda clip: _prepare(clip, preparation), clips)):
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
    values = columns_of(kept, listing.clips)
    dropped = [*listing.dropped, *((reason, clips[index].name) for index, reason in arrays.meta["dropped"])]
    report = AudioReport(preparation, arrays.lengths / preparation.rate, before, values, dropped, listing.notes)
    return AudioSet(arrays, preparation, [clip.name for clip in kept], values, report)


def _prepare(clip: Found, preparation: Preparation) -> tuple[Waveform, Prepared] | AudioError:
    try:
        wave = read(clip.place.read(), clip.name)
        return wave, preparation(wave)
    except AudioError as error:
        return error
    except OSError as error:
        return AudioError(clip.name, f"cannot be read ({error.strerror})")
