"""Files by name, wherever they are: a folder, a tar, a folder of tars, a pattern.

To the rest a folder and a tar are the same: names, each with a place to read bytes from. A tar's members are read by
their offset and never extracted, so no name in it can lead anywhere.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Place:
    """Where some bytes are: a file, or a member of a tar.

    Attributes:
        path: the file, or the tar.
        size: in bytes.
        modified: when the file or the tar was, in nanoseconds.
        offset: of the bytes in ``path``.
    """

    path: Path
    size: int
    modified: int
    offset: int = 0

    def read(self) -> bytes:
        """The bytes. Several threads may read at once.

        Raises:
            OSError: the file is gone, or may not be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Part:
    """A folder, a tar, or some files.

    Attributes:
        prefix: for the names of its items, where a source has several parts: "shard-0/".
        files: places by name, sorted; "/" between folders.
    """

    prefix: str
    files: Mapping[str, Place]


def open_parts(source: str | os.PathLike[str], suffixes: Sequence[str]) -> list[Part]:
    """What a path or a pattern holds: a folder, a tar, a folder of tars, a file, or several of them.

    Args:
        source: a path, or a pattern with ``*``, ``?``, ``[]`` or ``**``.
        suffixes: of the files that are sought. Other files count as their company, and are left out where there are
            only tars to company.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: a damaged or compressed tar.
    """
    path = Path(source).expanduser()
    if path.exists():
        paths, base = [path], path if path.is_dir() else path.parent
    else:
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not paths:
            raise FileNotFoundError(f"there is no file or folder {os.fspath(source)!r}")
        base = Path(os.path.commonpath([one.parent for one in paths]))
    loose: dict[str, Place] = {}
    tars = []
    for file in sorted({file for one in paths for file in (_walk(one) if one.is_dir() else [one])}):
        if file.suffix.lower() == ".tar":
            tars.append(file)
        elif file.is_file():
            stat = file.stat()
            loose[file.relative_to(base).as_posix()] = Place(file, stat.st_size, stat.st_mtime_ns)
    if tars and not any(name.lower().endswith(tuple(suffixes)) for name in loose):
        loose = {}
    several = len(tars) + bool(loose) > 1
    parts = [Part("", loose)] if loose else []
    for tar in tars:
        prefix = f"{tar.relative_to(base).with_suffix('').as_posix()}/" if several else ""
        parts.append(Part(prefix, tar_files(tar)))
    return parts


def tar_files(path: Path) -> dict[str, Place]:
    """The members of an uncompressed tar. A folder that holds all of them is taken off their names.

    Raises:
        ValueError: it is compressed, damaged or no tar.
    """
    stat = path.stat()
    files = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).as_posix()
                if member.isreg() and not member.issparse() and not any(p.startswith(".") for p in name.split("/")):
                    files[name] = Place(path, member.size, stat.st_mtime_ns, member.offset_data)
                if member.offset_data + member.size > stat.st_size:
                    raise ValueError(f"{path}: the tar is cut short in {name}")
            file.seek(tar.offset)  # tarfile ends without a word at a header that it cannot read
            if any(file.read(tarfile.BLOCKSIZE)):
                raise ValueError(f"{path}: the tar is damaged after {len(files):,} files")
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not an uncompressed tar, or a damaged one ({error})") from error
    if len({name.partition("/")[0] for name in files}) == 1 and all("/" in name for name in files):
        files = {name.partition("/")[2]: place for name, place in files.items()}
    return dict(sorted(files.items()))


def _walk(folder: Path) -> list[Path]:
    """The files under a folder, without hidden ones; a link to a folder is followed, but none twice."""
    found, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in files if not name.startswith(".")]
    return found
