"""Other ways up the ladder of classifier-free guidance. Each takes one scale, or ``scales`` by condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..predictions import Estimate, scale_like
from ..samples import Cond, Sample, Time, align_left, map_parts
from ..schedules import Schedule
from .conditions import LeavingOut
from .guidance import GUIDANCE, inner


@GUIDANCE.register("cfg_pp")
class CFGPlusPlus(LeavingOut):
    """CFG++ (Chung et al. 2024): the guided x0, and the noise of the weakest estimate.

    A step of DDIM, ``alpha_s x0 + sigma_s noise``, is the paper's. Samplers are functions of x and x0, so the pair is
    handed on as an x that has moved to ``alpha x0 + sigma noise`` (``Estimate.shift``): a step of ``LinearSampler``
    starts there. Every step moves x by the whole ``scale (main - weak)``: more steps guide more.

    Args:
        scale: from 0, the estimate without conditions, to 1.
        interval: elsewhere x0 and noise are those of the main estimate.
        keep, scales: see ``LeavingOut``.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float = 0.6,
        interval: tuple[float, float] | None = None,
        keep: Sequence[str] = (),
        scales: Mapping[str, float] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, 0.0, keep, scales, schedule)

    def climb(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> Estimate:
        x0 = super().climb(x, t, cond, previous, estimates).x0

        def moved(x0: Tensor, weakest: Tensor, time: Any) -> Tensor:
            alpha, _ = self.schedule.alpha_sigma(time)
            return self._at(1.0, time, x0, neutral=0.0) * scale_like(alpha, x0) * (x0 - weakest)

        return self.estimate(x, x0, t, map_parts(moved, x0, estimates[0], t))

    def _idle(self, cond: Cond | None) -> bool:
        return self._keeps_all(cond)  # at scale 1 the noise is still another one


@GUIDANCE.register("cfg_zero")
class CFGZero(LeavingOut):
    """CFG-Zero* (Fan et al. 2025): of the weaker velocity only what fits the stronger one, and none at first.

        v = scale v_c + (1 - scale) s v_u,      s = <v_c, v_u> / |v_u|^2 of each sample

    Velocities are ``noise - x0``, rectified flow's under every schedule.

    Args:
        scale: 1 is no guidance: nothing is zero then.
        zero_init: x stays as it is while ``t > 1 - zero_init``: the first step, and as large a part of all steps.
        interval, keep, scales: see ``LeavingOut``.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float = 2.0,
        zero_init: float = 0.04,
        interval: tuple[float, float] | None = None,
        keep: Sequence[str] = (),
        scales: Mapping[str, float] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, 0.0, keep, scales, schedule)
        if not 0 <= zero_init < 1:
            raise ValueError(f"zero_init must lie in [0, 1), got {zero_init}")
        self.zero_init = zero_init

    def guided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        one = not hasattr(t, "items") and (not isinstance(t, Tensor) or t.ndim == 0)
        if one and float(t) > 1 - self.zero_init:  # type: ignore[arg-type]
            return self.estimate(x, map_parts(self._still, x, t), t)
        return super().guided(x, t, cond, previous)

    def climb(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> Estimate:
        def begun(x0: Tensor, x: Tensor, time: Any) -> Tensor:
            early = align_left(torch.as_tensor(time) > 1 - self.zero_init, x0).to(x0.device)
            return torch.where(early, self._still(x, time), x0)

        x0 = super().climb(x, t, cond, previous, estimates).x0
        return self.estimate(x, map_parts(begun, x0, x, t), t)

    def directions(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> list[Sample]:
        mask = (cond or {}).get("mask")

        def one(below: Tensor, above: Tensor, x: Tensor, time: Any) -> Tensor:
            alpha, sigma = self.schedule.alpha_sigma(torch.as_tensor(time, dtype=torch.float64))
            tau = sigma / (alpha + sigma)  # x0 = still - tau v
            per_tau = scale_like(torch.where(tau > 0, 1 / tau.clamp(min=1e-150), 0.0), x)
            still = self._still(x, time)
            weak, strong = per_tau * (still - below), per_tau * (still - above)
            fit = inner(weak, strong, mask) / inner(weak, weak, mask).clamp(min=1e-12)
            return scale_like(tau, x) * (align_left(fit, x) * weak - strong)

        return [map_parts(one, below, above, x, t) for below, above in pairwise(estimates)]

    def _still(self, x: Tensor, t: Any) -> Tensor:
        """The x0 of velocity 0, which is the noise too."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return x * scale_like(1 / (alpha + sigma), x)


@GUIDANCE.register("apg")
class APG(LeavingOut):
    """Adaptive projected guidance (Sadat et al. 2024): the difference ``d`` of the estimates, with (negative) momentum
    over the steps and a bounded norm, and little of what is parallel to the main estimate, which saturates.

        m <- d + momentum m,      d = min(1, norm / |m|) m,      x0 = main + (scale - 1) (d_orthogonal + eta d_parallel)

    The momentum is that of one trajectory, and begins anew where there is no ``previous`` estimate. Of two trajectories
    that take turns each needs a denoiser of its own, as the pipeline makes them.

    Args:
        eta: how much of the parallel part is kept.
        norm: the largest norm of a sample's difference (part by part); None: any.
        momentum: 0 remembers nothing.
        scale, interval, keep, scales: see ``LeavingOut``.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float = 2.0,
        eta: float = 0.0,
        norm: float | None = None,
        momentum: float = -0.5,
        interval: tuple[float, float] | None = None,
        keep: Sequence[str] = (),
        scales: Mapping[str, float] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, 0.0, keep, scales, schedule)
        if norm is not None and norm <= 0:
            raise ValueError(f"norm must be positive, got {norm}")
        if not -1 < momentum < 1:
            raise ValueError(f"momentum must lie in (-1, 1), got {momentum}")
        self.eta, self.norm, self.momentum = eta, norm, momentum
        self._averages: list[Sample] = []

    def directions(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> list[Sample]:
        differences = super().directions(x, t, cond, previous, estimates)
        if self.momentum:
            if previous is not None and self._averages:
                pairs = zip(differences, self._averages, strict=True)
                differences = [map_parts(lambda d, m: d + self.momentum * m, d, m) for d, m in pairs]
            self._averages = [map_parts(Tensor.detach, d) for d in differences]
        mask = (cond or {}).get("mask")

        def one(d: Tensor, main: Tensor) -> Tensor:
            if self.norm is not None:
                length = inner(d, d, mask).sqrt().clamp(min=1e-12)
                d = d * align_left((self.norm / length).clamp(max=1), d)
            along = inner(d, main, mask) / inner(main, main, mask).clamp(min=1e-12)
            return d - (1 - self.eta) * align_left(along, main) * main

        return [map_parts(one, d, estimates[-1]) for d in differences]
