r"""Noise that is the same at any number of steps: the increments of one Brownian path for each sample.

The reverse SDE is driven, but for a factor, by a Brownian motion W whose clock is the signal-to-noise ratio: with x0
held fixed the noise of a step from t to s is ``W(snr_s) - W(snr_t)`` exactly, and that of two steps in a row the sum.
Over the whole way the clock runs from 0 to infinity; as a Brownian bridge b on [0, 1] in the variance ``w = sigma^2 /
(alpha^2 + sigma^2)``, with ``W = b / w``, the path has two fixed ends. A virtual Brownian tree (Li et al. 2020) finds
its value anywhere: intervals of ``u = sigma / (alpha + sigma)`` are halved, the value in the middle drawn from a seed
of that node's own, and none need be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..randomness import generator, mix
from ..samples import Sample, align_left, map_parts
from ..schedules import Schedule
from ..spaces import Space
from .sampler import combine

NoiseKind = Literal["independent", "brownian"]

_DEPTH = 20  # times that differ by less than 2^-20 in sigma / (alpha + sigma) share a node's draw
_PATH = -9  # a key of the seeds of paths
_LEAST = 2.0**-40  # stands for no noise


class BrownianNoise:
    """The noise of each step of a grid.

    Args:
        space: where it lives.
        like: gives shape, dtype and device.
        generators: one for each sample; the path is its seed's.
        schedule: of the grid.
        grid: the times of the steps.

    Raises:
        ValueError: a space whose noise is not normal.
    """

    def __init__(
        self, space: Space, like: Sample, generators: Sequence[Generator], schedule: Schedule, grid: Tensor
    ) -> None:
        try:
            space.tempered(like, 0.5)
        except ValueError:
            raise ValueError("noise='brownian' needs a space whose noise is normal") from None
        self.space, self.like, self.generators = space, like, generators
        self.keys = [mix(own.initial_seed(), _PATH) for own in generators]
        self.fractions = torch.sigmoid(-schedule.log_snr(grid) / 2).clamp(min=_LEAST)
        self.nodes: dict[int, Sample] = {}  # on the way to the last value

    def step(self, index: int) -> Callable[[], Sample]:
        """What draws the noise of a step: the first time the path's, then fresh noise."""
        own = iter((index,))
        return lambda: self.space.noise(self.like, self.generators) if next(own, None) is None else self.of(index)

    def of(self, index: int) -> Sample:
        """The path's increment over a step, standard normal; 0 where an element waits."""
        u, u_s = self.fractions[index : index + 2]
        w, w_s, moved = _gap(u, 0.0), _gap(u_s, 0.0), _gap(u, u_s)
        inverse = torch.where(moved > 0, 1 / torch.sqrt(w * w_s * moved), 0.0)
        return combine((w * inverse, -w_s * inverse), (self._bridge(u_s), self._bridge(u)))

    def _bridge(self, fractions: Tensor) -> Sample:
        first, *others = fractions.unique().tolist()
        out = self._value(first)
        for u in others:
            here = fractions == u
            out = map_parts(lambda a, b, h: torch.where(align_left(h.to(a.device), a), a, b), self._value(u), out, here)
        return out

    def _value(self, u: float) -> Sample:
        low, high, node = 0.0, 1.0, 1
        below = above = map_parts(torch.zeros_like, self.like)
        way: dict[int, Sample] = {}
        while u < 1:
            middle = (low + high) / 2 if node < 1 << _DEPTH else u
            value = self.nodes.get(node)
            if value is None or middle == u:
                fresh = self.space.noise(self.like, [generator(key, node) for key in self.keys])
                whole, left, right = _gap(high, low), _gap(middle, low), _gap(high, middle)
                weights = (right / whole, left / whole, (left * right / whole) ** 0.5)
                value = combine(weights, (below, above, fresh))
            if middle == u:
                above = value
                break
            way[node] = value
            if u < middle:
                high, above, node = middle, value, 2 * node
            else:
                low, below, node = middle, value, 2 * node + 1
        self.nodes = way
        return above


def _gap(a: Any, b: Any) -> Any:
    """w(a) - w(b) of two noise fractions ``u = sigma / (alpha + sigma)``, to full relative precision."""
    size_a, size_b = (u * u + (1 - u) * (1 - u) for u in (a, b))
    return (a - b) * (a * (1 - b) + b * (1 - a)) / (size_a * size_b)
