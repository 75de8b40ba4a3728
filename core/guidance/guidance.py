"""What guidance is, and the ladder: from weaker estimates through the main one and beyond.

    x0 = main + sum_k (scale_k - 1) (e_k - e_{k-1}),      main = e_K

With one rung this is ``weak + scale (main - weak)``. Everything is said of the estimate of x0; the noise follows from
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoise, implied_noise
from ..predictions import Estimate, scale_like
from ..registry import Registry
from ..samples import Cond, Sample, Time, align_left, map_parts
from ..schedules import Schedule

GUIDANCE: Registry[Guidance] = Registry("guidance")


class Guidance(ABC):
    """A denoiser around a denoiser.

    Args:
        denoise: the denoiser to guide.
        interval: guide only where ``low < sigma / alpha <= high`` (Kynkaanniemi et al. 2024); None: everywhere.
        schedule: by default the denoiser's own.
    """

    def __init__(
        self, denoise: Denoise, interval: tuple[float, float] | None = None, schedule: Schedule | None = None
    ) -> None:
        schedule = getattr(denoise, "schedule", None) if schedule is None else schedule
        if schedule is None:
            raise ValueError("guidance needs a schedule: this denoiser has none of its own")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be 0 <= low < high, in units of sigma / alpha, got {tuple(interval)}")
        self.denoise, self.schedule, self.interval = denoise, schedule, interval

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        if self._idle(cond) or self._outside(t):
            return self.unguided(x, t, cond, previous)
        return self.guided(x, t, cond, previous)

    @abstractmethod
    def guided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        """The estimate, guided where the interval says."""

    def unguided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        """The estimate of the denoiser alone, by one call."""
        return self.denoise(x, t, cond, previous)

    def estimate(self, x: Sample, x0: Sample, t: Time, shift: Sample | None = None) -> Estimate:
        """``x0`` and the noise that goes with it at ``x``, moved by ``shift``."""

        def noise() -> Sample:
            moved = x if shift is None else map_parts(torch.add, x, shift)
            return implied_noise(moved, x0, t, self.schedule)

        return Estimate(x0, noise, shift)

    def _idle(self, cond: Cond | None) -> bool:
        """Whether the denoiser's own estimate is all there is to it."""
        return False

    def _inside(self, t: Any) -> Tensor:
        low, high = self.interval  # type: ignore[misc]
        ratio = torch.exp(-self.schedule.log_snr(t) / 2)
        return (low < ratio) & (ratio <= high)

    def _outside(self, t: Time) -> bool:
        """Whether no element can be guided, so that one call is enough; times per element are not looked into."""
        one = not isinstance(t, Tensor) or t.ndim == 0
        return self.interval is not None and one and not hasattr(t, "items") and not bool(self._inside(t))

    def _at(self, scale: float, t: Any, like: Tensor, neutral: float = 1.0) -> Any:
        """The scale inside the interval, ``neutral`` elsewhere: a number, or aligned with ``like``."""
        if self.interval is None:
            return scale
        return scale_like(torch.where(self._inside(t), scale, neutral), like)


class OneCall(Guidance):
    """Guidance that asks its denoiser once: a causal network's past is what it is without."""

    def remember(self, x0: Sample, cond: Cond | None = None) -> Tensor:
        """As ``Denoiser.remember``."""
        return self.denoise.remember(x0, cond)  # type: ignore[attr-defined]


class Ladder(Guidance):
    """A denoiser guided away from weaker ones.

    Args:
        denoise: the denoiser to guide.
        scale: 1 is no guidance, 0 the weak estimate.
        interval: see ``Guidance``.
        rescale: how far, from 0 to 1, to bring the standard deviation of the guided estimate back to that of the main
            one (Lin et al. 2024, eq. 15-16).
        schedule: by default the denoiser's own.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, interval, schedule)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
        self.scale, self.rescale = scale, rescale

    @property
    def scales(self) -> Sequence[float]:
        """The scale of each rung."""
        return (self.scale,)

    @abstractmethod
    def ladder(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Sequence[Sample]:
        """Estimates of x0 from the weakest to the main one: one more than there are scales."""

    def guided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        return self.climb(x, t, cond, previous, self.ladder(x, t, cond, previous))

    def climb(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> Estimate:
        """The guided estimate, from those of the ladder."""
        directions = self.directions(x, t, cond, previous, estimates)
        return self.estimate(x, self.extrapolated(estimates[-1], estimates[-1], directions, t, cond), t)

    def directions(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> list[Sample]:
        """Where each rung leads."""
        return [map_parts(torch.sub, above, below) for below, above in pairwise(estimates)]

    def extrapolated(
        self, start: Sample, main: Sample, directions: Sequence[Sample], t: Time, cond: Cond | None
    ) -> Sample:
        """``start + sum_k (scale_k - 1) directions_k``, rescaled to the spread of ``main``."""
        mask = (cond or {}).get("mask")

        def one(start: Tensor, main: Tensor, time: Any, *directions: Tensor) -> Tensor:
            out = start
            for scale, direction in zip(self.scales, directions, strict=True):
                out = out + (self._at(scale, time, main) - 1) * direction
            if not self.rescale:
                return out
            ratio = spread(main, mask) / spread(out, mask).clamp(min=1e-12)
            return out * align_left(1 + self.rescale * (ratio - 1), out)

        return map_parts(one, start, main, t, *directions)

    def _idle(self, cond: Cond | None) -> bool:
        return all(scale == 1 for scale in self.scales)


def real(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """1 at the real elements of a part and 0 at padding, ``(batch, elements)``; None where the mask does not fit."""
    if mask is None or mask.shape != x.shape[: mask.ndim]:
        return None
    return align_left(mask.to(x), x).expand_as(x).flatten(1)


def inner(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """The inner product of each sample's real elements: ``(batch,)``."""
    keep, product = real(a, mask), (a * b).flatten(1)
    return product.sum(1) if keep is None else (product * keep).sum(1)


def spread(x: Tensor, mask: Tensor | None) -> Tensor:
    """The standard deviation of each sample's real elements: ``(batch,)``."""
    keep, x = real(x, mask), x.flatten(1)
    if keep is None:
        return x.std(1, correction=0)
    count = keep.sum(1).clamp(min=1)
    mean = (x * keep).sum(1) / count
    return (((x - mean[:, None]) ** 2 * keep).sum(1) / count).sqrt()
