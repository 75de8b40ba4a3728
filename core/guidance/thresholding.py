"""Extremes of the estimate brought back into the range of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..predictions import Estimate
from ..samples import Cond, Sample, Time, align_left, map_parts, parts
from ..schedules import Schedule
from .guidance import GUIDANCE, OneCall, real


@GUIDANCE.register("dynamic_thresholding")
class DynamicThresholding(OneCall):
    """Dynamic thresholding (Saharia et al. 2022): each sample clipped at a percentile of its magnitudes, and brought
    into the range of data where that is beyond it. A wrapper around guidance that is too strong.

        s = max(bound, percentile of |x0|),      x0 <- clip(x0, -s, s) bound / s

    Args:
        denoise: the denoiser whose estimates to clip.
        percentile: from 0 to 1.
        bound: the range of data is [-bound, bound]; by part where parts differ: parts not named are left as they are.
        interval, schedule: see ``Guidance``.
    """

    def __init__(
        self,
        denoise: Denoise,
        percentile: float = 0.995,
        bound: float | Mapping[str, float] = 1.0,
        interval: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, interval, schedule)
        if not 0 < percentile <= 1:
            raise ValueError(f"percentile must lie in (0, 1], got {percentile}")
        bounds = list(bound.values()) if isinstance(bound, Mapping) else [bound]
        if not bounds or min(bounds) <= 0:
            raise ValueError(f"bound must be positive, got {bound}")
        self.percentile, self.bound = percentile, bound

    def guided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        estimate, mask = self.denoise(x, t, cond, previous), (cond or {}).get("mask")

        def one(x0: Tensor, time: Any, bound: float | None) -> Tensor:
            if bound is None:
                return x0
            sizes, keep = x0.abs().flatten(1).float(), real(x0, mask)
            if keep is not None:
                sizes = torch.where(keep > 0, sizes, torch.nan)
            rows = [torch.nanquantile(row, self.percentile) for row in sizes]  # one by one: it limits what it sorts
            s = align_left(torch.stack(rows).nan_to_num().clamp(min=bound).to(x0), x0)
            return torch.lerp(x0, x0.clamp(-s, s) * (bound / s), self._weight(time, x0))

        x0 = map_parts(one, estimate.x0, t, self._bounds(x))
        return self.estimate(x, x0, t, estimate.shift)

    def _weight(self, t: Any, like: Tensor) -> Any:
        return self._at(1.0, t, like, neutral=0.0)

    def _bounds(self, x: Sample) -> Any:
        if not isinstance(self.bound, Mapping):
            return self.bound
        if unknown := [name for name in self.bound if name not in parts(x)]:
            raise ValueError(f"no part {', '.join(unknown)} to bound. Parts: {', '.join(parts(x))}")
        return {name: self.bound.get(name) for name in parts(x)}
