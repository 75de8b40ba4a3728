"""The clips that components train on: those of several sources together."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

import numpy as np

from .clip import Clip
from .data import Preparation, open_video


class Clips:
    """The clips of several sources, one after another.

    Args:
        colours: 1 (grey) or 3 (RGB).
        sources: names or paths.
        split: "train", "valid" or "test".
        alike: batches hold clips of one shape, for what cannot pad them.
        options: of reading: the fields of ``Preparation`` and the options of ``data.open_video``.
    """

    def __init__(
        self, colours: int, sources: Sequence[str], split: str, *, alike: bool = False, **options: Any
    ) -> None:
        names = {field.name for field in fields(Preparation)} & options.keys()
        preparation = Preparation(channels=colours, **{key: options.pop(key) for key in names})
        self.sets = [open_video(source, split, preparation=preparation, **options) for source in sources]
        self.ends = list(accumulate(map(len, self.sets)))
        self.report = "\n\n".join(str(one.report) for one in self.sets)
        shapes = np.concatenate([one.shapes for one in self.sets])
        #: pixels of each clip, for batches of like size; None where all have one shape
        self.sizes: Sequence[int] | None = shapes.prod(1).tolist() if len(np.unique(shapes, axis=0)) > 1 else None
        #: (frames, height, width) of each, where batches must be of one
        self.shapes = shapes if alike else None

    def classes(self, name: str) -> list[str]:
        """The distinct classes in a column of words, sorted; "3,8" shows two. None where a source lacks the column."""
        if not all(isinstance(one.values.get(name), list) for one in self.sets):
            return []
        return sorted({value for one in self.sets for value in one.labels(name)})

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Clip:
        which = bisect.bisect_right(self.ends, index)
        return self.sets[which][index - (self.ends[which - 1] if which else 0)]
