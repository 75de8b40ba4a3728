"""What the training of a modality and of a component share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Generator

from noiseloom.modalities.modality import Dataset

FINISHED = "checkpoint"  # the folder of a run that holds what it publishes


class Items:
    """A data set as training data; ``encode(items, generators)`` makes a batch of its items."""

    def __init__(self, encode: Callable[[Sequence[Any], Sequence[Generator] | None], Any], dataset: Dataset) -> None:
        self.encode, self.dataset, self.sizes = encode, dataset, dataset.sizes
        self.shapes = getattr(dataset, "shapes", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Any:
        return self.encode([self.dataset[index] for index in indices], generators)


def first_process() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0
