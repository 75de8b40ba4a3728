"""Steps that go further than they are to, and come back up with fresh noise: ancestral samplers of any inner method."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval, anywhere
from .langevin import linear, raised
from .runge_kutta import Coordinate, midpoint
from .sampler import SAMPLERS, LinearSampler, Move, rows


class Overshoot(LinearSampler):
    """The inner sampler steps from t to a time d <= s, and noise is added up to s.

    Args:
        inner: a sampler without history.
        eta: how far beyond s; at 0, d = s and no noise is added.
        law: ``posterior``: the noise added has eta times the posterior's standard deviation (k-diffusion's ancestral
            samplers; Song et al. 2021, eq. 16); ``time``: d = (1 - eta) s.
    """

    def __init__(self, inner: Any, eta: float = 1.0, law: Literal["posterior", "time"] = "posterior") -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.inner, self.eta, self.law = linear(inner), eta, law
        self.order, self.calls_per_step, self.memory = self.inner.order, self.inner.calls_per_step, self.inner.memory
        self.stochastic = eta > 0 or self.inner.stochastic
        self.invariant = self.inner.invariant and (law == "posterior" or eta in (0, 1))

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        t, s = grid[:-1], grid[1:]
        beyond = self._beyond(schedule, t, s)
        # The steps t -> d are every other one of the grid t_0, d_0, t_1, d_1, ...
        moves = self.inner.plan(schedule, torch.stack((t, beyond), 1).flatten(0, 1))[::2]
        lifts = zip(*map(rows, raised(schedule, beyond, s)), anywhere(beyond < s), strict=True)
        return [
            move._replace(then=(*move.then, Move((), lift=(keep, added)))) if some else move
            for move, (keep, added, some) in zip(moves, lifts, strict=True)
        ]

    def _beyond(self, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        if self.law == "time":
            return torch.where(t > s, (1 - self.eta) * s, s)
        step = Interval(schedule, t, s)
        further = -torch.log1p(self.eta**2 * torch.expm1(-2 * step.h))  # in log-SNR
        level = schedule.log_snr(s) + further
        return torch.where(further > 0, torch.where(level.isinf(), 0.0, schedule.time_of_log_snr(level)), s)


@SAMPLERS.register("euler_ancestral")
def euler_ancestral(eta: float = 1.0) -> Overshoot:
    """Euler's method and fresh noise, k-diffusion's; in law DDIM of the same ``eta`` (Song et al. 2021)."""
    return Overshoot("euler", eta)


@SAMPLERS.register("dpm2_ancestral")
def dpm2_ancestral(eta: float = 1.0, coordinate: Coordinate = "sigma") -> Overshoot:
    """The midpoint rule and fresh noise, k-diffusion's (Karras et al. 2022, DPM-2)."""
    return Overshoot(midpoint(coordinate), eta)


@SAMPLERS.register("dpmpp_2s_ancestral")
def dpmpp_2s_ancestral(eta: float = 1.0) -> Overshoot:
    """DPM-Solver++ 2S (Lu et al. 2022b) and fresh noise, k-diffusion's."""
    return Overshoot("dpmpp_2s", eta)
