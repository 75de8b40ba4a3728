r"""Methods of one step: estimates at points inside the step, and no history.

Scaled in some way the probability-flow ODE has a simple right-hand side, its *slope*, a mixture of x and the estimate:

    slope       k                     scaling S       method
    x0          D                     sigma           exponential, of x0: DPM-Solver++ 2S/3S, RES
    noise       (x - alpha D) / sigma alpha           exponential, of noise: DPM-Solver; Runge-Kutta in sigma / alpha
    velocity    noise - D             alpha + sigma   Runge-Kutta in t of the straight line

A method is the table of ``x_i = (S_i / S_0) x + sum_j gain_ij k_j``, one row for each point where the denoiser is
called next and one for the end of the step. Where a step cannot be made so (from alpha = 0, or to sigma = 0) it is
DDIM's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval, anywhere, moments, node_weights
from .sampler import SAMPLERS, LinearSampler, Move, Stage, rows

Slope = Literal["x0", "noise", "velocity"]


def slope_weights(slope: Slope, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of (x, x0) in the slope at times ``t``. At sigma = 0 the noise is 0, its mean given x."""
    alpha, sigma = schedule.alpha_sigma(t)
    if slope == "x0":
        return torch.zeros_like(t), torch.ones_like(t)
    inverse = torch.where(sigma > 0, 1 / sigma, 0.0)
    return inverse, -alpha * inverse - float(slope == "velocity")


class Tableau(NamedTuple):
    """A method at each of its steps, as tensors of the shape of the times.

    Attributes:
        slope: what its slopes are.
        active: where it is used.
        times: of each call of the denoiser.
        points: the x after each call: the weights of (x at the start, slopes so far, newest first).
    """

    slope: Slope
    active: Tensor
    times: list[Tensor]
    points: list[list[Tensor]]

    def moves(self, schedule: Schedule, t: Tensor, otherwise: Sequence[Tensor]) -> list[Move]:
        """The steps from ``t``. ``otherwise``: the weights of (x, D at t, records of earlier steps) where the method is
        not used; such an element stays at t, where it is, until the last call."""
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        times = [torch.where(self.active, time, t) for time in self.times]
        table, here = [], [one]
        for i, (time, point) in enumerate(zip(times, self.points, strict=True)):
            (p, q), (base, lead, *rest) = slope_weights(self.slope, schedule, time), point
            # The newest slope is p x_i + q D_i, and x_i known by the slopes before it.
            weights = [base + lead * p * here[0], lead * q]
            weights += [gain + lead * p * c for gain, c in zip(rest, here[1:], strict=True)]
            last = i == len(times) - 1
            plain = [*otherwise[:2], *[zero] * i, *otherwise[2:]] if last else [one]
            length = max(len(weights), len(plain))
            weights, plain = ([*w, *[zero] * (length - len(w))] for w in (weights, plain))
            mixed = [torch.where(self.active, w, other) for w, other in zip(weights, plain, strict=True)]
            record = [None] * len(t) if self.slope == "x0" else list(zip(rows(p), rows(q), strict=True))
            table.append(list(map(Stage, time, zip(*map(rows, mixed), strict=True), record)))
            here = point
        single = map(Stage, t, zip(*map(rows, otherwise), strict=True), [first.record for first in table[0]])
        return [
            Move(stages if some else (alone,))
            for some, alone, stages in zip(anywhere(self.active), single, zip(*table, strict=True), strict=True)
        ]


class OneStep(LinearSampler):
    """A sampler without history: subclasses give the tableau."""

    @abstractmethod
    def tableau(self, schedule: Schedule, whole: Interval) -> Tableau:
        """The method over the steps ``whole``."""

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        return self.plan_steps(schedule, grid[:-1], grid[1:])

    def plan_steps(self, schedule: Schedule, t: Tensor, s: Tensor) -> list[Move]:
        """Steps from ``t`` to ``s``, which need not follow each other."""
        whole = Interval(schedule, t, s)
        return self.tableau(schedule, whole).moves(schedule, t, whole.first_order())


