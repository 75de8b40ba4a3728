"""Sampling that raises the noise before it removes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..schedules import Schedule
from .runge_kutta import Coordinate, RungeKutta2
from .sampler import SAMPLERS, LinearSampler, Move, rows


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
        self.heun = RungeKutta2(1.0, coordinate)
        self.stochastic = s_churn > 0

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        t, s = grid[:-1], grid[1:]
        if not self.stochastic:
            return self.heun.plan_steps(schedule, t, s)
        level = schedule.log_snr(t)
        sigma = torch.exp(-level / 2)
        steps = (t > s).sum(0).clamp(min=1)  # those in which an element moves
        gamma = (self.s_churn / steps.double()).clamp(max=math.sqrt(2) - 1)
        churned = (sigma >= self.s_min) & (sigma <= self.s_max) & (t > s)
        raised = torch.where(churned, schedule.time_of_log_snr(level - 2 * torch.log1p(gamma)), t)
        (alpha, sigma), (alpha_up, sigma_up) = schedule.alpha_sigma(t), schedule.alpha_sigma(raised)
        keep = torch.where(churned, alpha_up / alpha, 1.0)
        added = torch.where(churned, (sigma_up**2 - (keep * sigma) ** 2).clamp(min=0).sqrt() * self.s_noise, 0.0)
        moves = self.heun.plan_steps(schedule, raised, s)
        lifts = zip(rows(keep), rows(added), strict=True)
        return [move._replace(lift=lift) for move, lift in zip(moves, lifts, strict=True)]
