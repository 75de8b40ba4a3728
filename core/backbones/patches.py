"""Grids cut into patches: each patch is a token, the last axis runs fastest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Patches:
    """The patches of a grid; they need not divide it.

    Args:
        patch: elements of a patch along each axis.
    """

    def __init__(self, patch: Sequence[int]) -> None:
        self.patch = tuple(patch)
        names = [f"n{i}" for i in range(len(self.patch))], [f"p{i}" for i in range(len(self.patch))]
        tokens, grid = f"b ({' '.join(names[0])}) ({' '.join(names[1])} c)", " ".join(map("({} {})".format, *names))
        self._split, self._join = f"b c {grid} -> {tokens}", f"{tokens} -> b c {grid}"
        self._sizes = dict(zip(names[1], self.patch, strict=True))

    def counts(self, grid: Sequence[int]) -> list[int]:
        """How many patches there are along each axis."""
        return [-(-size // patch) for size, patch in zip(grid, self.patch, strict=True)]

    def split(self, x: Tensor) -> Tensor:
        """(batch, channels, *grid) to (batch, patches, elements of a patch x channels), filled up with zeros."""
        missing = [-size % patch for size, patch in zip(x.shape[2:], self.patch, strict=True)]
        if any(missing):
            x = F.pad(x, [n for size in reversed(missing) for n in (0, size)])
        return rearrange(x, self._split, **self._sizes)

    def join(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """``split`` undone."""
        counts = {f"n{i}": n for i, n in enumerate(self.counts(grid))}
        x = rearrange(tokens, self._join, **self._sizes, **counts)
        return x[(..., *(slice(size) for size in grid))]

    def highest(self, values: Tensor, grid: Sequence[int]) -> Tensor:
        """The maximum of (batch, *axes) over each patch; axes of size 1 stay."""
        for axis, patch in enumerate(self.patch, start=1):
            if values.shape[axis] > 1 and patch > 1:
                missing = -grid[axis - 1] % patch
                values = F.pad(values, (0, 0) * (values.ndim - 1 - axis) + (0, missing))
                values = values.unflatten(axis, (-1, patch)).amax(axis + 1)
        return values


def known_map(name: str, values: Tensor | None, shape: Sequence[int], mask: Tensor | None, like: Tensor) -> Tensor:
    """A condition on the grid, (batch, channels, *grid), in the precision of ``like``: zeros for samples where it has a
    NaN at a real element, and for all where it is None.

    Raises:
        ValueError: its shape is not ``shape``.
    """
    if values is None:
        return like.new_zeros(shape)
    if values.shape != tuple(shape):
        raise ValueError(f"{name} with channels first is {tuple(values.shape)}, it does not fit {tuple(shape)}")
    if mask is not None:
        values = torch.where(mask.unsqueeze(1), values, 0)
    absent = values.flatten(1).isnan().any(1).view(-1, *[1] * (values.ndim - 1))
    return torch.where(absent, 0, values).to(like.dtype)
