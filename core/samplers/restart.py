"""Restart sampling: go up by fresh noise and down again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..schedules import Schedule
from .langevin import linear, raised
from .sampler import SAMPLERS, LinearSampler, Move, rows


@SAMPLERS.register("restart")
class Restart(LinearSampler):
    """Noise is added over a whole interval of levels and removed again, ``repeats`` times: the noise forgets the errors
    made above, the steps down make small ones (Xu et al. 2023, alg. 1).

    Args:
        inner: the sampler of all steps down.
        intervals: pairs (low, high) of sigma / alpha. Where a step of the grid first reaches low, x goes up to high.
        repeats: how often, for each interval.
        steps: of each way down, spaced as Karras et al. 2022.
    """

    calls_per_step = None

    def __init__(
        self,
        inner: Any = "dpmpp_2m",
        intervals: Sequence[Sequence[float]] = ((0.06, 0.3),),
        repeats: int = 2,
        steps: int = 3,
    ) -> None:
        if not all(len(pair) == 2 and 0 <= pair[0] < pair[1] for pair in intervals):
            raise ValueError(f"intervals are pairs 0 <= low < high of sigma / alpha, got {intervals}")
        if repeats < 0 or steps < 1:
            raise ValueError(f"repeats must be at least 0 and steps at least 1, got {repeats} and {steps}")
        self.inner, self.repeats, self.steps = linear(inner), repeats, steps
        self.intervals = sorted((tuple(pair) for pair in intervals), reverse=True)
        self.order, self.memory, self.invariant = self.inner.order, self.inner.memory, self.inner.invariant
        self.elementwise = self.memory == 0  # the others wait while one restarts, and lose what they remember
        self.stochastic = self.inner.stochastic or (repeats > 0 and len(self.intervals) > 0)

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        ratio = torch.exp(-schedule.log_snr(grid) / 2)  # sigma / alpha
        times, starts = [grid[0]], []
        for before, after, s in zip(ratio[:-1], ratio[1:], grid[1:], strict=True):
            starts.append(len(times) - 1)
            times.append(s)
            for low, high in self.intervals:
                top = ratio[0].clamp(max=high)  # never above the start
                reached = (after <= low) & (low < before) & (after < top)
                if bool(reached.any()):
                    down = [torch.where(reached, time, s) for time in self._down(schedule, top, after)]
                    times += [*down, s] * self.repeats
        path = torch.stack(times)
        climbs = path[:-1] < path[1:]
        lifts = zip(*map(rows, raised(schedule, path[:-1], path[1:])), strict=True)
        moves = [
            Move((), lift=lift) if bool(up.any()) else move
            for move, up, lift in zip(self.inner.plan(schedule, path), climbs, lifts, strict=True)
        ]
        ends = [*starts[1:], len(moves)]
        return [_one(moves[start:end]) for start, end in zip(starts, ends, strict=True)]

    def _down(self, schedule: Schedule, top: Tensor, bottom: Tensor) -> list[Tensor]:
        """The times of one way down, from the top on; the bottom is left out."""
        spaced = (torch.lerp(top ** (1 / 7), bottom ** (1 / 7), n / self.steps) ** 7 for n in range(self.steps))
        return [schedule.time_of_log_snr(-2 * torch.log(level)) for level in spaced]


def _one(moves: Sequence[Move]) -> Move:
    """Moves in a row as one step."""
    first, *rest = (part for move in moves for part in (move._replace(then=()), *move.then))
    return first._replace(then=tuple(rest))
