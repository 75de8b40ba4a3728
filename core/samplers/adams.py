r"""Adams-Bashforth methods on the noise instead of x0: DEIS, linear multistep, PNDM and its improvement.

    x_s / alpha_s = x_t / alpha_t + int noise d(sigma / alpha)

with the noise replaced by the polynomial through those of earlier steps, in a coordinate of choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval, earlier, moments, node_weights
from .runge_kutta import RungeKutta
from .sampler import SAMPLERS, LinearSampler, Move, Stage, rows
from .singlestep import slope_weights

RK4 = RungeKutta(((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)), 4, "sigma")


class AdamsBashforth(LinearSampler):
    """One call a step. The step is DDIM's and a correction by the differences of earlier noises to the present one, so
    that it stays exact where alpha_t = 0; the first steps are of lower order.

    Args:
        order: how many noises are interpolated.
        coordinate: the polynomial's variable: ``log_rho``, log(sigma / alpha); ``rho``, sigma / alpha; ``step``, the
            steps' number, which gives the classical weights (3/2, -1/2 and so on): of order 2 at most, unless all
            steps of sigma / alpha are equal.
    """

    def __init__(self, order: int, coordinate: Literal["log_rho", "rho", "step"]) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if coordinate not in ("log_rho", "rho", "step"):
            raise ValueError(f"coordinate must be 'log_rho', 'rho' or 'step', got {coordinate!r}")
        self.count, self.memory, self.coordinate = order, order - 1, coordinate
        self.order = min(order, 2) if coordinate == "step" else order

    def weights(self, schedule: Schedule, interval: Interval) -> list[Tensor]:
        """Of (x, D, noises of earlier steps, newest first)."""
        keep, b = interval.first_order()
        places, used = earlier(interval, self.count - 1)
        h = torch.where(interval.inside, interval.h, 1.0)
        if self.coordinate == "log_rho":
            integrals = moments(-h, self.count)
        else:
            integrals = [-torch.expm1(h) / (n + 1) for n in range(self.count)]
        if self.coordinate == "rho":
            places = [torch.expm1(-place * h) / torch.expm1(-h) for place in places]
        elif self.coordinate == "step":
            places = [torch.full_like(h, -1.0 - n) for n in range(len(places))]
        mix = node_weights([torch.zeros_like(h), *places], [interval.inside, *used], integrals)[1:]
        mix = [interval.sigma_s * w for w in mix]
        total = sum(mix, torch.zeros_like(h))  # the present noise loses this much
        p, q = slope_weights("noise", schedule, interval.t)
        return [keep - total * p, b - total * q, *mix]

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        interval = Interval(schedule, grid[:-1], grid[1:])
        record = zip(*map(rows, slope_weights("noise", schedule, interval.t)), strict=True)
        weights = zip(*map(rows, self.weights(schedule, interval)), strict=True)
        return [Move((stage,)) for stage in map(Stage, grid[:-1], weights, record)]


class PNDM(AdamsBashforth):
    """Classical weights of order 4, and steps of the classical Runge-Kutta method, with four calls, until there are
    three noises to go on from."""

    calls_per_step = None

    def __init__(self) -> None:
        super().__init__(4, "step")

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        interval = Interval(schedule, grid[:-1], grid[1:])
        started = earlier(interval, self.memory)[1][-1]
        tableau = RK4.tableau(schedule, interval)._replace(active=interval.inside & ~started)
        return tableau.moves(schedule, grid[:-1], self.weights(schedule, interval))


@SAMPLERS.register("deis")
def deis(order: int = 3, coordinate: Literal["log_rho", "rho"] = "log_rho") -> AdamsBashforth:
    """DEIS (Zhang and Chen 2023): ``order`` noises interpolated in log(sigma / alpha), or in sigma / alpha."""
    return AdamsBashforth(order, coordinate)


@SAMPLERS.register("lms")
def lms(order: int = 4) -> AdamsBashforth:
    """The linear multistep method: DEIS in its coordinate ``rho``, sigma / alpha (Zhang and Chen 2023)."""
    return AdamsBashforth(order, "rho")


@SAMPLERS.register("ipndm")
def ipndm(order: int = 4) -> AdamsBashforth:
    """iPNDM (Zhang and Chen 2023): the classical Adams-Bashforth weights, started with lower orders; of that order
    where steps of sigma / alpha are equal, else of order 2."""
    return AdamsBashforth(order, "step")


@SAMPLERS.register("pndm")
def pndm() -> PNDM:
    """PNDM (Liu et al. 2022), started with three Runge-Kutta steps of four calls, their middle in sigma / alpha; of
    order 4 where steps of sigma / alpha are equal, else of order 2."""
    return PNDM()
