"""Which times training visits: a distribution is its quantile function, so that draws can be stratified."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import Registry
from ..schedules import Laplace, Schedule

# quantile(u, schedule) -> times in [0, 1], the shape of u (uniform on (0, 1)), float64
TimeDistribution = Callable[[Tensor, Schedule], Tensor]
TIME_DISTRIBUTIONS: Registry[TimeDistribution] = Registry("time distribution")


@TIME_DISTRIBUTIONS.register("uniform")
def uniform(low: float = 0.0, high: float = 1.0) -> TimeDistribution:
    """Uniform on (low, high)."""
    return lambda u, schedule: low + (high - low) * u


@TIME_DISTRIBUTIONS.register("logit_normal")
def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeDistribution:
    """logit(t) is normal (Esser et al. 2024)."""
    return lambda u, schedule: torch.sigmoid(mean + std * torch.special.ndtri(u))


@TIME_DISTRIBUTIONS.register("log_normal")
def log_normal(mean: float = -1.2, std: float = 1.2) -> TimeDistribution:
    """log(sigma / alpha) is normal (Karras et al. 2022)."""
    return lambda u, schedule: schedule.time_of_log_snr(-2 * (mean + std * torch.special.ndtri(u)))


@TIME_DISTRIBUTIONS.register("beta")
def beta(a: float = 1.0, b: float = 2.0) -> TimeDistribution:
    """t ~ Beta(a, b); (1, 2) favours times near the data."""
    if min(a, b) <= 0:
        raise ValueError(f"beta needs a > 0 and b > 0, got {a} and {b}")
    if b == 1:
        return lambda u, schedule: u ** (1 / a)
    if a == 1:
        return lambda u, schedule: -torch.expm1(torch.log1p(-u) / b)

    def quantile(u: Tensor, schedule: Schedule) -> Tensor:
        from scipy.special import betaincinv

        return torch.as_tensor(betaincinv(a, b, u.numpy()))

    return quantile


@TIME_DISTRIBUTIONS.register("log_snr")
def log_snr(low: float = -10.0, high: float = 10.0) -> TimeDistribution:
    """Log-SNR uniform on (low, high)."""
    if not low < high or math.isinf(low) or math.isinf(high):
        raise ValueError(f"log_snr needs finite low < high, got {low} and {high}")
    return lambda u, schedule: schedule.time_of_log_snr(high + (low - high) * u)


@TIME_DISTRIBUTIONS.register("laplace")
def laplace(mean: float = 0.0, scale: float = 0.5) -> TimeDistribution:
    """Log-SNR has a Laplace distribution, whatever the schedule (Hang et al. 2024)."""
    quantiles = Laplace(mean, scale)
    return lambda u, schedule: schedule.time_of_log_snr(quantiles.log_snr(u))
