r"""Exponential integrators: DDIM, DPM-Solver++, its SDE variants, UniPC, SA-Solver: one coefficient routine.

With ``l = log(alpha / sigma)`` (half the log-SNR) and ``h = l_s - l_t`` the step from t to s is, exactly,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s I + sigma_s sqrt(1 - e^(-2 eta h)) z
    I   = int_0^1 k e^(-k (1 - u)) x0(l_t + u h) du,            k = (1 + eta) h

where eta = 0 is the probability-flow ODE and eta = 1 the reverse SDE (Lu et al. 2022b, Gonzalez et al. 2023). Replace
x0(l) by the polynomial through the estimates known at l_j = l_t + r_j h and the integral becomes a weighted sum of
them, ``sum_j w_j D_j`` with ``w_j = int k e^(-k (1 - u)) L_j(u) du``: all methods below differ in their nodes r_j only.

    multistep   r = 0 and earlier steps                    DDIM, DPM-Solver++ 1/2M/3M, UniP, RES; of the noise: adams.py
    corrector   the same and r = 1, one step later         UniC, SA-Solver: no further call of the denoiser
    singlestep  r = 0 and points inside the step           DPM-Solver++ 2S/3S, RES, DPM-Solver: singlestep.py

Where l is infinite (no signal at t, or no noise at s) the step is of first order, and exact: x0 is constant there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from ..schedules import Schedule
from .sampler import SAMPLERS, LinearSampler, Move, Stage, Weight, rows

NoiseLaw = Literal["sde", "ddim"]


class Interval:
    """Steps from times t to times s, all at once; float64 tensors of the shape of ``t``.

    Attributes:
        moves: where t > s; elsewhere the step is the identity.
        inside: where both ends have a finite log-SNR.
        level: log(alpha / sigma) at t.
        h: its rise to s, 0 where nothing moves, infinite where an end is.
    """

    def __init__(self, schedule: Schedule, t: Tensor, s: Tensor) -> None:
        self.t, self.s, self.moves = t, s, t > s
        both = torch.stack((t, s))
        (self.alpha, self.alpha_s), (self.sigma, self.sigma_s) = schedule.alpha_sigma(both)
        self.level, end = schedule.log_snr(both) / 2
        self.inside = self.moves & self.level.isfinite() & end.isfinite()
        self.h = torch.where(self.moves, end - self.level, 0.0)
        self.shrink = torch.where(self.moves, self.sigma_s / self.sigma, 1.0)

    def first_order(self) -> tuple[Tensor, Tensor]:
        """(a, b) of the DDIM step ``x_s = a x + b x0``."""
        return self.shrink, torch.where(self.moves, self.alpha_s * -torch.expm1(-self.h), 0.0)


def moments(k: Tensor, count: int) -> list[Tensor]:
    """``int_0^1 k e^(-k (1 - u)) u^n du`` for n < count, i.e. ``n! k phi_(n+1)(-k)``; exact for k small or infinite.

    By parts ``m_n = 1 - n m_(n-1) / k``: stable upwards for large k, and downwards (from any start) for small k.
    """
    up = [-torch.expm1(-k)]
    if count == 1:
        return up
    for n in range(1, count):
        up.append(1 - up[-1] * (n / k))
    down = [torch.zeros_like(k)]
    for n in range(count + 16, 0, -1):
        down.insert(0, (1 - down[0]) * (k / n))
    return [torch.where(k.abs() < 1, low, high) for low, high in zip(down, up, strict=False)]


def node_weights(nodes: Sequence[Tensor], used: Sequence[Tensor], of: Sequence[Tensor]) -> list[Tensor]:
    """Weights of the values at ``nodes`` in the integral of their interpolating polynomial.

    Args:
        nodes: the places u of the values.
        used: where a node takes part; elsewhere its weight is 0.
        of: the integrals of 1, u, u^2, ...
    """
    weights = []
    for j, node in enumerate(nodes):
        basis = [torch.ones_like(node)]  # the Lagrange polynomial of node j, lowest power first
        for m, other in enumerate(nodes):
            if m != j:
                low = [-other * c for c in basis] + [torch.zeros_like(node)]
                high = [torch.zeros_like(node)] + basis
                factor = [(a + b) / (node - other) for a, b in zip(low, high, strict=True)]
                plain = basis + [torch.zeros_like(node)]
                basis = [torch.where(used[m], f, p) for f, p in zip(factor, plain, strict=True)]
        total = sum(c * moment for c, moment in zip(basis, of, strict=True))
        weights.append(torch.where(used[j], total, 0.0))
    return weights


def earlier(interval: Interval, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The places r_1, r_2, ... of the starts of ``count`` earlier steps, and where they may be used: an element that
    waited, or came from an infinite log-SNR, starts its history anew."""
    places, used = [], []
    level, usable = interval.level, interval.inside
    for _ in range(count):
        before = torch.cat([torch.full_like(level[:1], torch.nan), level[:-1]])
        usable = usable & before.isfinite() & (before < level)
        places.append((before - interval.level) / interval.h)
        used.append(usable)
        level = before
    return places, used


