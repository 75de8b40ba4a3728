r"""Discrete diffusion: tokens that turn into noise one by one, beside the Gaussian parts of a sample.

A token is a one-hot vector over K classes, and is kept until time t with probability kept(t) = alpha / (alpha + sigma).
Later it is the last class, the mask (``absorbing``: Austin et al. 2021, Sahoo et al. 2024, Shi et al. 2024), or any
class with equal probability (``uniform``). The network says the distribution of the clean token (prediction
``classes``).

Noise is K uniform numbers for each token, which serve every purpose. For probabilities p the largest of
``log p_k - log(-log u_k)`` is at a class drawn from p (Gumbel), and its value, as a number that is uniform again, does
not depend on which class that is: it says whether the token changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .predictions import scale_like
from .samples import align_left
from .schedules import Schedule
from .spaces import Euclidean, Space

Prior = Literal["absorbing", "uniform"]


@dataclass(frozen=True)
class Categorical(Space):
    """One-hot tokens ``(batch, ..., K)``; with ``absorbing`` the last class is the mask, and no clean token has it.

    Attributes:
        prior: what noise is.
        mask, known: as of ``Euclidean``; padding is a vector of zeros.
    """

    prior: Prior = "absorbing"
    mask: Tensor | None = None
    known: Tensor | None = None

    def noise(self, like: Tensor, generators: Sequence[Generator]) -> Tensor:
        """Uniform numbers, one for each class of each token."""
        normal = Euclidean(self.mask).noise(like.double(), generators)
        return torch.special.ndtr(normal).clamp(1e-12, 1 - 1e-12).to(torch.promote_types(like.dtype, torch.float32))

    def project(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x * align_left(self.mask.to(x), x)

    def mean(self, values: Tensor) -> Tensor:
        return Euclidean(self.mask, self.known).mean(values)

    def noised(self, x0: Tensor, noise: Tensor, t: Any, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        turned, number = drawn(torch.ones_like(noise) / noise.shape[-1], noise)
        if self.prior == "absorbing":
            turned = masked_token(x0)
        kept: Any = scale_like(kept_share(*schedule.alpha_sigma(t)), number)
        x = torch.where((number < kept).unsqueeze(-1), x0, turned.to(x0))
        return self.project(x), x0, noise

    def check(self, sampler: Any) -> None:
        if getattr(sampler, "prior", None) != self.prior:
            choices = "masked, confidence" if self.prior == "absorbing" else "uniform_tokens"
            raise ValueError(f"{self.prior} tokens need a sampler of theirs: {choices}; of several parts, by_part")

    def tempered(self, noise: Tensor, temperature: float) -> Tensor:
        if temperature != 1:
            raise ValueError("the noise of tokens has no temperature")
        return noise


def kept_share(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The share of tokens that are kept."""
    return alpha / (alpha + sigma)


def masked_token(like: Tensor) -> Tensor:
    """The last class, one-hot, of the shape of ``like``."""
    out = torch.zeros_like(like)
    out[..., -1] = 1
    return out


def drawn(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A class of each token, one-hot, and an independent number that is uniform on (0, 1), ``(...)``."""
    logits = probabilities.clamp(min=0).to(uniform.dtype)
    total = logits.sum(-1, keepdim=True).clamp(min=1e-30)
    scores = torch.log(logits / total) - torch.log(-torch.log(uniform))
    best, index = scores.max(-1)
    return F.one_hot(index, uniform.shape[-1]), torch.exp(-torch.exp(-best))
