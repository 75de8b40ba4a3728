r"""Samplers of discrete diffusion (``core.categorical``): tokens change one by one, as the network's distribution of
clean tokens, p, says. With the kept shares a at t and b at s, b > a:

    masked         a masked token is shown with probability (b - a) / (1 - a), as a class drawn from p
    confidence     so many as are to be shown at s are, those that the network is surest of (Chang et al. 2022)
    uniform        q(x_s | x_t, x0), the mean over x0 ~ p (Austin et al. 2021, eq. 3)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..categorical import Prior, drawn, kept_share, masked_token
from ..predictions import scale_like
from ..samples import Sample
from ..schedules import Schedule
from .sampler import SAMPLERS, BoundDenoise, Sampler, State


class TokenSampler(Sampler):
    """One call a step, and one draw of noise."""

    order = 1
    stochastic = True
    prior: Prior

    def plan(self, schedule: Schedule, grid: Tensor) -> Sequence[Any]:
        kept = kept_share(*schedule.alpha_sigma(grid))
        return list(zip(grid[:-1], kept[:-1], kept[1:], strict=True))

    def step(
        self, denoise: BoundDenoise, x: Sample, coefficients: Any, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        assert isinstance(x, Tensor)
        t, before, after = coefficients
        x0: Any = denoise(x, t, state.x0).x0
        uniform: Any = noise()
        shares = (scale_like(before, x[..., 0]), scale_like(after, x[..., 0]))
        return self.move(x, x0, *shares, uniform).to(x), State(x0)

    @abstractmethod
    def move(self, x: Tensor, x0: Tensor, before: Any, after: Any, noise: Tensor) -> Tensor:
        """The tokens at s, of those at t and the probabilities of clean ones; ``before`` and ``after`` are kept shares,
        numbers or left-aligned with the tokens."""


@SAMPLERS.register("masked")
class Masked(TokenSampler):
    """Absorbing diffusion, its ancestral sampler (Sahoo et al. 2024); ``remask`` lets tokens be masked again, so that
    what was shown too early can be mended (ReMDM, Wang et al. 2025, with a rescaled rate).

    Args:
        remask: from 0, never, to 1, as often as the marginals allow.
    """

    prior: Prior = "absorbing"

    def __init__(self, remask: float = 0.0) -> None:
        if not 0 <= remask <= 1:
            raise ValueError(f"remask must lie in [0, 1], got {remask}")
        self.remask = remask

    def move(self, x: Tensor, x0: Tensor, before: Any, after: Any, noise: Tensor) -> Tensor:
        token, number = drawn(_clean(x0), noise)
        before, after = torch.as_tensor(before), torch.as_tensor(after)
        again = self.remask * torch.clamp((1 - after) / before.clamp(min=1e-12), max=1.0)
        shown = (after - (1 - again) * before) / (1 - before).clamp(min=1e-12)
        hidden = x[..., -1] > 0
        change = number < torch.where(hidden, shown, again)
        return torch.where(change.unsqueeze(-1), torch.where(hidden.unsqueeze(-1), token.to(x), masked_token(x)), x)


@SAMPLERS.register("confidence")
class Confidence(TokenSampler):
    """MaskGIT (Chang et al. 2022): at each step the surest tokens are shown, as many as the schedule says.

    Args:
        temperature: of the Gumbel noise on the confidence, falling with the share that is masked; 0: the surest.
    """

    prior: Prior = "absorbing"

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def move(self, x: Tensor, x0: Tensor, before: Any, after: Any, noise: Tensor) -> Tensor:
        token, number = drawn(_clean(x0), noise)
        hidden, real = (x[..., -1] > 0).flatten(1), (x.sum(-1) > 0).flatten(1)
        after = torch.as_tensor(after, dtype=torch.float64).to(x.device)
        left = (1 - after.reshape(-1, 1).to(number)) * real.sum(1, keepdim=True)
        sure = (x0.to(number) * token).sum(-1).clamp(min=1e-30).log()
        sure = sure - self.temperature * (1 - after).to(number) * torch.log(-torch.log(number.clamp(1e-12, 1 - 1e-12)))
        rank = sure.flatten(1).masked_fill(~hidden, torch.inf).argsort(1).argsort(1)  # the least sure first
        show = hidden & (rank >= left.round())
        return torch.where(show.reshape(x.shape[:-1]).unsqueeze(-1), token.to(x), x)


@SAMPLERS.register("uniform_tokens")
class UniformTokens(TokenSampler):
    """Uniform discrete diffusion, its ancestral sampler (Austin et al. 2021)."""

    prior: Prior = "uniform"

    def move(self, x: Tensor, x0: Tensor, before: Any, after: Any, noise: Tensor) -> Tensor:
        before, after = (torch.as_tensor(v).unsqueeze(-1).to(x) for v in (before, after))
        classes, step = x.shape[-1], before / after.clamp(min=1e-12)
        likely = x0.clamp(min=0)
        likely = likely / likely.sum(-1, keepdim=True).clamp(min=1e-30)
        share = likely / (before * x + (1 - before) / classes)
        posterior = (step * x + (1 - step) / classes) * (
            after * share + (1 - after) / classes * share.sum(-1, keepdim=True)
        )
        real = x.sum(-1, keepdim=True) > 0
        return torch.where(real, drawn(posterior, noise)[0].to(x), x)


def _clean(x0: Tensor) -> Tensor:
    """Probabilities without the mask's."""
    return x0 * (1 - masked_token(x0))
