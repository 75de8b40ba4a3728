"""Which items make up the batch of a step: a pure function of (seed, step), so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..randomness import generator

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """Items that may share a batch.

    Attributes:
        shape: what all of them have; None where shapes are not told.
        items: their indices.
        batch_size: how many make up a batch.
    """

    shape: Shape | None
    items: torch.Tensor
    batch_size: int

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return max(len(self.items) // self.batch_size, 1)


def buckets(
    items: torch.Tensor, shapes: Sequence[Shape] | None, batch_size: int, tokens: int | None = None
) -> list[Bucket]:
    """Items parted by shape, by rising size.

    Args:
        items: indices.
        shapes: of every item of the data set, e.g. (frames, height, width); None: all may share a batch.
        batch_size: items in a batch.
        tokens: instead, a budget for each batch: it holds as many items as fit in, and one at least; an item has as
            many tokens as its shape has elements.

    Raises:
        ValueError: a budget for data that gives no shapes.
    """
    if shapes is None:
        if tokens is not None:
            raise ValueError("trainer.tokens is for data that gives shapes: leave it out, and set trainer.batch_size")
        return [Bucket(None, items, batch_size)]
    parted: dict[Shape, list[int]] = {}
    for item in items.tolist():
        parted.setdefault(tuple(shapes[item]), []).append(item)
    found = []
    for shape in sorted(parted, key=lambda shape: (math.prod(shape), shape)):
        size = batch_size if tokens is None else max(tokens // max(math.prod(shape), 1), 1)
        found.append(Bucket(shape, torch.tensor(parted[shape]), size))
    return found


class BatchOrder:
    """Epochs of a permutation, cut into batches of like size.

    Within an epoch every item occurs at most once. The last, incomplete batch is dropped: the items left out are drawn
    at random in each epoch, so none is left out for long. A batch of more items than there are is an epoch: each item
    occurs in it equally often, give or take once. With ``sizes``, the epoch's items are sorted by size (ties in
    random order), cut into batches and the batches shuffled, so that a batch needs little padding. With ``shapes``, all
    this holds for the items of each shape, and the batches of all shapes are shuffled together.

    Args:
        sizes: how large each item is; None where all are equal.
        length: the number of items.
        batch_size: items in the global batch.
        seed: the run's seed.
        shapes: the shape of each item, where items of different shapes cannot share a batch.
        tokens: a budget for the global batch instead of ``batch_size``: see ``buckets``.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None,
        length: int,
        batch_size: int,
        seed: int,
        shapes: Sequence[Shape] | None = None,
        tokens: int | None = None,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"a batch of {batch_size} of {length} training items: both must be at least 1")
        self.sizes = None if sizes is None else torch.as_tensor(sizes)
        self.seed, self.tokens = seed, tokens
        self.buckets = buckets(torch.arange(length), shapes, batch_size, tokens)
        self.per_epoch = sum(bucket.batches for bucket in self.buckets)
        self._arranged: tuple[int, Sequence[torch.Tensor]] | None = None  # the last epoch asked for: it is asked next

    def batch(self, step: int) -> list[int]:
        """The items of the global batch of ``step`` (from 0), in the order of their places."""
        epoch, place = divmod(step, self.per_epoch)
        if self._arranged is None or self._arranged[0] != epoch:
            self._arranged = (epoch, self._arrange(epoch))
        return self._arranged[1][place].tolist()

    def check(self, parts: int) -> None:
        """Refuse batches that cannot be divided.

        Args:
            parts: into how many: processes times accumulated parts.

        Raises:
            ValueError: a batch has fewer items; the message says how many it would need.
        """
        smallest = min(self.buckets, key=lambda bucket: bucket.batch_size)
        if smallest.batch_size >= parts:
            return
        message = f"a batch of {smallest.batch_size} items cannot be divided among {parts} processes x parts"
        if self.tokens is None:
            raise ValueError(f"{message}: raise trainer.batch_size to {parts} or more")
        needed = parts * max(math.prod(bucket.shape or ()) for bucket in self.buckets)
        shape = "x".join(map(str, smallest.shape or ()))
        raise ValueError(f"{message} (items of shape {shape}): raise trainer.tokens to {needed} or more")

    def __str__(self) -> str:
        """The plan of an epoch, a line for each shape."""
        lines = []
        for bucket in self.buckets:
            shape = "" if bucket.shape is None else f"{'x'.join(map(str, bucket.shape))}: "
            lines.append(f"{shape}{len(bucket.items)} items, {bucket.batches} batches of {bucket.batch_size}")
        return "\n".join(lines)

    def _arrange(self, epoch: int) -> Sequence[torch.Tensor]:
        random = generator(self.seed, _ORDER, epoch)
        batches: list[torch.Tensor] = []
        for bucket in self.buckets:
            length, count = len(bucket.items), bucket.batches * bucket.batch_size
            rounds = [torch.randperm(length, generator=random) for _ in range(-(-count // length))]
            items = bucket.items[torch.cat(rounds)[:count]]
            batches += self._by_size(items).split(bucket.batch_size)
        if self.sizes is None and len(self.buckets) == 1:
            return batches
        return [batches[place] for place in torch.randperm(len(batches), generator=random).tolist()]

    def _by_size(self, items: torch.Tensor) -> torch.Tensor:
        return items if self.sizes is None else items[torch.argsort(self.sizes[items], stable=True)]


_ORDER = -2  # apart from StepRandomness, whose second key is a step


def held_out_batches(
    sizes: Sequence[int] | None,
    length: int,
    batch_size: int,
    count: int,
    seed: int,
    shapes: Sequence[Shape] | None = None,
    tokens: int | None = None,
) -> list[list[int]]:
    """``count`` items (all, if there are fewer), the same ones each time, in batches of one shape and of like size;
    none is dropped. ``tokens``: a budget for each batch instead of ``batch_size``."""
    items = torch.randperm(length, generator=generator(seed, _ORDER, -1))[:count]
    if sizes is not None:
        items = items[torch.argsort(torch.as_tensor(sizes)[items], stable=True)]
    parted = buckets(items, shapes, batch_size, tokens)
    return [part.tolist() for bucket in parted for part in bucket.items.split(bucket.batch_size)]
