"""Conditions and their absence. A condition that is not given is NaN where it is a float and -1 where it is an integer,
so that dropping a condition (for classifier-free guidance) changes values and never shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .samples import Cond

#: no conditions, but what is real, what is given, what went before, how far apart elements are, the time that a step is
#: to reach, and which blocks of the network are perturbed: never dropped
STRUCTURE = ("mask", "known", "past", "spacing", "target", "perturbed")


def null_value(value: Tensor) -> Tensor:
    """The same shape, saying "not given"."""
    return torch.full_like(value, torch.nan if value.is_floating_point() else -1)


def null(cond: Cond | None, keep: Sequence[str] = ()) -> dict[str, Any] | None:
    """All conditions not given, except ``keep`` and what is structure (masks)."""
    if cond is None:
        return None
    keep = (*STRUCTURE, *keep)
    masked = {name for name in cond if name.endswith("_mask")}
    return {name: v if name in keep or name in masked else null_value(v) for name, v in cond.items()}


def drop(cond: Cond, rates: dict[str, float], generators: Sequence[Generator]) -> dict[str, Any]:
    """Each named condition of each sample dropped with its own probability: one draw a name, by the sample's generator.

    The name ``all`` drops every condition of a sample together.
    """
    unknown = [name for name in rates if name != "all" and name not in cond]
    if unknown:
        raise ValueError(f"no condition named {', '.join(unknown)} to drop; there are: {', '.join(cond)}")
    draws = torch.stack([torch.rand(len(rates), generator=g) for g in generators])
    dropped = dict(zip(rates, (draws < torch.tensor(list(rates.values()))).unbind(1), strict=True))
    every = dropped.pop("all", torch.zeros(len(draws), dtype=torch.bool))
    out = dict(cond)
    for name, value in cond.items():
        if name in STRUCTURE or name.endswith("_mask") or (name not in dropped and "all" not in rates):
            continue
        absent = (every | dropped.get(name, torch.zeros_like(every))).to(value.device)
        out[name] = torch.where(absent.reshape(-1, *[1] * (value.ndim - 1)), null_value(value), value)
    return out


def given(value: Tensor) -> Tensor:
    """Boolean: where a condition is given."""
    return ~torch.isnan(value) if value.is_floating_point() else value >= 0
