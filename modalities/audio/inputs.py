"""Sounds that a request names: read as the model hears them, or as they are, to be edited."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .prepare import Preparation
from .waveform import AudioError, Waveform, read


@dataclass(frozen=True)
class Inputs:
    """How a model with this preparation takes sounds, of any length."""

    preparation: Preparation

    def heard(self, path: str) -> np.ndarray:
        """A file prepared as the training data was, (channels, n).

        Raises:
            FileNotFoundError: there is none.
            AudioError: it is no sound, or a silent one.
        """
        return self._opened(path)

    def edited(self, path: str) -> np.ndarray:
        """A file with its own level and ends, (channels, n); errors as for ``heard``."""
        return self._opened(path, level="none", trim=None, remove_dc=False)

    def gain(self, audio: np.ndarray) -> float:
        """The factor to the level of the training data; 1 where there is no level to measure."""
        try:
            heard = self._prepared()(Waveform(audio, self.preparation.rate)).samples
        except AudioError:
            return 1.0
        return float(np.ptp(heard) / np.ptp(audio)) if np.ptp(audio) else 1.0

    def _prepared(self, **changes: Any) -> Preparation:
        return replace(self.preparation, min_seconds=0.0, max_seconds=None, **changes)

    def _opened(self, path: str, **changes: Any) -> np.ndarray:
        file = Path(path).expanduser()
        return _read(file, file.stat().st_mtime_ns, self._prepared(**changes))


@lru_cache(maxsize=8)
def _read(path: Path, modified: int, preparation: Preparation) -> np.ndarray:
    """A file once prepared; ``modified`` tells a changed one from the one before."""
    return preparation(read(path)).samples
