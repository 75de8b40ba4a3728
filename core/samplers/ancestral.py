"""Ancestral sampling: the posterior ``q(x_s | x_t, x0)`` with the estimate for x0 (Ho et al. 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval
from .sampler import SAMPLERS, LinearSampler, Move, Stage, rows


@SAMPLERS.register("ddpm")
class DDPM(LinearSampler):
    """Draw x_s from the posterior, under any schedule: with ``q = (alpha_t sigma_s) / (alpha_s sigma_t)``

        mean  (sigma_s / sigma_t) q x + alpha_s (1 - q^2) x0        variance  sigma_s^2 (1 - q^2)

    Args:
        variance: ``small`` the posterior's, exact for data that is one point; ``large`` that of the forward step,
            ``sigma_t^2 (1 - q^2)`` (beta_t; none in the last step), exact for standard normal data; ``exact`` that of
            the reverse step for normal data of standard deviation ``sigma_data`` (Bao et al. 2022).
        sigma_data: used by ``exact`` only.
    """

    order = 1
    stochastic = True

    def __init__(self, variance: Literal["small", "large", "exact"] = "small", sigma_data: float = 1.0) -> None:
        if variance not in ("small", "large", "exact"):
            raise ValueError(f"variance must be 'small', 'large' or 'exact', got {variance!r}")
        self.variance, self.sigma_data = variance, sigma_data

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        step = Interval(schedule, grid[:-1], grid[1:])
        fresh = -torch.expm1(-2 * step.h)  # 1 - q^2
        b = torch.where(step.moves, step.alpha_s * fresh, 0.0)
        variance = step.sigma_s**2 * fresh
        if self.variance == "large":
            variance = torch.where(step.sigma_s > 0, step.sigma**2 * fresh, 0.0)
        elif self.variance == "exact":
            data, noise = self.sigma_data**2, step.sigma**2
            variance = variance + b**2 * data * noise / (step.alpha**2 * data + noise)
        weights = zip(rows(step.shrink * torch.exp(-step.h)), rows(b), strict=True)
        stages = map(Stage, grid[:-1], weights)
        return [Move((stage,), spread) for stage, spread in zip(stages, rows(variance.sqrt()), strict=True)]
