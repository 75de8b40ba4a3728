r"""Runge-Kutta methods for the probability-flow ODE.

Scaled by S(t), the ODE has a simple right-hand side, a mixture of what the denoiser says:

    coordinate   S               u              dz/du         z = x / S
    flow         alpha + sigma   sigma / S      noise - x0
    sigma        alpha           sigma / alpha  noise

An Euler step is DDIM's in either coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval, Multistep
from .sampler import SAMPLERS
from .singlestep import OneStep, Tableau

Coordinate = Literal["auto", "flow", "sigma"]
HEUN = ((1.0,), (0.5, 0.5))


class RungeKutta(OneStep):
    """An explicit Runge-Kutta method. In the coordinate ``sigma`` a step from alpha = 0 or to sigma = 0 is Euler's
    (Karras et al. 2022, alg. 1).

    Args:
        matrix: its Butcher tableau: for each call but the first, and for the end of the step, the weights of the slopes
            before it.
        order: of convergence.
        coordinate: ``auto`` is ``sigma`` for exploding schedules (as EDM does) and ``flow`` for others.
    """

    def __init__(self, matrix: Sequence[Sequence[float]], order: int, coordinate: Coordinate = "auto") -> None:
        if coordinate not in ("auto", "flow", "sigma"):
            raise ValueError(f"coordinate must be 'auto', 'flow' or 'sigma', got {coordinate!r}")
        self.matrix, self.order, self.coordinate = matrix, order, coordinate
        self.calls_per_step, self.invariant = len(matrix), coordinate != "auto"

    def tableau(self, schedule: Schedule, whole: Interval) -> Tableau:
        flow = (schedule.scaling != "exploding") if self.coordinate == "auto" else self.coordinate == "flow"

        def frame(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            scale = alpha + sigma if flow else alpha
            return scale, sigma / scale

        (scale, u), (_, u_s) = frame(whole.alpha, whole.sigma), frame(whole.alpha_s, whole.sigma_s)
        active = whole.moves if flow else whole.inside
        times, points = [whole.t], []
        for weights in self.matrix:
            there = u + sum(weights) * (u_s - u)
            ratio = (1 - there) / there if flow else 1 / there  # alpha / sigma
            ends = abs(sum(weights) - 1) < 1e-9
            time = whole.s if ends else schedule.time_of_log_snr(2 * torch.log(ratio))
            times.append(torch.where(active, time, whole.t))
            stretch, _ = frame(*schedule.alpha_sigma(times[-1]))
            points.append([stretch / scale, *(stretch * (u_s - u) * weight for weight in reversed(weights))])
        return Tableau("velocity" if flow else "noise", active, times[:-1], points)


@SAMPLERS.register("euler")
def euler() -> Multistep:
    """Euler's method, which is DDIM (Song et al. 2021)."""
    return Multistep(1)


@SAMPLERS.register("heun")
def heun(coordinate: Coordinate = "auto") -> RungeKutta:
    """Heun's method (Karras et al. 2022, alg. 1)."""
    return RungeKutta(HEUN, 2, coordinate)


@SAMPLERS.register("midpoint")
def midpoint(coordinate: Coordinate = "auto") -> RungeKutta:
    """The midpoint rule, DPM-2 of Karras et al. 2022 with its middle in the coordinate itself."""
    return RungeKutta(((0.5,), (0.0, 1.0)), 2, coordinate)
