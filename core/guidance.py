"""Guidance: two denoisers, and a step from the weaker estimate through the better one and beyond.

    x0 = weak + scale (main - weak)

With several conditions there is a ladder of estimates, each told one condition more, and a scale for each rung:

    x0 = e_0 + sum_k scale_k (e_k - e_{k-1})

A guided denoiser is a denoiser: it wraps one and can be wrapped again. Everything is said of the estimate of x0; the
noise follows from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .conditioning import STRUCTURE, null, null_value
from .denoiser import Denoise, implied_noise
from .predictions import Estimate, scale_like
from .registry import Registry
from .samples import Cond, Sample, Time, align_left, batch_size, map_parts
from .schedules import Schedule

GUIDANCE: Registry[Guidance] = Registry("guidance")


class Guidance(ABC):
    """A denoiser guided away from a weaker one.

    Args:
        denoise: the denoiser to guide.
        scale: 1 is no guidance, 0 the weak estimate.
        interval: guide only where ``low < sigma / alpha <= high`` (Kynkaanniemi et al. 2024); None: everywhere.
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
        schedule = getattr(denoise, "schedule", None) if schedule is None else schedule
        if schedule is None:
            raise ValueError("guidance needs a schedule: this denoiser has none of its own")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be 0 <= low < high, in units of sigma / alpha, got {tuple(interval)}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
        self.denoise, self.schedule = denoise, schedule
        self.scale, self.interval, self.rescale = scale, interval, rescale

    @property
    def scales(self) -> Sequence[float]:
        """The scale of each rung."""
        return (self.scale,)

    @abstractmethod
    def ladder(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Sequence[Sample]:
        """Estimates of x0 from the weakest to the main one: one more than there are scales."""

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        if self._idle(cond) or self._outside(t):
            return self.denoise(x, t, _of_main(cond, batch_size(x)), previous)
        *weaker, main = self.ladder(x, t, cond, previous)
        mask = (cond or {}).get("mask")

        def guide(main: Tensor, time: Any, *weaker: Tensor) -> Tensor:
            guided = weaker[0]
            for below, above, scale in zip(weaker, (*weaker[1:], main), self.scales, strict=True):
                rung = torch.lerp(below, above, self._scale_at(scale, time, main))
                guided = rung if below is guided else guided + (rung - below)
            if not self.rescale:
                return guided
            ratio = _std(main, mask) / _std(guided, mask).clamp(min=1e-12)
            return guided * align_left(1 + self.rescale * (ratio - 1), guided)

        x0 = map_parts(guide, main, t, *weaker)
        return Estimate(x0, lambda: implied_noise(x, x0, t, self.schedule))

    def _idle(self, cond: Cond | None) -> bool:
        """Whether the main estimate is all there is to it."""
        return all(scale == 1 for scale in self.scales)

    def _inside(self, t: Any) -> Tensor:
        low, high = self.interval  # type: ignore[misc]
        ratio = torch.exp(-self.schedule.log_snr(t) / 2)
        return (low < ratio) & (ratio <= high)

    def _outside(self, t: Time) -> bool:
        """Whether no element can be guided, so that one call is enough; times per element are not looked into."""
        one = not isinstance(t, Tensor) or t.ndim == 0
        return self.interval is not None and one and not hasattr(t, "items") and not bool(self._inside(t))

    def _scale_at(self, scale: float, t: Any, like: Tensor) -> float | Tensor:
        if self.interval is None:
            return scale
        return scale_like(torch.where(self._inside(t), scale, 1.0), like)


def _std(x: Tensor, mask: Tensor | None) -> Tensor:
    """Standard deviation of each sample, over its real elements where the mask fits: ``(batch,)``."""
    if mask is None or mask.shape != x.shape[: mask.ndim]:
        return x.flatten(1).std(1, correction=0)
    keep = align_left(mask.to(x), x).expand_as(x).flatten(1)
    x, count = x.flatten(1), keep.sum(1).clamp(min=1)
    mean = (x * keep).sum(1) / count
    return (((x - mean[:, None]) ** 2 * keep).sum(1) / count).sqrt()


class ByConditions(Guidance):
    """Guidance by what one denoiser is told. All estimates come from one call of a larger batch, and so does their past
    (of a causal network): it has a row for each sample of each estimate."""

    @abstractmethod
    def told(self, cond: Cond | None) -> Sequence[Cond]:
        """The conditions of each estimate, from the weakest to the main one."""

    def ladder(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Sequence[Sample]:
        told, count = self.told(cond), batch_size(x)
        x, t, previous = (_repeated(value, count, len(told)) for value in (x, t, previous))
        x0 = self.denoise(x, t, _joined(told), previous).x0
        return [x0[start : start + count] for start in range(0, count * len(told), count)]

    def remember(self, x0: Sample, cond: Cond | None = None) -> Tensor:
        """As ``Denoiser.remember``, for every estimate."""
        denoise: Any = self.denoise
        if self._idle(cond):
            return denoise.remember(x0, cond)
        told = self.told(cond)
        return denoise.remember(_repeated(x0, batch_size(x0), len(told)), _joined(told))


def _repeated(value: Any, count: int, times: int) -> Any:
    """What has no batch dimension serves all."""
    batched = getattr(value, "ndim", 0) > 0 and len(value) == count
    return torch.cat([value] * times) if batched else value


def _joined(told: Sequence[Cond]) -> Cond:
    """The conditions of all estimates as those of one batch."""

    def joined(name: str) -> Any:
        values = [cond[name] for cond in told]
        return torch.cat(values) if isinstance(values[0], Tensor) and name != "past" else values[0]

    return {name: joined(name) for name in told[0]}


def _of_main(cond: Cond | None, count: int) -> Cond | None:
    """The conditions where there is only the main estimate."""
    past = (cond or {}).get("past")
    return cond if cond is None or past is None else {**cond, "past": past[-count:]}


@GUIDANCE.register("classifier_free")
class ClassifierFree(ByConditions):
    """Classifier-free guidance (Ho and Salimans 2022): the weak estimate has its conditions left out.

    Args:
        keep: names of conditions that the weak estimate keeps. Where it would keep all there are, nothing is guided.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        keep: Sequence[str] = (),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, rescale, schedule)
        self.keep = tuple(keep)

    def told(self, cond: Cond | None) -> Sequence[Cond]:
        without = null(cond, self.keep)
        if cond is None or without is None or not self._left_out(cond):
            given = ", ".join(name for name in cond or {} if name not in STRUCTURE) or "none"
            raise ValueError(f"classifier-free guidance needs a condition to leave out; given: {given}")
        return [without, cond]

    def _idle(self, cond: Cond | None) -> bool:
        return super()._idle(cond) or (bool(self.keep) and not self._left_out(cond))

    def _left_out(self, cond: Cond | None) -> list[str]:
        """The conditions that the weak estimate does without."""
        kept = (*STRUCTURE, *self.keep)
        return [name for name in cond or {} if name not in kept and not name.endswith("_mask")]


@GUIDANCE.register("per_condition")
class PerCondition(ByConditions):
    """Classifier-free guidance with a scale for each condition (Brooks et al. 2023, eq. 3, for any number).

    The conditions named are told one after another, in this order; those not named are always told. Equal scales are
    classifier-free guidance.

    Args:
        scales: a scale for each condition by name.
    """

    def __init__(
        self,
        denoise: Denoise,
        scales: Mapping[str, float],
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        if not isinstance(scales, Mapping) or not scales:
            raise ValueError(f"per_condition needs scales, {{CONDITION: SCALE, ...}}, not {scales!r}")
        super().__init__(denoise, max(scales.values()), interval, rescale, schedule)
        self.by_name = {str(name): float(scale) for name, scale in scales.items()}

    @property
    def scales(self) -> Sequence[float]:
        return tuple(self.by_name.values())

    def told(self, cond: Cond | None) -> Sequence[Cond]:
        cond = dict(cond or {})
        if absent := [name for name in self.by_name if name not in cond]:
            given = ", ".join(name for name in cond if name not in STRUCTURE) or "none"
            raise ValueError(f"no condition {', '.join(absent)} to guide by; given: {given}")
        told = [cond]
        for name in reversed(self.by_name):
            told.insert(0, {**told[0], name: null_value(told[0][name])})
        return told


@GUIDANCE.register("autoguidance")
class Autoguidance(Guidance):
    """Autoguidance (Karras et al. 2024b): the weak estimate is a smaller or less trained denoiser's.

    Args:
        guide: the weak denoiser, of the same schedule.
    """

    def __init__(
        self,
        denoise: Denoise,
        guide: Denoise,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, rescale, schedule)
        self.guide = guide

    def ladder(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Sequence[Sample]:
        return self.guide(x, t, cond, previous).x0, self.denoise(x, t, cond, previous).x0
