"""How much the error at each noise level counts.

A weighting is stated for the mean-square error of x0, ``w(snr)``; on the error of the network's output it becomes
``w * |d x0 / d output|^2``. ``output`` leaves the output's own error as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import Registry
from ..schedules import Schedule

# weight(t, schedule, x0_per_output) -> the weight on the error of the output, the shape of t, float64
Weighting = Callable[[Tensor, Schedule, Tensor], Tensor]
WEIGHTINGS: Registry[Weighting] = Registry("weighting")


def robust(loss: Tensor, power: float, floor: float) -> Tensor:
    """A loss whose gradient is that of ``loss`` over ``(loss + floor)^power``: 0 is the loss itself, 1/2 pseudo-Huber
    (Song and Dhariwal 2024), 1 the adaptive weight of MeanFlow (Geng et al. 2025, eq. 22)."""
    if power == 0:
        return loss
    if power == 1:
        return torch.log1p(loss / floor)
    return ((loss + floor) ** (1 - power) - floor ** (1 - power)) / (1 - power)


def _on_x0(weight_of_snr: Callable[[Tensor], Tensor]) -> Weighting:
    return lambda t, schedule, per_output: weight_of_snr(schedule.log_snr(t).exp()) * per_output**2


@WEIGHTINGS.register("output")
def output() -> Weighting:
    """The error of the output as it is: what DDPM does for noise, rectified flow for velocity, EDM for its F."""
    return lambda t, schedule, per_output: torch.ones_like(per_output)


@WEIGHTINGS.register("x0")
def x0() -> Weighting:
    """The plain error of x0."""
    return _on_x0(torch.ones_like)


@WEIGHTINGS.register("snr")
def snr() -> Weighting:
    """The error of the noise: w = SNR (Ho et al. 2020)."""
    return _on_x0(lambda snr: snr)


@WEIGHTINGS.register("min_snr")
def min_snr(gamma: float = 5.0) -> Weighting:
    """w = min(SNR, gamma) (Hang et al. 2023)."""
    return _on_x0(lambda snr: snr.clamp(max=gamma))


@WEIGHTINGS.register("soft_min_snr")
def soft_min_snr(gamma: float = 5.0) -> Weighting:
    """w = SNR gamma / (SNR + gamma), min_snr without its corner; at gamma = 1 / sigma_data^2 the weight of Crowson et
    al. 2024."""
    return _on_x0(lambda snr: gamma / (1 + gamma / snr))


@WEIGHTINGS.register("truncated_snr")
def truncated_snr() -> Weighting:
    """w = max(SNR, 1) (Salimans and Ho 2022)."""
    return _on_x0(lambda snr: snr.clamp(min=1))


@WEIGHTINGS.register("snr_plus_one")
def snr_plus_one() -> Weighting:
    """w = SNR + 1, the error of v under a variance-preserving schedule (Salimans and Ho 2022)."""
    return _on_x0(lambda snr: snr + 1)


@WEIGHTINGS.register("velocity")
def velocity(limit: float = math.inf) -> Weighting:
    """w = (1 + sqrt(SNR))^2, the error of the flow schedule's velocity whatever is predicted: for a network of x0 that
    is the loss of Li and He 2025.

    Args:
        limit: the largest w; 400 is theirs, t no less than 0.05.
    """
    return _on_x0(lambda snr: ((1 + snr.sqrt()) ** 2).clamp(max=limit))


@WEIGHTINGS.register("p2")
def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """w = SNR / (k + SNR)^gamma, less where only imperceptible detail is left (Choi et al. 2022)."""
    return _on_x0(lambda snr: snr / (k + snr) ** gamma)


@WEIGHTINGS.register("edm")
def edm(sigma_data: float = 0.5) -> Weighting:
    """w = (sigma^2 + s^2) / (sigma s)^2 with sigma / alpha for sigma (Karras et al. 2022, table 1)."""
    return _on_x0(lambda snr: snr + sigma_data**-2)


@WEIGHTINGS.register("sigmoid")
def sigmoid(bias: float = -3.0) -> Weighting:
    """w = SNR sigmoid(bias - log SNR) (Hoogeboom et al. 2024)."""
    return _on_x0(lambda snr: snr * torch.sigmoid(bias - torch.log(snr)))


@WEIGHTINGS.register("likelihood")
def likelihood() -> Weighting:
    """w = -SNR'(t) / 2, the variational bound in continuous time (Kingma et al. 2021, eq. 15)."""

    def weight(t: Tensor, schedule: Schedule, per_output: Tensor) -> Tensor:
        step = 1e-4 * t.clamp(min=1e-3)
        high, low = (t + step / 2).clamp(max=1.0), t - step / 2
        slope = (schedule.log_snr(low) - schedule.log_snr(high)) / (high - low)
        return schedule.log_snr(t).exp() * slope / 2 * per_output**2

    return weight
