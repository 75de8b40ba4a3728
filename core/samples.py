"""What a sample is: one ``Tensor``, or a ``TensorDict`` whose parts share the batch dimension.

Audio and video are one tensor ``(batch, ...)``; a molecule is ``{positions, atoms, charges, bonds}``. Everything in
the core is written once for both through the three helpers below. ``TensorDict`` is imported on first use only: it
takes longer to import than the rest of the core together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict

Sample: TypeAlias = "Tensor | TensorDict"
Time: TypeAlias = "float | Tensor | TensorDict"
Cond: TypeAlias = Mapping[str, Any]

WHOLE = ""  # the part name of a sample that is a single tensor


def product(parts: Mapping[str, Tensor]) -> TensorDict:
    """A product sample from its parts, each ``(batch, ...)``."""
    from tensordict import TensorDict

    first = next(iter(parts.values()))
    return TensorDict(dict(parts), batch_size=first.shape[:1])


def parts(x: Sample) -> dict[str, Tensor]:
    """The parts of a sample by name; a single tensor is its own only part, named ``""``."""
    return {WHOLE: x} if isinstance(x, Tensor) else dict(x.items())  # type: ignore[arg-type]


def pick(value: Any, name: str) -> Any:
    """The part ``name`` of ``value`` where it has parts, else ``value`` itself (one value for all parts)."""
    if name == WHOLE or isinstance(value, Tensor) or not hasattr(value, "items"):
        return value
    return value[name]


def map_parts(function: Callable[..., Tensor], x: Sample, *others: Any) -> Sample:
    """``function(x, *others)`` part by part; an argument without parts is passed to every part as it is."""
    if isinstance(x, Tensor):
        return function(x, *others)
    return product({name: function(part, *(pick(other, name) for other in others)) for name, part in x.items()})


def batch_size(x: Sample) -> int:
    """The number of samples in a batch."""
    return x.shape[0]


def align_left(values: Tensor, like: Tensor) -> Tensor:
    """``values`` with trailing singleton dimensions, so that ``(batch,)`` or ``(batch, frames)`` broadcasts."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def known_at_zero(t: Time, known: Sample | None, like: Sample) -> Time:
    """Times with known elements at t = 0. ``known``: boolean, left-aligned with the sample (part by part)."""
    if known is None:
        return t

    def one(part: Tensor, time: Any, flags: Tensor) -> Tensor:
        time = torch.as_tensor(time, dtype=torch.float64)
        if time.ndim == 0 and time.device.type == "cpu":
            return (~flags).double() * float(time)  # no copy to the device of the flags
        time = time.to(flags.device)
        if time.ndim < flags.ndim:
            time = align_left(time, flags)
        elif flags.ndim < time.ndim:
            flags = align_left(flags, time)
        return torch.where(flags, torch.zeros_like(time), time)

    return map_parts(one, like, t, known)
