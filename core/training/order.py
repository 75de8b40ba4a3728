"""Which items make up the batch of a step: a pure function of (seed, step), so that a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..randomness import generator


class BatchOrder:
    """Epochs of a permutation, cut into batches of like size.

    Within an epoch every item occurs at most once. The last, incomplete batch is dropped: the items left out are drawn
    at random in each epoch, so none is left out for long. A batch of more items than there are is an epoch: each item
    occurs in it equally often, give or take once. With ``sizes``, the epoch's items are sorted by size (ties in
    random order), cut into batches and the batches shuffled, so that a batch needs little padding.

    Args:
        sizes: how large each item is; None where all are equal.
        length: the number of items.
        batch_size: items in the global batch.
        seed: the run's seed.
    """

    def __init__(self, sizes: Sequence[int] | None, length: int, batch_size: int, seed: int) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"a batch of {batch_size} of {length} training items: both must be at least 1")
        self.sizes = None if sizes is None else torch.as_tensor(sizes)
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.per_epoch = max(length // batch_size, 1)
        self._arranged: tuple[int, torch.Tensor] | None = None  # the last epoch asked for: it is asked for next

    def batch(self, step: int) -> list[int]:
        """The items of the global batch of ``step`` (from 0), in the order of their places."""
        epoch, place = divmod(step, self.per_epoch)
        if self._arranged is None or self._arranged[0] != epoch:
            self._arranged = (epoch, self._arrange(epoch))
        return self._arranged[1][place].tolist()

    def _arrange(self, epoch: int) -> torch.Tensor:
        random = generator(self.seed, _ORDER, epoch)
        count = self.per_epoch * self.batch_size
        rounds = [torch.randperm(self.length, generator=random) for _ in range(-(-count // self.length))]
        items = torch.cat(rounds)[:count]
        if self.sizes is None:
            return items.reshape(self.per_epoch, self.batch_size)
        items = items[torch.argsort(self.sizes[items], stable=True)]
        return items.reshape(self.per_epoch, self.batch_size)[torch.randperm(self.per_epoch, generator=random)]


_ORDER = -2  # apart from StepRandomness, whose second key is a step


def held_out_batches(
    sizes: Sequence[int] | None, length: int, batch_size: int, count: int, seed: int
) -> list[list[int]]:
    """``count`` items (all, if there are fewer), the same ones each time, in batches of like size; none is dropped."""
    items = torch.randperm(length, generator=generator(seed, _ORDER, -1))[:count]
    if sizes is not None:
        items = items[torch.argsort(torch.as_tensor(sizes)[items], stable=True)]
    return [part.tolist() for part in items.split(batch_size)]
