r"""Runge-Kutta methods for the probability-flow ODE.

Scaled by S(t), the ODE has a simple right-hand side, a mixture of what the denoiser says:

    coordinate   S               u              dz/du         z = x / S
    flow         alpha + sigma   sigma / S      noise - x0
    sigma        alpha           sigma / alpha  noise

Every solver here is linear in x and in the estimates of x0, by ``noise = (x - alpha x0) / sigma``. At sigma = 0 the
noise is 0, its mean given x. An Euler step is DDIM's in either coordinate.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval, Multistep
from .sampler import SAMPLERS, LinearSampler, Move, Stage, rows

Coordinate = Literal["auto", "flow", "sigma"]


class RungeKutta2(LinearSampler):
    """Two calls a step: the slope at t, and the slope where an Euler step over a fraction of the way leads.

    In the coordinate ``sigma`` a step from alpha = 0 or to sigma = 0 is Euler's (Karras et al. 2022, alg. 1).

    Args:
        fraction: of the step in u; 1 is Heun's method, 1/2 the midpoint rule.
        coordinate: ``auto`` is ``sigma`` for exploding schedules (as EDM does) and ``flow`` for others.
    """

    order = 2
    calls_per_step = 2

    def __init__(self, fraction: float, coordinate: Coordinate = "auto") -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        if coordinate not in ("auto", "flow", "sigma"):
            raise ValueError(f"coordinate must be 'auto', 'flow' or 'sigma', got {coordinate!r}")
        self.fraction, self.coordinate = fraction, coordinate

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        return self.plan_steps(schedule, grid[:-1], grid[1:])

    def plan_steps(self, schedule: Schedule, t: Tensor, s: Tensor) -> list[Move]:
        """Steps from ``t`` to ``s``, which need not follow each other."""
        flow = (schedule.scaling != "exploding") if self.coordinate == "auto" else self.coordinate == "flow"

        def frame(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            scale = alpha + sigma if flow else alpha
            return scale, sigma / scale

        whole = Interval(schedule, t, s)
        (scale, u), (scale_s, u_s) = frame(whole.alpha, whole.sigma), frame(whole.alpha_s, whole.sigma_s)
        second = whole.moves if flow else whole.inside
        middle = torch.where(second, self._time_of(schedule, u + self.fraction * (u_s - u), flow), t)
        if self.fraction == 1:
            middle = torch.where(second, s, t)
        half = Interval(schedule, t, middle)
        a, b = half.first_order()

        def slope(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:  # weights of (x, x0)
            inverse = torch.where(sigma > 0, 1 / sigma, 0.0)
            return inverse, -alpha * inverse - (1.0 if flow else 0.0)

        stretch = scale_s * (u_s - u) / (2 * self.fraction)
        (p1, q1), (p2, q2) = slope(whole.alpha, whole.sigma), slope(half.alpha_s, half.sigma_s)
        first = stretch * (2 * self.fraction - 1)
        euler = whole.first_order()
        heun = (scale_s / scale + first * p1 + stretch * p2 * a, stretch * q2, first * q1 + stretch * p2 * b)
        single = (euler[0], torch.zeros_like(stretch), euler[1])
        final = [torch.where(second, two, one) for two, one in zip(heun, single, strict=True)]
        some = second.flatten(1).any(1).tolist() if second.ndim > 1 else second.tolist()
        table = zip(some, t, middle, *(zip(*map(rows, w), strict=True) for w in ((a, b), final, euler)), strict=True)
        return [
            Move((Stage(start, to_middle), Stage(there, to_end)) if both else (Stage(start, straight),))
            for both, start, there, to_middle, to_end, straight in table
        ]

    @staticmethod
    def _time_of(schedule: Schedule, u: Tensor, flow: bool) -> Tensor:
        ratio = (1 - u) / u if flow else 1 / u  # alpha / sigma
        return schedule.time_of_log_snr(2 * torch.log(ratio))


@SAMPLERS.register("euler")
def euler() -> Multistep:
    """Euler's method, which is DDIM."""
    return Multistep(1)


@SAMPLERS.register("heun")
def heun(coordinate: Coordinate = "auto") -> RungeKutta2:
    """Heun's method (Karras et al. 2022, alg. 1)."""
    return RungeKutta2(1.0, coordinate)


@SAMPLERS.register("midpoint")
def midpoint(coordinate: Coordinate = "auto") -> RungeKutta2:
    """The midpoint rule."""
    return RungeKutta2(0.5, coordinate)
