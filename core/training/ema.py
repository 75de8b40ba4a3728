r"""Exponential moving averages of weights.

The power-function average of Karras et al. 2024 (EDM2, eq. 1, 2) weighs the past of update t by ``tau^gamma``:

    ema_t = beta_t ema_{t-1} + (1 - beta_t) theta_t,      beta_t = (1 - 1/t)^(gamma + 1)

so the length of the average grows with the run. Its width relative to the run, ``std``, sets gamma through

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def power_function_exponent(std: float) -> float:
    """gamma of a relative width (EDM2, algorithm 2); 0.05, 0.1 and 0.15 give 16.97, 6.94 and 3.56."""
    if not 0 < std < 12**-0.5:
        raise ValueError(f"the width of a power-function average lies in (0, 0.288), got {std}")
    width = std**-2
    return float(np.roots([1, 7, 16 - width, 12 - width]).real.max())


def power_function(std: float) -> Callable[[int], float]:
    """beta of update t = 1, 2, ...; beta(1) = 0: the average starts at the first weights it sees."""
    power = power_function_exponent(std) + 1
    return lambda t: (1 - 1 / t) ** power


def fixed_rate(decay: float) -> Callable[[int], float]:
    """A constant beta, smaller while the run is short: ``min(decay, (1 + t) / (10 + t))``."""
    if not 0 <= decay < 1:
        raise ValueError(f"ema_decay lies in [0, 1), got {decay}")
    return lambda t: min(decay, (1 + t) / (10 + t))


class EMA:
    """The average of a module's parameters, in float32; its buffers are not averaged.

    Args:
        module: whose weights to average.
        beta: ``beta(t)``, the weight of the past at update t = 1, 2, ...
    """

    def __init__(self, module: nn.Module, beta: Callable[[int], float]) -> None:
        self.beta = beta
        self.names = [name for name, _ in module.named_parameters()]
        self._live: list[Tensor] = list(module.parameters())
        self.values = [p.detach().to(torch.float32, copy=True) for p in self._live]

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take the module's weights in, as update ``t`` (from 1)."""
        live = [p.detach().float() for p in self._live]
        torch._foreach_lerp_(self.values, live, 1 - self.beta(t))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self.names, self.values, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        kept = [p.detach().clone() for p in self._live]
        torch._foreach_copy_(self._live, self.values)
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, kept)
