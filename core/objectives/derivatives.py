r"""The one derivative that flow maps need: of a function of (x, t), along a path.

    d/dt f(x(t), t) = (dx/dt) grad f + df/dt

by forward-mode differentiation in one pass, exact to rounding, or by a central difference of two passes, for networks
that forward mode cannot go through.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ..predictions import scale_like
from ..samples import Sample, align_left, known_at_zero, map_parts, parts
from ..schedules import Schedule

Method = Literal["forward", "central"]
_INSIDE = 1e-6  # how far from t = 0 and 1 a derivative is taken: the log-SNR is infinite there
_CENTRAL_STEP = 2e-3  # of a central difference in float32: the errors of rounding and of truncation are alike


def check_method(method: str) -> Method:
    """``method``, if there is one of that name.

    Raises:
        ValueError: there is not.
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown derivative {method!r}. Choices: {', '.join(get_args(Method))}")
    return method  # type: ignore[return-value]


@torch.no_grad()
def derivative_along(
    function: Callable[[Sample, Tensor], Sample],
    x: Sample,
    t: Tensor,
    velocity: Sample,
    method: Method = "forward",
    step: float = _CENTRAL_STEP,
) -> Sample:
    """``d/dt function(x, t)`` where x moves with ``velocity``; no gradient flows through it, and autocast is off.

    Args:
        function: smooth in x and t.
        t: (batch,), float64.
        velocity: dx/dt, of the shape of ``x``.
        step: of a central difference, in time.
    """
    t = t.clamp(_INSIDE, 1 - _INSIDE)
    device = next(iter(parts(x).values())).device.type
    with torch.autocast(device, enabled=False), _eager():
        if method == "central":
            return _difference(function, x, t, velocity, step)
        with forward_ad.dual_level():
            moving = map_parts(lambda part, way: forward_ad.make_dual(part, way.to(part)), x, velocity)
            value = function(moving, forward_ad.make_dual(t, torch.ones_like(t)))
            return map_parts(_tangent, value)


def _tangent(dual: Tensor) -> Tensor:
    value, tangent = forward_ad.unpack_dual(dual)
    return torch.zeros_like(value) if tangent is None else tangent


def _difference(
    function: Callable[[Sample, Tensor], Sample], x: Sample, t: Tensor, velocity: Sample, step: float
) -> Sample:
    ahead, behind = (1 - _INSIDE - t).clamp(max=step), -(t - _INSIDE).clamp(max=step)  # one-sided at the ends

    def at(way: Tensor) -> Sample:
        return function(map_parts(lambda part, v: part + scale_like(way, part) * v, x, velocity), t + way)

    per_time = 1 / (ahead - behind)
    return map_parts(lambda high, low: scale_like(per_time, high) * (high - low), at(ahead), at(behind))


def _eager() -> AbstractContextManager[Any]:
    """Compiled regions run as they are written: a compiled one would not see what a tensor carries with it."""
    compiled = "torch._dynamo" in sys.modules  # whose import takes seconds
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """``(d alpha/dt, d sigma/dt)`` at times ``t``: float64, by differences so small that they are exact to 1e-8, of any
    schedule and finite at both its ends."""
    t = torch.as_tensor(t, dtype=torch.float64)
    step = (1e-4 * torch.minimum(t, 1 - t)).clamp(min=1e-7)
    high, low = (t + step).clamp(max=1.0), (t - step).clamp(min=0.0)
    ahead, behind = schedule.alpha_sigma(high), schedule.alpha_sigma(low)
    return (ahead[0] - behind[0]) / (high - low), (ahead[1] - behind[1]) / (high - low)


def path_velocity(schedule: Schedule, x0: Sample, noise: Sample, t: Tensor, known: Sample | None) -> Sample:
    """``dx/dt = alpha' x0 + sigma' noise``; what is known does not move."""

    def one(clean: Tensor, eps: Tensor, time: Tensor) -> Tensor:
        d_alpha, d_sigma = rates(schedule, time)
        way = scale_like(d_alpha, clean) * clean + scale_like(d_sigma, clean) * eps
        return way if known is None else torch.where(align_left((time > 0).to(way.device), way), way, 0.0)

    return map_parts(one, x0, noise, known_at_zero(t, known, x0))


def inside(t: Tensor, known: Sample | None, x: Sample) -> Any:
    """The times of the elements, those of known ones a little above 0: there a derivative is finite."""
    times = known_at_zero(t, known, x)
    return times if known is None else map_parts(lambda part, time: time.clamp(min=_INSIDE), x, times)
