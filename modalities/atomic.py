"""Files and folders that are whole or not there: written beside their place, then renamed, never seen half made."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


class CannotWrite(OSError):
    """A file that could not be written: a full disk, a folder without permission; the message is one line."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; what is there becomes ``path``, unless something was raised.

    Raises:
        CannotWrite: in place of any OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` to fill; it becomes ``path``, unless something was raised. Where another process was
    faster, what that one made stays.

    Raises:
        CannotWrite: in place of any OSError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        yield partial
        with suppress(OSError):
            partial.rename(path)
        if not path.is_dir():
            raise CannotWrite(f"cannot make the folder {path}")
    except OSError as error:
        if isinstance(error, CannotWrite):
            raise
        raise CannotWrite(f"cannot make the folder {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(path: Path, content: Iterable[str] | bytes) -> Path:
    """Write a file of bytes, or of text in UTF-8; returns its path.

    Raises:
        CannotWrite: a full disk, no permission.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        for chunk in [content] if isinstance(content, bytes) else (text.encode() for text in content):
            file.write(chunk)
    return path


def write_all(directory: Path, contents: Mapping[str, Iterable[str] | bytes | None]) -> list[Path]:
    """Write files by name, in order, and return their paths. None: there must be no such file, an older one is removed.

    Raises:
        CannotWrite: a full disk, no permission, a file in the folder's place.
    """
    make_folder(directory)
    for name in (name for name, content in contents.items() if content is None):
        remove(directory / name)
    return [write(directory / name, content) for name, content in contents.items() if content is not None]


def remove(path: Path) -> None:
    """Remove a file, if there is one.

    Raises:
        CannotWrite: no permission.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot remove {path}: {error.strerror}") from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if need be.

    Raises:
        CannotWrite: no permission, a file in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {path}: {error.strerror}") from error