def anywhere(flags: Tensor) -> list[bool]:
    """For each step, whether any element is flagged."""
    return flags.flatten(1).any(1).tolist() if flags.ndim > 1 else flags.tolist()


class Multistep(LinearSampler):
    """Estimates of earlier steps extrapolate x0: one call a step for any order.

    Args:
        order: how many estimates are interpolated.
        eta: how much of the reverse SDE's noise is added; 0 draws none.
        law: what eta means: ``sde`` as in the module's equation, ``ddim`` a fraction of the posterior's standard
            deviation (Song et al. 2021, eq. 16); the same at 0, and at 1 too.
        corrector: improve the start of each step by the estimate made there and so many before it; with as many as
            ``order``, one order more. 0 corrects nothing.
        simplified: through two estimates, integrate the line and the exponential apart, as published for
            DPM-Solver++ 2M and UniPC.
        interval: eta acts on steps that start at low < sigma / alpha <= high only.
    """

    def __init__(
        self,
        order: int,
        eta: float = 0.0,
        law: NoiseLaw = "sde",
        corrector: int = 0,
        simplified: bool = False,
        interval: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        if order < 1 or corrector < 0:
            raise ValueError(f"an order must be at least 1 (0: no corrector), got {order} and {corrector}")
        if eta < 0 or (law == "ddim" and eta > 1):
            raise ValueError(f"eta must be {'in [0, 1]' if law == 'ddim' else 'at least 0'}, got {eta}")
        if not 0 <= interval[0] <= interval[1]:
            raise ValueError(f"eta acts from low to high, 0 <= low <= high, got {interval}")
        self.nodes, self.corrector, self.eta, self.law, self.simplified = order, corrector, eta, law, simplified
        self.low, self.high = interval
        self.order = min(order, corrector) + 1 if corrector else order
        self.memory = max(order, corrector) if corrector else order - 1
        self.stochastic = eta > 0

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        interval = Interval(schedule, grid[:-1], grid[1:])
        keep, spread, k = self._noise(interval)
        places, used = earlier(interval, max(self.nodes, self.corrector) - 1)
        nodes, used = [torch.zeros_like(k), *places], [torch.ones_like(interval.moves), *used]
        mix = node_weights(nodes[: self.nodes], used[: self.nodes], self._moments(k, used[: self.nodes]))
        weights = zip(*map(rows, (keep, *(interval.alpha_s * w for w in mix))), strict=True)
        nothing = [None] * len(k)
        corrections = self._corrections(interval, k, nodes, used, mix) if self.corrector else nothing
        stages = map(Stage, grid[:-1], weights, nothing, corrections)
        spreads = nothing if spread is None else rows(spread)
        return [Move((stage,), one) for stage, one in zip(stages, spreads, strict=True)]

    def _noise(self, interval: Interval) -> tuple[Tensor, Tensor | None, Tensor]:
        """(weight of x, weight of the noise, k)."""
        h = interval.h
        if self.eta == 0:
            return interval.shrink, None, h
        if self.law == "sde":
            ratio = torch.exp(-interval.level)
            drift = torch.where((ratio > self.low) & (ratio <= self.high), self.eta * h, 0.0)
        else:
            drift = -torch.log1p(self.eta**2 * torch.expm1(-2 * h)) / 2
        return interval.shrink * torch.exp(-drift), interval.sigma_s * torch.sqrt(-torch.expm1(-2 * drift)), h + drift

    def _moments(self, k: Tensor, used: list[Tensor]) -> list[Tensor]:
        integrals = moments(k, len(used))
        if self.simplified and len(used) > 1:
            line = torch.stack(used).sum(0) == 2
            integrals[1] = torch.where(line, integrals[0] / 2, integrals[1])
        return integrals

    def _corrections(
        self, interval: Interval, k: Tensor, nodes: list[Tensor], used: list[Tensor], mix: list[Tensor]
    ) -> list[tuple[Weight, ...] | None]:
        """For each step, what the one before it would have added had it known the estimate at its end: the weights
        with it less those without. The start and the noise of that step are in both, so that neither is needed
        again. Where an element waits now, it is left alone."""
        moved = interval.inside & torch.cat([interval.moves[1:], interval.moves[:1]])
        after, known = [torch.ones_like(k), *nodes[: self.corrector]], [u & moved for u in used[: self.corrector]]
        new, *redone = node_weights(after, [moved, *known], self._moments(k, [moved, *known]))
        gain = [torch.where(moved, a - b, 0.0) for a, b in zip_longest(redone, mix, fillvalue=torch.zeros_like(k))]
        table = zip(*map(rows, (torch.ones_like(k), *(interval.alpha_s * w for w in (new, *gain)))), strict=True)
        return [None, *(row if some else None for row, some in zip(table, anywhere(moved), strict=True))][:-1]


@SAMPLERS.register("ddim")
def ddim(eta: float = 0.0) -> Multistep:
    """DDIM (Song et al. 2021). ``eta``: 0 deterministic, 1 the ancestral sampler."""
    return Multistep(1, eta, law="ddim")


@SAMPLERS.register("dpmpp_1")
def dpmpp_1() -> Multistep:
    """DPM-Solver++ of order 1, which is DDIM (Lu et al. 2022b)."""
    return Multistep(1)


@SAMPLERS.register("dpmpp_2m")
def dpmpp_2m(simplified: bool = False) -> Multistep:
    """DPM-Solver++ 2M (Lu et al. 2022b); ``simplified``: with the published weights instead of the exact ones."""
    return Multistep(2, simplified=simplified)


@SAMPLERS.register("dpmpp_3m")
def dpmpp_3m() -> Multistep:
    """DPM-Solver++ 3M (Lu et al. 2022b)."""
    return Multistep(3)


@SAMPLERS.register("dpmpp_1_sde")
def dpmpp_1_sde(eta: float = 1.0) -> Multistep:
    """The reverse SDE by steps of order 1; at eta = 1 DDPM's ancestral sampler (Lu et al. 2022b)."""
    return Multistep(1, eta)


@SAMPLERS.register("dpmpp_2m_sde")
def dpmpp_2m_sde(eta: float = 1.0, simplified: bool = False) -> Multistep:
    """SDE-DPM-Solver++ 2M (Lu et al. 2022b); ``simplified``: with the published (midpoint) weights, not the exact."""
    return Multistep(2, eta, simplified=simplified)


@SAMPLERS.register("dpmpp_3m_sde")
def dpmpp_3m_sde(eta: float = 1.0) -> Multistep:
    """SDE-DPM-Solver++ 3M (Lu et al. 2022b)."""
    return Multistep(3, eta)


@SAMPLERS.register("res_2m")
def res_2m() -> Multistep:
    """The refined exponential solver of order 2 in one call a step (Zhang et al. 2023); its weights are those of
    DPM-Solver++ 2M, integrated exactly."""
    return Multistep(2)


@SAMPLERS.register("unipc")
def unipc(order: int = 2, corrector: bool = True, simplified: bool = False) -> Multistep:
    """UniPC (Zhao et al. 2023) with exact weights; order of convergence ``order + 1`` with the corrector.
    ``simplified``: with the published weights (B2) instead, which differ where two estimates are interpolated."""
    return Multistep(order, corrector=order * corrector, simplified=simplified)


@SAMPLERS.register("sa_solver")
def sa_solver(
    eta: float = 1.0, predictor_order: int = 3, corrector_order: int = 3, low: float = 0.05, high: float = 1.0
) -> Multistep:
    """SA-Solver (Xue et al. 2023), the stochastic Adams method; at eta = 0 it is UniPC.

    Args:
        eta: the reverse SDE's share, tau^2 of the paper.
        predictor_order: estimates that a step is made of.
        corrector_order: estimates, beside the new one, that correct its end; 0 for none.
        low: eta acts from this sigma / alpha, and below it no noise is added.
        high: up to this one.
    """
    return Multistep(predictor_order, eta, corrector=corrector_order, interval=(low, high))
