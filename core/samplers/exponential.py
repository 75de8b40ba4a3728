r"""Exponential integrators: DDIM, DPM-Solver++, its SDE variants, DEIS and UniPC from one coefficient routine.

With ``l = log(alpha / sigma)`` (half the log-SNR) and ``h = l_s - l_t`` the step from t to s is, exactly,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s I + sigma_s sqrt(1 - e^(-2 eta h)) z
    I   = int_0^1 k e^(-k (1 - u)) x0(l_t + u h) du,            k = (1 + eta) h

where eta = 0 is the probability-flow ODE and eta = 1 the reverse SDE (Lu et al. 2022b, Gonzalez et al. 2023). Replace
x0(l) by the polynomial through the estimates known at l_j = l_t + r_j h and the integral becomes a weighted sum of
them, ``sum_j w_j D_j`` with ``w_j = int k e^(-k (1 - u)) L_j(u) du``: all methods below differ in their nodes r_j only.

    multistep   r = 0 and earlier steps                    DDIM, DPM-Solver++ 1/2M/3M, UniP; DEIS (of the noise)
    corrector   the same and r = 1, one step later         UniC: no further call of the denoiser
    singlestep  r = 0 and points inside the step           DPM-Solver++ 2S/3S

Where l is infinite (no signal at t, or no noise at s) the step is of first order, and exact: x0 is constant there.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Multistep(LinearSampler):
    """Estimates of earlier steps extrapolate x0: one call a step for any order.

    Args:
        order: how many estimates are interpolated.
        eta: how much of the reverse SDE's noise is added; 0 draws none.
        law: what eta means: ``sde`` as in the module's equation, ``ddim`` a fraction of the posterior's standard
            deviation (Song et al. 2021, eq. 16); the same at 0, and at 1 too.
        corrector: improve the start of each step by the estimate made there (Zhao et al. 2023): one order more.
        simplified: integrate the polynomial and the exponential apart, as published for DPM-Solver++ 2M.
    """

    def __init__(
        self, order: int, eta: float = 0.0, law: NoiseLaw = "sde", corrector: bool = False, simplified: bool = False
    ) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if eta < 0 or (law == "ddim" and eta > 1):
            raise ValueError(f"eta must be {'in [0, 1]' if law == 'ddim' else 'at least 0'}, got {eta}")
        if corrector and eta:
            raise ValueError("the corrector is for eta = 0")
        self.nodes, self.eta, self.law, self.simplified, self.corrector = order, eta, law, simplified, corrector
        self.order = order + corrector
        self.memory = order - 1 + corrector
        self.stochastic = eta > 0

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        interval = Interval(schedule, grid[:-1], grid[1:])
        keep, spread, k = self._noise(interval)
        integrals = self._moments(k, self.nodes)
        places, used = earlier(interval, self.nodes - 1)
        nodes = [torch.zeros_like(k), *places]
        used = [torch.ones_like(interval.moves), *used]
        mix = [interval.alpha_s * w for w in node_weights(nodes, used, integrals)]
        weights = zip(*map(rows, (keep, *mix)), strict=True)
        corrections = self._corrections(interval, nodes, used) if self.corrector else [None] * len(k)
        spreads = [None] * len(k) if spread is None else rows(spread)
        stages = map(Stage, grid[:-1], weights, [None] * len(k), corrections)
        return [Move((stage,), one) for stage, one in zip(stages, spreads, strict=True)]

    def _noise(self, interval: Interval) -> tuple[Tensor, Tensor | None, Tensor]:
        """(weight of x, weight of the noise, k)."""
        h = interval.h
        if self.eta == 0:
            return interval.shrink, None, h
        if self.law == "sde":
            drift = self.eta * h
        else:
            drift = -torch.log1p(self.eta**2 * torch.expm1(-2 * h)) / 2
        return interval.shrink * torch.exp(-drift), interval.sigma_s * torch.sqrt(-torch.expm1(-2 * drift)), h + drift

    def _moments(self, k: Tensor, count: int) -> list[Tensor]:
        exact = moments(k, count)
        return [exact[0] / (n + 1) for n in range(count)] if self.simplified else exact

    def _corrections(
        self, interval: Interval, nodes: list[Tensor], used: list[Tensor]
    ) -> list[tuple[Weight, ...] | None]:
        """For each step, the weights that redo the step before it with the estimate at its end; where an element
        waits now, it is left alone."""
        k = interval.h
        moved = interval.inside & torch.cat([interval.moves[1:], interval.moves[:1]])
        after = [torch.ones_like(k), *nodes]
        weights = node_weights(after, [moved, *(u & moved for u in used)], self._moments(k, self.nodes + 1))
        redo = [torch.where(moved, 0.0, 1.0), torch.where(moved, interval.shrink, 0.0)]
        table = zip(*map(rows, (*redo, *(interval.alpha_s * w for w in weights))), strict=True)
        any_moved = moved.flatten(1).any(1).tolist() if moved.ndim > 1 else moved.tolist()
        return [None, *(row if some else None for row, some in zip(table, any_moved, strict=True))][:-1]


class Singlestep(LinearSampler):
    """Estimates at ``order`` equally spaced points of log-SNR inside each step: no history, ``order`` calls a step.

    Args:
        order: 1 to 3.
    """

    def __init__(self, order: int) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"a singlestep solver has order 1, 2 or 3, got {order}")
        self.order = self.calls_per_step = order

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        whole = Interval(schedule, grid[:-1], grid[1:])
        inside, times, table = whole.inside, [grid[:-1]], []
        for stage in range(1, self.order):
            level = whole.level + whole.h * (stage / self.order)
            times.append(torch.where(inside, schedule.time_of_log_snr(2 * level), grid[:-1]))
        levels = [schedule.log_snr(time) / 2 for time in times]
        for stage, end in enumerate((*times[1:], grid[1:])):
            part = Interval(schedule, grid[:-1], end)
            nodes = [torch.where(inside, (level - whole.level) / part.h, 0.0) for level in levels[stage::-1]]
            used = [inside] * stage + [torch.ones_like(inside)]
            mix = [part.alpha_s * w for w in node_weights(nodes, used, moments(part.h, stage + 1))]
            table.append(zip(*map(rows, (part.shrink, *mix)), strict=True))
        some = inside.flatten(1).any(1).tolist() if inside.ndim > 1 else inside.tolist()
        moves = []
        for i, (weights, finite) in enumerate(zip(zip(*table, strict=True), some, strict=True)):
            stages = tuple(Stage(time[i], row) for time, row in zip(times, weights, strict=True))
            # A step from or to infinity needs its first call only: the last stage then uses that estimate alone.
            moves.append(Move(stages if finite else (Stage(times[0][i], (weights[-1][0], weights[-1][-1])),)))
        return moves


class DEIS(LinearSampler):
    """Adams-Bashforth on the noise instead of x0: ``x_s / alpha_s = x_t / alpha_t + int noise d(sigma / alpha)``.

    The step is DDIM's and a correction by the differences of earlier noises to the present one, so that it stays exact
    where alpha_t = 0 (Zhang and Chen 2023).

    Args:
        order: how many noises are interpolated.
        coordinate: the polynomial's variable: ``log_rho``, log(sigma / alpha), or ``rho``, sigma / alpha (linear
            multistep).
    """

    def __init__(self, order: int = 3, coordinate: Literal["log_rho", "rho"] = "log_rho") -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if coordinate not in ("log_rho", "rho"):
            raise ValueError(f"coordinate must be 'log_rho' or 'rho', got {coordinate!r}")
        self.order, self.memory, self.coordinate = order, order - 1, coordinate

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        interval = Interval(schedule, grid[:-1], grid[1:])
        keep, b = interval.first_order()
        places, used = earlier(interval, self.order - 1)
        h = torch.where(interval.inside, interval.h, 1.0)
        if self.coordinate == "log_rho":
            integrals = [interval.sigma_s * m for m in moments(-h, self.order)]
        else:
            places = [torch.expm1(-place * h) / torch.expm1(-h) for place in places]
            integrals = [interval.sigma_s * -torch.expm1(h) / (n + 1) for n in range(self.order)]
        nodes = [torch.zeros_like(h), *places]
        weights = node_weights(nodes, [interval.inside, *used], integrals)[1:]
        inverse = torch.where(interval.sigma > 0, 1 / interval.sigma, 0.0)
        total = sum(weights, torch.zeros_like(h))  # the present noise, (x - alpha D_0) / sigma, loses this much
        table = (keep - total * inverse, b + total * interval.alpha * inverse, *weights)
        record = zip(rows(inverse), rows(-interval.alpha * inverse), strict=True)
        stages = map(Stage, grid[:-1], zip(*map(rows, table), strict=True), record)
        return [Move((stage,)) for stage in stages]


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
    """DPM-Solver++ 3M."""
    return Multistep(3)


@SAMPLERS.register("dpmpp_1_sde")
def dpmpp_1_sde(eta: float = 1.0) -> Multistep:
    """The reverse SDE by steps of order 1; at eta = 1 DDPM's ancestral sampler."""
    return Multistep(1, eta)


@SAMPLERS.register("dpmpp_2m_sde")
def dpmpp_2m_sde(eta: float = 1.0, simplified: bool = False) -> Multistep:
    """SDE-DPM-Solver++ 2M; ``simplified``: with the published (midpoint) weights instead of the exact ones."""
    return Multistep(2, eta, simplified=simplified)


@SAMPLERS.register("dpmpp_3m_sde")
def dpmpp_3m_sde(eta: float = 1.0) -> Multistep:
    """SDE-DPM-Solver++ 3M."""
    return Multistep(3, eta)


@SAMPLERS.register("dpmpp_2s")
def dpmpp_2s() -> Singlestep:
    """DPM-Solver++ 2S: two calls a step, no history."""
    return Singlestep(2)


@SAMPLERS.register("dpmpp_3s")
def dpmpp_3s() -> Singlestep:
    """DPM-Solver++ 3S: three calls a step, no history."""
    return Singlestep(3)


@SAMPLERS.register("unipc")
def unipc(order: int = 2, corrector: bool = True) -> Multistep:
    """UniPC (Zhao et al. 2023) with exact weights; order of convergence ``order + 1`` with the corrector."""
    return Multistep(order, corrector=corrector)


SAMPLERS.register("deis")(DEIS)
