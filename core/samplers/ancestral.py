"""Ancestral sampling: the posterior ``q(x_s | x_t, x0)`` with the estimate for x0 (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..predictions import scale_like
from ..samples import Sample, map_parts
from ..schedules import Schedule
from .exponential import Interval
from .sampler import SAMPLERS, BoundDenoise, LinearSampler, Move, Sampler, Stage, State, combine, rows


class Posterior:
    """``q(x_s | x_t, x0)`` of each step: with ``q = (alpha_t sigma_s) / (alpha_s sigma_t)``

        mean  (sigma_s / sigma_t) q x + alpha_s (1 - q^2) x0        variance  sigma_s^2 (1 - q^2)

    Attributes:
        keep, b: the weights of x and x0 in its mean.
        small: its variance, the least that the reverse step can have.
        large: that of the forward step, sigma_t^2 (1 - q^2), the most for data of no more than unit variance.
    """

    def __init__(self, step: Interval) -> None:
        fresh = -torch.expm1(-2 * step.h)  # 1 - q^2
        self.keep = step.shrink * torch.exp(-step.h)
        self.b = torch.where(step.moves, step.alpha_s * fresh, 0.0)
        self.small, self.large = step.sigma_s**2 * fresh, step.sigma**2 * fresh


class DDPM(LinearSampler):
    """Draw x_s from the posterior with the estimate for x0, under any schedule.

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
        posterior = Posterior(step)
        variance, b = posterior.small, posterior.b
        if self.variance == "large":
            variance = torch.where(step.sigma_s > 0, posterior.large, 0.0)
        elif self.variance == "exact":
            data, noise = self.sigma_data**2, step.sigma**2
            variance = variance + b**2 * data * noise / (step.alpha**2 * data + noise)
        stages = map(Stage, grid[:-1], zip(rows(posterior.keep), rows(b), strict=True))
        return [Move((stage,), spread) for stage, spread in zip(stages, rows(variance.sqrt()), strict=True)]


class LearnedDDPM(Sampler):
    """The posterior's mean, and the variance that the denoiser says: ``Estimate.variance`` interpolates the logarithms
    of the small and the large one (Nichol and Dhariwal 2021, eq. 15)."""

    order = 1
    stochastic = True

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Any]:
        step = Interval(schedule, grid[:-1], grid[1:])
        posterior = Posterior(step)
        small, large = (
            torch.log(torch.where(step.sigma_s > 0, value, 0.0).clamp(min=1e-300)) / 2
            for value in (posterior.small, posterior.large)
        )
        table = (posterior.keep, posterior.b, small, large - small)
        return list(zip(grid[:-1], *map(rows, table), strict=True))

    def step(
        self, denoise: BoundDenoise, x: Sample, coefficients: Any, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        t, keep, b, small, span = coefficients
        estimate = denoise(x, t, state.x0)
        if estimate.variance is None:
            raise ValueError(
                "ddpm with variance='learned' needs a denoiser that says a variance: one trained with the prediction "
                "'learned_range', and not guided"
            )

        def spread(part: Tensor, fraction: Tensor, drawn: Tensor) -> Tensor:
            low, more = (scale_like(value, part) for value in (small, span))
            return part + torch.exp(low + more * fraction) * drawn

        mean = combine((keep, b), (x, estimate.x0))
        return map_parts(spread, mean, estimate.variance, noise()), State(estimate.x0)


@SAMPLERS.register("ddpm")
def ddpm(variance: Literal["small", "large", "exact", "learned"] = "small", sigma_data: float = 1.0) -> Sampler:
    """Draw x_s from the posterior q(x_s | x_t, x0) with the estimate for x0 (DDPM, Ho et al. 2020).

    Args:
        variance: as of ``DDPM``; ``learned`` is that which the denoiser says (Nichol and Dhariwal 2021).
        sigma_data: used by ``exact`` only.
    """
    return LearnedDDPM() if variance == "learned" else DDPM(variance, sigma_data)
