"""Caching: what a network computes at one step of sampling serves the next steps while little changes.

A cache stands in for the blocks of a network (``run_blocks``, see ``DiT``) for the length of one trajectory. Samples
are rows of a batch, and so are the branches of guidance (``core.guidance`` asks for all of them in one call): each row
has a cache of its own and is decided on by itself, so that a sample does not depend on its batch. A call with another
number of rows (guidance begins or ends) starts anew.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import Denoiser
from .registry import Registry

CACHING: Registry[Cache] = Registry("caching")


class Cache(ABC):
    """Runs the blocks of a network through one trajectory.

    Attributes:
        counts: ``calls`` of the network and how many of them were ``skipped``; each sample of a call counts.
    """

    counts: Counter[str]

    @abstractmethod
    def __call__(self, h: Tensor, arguments: Sequence[tuple], real: Tensor | None = None) -> Tensor:
        """What the blocks make of the tokens ``h``; see ``DiT.run_blocks``."""


def cached(denoiser: Denoiser, spec: Any, counts: Counter[str]) -> Denoiser:
    """The denoiser for one trajectory: its weights are shared, its cache is empty.

    Args:
        denoiser: of a network with ``run_blocks``.
        spec: a name of ``CACHING`` or ``{"name": ..., options}``.
        counts: where the cache counts.

    Raises:
        ValueError: a network without blocks to cache, or an unknown name or option.
    """
    if not hasattr(denoiser.network, "run_blocks"):
        raise ValueError(f"{type(denoiser.network).__name__} has no blocks to cache: caching is for the network dit")
    cache = CACHING.build(spec, network=denoiser.network)
    cache.counts = counts
    network: Any = copy.copy(denoiser.network)
    network.run_blocks = cache  # the copy's alone
    return Denoiser(network, denoiser.schedule, denoiser.prediction, denoiser.sigma_data)  # type: ignore[arg-type]


@CACHING.register("first_block")
class FirstBlock(Cache):
    """First-block caching (after TeaCache, Liu et al. 2024): the first block is always computed; while its residual is
    nearly that of the last full computation, the residual of all blocks after it is used again.

        || r - r_full ||_1 / || r_full ||_1 < threshold

    Where tokens have times of their own (frames that wait while others move) it must hold in each group of them.

    Args:
        network: whose blocks.
        threshold: 0 never skips; 0.05 to 0.2 are usual.
    """

    def __init__(self, network: nn.Module, threshold: float = 0.1) -> None:
        if threshold < 0:
            raise ValueError(f"threshold must not be negative, got {threshold}")
        self.blocks: Any = network.run_blocks
        self.threshold, self.counts = threshold, Counter()
        self._first: Tensor | None = None  # of the last full computation of each row: the first block's residual
        self._rest: Tensor | None = None  # and that of the other blocks

    def __call__(self, h: Tensor, arguments: Sequence[tuple], real: Tensor | None = None) -> Tensor:
        after = self.blocks(h, arguments[:1])
        first = after - h
        rows = self._stale(first, real).nonzero().flatten()
        self.counts.update(calls=len(h), skipped=len(h) - len(rows))
        if len(rows) == len(h):
            out = self.blocks(after, arguments[1:], start=1)
            self._first, self._rest = first, out - after
            return out
        assert self._first is not None
        assert self._rest is not None
        out = after + self._rest
        if len(rows):
            others = [_rows(one, rows, len(h)) for one in arguments[1:]]
            full = self.blocks(after[rows], others, start=1)
            self._first = self._first.index_copy(0, rows, first[rows])
            self._rest = self._rest.index_copy(0, rows, full - after[rows])
            out = out.index_copy(0, rows, full)
        return out

    def _stale(self, first: Tensor, real: Tensor | None) -> Tensor:
        """Which rows must be computed in full: ``(batch,)``."""
        if self._first is None or self._first.shape != first.shape:
            return torch.ones(len(first), dtype=torch.bool, device=first.device)
        change, size = (first - self._first).abs().float(), self._first.abs().float()
        if real is not None:  # padding does not count
            own = real.reshape(*first.shape[:3], 1)
            change, size = change * own, size * own
        relative = change.sum((2, 3)) / size.sum((2, 3)).clamp(min=1e-20)
        return ~(relative < self.threshold).all(1)


def _rows(value: Any, rows: Tensor, batch: int) -> Any:
    """The arguments of a block for some of its samples. What differs between samples has three axes or more, the first
    of ``batch`` times the sequences of a sample; matrices (positions, who sees whom) serve all."""
    if isinstance(value, tuple):
        return tuple(_rows(one, rows, batch) for one in value)
    if not isinstance(value, Tensor) or value.ndim < 3 or len(value) == 1:
        return value
    return value.unflatten(0, (batch, -1))[rows].flatten(0, 1)
