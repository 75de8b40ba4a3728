r"""Adams-Bashforth-Moulton on the straight line: a linear multistep method for rectified flow's velocity.

With ``S = alpha + sigma``, ``z = x / S`` and ``u = sigma / S`` the probability-flow ODE of any schedule is

    dz / du = v = noise - x0

and v is smooth and finite at both ends: no signal at u = 1, no noise at u = 0. So every step keeps its order, the first
and the last as well, where methods in log-SNR must fall back to the first order.

    z_s = z_t + int v du,       v the polynomial in u through the present and earlier velocities
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import anywhere, node_weights
from .sampler import SAMPLERS, LinearSampler, Move, Stage, Weight, rows
from .singlestep import slope_weights


@SAMPLERS.register("abm")
class AdamsMoulton(LinearSampler):
    """Adams-Bashforth-Moulton for the velocity of rectified flow: one call a step, of full order to t = 0.

    The corrector is implicit no more when the next estimate is there: it improves the start of the next step by that,
    for no further call (as UniPC does; Zhao et al. 2023). The first step is Euler's: its error stays.

    Args:
        order: how many velocities are interpolated (Hairer et al. 1993, section III.1).
        corrector: improve the start of each step by the velocity there.
    """

    def __init__(self, order: int = 3, corrector: bool = True) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        self.count, self.corrector = order, corrector
        self.order = order + corrector
        self.memory = order if corrector else order - 1

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        alpha, sigma = schedule.alpha_sigma(grid)
        scale = alpha + sigma
        u, start, end = sigma / scale, scale[:-1], scale[1:]
        moves = grid[:-1] > grid[1:]
        p, q = slope_weights("velocity", schedule, grid)
        nodes, used = self._earlier(u, moves)
        step = torch.where(moves, end * u.diff(dim=0), 0.0)
        mix = self._integrals(nodes, used, step)
        keep = torch.where(moves, end / start, 1.0)
        table = zip(*map(rows, (keep + mix[0] * p[:-1], mix[0] * q[:-1], *mix[1:])), strict=True)
        record = zip(rows(p[:-1]), rows(q[:-1]), strict=True)
        corrections: list[tuple[Weight, ...] | None] = [None] * len(step)
        if self.corrector:
            moved = moves & torch.cat([moves[1:], moves[:1]])
            after = [torch.ones_like(step), *nodes], [moved, *(u & moved for u in used)]
            new, *redone = self._integrals(*after, step)
            gain = [torch.where(moved, a - b, 0.0) for a, b in zip(redone, mix, strict=True)]
            weights = zip(*map(rows, (1 + new * p[1:], new * q[1:], *gain)), strict=True)
            some = anywhere(moved)
            corrections = [None, *(row if any_ else None for row, any_ in zip(weights, some, strict=True))][:-1]
        return [Move((stage,)) for stage in map(Stage, grid[:-1], table, record, corrections)]

    def _earlier(self, u: Tensor, moves: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The places of the present and earlier velocities, the step being from 0 to 1, and where they may be used: an
        element that waited starts its history anew."""
        nodes, used, before, usable = [torch.zeros_like(u[1:])], [torch.ones_like(moves)], u[:-1], moves
        for _ in range(self.count - 1):
            earlier = torch.cat([torch.full_like(before[:1], torch.nan), before[:-1]])
            usable = usable & (earlier > before)
            nodes.append((earlier - u[:-1]) / u.diff(dim=0))
            used.append(usable)
            before = earlier
        return nodes, used

    @staticmethod
    def _integrals(nodes: list[Tensor], used: list[Tensor], step: Tensor) -> list[Tensor]:
        integrals = [torch.ones_like(step) / (n + 1) for n in range(len(nodes))]
        return [torch.where(step == 0, 0.0, step * weight) for weight in node_weights(nodes, used, integrals)]
