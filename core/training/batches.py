"""The batches of a run, made one step ahead of their use."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Generator

from ..randomness import StepRandomness
from .order import BatchOrder


class TrainingData(Protocol):
    """Items that become batches."""

    @property
    def sizes(self) -> Sequence[int] | None:
        """How large each item is; None where all are equal. Data whose items cannot all share a batch has ``shapes``
        too, one for each item."""

    def __len__(self) -> int: ...

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Any:
        """A batch on the CPU, as the objective takes it. It may draw from ``generators`` (one an item; None: held-out,
        deterministic) and from nothing else, since it is called from another thread, ahead of its step."""


Piece = tuple[Any, StepRandomness]  # an example and what its step may draw


class Batches:
    """One process's share of each step: a pure function of the step, computed in a thread while the one before trains.

    Args:
        data: the items.
        order: which of them make up a step.
        seed: the run's seed.
        rank, world: this process, and how many there are.
        accumulate: pieces that a process's share is cut into.
        steps: the run's steps: none is made beyond.
    """

    def __init__(
        self, data: TrainingData, order: BatchOrder, seed: int, rank: int, world: int, accumulate: int, steps: int
    ) -> None:
        order.check(world * accumulate)
        self.data, self.order, self.seed, self.steps = data, order, seed, steps
        self.mine, self.parts = range(rank * accumulate, (rank + 1) * accumulate), world * accumulate
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="noiseloom-batches")
        self._ahead: tuple[int, Future[tuple[list[Piece], int]]] | None = None

    def pieces(self, step: int) -> tuple[list[Piece], int]:
        """The examples of a step and their random numbers; and how many items its global batch has."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._pool.submit(self._make, step))
        made = self._ahead[1].result()
        self._ahead = (step + 1, self._pool.submit(self._make, step + 1)) if step + 1 < self.steps else None
        return made

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @torch.no_grad()
    def _make(self, step: int) -> tuple[list[Piece], int]:
        items = self.order.batch(step)
        made = []
        for part in self.mine:
            places = range(len(items) * part // self.parts, len(items) * (part + 1) // self.parts)
            random = StepRandomness(self.seed, step, places, len(items))
            made.append((self.data.example([items[place] for place in places], random.generators), random))
        return made, len(items)
