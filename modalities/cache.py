"""Arrays that are slow to make, kept in the user's cache under a fingerprint of all that they were made from.

An entry is a folder: ``data.npy`` (the items one after another, memory-mapped), ``offsets.npy`` and ``header.json``. It
is made beside its place and renamed, so two processes may build the same one: the first to finish wins. A changed
setting has another fingerprint and thus another entry. One whose files are cut short or do not agree is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tqdm import tqdm

from .extras import cache_folder

_FORMAT = 1  # of an entry; entries of another one have other keys


class CannotCache(OSError):
    """The cache could not be written: a full disk, a folder without permission; the message is one line."""


@dataclass(frozen=True, eq=False, repr=False)
class Arrays:
    """Items of unequal length along their first axis, in one read-only memory map.

    Attributes:
        data: ``(total, *shape)``, all items one after another.
        offsets: ``(items + 1,)`` int64; item i is ``data[offsets[i]:offsets[i + 1]]``.
        meta: what the builder left in ``Writer.meta``.
        key: the name of the entry: a fingerprint for what is made from it in turn.
    """

    data: np.ndarray
    offsets: np.ndarray
    meta: Mapping[str, Any]
    key: str

    def __repr__(self) -> str:
        return f"Arrays({len(self)} items, {self.data.shape} {self.data.dtype})"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        index %= len(self)
        return self.data[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """``(items,)`` int64."""
        return np.diff(self.offsets)


class Writer:
    """Where a builder puts its items, in order.

    Attributes:
        meta: plain JSON values to keep with the items.
    """

    def __init__(self, file: BinaryIO, shape: Sequence[int], dtype: str, progress: tqdm) -> None:
        self.meta: dict[str, Any] = {}
        self.offsets = [0]
        self._file, self._shape, self._dtype, self._progress = file, tuple(shape), np.dtype(dtype), progress
        self._header()

    def add(self, item: np.ndarray) -> None:
        """Append an item, ``(length, *shape)``.

        Raises:
            ValueError: it has another shape.
        """
        if item.ndim == 0 or item.shape[1:] != self._shape:
            raise ValueError(f"an item of shape {item.shape} where each is (length, *{self._shape})")
        with _disk():
            self._file.write(np.ascontiguousarray(item, self._dtype).tobytes())
        self.offsets.append(self.offsets[-1] + len(item))
        self._progress.update()

    def skip(self) -> None:
        """Tell the progress bar of an item that is left out."""
        self._progress.update()

    def close(self) -> None:
        """Complete the header, now that the length is known."""
        self._file.seek(0)
        self._header()

    def _header(self) -> None:
        """The ``.npy`` header, in which numpy leaves room for the first axis to grow."""
        descr, shape = np.lib.format.dtype_to_descr(self._dtype), (self.offsets[-1], *self._shape)
        np.lib.format.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": shape})


def cached_arrays(
    kind: str,
    fingerprint: Mapping[str, Any],
    build: Callable[[Writer], None],
    *,
    shape: Sequence[int] = (),
    dtype: Literal["float32", "float16", "uint8"] = "float32",
    total: int | None = None,
) -> Arrays:
    """The arrays made from what ``fingerprint`` tells: from the cache, else by ``build``.

    Args:
        kind: what they are, in one word; a folder of the cache.
        fingerprint: plain JSON values: all that the result depends on.
        build: puts the items into a :class:`Writer`; called only where there is no sound entry.
        shape: of an item after its first axis.
        dtype: what is stored.
        total: how many items there will be, for the progress bar.

    Raises:
        CannotCache: a full disk, no permission.
        TypeError: a fingerprint or ``meta`` that JSON cannot hold.
    """
    told = {"format": _FORMAT, "shape": list(shape), "dtype": dtype, "fingerprint": fingerprint}
    key = hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
    place = cache_folder() / kind / key
    if (found := _open(place)) is not None:
        return found
    partial = place.with_name(f".{key[:16]}.{uuid.uuid4().hex}")
    try:
        with _disk():
            partial.mkdir(parents=True)
        with tqdm(desc=f"preparing {kind}", total=total, unit="item", delay=1, leave=False) as progress:
            _build(partial, build, told, progress)
        return _publish(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _build(folder: Path, build: Callable[[Writer], None], told: Mapping[str, Any], progress: tqdm) -> None:
    with (folder / "data.npy").open("wb") as file:
        with _disk():
            writer = Writer(file, told["shape"], told["dtype"], progress)
        build(writer)
        with _disk():
            writer.close()
    header = {**told, "meta": writer.meta, "items": len(writer.offsets) - 1, "total": writer.offsets[-1]}
    text = json.dumps(header, allow_nan=False)
    with _disk():
        np.save(folder / "offsets.npy", np.array(writer.offsets, np.int64))
        (folder / "header.json").write_text(text, encoding="utf-8")


def _publish(partial: Path, place: Path) -> Arrays:
    """Move a finished entry to its place, unless another process has put a sound one there."""
    for _ in range(8):  # a damaged entry in the way is moved off first; others may do the same meanwhile
        with suppress(OSError):
            partial.rename(place)
        if (found := _open(place)) is not None:
            return found
        with suppress(OSError):
            place.rename(aside := place.with_name(f"{partial.name}.damaged"))
            shutil.rmtree(aside, ignore_errors=True)
    raise CannotCache(f"cannot write the cache {place}")


def _open(place: Path) -> Arrays | None:
    """An entry; None where there is none, or one whose files do not agree with each other."""
    try:
        header = json.loads((place / "header.json").read_text(encoding="utf-8"))
        items, total, meta = header["items"], header["total"], header["meta"]
        offsets = np.load(place / "offsets.npy", allow_pickle=False)
        data = np.load(place / "data.npy", mmap_mode="r" if total else None, allow_pickle=False)  # none of no bytes
        sound = data.shape == (total, *header["shape"]) and data.dtype == header["dtype"]
        sound &= offsets.shape == (items + 1,) and offsets[0] == 0 and offsets[-1] == total
        return Arrays(data, offsets, meta, place.name) if sound and (np.diff(offsets) >= 0).all() else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError):
        return None


@contextmanager
def _disk() -> Iterator[None]:
    """What goes wrong when the cache is written, in one line; errors of reading the source are left alone."""
    try:
        yield
    except OSError as error:
        where = f"cannot write the cache {cache_folder()}: {error.strerror}"
        raise CannotCache(f"{where}. XDG_CACHE_HOME=FOLDER puts it elsewhere") from error
