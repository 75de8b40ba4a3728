r"""The reverse SDE with any diffusion coefficient, w(t): all have the same marginals (Ma et al. 2024, eq. 6),

    dx = (v(x, t) + w(t) / 2 score(x, t)) dt + sqrt(w(t)) dW,      w = 0 the ODE,  w = g^2 the reverse SDE.

It is the module equation of ``exponential`` with its eta a function of time, ``eta = w / g^2``, of which a step needs
the integral over l = log(alpha / sigma), here in closed form. w is that of the linear path, whose time is u = sigma /
(alpha + sigma), so that a choice means the same under every schedule:

    sde        g^2 = 2 u / (1 - u)       int eta dl = h
    sigma      u                         log(u_t / u_s) / 2
    constant   1                         (1 / u_s - 1 / u_t) / 2
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .exponential import Interval, Multistep
from .sampler import SAMPLERS


@SAMPLERS.register("reverse_sde")
class ReverseSDE(Multistep):
    """The reverse SDE with a diffusion coefficient of choice (SiT, Ma et al. 2024), by exponential steps.

    Args:
        diffusion: w(t): ``sde`` that of the forward process, ``sigma`` falling with the noise, or ``constant``.
        eta: a factor on w; 0 is the ODE.
        order: estimates that are interpolated.
    """

    def __init__(
        self, diffusion: Literal["sde", "sigma", "constant"] = "sigma", eta: float = 1.0, order: int = 1
    ) -> None:
        if diffusion not in ("sde", "sigma", "constant"):
            raise ValueError(f"diffusion must be 'sde', 'sigma' or 'constant', got {diffusion!r}")
        super().__init__(order, eta)
        self.diffusion = diffusion

    def _noise(self, interval: Interval) -> tuple[Tensor, Tensor | None, Tensor]:
        if self.diffusion == "sde" or self.eta == 0:
            return super()._noise(interval)
        u = interval.sigma / (interval.alpha + interval.sigma)
        u_s = interval.sigma_s / (interval.alpha_s + interval.sigma_s)
        drift = torch.log(u / u_s) / 2 if self.diffusion == "sigma" else (1 / u_s - 1 / u) / 2
        drift = torch.where(interval.moves, self.eta * drift, 0.0)
        spread = interval.sigma_s * torch.sqrt(-torch.expm1(-2 * drift))
        return interval.shrink * torch.exp(-drift), spread, interval.h + drift
