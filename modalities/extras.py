"""Optional dependencies, and the folders where data is found and kept."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType


class MissingExtra(ImportError):
    """An optional dependency that is not installed; the message names the install command."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module`` (a dotted name), or say which extra brings it.

    Raises:
        MissingExtra: its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingExtra(
            f'this needs the package {missing.split(".")[0]!r}: pip install "noiseloom[{extra}]"', name=error.name
        ) from error


def data_folder() -> Path:
    """``$NOISELOOM_DATA``, by default ``../shared/data`` beside a checkout of the repository. It need not exist."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return Path(os.environ.get("NOISELOOM_DATA") or default).expanduser()


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/noiseloom``, by default ``~/.cache/noiseloom``. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noiseloom"
