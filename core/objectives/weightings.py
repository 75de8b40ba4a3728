"""How much the error at each noise level counts.

A weighting is stated for the mean-square error of x0, ``w(snr)``; on the error of the network's output it becomes
``w * |d x0 / d output|^2``. ``output`` leaves the output's own error as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import Registry
from ..schedules import Schedule

# weight(t, schedule, x0_per_output) -> the weight on the error of the output, the shape of t, float64
Weighting = Callable[[Tensor, Schedule, Tensor], Tensor]
WEIGHTINGS: Registry[Weighting] = Registry("weighting")


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
