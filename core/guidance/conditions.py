"""Guidance by what one denoiser is told."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import STRUCTURE, null, null_value
from ..denoiser import Denoise
from ..predictions import Estimate
from ..samples import Cond, Sample, Time, batch_size
from ..schedules import Schedule
from .guidance import GUIDANCE, Ladder


class ByConditions(Ladder):
    """Guidance by what one denoiser is told. All estimates come from one call of a larger batch, and so does their past
    (of a causal network): it has a row for each sample of each estimate.

    Attributes:
        asked: the denoiser that gives all estimates.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, rescale, schedule)
        self.asked: Any = denoise

    @abstractmethod
    def told(self, cond: Cond | None, count: int) -> Sequence[Cond]:
        """The conditions of each estimate of ``count`` samples, from the weakest to the main one."""

    def ladder(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Sequence[Sample]:
        count = batch_size(x)
        told = self.told(cond, count)
        x, t, previous = (_repeated(value, count, len(told)) for value in (x, t, previous))
        x0 = self.asked(x, t, _joined(told), previous).x0
        return [x0[start : start + count] for start in range(0, count * len(told), count)]

    def unguided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        return self.denoise(x, t, self._of_main(cond, batch_size(x)), previous)

    def remember(self, x0: Sample, cond: Cond | None = None) -> Tensor:
        """As ``Denoiser.remember``, for every estimate."""
        if self._idle(cond):
            return self.denoise.remember(x0, cond)  # type: ignore[attr-defined]
        told = self.told(cond, batch_size(x0))
        return self.asked.remember(_repeated(x0, batch_size(x0), len(told)), _joined(told))

    def _of_main(self, cond: Cond | None, count: int) -> Cond | None:
        """The conditions where there is only the main estimate."""
        past = (cond or {}).get("past")
        return cond if cond is None or past is None else {**cond, "past": past[-count:]}


def _repeated(value: Any, count: int, times: int) -> Any:
    """What has no batch dimension serves all."""
    batched = getattr(value, "ndim", 0) > 0 and len(value) == count
    return torch.cat([value] * times) if batched else value


def _joined(told: Sequence[Cond]) -> Cond:
    """The conditions of all estimates as those of one batch."""

    def joined(name: str) -> Any:
        values = [cond[name] for cond in told]
        return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim and name != "past" else values[0]

    return {name: joined(name) for name in told[0]}


class LeavingOut(ByConditions):
    """The weaker estimates have conditions left out: all of them together, or one after another.

    Args:
        denoise: the denoiser to guide.
        scale: 1 is no guidance, 0 the estimate without conditions.
        interval, rescale, schedule: see ``Ladder``.
        keep: names of conditions that the weak estimate keeps. Where it would keep all there are, nothing is guided.
        scales: instead of one scale, one for each condition by name: conditions are told one after another, in this
            order; those not named are always told.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        keep: Sequence[str] = (),
        scales: Mapping[str, float] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        if scales is not None and (not isinstance(scales, Mapping) or not scales):
            raise ValueError(f"scales are {{CONDITION: SCALE, ...}}, not {scales!r}")
        super().__init__(denoise, scale, interval, rescale, schedule)
        self.keep = tuple(keep)
        self.by_name = {str(name): float(value) for name, value in (scales or {}).items()}

    @property
    def scales(self) -> Sequence[float]:
        return tuple(self.by_name.values()) or (self.scale,)

    def told(self, cond: Cond | None, count: int) -> Sequence[Cond]:
        given = ", ".join(name for name in cond or {} if name not in STRUCTURE) or "none"
        if self.by_name:
            if absent := [name for name in self.by_name if name not in (cond or {})]:
                raise ValueError(f"no condition {', '.join(absent)} to guide by; given: {given}")
            told = [dict(cond or {})]
            for name in reversed(self.by_name):
                told.insert(0, {**told[0], name: null_value(told[0][name])})
            return told
        without = null(cond, self.keep)
        if cond is None or without is None or not self._left_out(cond):
            raise ValueError(f"classifier-free guidance needs a condition to leave out; given: {given}")
        return [without, cond]

    def _idle(self, cond: Cond | None) -> bool:
        return super()._idle(cond) or self._keeps_all(cond)

    def _keeps_all(self, cond: Cond | None) -> bool:
        return bool(self.keep) and not self.by_name and not self._left_out(cond)

    def _left_out(self, cond: Cond | None) -> list[str]:
        """The conditions that the weak estimate does without."""
        kept = (*STRUCTURE, *self.keep)
        return [name for name in cond or {} if name not in kept and not name.endswith("_mask")]


@GUIDANCE.register("classifier_free")
class ClassifierFree(LeavingOut):
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
        super().__init__(denoise, scale, interval, rescale, keep, schedule=schedule)


@GUIDANCE.register("per_condition")
class PerCondition(LeavingOut):
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
        super().__init__(denoise, max(scales.values()), interval, rescale, scales=scales, schedule=schedule)
