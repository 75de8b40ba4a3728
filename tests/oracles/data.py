"""Data distributions with exact denoisers, in float64. Every element of x is an independent draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.samples import align_left
from noiseloom.core.schedules import Schedule


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2): x_t is N(alpha mean, V) with V = alpha^2 std^2 + sigma^2."""

    std: float = 0.5
    mean: float = 0.0

    def variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha**2 * self.std**2 + sigma**2

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.mean + alpha * self.std**2 * (x - alpha * self.mean) / self.variance(alpha, sigma)

    def flow_map(self, x: Tensor, schedule: Schedule, t: float | Tensor, s: float | Tensor) -> Tensor:
        """Where the probability-flow ODE takes x from t to s."""
        (a, sigma), (a_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        stretch = torch.sqrt(self.variance(a_s, sigma_s) / self.variance(a, sigma))
        return a_s * self.mean + stretch * (x - a * self.mean)


@dataclass(frozen=True)
class Mixture:
    """A mixture of normals in one dimension."""

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-1.0, 0.6)
    stds: tuple[float, ...] = (0.2, 0.35)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(distance from the component's mean, its variance, log of its weighted density), components last."""
        means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds))
        alpha, sigma = alpha[..., None], sigma[..., None]
        variance = alpha**2 * stds**2 + sigma**2
        distance = x[..., None] - alpha * means
        log_weights = torch.tensor(self.weights, dtype=torch.float64).log()
        return distance, variance, log_weights - (distance**2 / variance + torch.log(2 * math.pi * variance)) / 2

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.logsumexp(self._components(x, alpha, sigma)[2], -1)

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        distance, variance, log_density = self._components(x, alpha, sigma)
        means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds))
        each = means + alpha[..., None] * stds**2 * distance / variance
        return (torch.softmax(log_density, -1) * each).sum(-1)

    def tails(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """P(x_t < x) and P(x_t > x), each to full relative precision."""
        distance, variance, _ = self._components(x, alpha, sigma)
        z = distance / variance.sqrt()
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return (weights * torch.special.ndtr(z)).sum(-1), (weights * torch.special.ndtr(-z)).sum(-1)

    def flow_map(self, x: Tensor, schedule: Schedule, t: float | Tensor, s: float | Tensor) -> Tensor:
        """Where the probability-flow ODE takes x: in one dimension it keeps quantiles, found by bisection."""
        below, above = self.tails(x, *schedule.alpha_sigma(t))
        low, high = torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        for _ in range(80):
            middle = (low + high) / 2
            p, q = self.tails(middle, *schedule.alpha_sigma(s))
            left = torch.where(below < above, p < below, q > above)
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        return (low + high) / 2


def exact_denoiser(data: Any, schedule: Schedule) -> FunctionDenoiser:
    """The denoiser that knows the data: ``x0 = E[x0 | x_t]``."""

    def x0(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (align_left(v, x) if v.ndim else v for v in schedule.alpha_sigma(t))
        return data.x0(x, alpha, sigma)

    return FunctionDenoiser(x0, schedule)
