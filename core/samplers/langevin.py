"""Sampling that raises the noise before it removes it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import anywhere
from .runge_kutta import HEUN, Coordinate, RungeKutta
from .sampler import SAMPLERS, LinearSampler, Move, Stage, rows


def raised(schedule: Schedule, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of (x, fresh noise) that take x from time ``low`` up to ``high``: q(x_high | x_low)."""
    both, up = torch.stack((low, high)), high > low
    (alpha, alpha_up), (_, sigma_up) = schedule.alpha_sigma(both)
    level, level_up = schedule.log_snr(both)
    added = sigma_up * torch.sqrt(-torch.expm1(level_up - level))
    return torch.where(up, alpha_up / alpha, 1.0), torch.where(up, added, 0.0)


def linear(spec: Any) -> LinearSampler:
    """A sampler that others are made of.

    Raises:
        ValueError: one that is not a table of coefficients.
    """
    sampler = SAMPLERS.build(spec)
    if not isinstance(sampler, LinearSampler):
        raise ValueError(f"{type(sampler).__name__.lower()} cannot be a part of another sampler")
    return sampler


@SAMPLERS.register("edm")
class Churn(LinearSampler):
    """The stochastic sampler of EDM (Karras et al. 2022, alg. 2): noise is added, then Heun's step removes it and more.

    Args:
        s_churn: how much noise is added over all steps; at most a factor sqrt(2) in sigma a step; 0 adds none.
        s_min: only from this sigma / alpha on.
        s_max: only up to this sigma / alpha.
        s_noise: standard deviation of the noise added.
        coordinate: of Heun's step.
    """

    order = 2
    calls_per_step = 2

    def __init__(
        self,
        s_churn: float = 40.0,
        s_min: float = 0.05,
        s_max: float = 50.0,
        s_noise: float = 1.003,
        coordinate: Coordinate = "auto",
    ) -> None:
        if s_churn < 0 or s_noise < 0 or not 0 <= s_min <= s_max:
            raise ValueError("edm needs s_churn >= 0, s_noise >= 0 and 0 <= s_min <= s_max")
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise
        self.heun = RungeKutta(HEUN, 2, coordinate)
        self.stochastic, self.invariant = s_churn > 0, self.heun.invariant

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        t, s = grid[:-1], grid[1:]
        if not self.stochastic:
            return self.heun.plan_steps(schedule, t, s)
        level = schedule.log_snr(t)
        sigma = torch.exp(-level / 2)
        steps = (t > s).sum(0).clamp(min=1)  # those in which an element moves
        gamma = (self.s_churn / steps.double()).clamp(max=math.sqrt(2) - 1)
        churned = (sigma >= self.s_min) & (sigma <= self.s_max) & (t > s)
        higher = torch.where(churned, schedule.time_of_log_snr(level - 2 * torch.log1p(gamma)), t)
        keep, added = raised(schedule, t, higher)
        lifts = zip(rows(keep), rows(added * self.s_noise), strict=True)
        moves = self.heun.plan_steps(schedule, higher, s)
        return [move._replace(lift=lift) for move, lift in zip(moves, lifts, strict=True)]


@SAMPLERS.register("predictor_corrector")
class PredictorCorrector(LinearSampler):
    """Any sampler's step, then Langevin steps at its end, which bring x nearer to the distribution there without
    changing its time (Song et al. 2021, alg. 1).

    With x0 held fixed the Langevin equation is solved exactly, ``x <- alpha x0 + c (x - alpha x0) + sigma sqrt(1 - c^2)
    z``; its step of ``2 (snr sigma)^2`` is that of Song et al.'s alg. 4 in the mean, whatever the batch: c =
    exp(-2 snr^2).

    Args:
        predictor: the sampler.
        corrections: Langevin steps, one call each.
        snr: their size, the ratio of the norms of drift and noise.
    """

    def __init__(self, predictor: Any = "reverse_sde", corrections: int = 1, snr: float = 0.16) -> None:
        if corrections < 0 or snr <= 0:
            raise ValueError(f"corrections must be at least 0 and snr positive, got {corrections} and {snr}")
        self.predictor, self.corrections, self.snr = linear(predictor), corrections, snr
        self.order, self.memory = self.predictor.order, self.predictor.memory
        calls = self.predictor.calls_per_step
        self.calls_per_step = None if calls is None else calls + corrections
        self.stochastic = corrections > 0 or self.predictor.stochastic
        self.invariant = self.predictor.invariant

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        s = grid[1:]
        alpha, sigma = schedule.alpha_sigma(s)
        corrected = (s < grid[:-1]) & (sigma > 0)
        keep = torch.where(corrected, math.exp(-2 * self.snr**2), torch.ones_like(alpha))
        table = zip(*map(rows, (keep, alpha * (1 - keep), sigma * torch.sqrt(1 - keep**2))), strict=True)
        moves = []
        for move, time, (a, b, spread), some in zip(
            self.predictor.plan(schedule, grid), s, table, anywhere(corrected), strict=True
        ):
            langevin = Move((Stage(time, (a, b), ()),), spread)
            moves.append(move._replace(then=(*move.then, *(langevin,) * (self.corrections * some))))
        return moves
