"""The files that a run writes as it goes, and the means in them."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of one JSON object a line, which can be cut back to where it was at a checkpoint.

    Args:
        path: the file; None writes nothing (processes other than the first).
    """

    def __init__(self, path: Path | None) -> None:
        # Unbuffered: a full disk is noticed at once, and nothing is left to fail when the file is closed.
        self._file = open(path, "ab", buffering=0) if path is not None else None  # noqa: SIM115

    def write(self, values: dict[str, Any]) -> None:
        """Append one object; values that are not finite become null."""
        if self._file is not None:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            line = (json.dumps(finite) + "\n").encode()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def size(self) -> int:
        """Bytes so far, flushed to the disk."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def cut(self, size: int) -> None:
        """Forget what was written after the file had ``size`` bytes."""
        if self._file is not None:
            self._file.truncate(min(size, self._file.tell()))
            self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Window:
    """Means since the last log. Its state is plain numbers, kept in checkpoints so that logs do not depend on stops."""

    def __init__(self, count: int = 0, sums: dict[str, float] | None = None) -> None:
        self.count, self.sums = count, dict(sums or {})

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means; the window starts anew."""
        means = {name: total / self.count for name, total in self.sums.items()} if self.count else {}
        self.count, self.sums = 0, {}
        return means

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "sums": self.sums}
