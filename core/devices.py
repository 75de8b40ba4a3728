"""Where and how a network runs: moving whatever holds tensors to a device, and compiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


def move(value: T, device: torch.device | str) -> T:
    """``value`` with every tensor in it on ``device``: tensors, tensor dicts, mappings, sequences and dataclasses such
    as ``Example`` and the spaces; anything else is passed through."""
    return _move(value, device)


def _move(value: Any, device: torch.device | str) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _move(one, device) for key, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_move(one, device) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _move(getattr(value, f.name), device) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value


def compile_network(network: nn.Module) -> None:
    """``torch.compile`` in place, so that parameters keep their names. A network that names its ``regions()``, blocks
    that share one piece of code, has these compiled once for all: minutes become seconds. Shapes stay dynamic."""
    regions: list[nn.Module] = network.regions() if hasattr(network, "regions") else [network]  # type: ignore[operator]
    for region in regions:
        region.compile(dynamic=True)