class Singlestep(OneStep):
    """Exponential: the slope is interpolated by a polynomial in log-SNR, and integrated exactly.

    Args:
        fractions: where in a step of log-SNR the denoiser is called, after its start; rising, the last at most 1.
        slope: what is interpolated, ``x0`` or the ``noise``.
        simplified: of two calls, end with the second's slope alone, as published for DPM-Solver-2; for fraction 1/2.
    """

    def __init__(
        self, fractions: Sequence[float], slope: Literal["x0", "noise"] = "x0", simplified: bool = False
    ) -> None:
        if not all(low < high for low, high in zip((0.0, *fractions), (*fractions, 1.0 + 1e-9), strict=True)):
            raise ValueError(f"a step's points must rise within (0, 1], got {tuple(fractions)}")
        self.fractions, self.slope, self.simplified = tuple(fractions), slope, simplified
        self.order = self.calls_per_step = len(fractions) + 1

    def tableau(self, schedule: Schedule, whole: Interval) -> Tableau:
        times = [whole.t]
        for c in self.fractions:
            time = whole.s if c == 1 else schedule.time_of_log_snr(2 * (whole.level + c * whole.h))
            times.append(torch.where(whole.inside, time, whole.t))
        levels, points = [schedule.log_snr(time) / 2 for time in times], []
        for call, end in enumerate((*times[1:], whole.s)):
            part = Interval(schedule, whole.t, end)
            if self.slope == "x0":
                base, scale, k = part.shrink, part.alpha_s, part.h
            else:
                base, scale, k = part.alpha_s / part.alpha, part.sigma_s, -part.h
            nodes = [(level - whole.level) / part.h for level in levels[call::-1]]
            points.append([base, *(scale * gain for gain in self._gains(nodes, k))])
        return Tableau(self.slope, whole.inside, times, points)

    def _gains(self, nodes: list[Tensor], k: Tensor) -> list[Tensor]:
        """Weights of the slopes at ``nodes``, newest first, the step being from 0 to 1."""
        if self.simplified and len(nodes) == 2:
            return [moments(k, 1)[0], torch.zeros_like(k)]
        return node_weights(nodes, [k.isfinite()] * len(nodes), moments(k, len(nodes)))


class Refined(Singlestep):
    """Three calls whose weights meet all of the stiff order conditions but one, and that one at small steps (Hochbruck
    and Ostermann 2005, eq. 5.9): with ``g = (3 c3^2 - 2 c3) / (c2 (2 - 3 c2))`` the errors of the two inner points
    cancel.

    Args:
        c2: where in a step of log-SNR the second call is.
        c3: where the third is.
    """

    def __init__(self, c2: float, c3: float) -> None:
        super().__init__((c2, c3))
        if abs(2 - 3 * c2) < 1e-6:
            raise ValueError("c2 must not be 2/3")
        self.gamma = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))

    def _gains(self, nodes: list[Tensor], k: Tensor) -> list[Tensor]:
        if len(nodes) == 3:
            zeroth, first = moments(k, 2)
            last = first / (self.gamma * nodes[1] + nodes[0])
            return [last, self.gamma * last, zeroth - (1 + self.gamma) * last]
        gains = super()._gains(nodes, k)
        if len(nodes) == 2:
            more = self.gamma * moments(nodes[0] * k, 2)[1]
            return [gains[0] + more, gains[1] - more]
        return gains


@SAMPLERS.register("dpmpp_2s")
def dpmpp_2s() -> Singlestep:
    """DPM-Solver++ 2S (Lu et al. 2022b): two calls a step, no history."""
    return Singlestep((1 / 2,))


@SAMPLERS.register("dpmpp_3s")
def dpmpp_3s() -> Singlestep:
    """DPM-Solver++ 3S (Lu et al. 2022b): three calls a step, no history."""
    return Singlestep((1 / 3, 2 / 3))


@SAMPLERS.register("dpm_1")
def dpm_1() -> Singlestep:
    """DPM-Solver of order 1, which is DDIM (Lu et al. 2022a)."""
    return Singlestep((), "noise")


@SAMPLERS.register("dpm_2")
def dpm_2(simplified: bool = False) -> Singlestep:
    """DPM-Solver-2 (Lu et al. 2022a), of the noise, with exact weights: two calls a step, no history. ``simplified``:
    with the published weights, those of the midpoint, instead."""
    return Singlestep((1 / 2,), "noise", simplified)


@SAMPLERS.register("dpm_3")
def dpm_3() -> Singlestep:
    """DPM-Solver-3 (Lu et al. 2022a), of the noise, with exact weights: three calls a step, no history."""
    return Singlestep((1 / 3, 2 / 3), "noise")


@SAMPLERS.register("res_2s")
def res_2s(c2: float = 0.5) -> Singlestep:
    """The refined exponential solver of two calls a step (Zhang et al. 2023), the second after ``c2`` of the step in
    log-SNR; at 1/2 it is DPM-Solver++ 2S with exact weights."""
    return Singlestep((c2,))


@SAMPLERS.register("res_3s")
def res_3s(c2: float = 0.5, c3: float = 1.0) -> Refined:
    """The refined exponential solver of three calls a step (Zhang et al. 2023), the second and third after ``c2`` and
    ``c3`` of the step in log-SNR."""
    return Refined(c2, c3)
