"""Small networks and tensors that the tests of the backbones share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noiseloom.core.backbones import DiT

SMALL = {"width": 32, "depth": 2, "heads": 2}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(channels: int = 3, patch: tuple[int, ...] = (2, 2), **options: Any) -> DiT:
    """A small network whose zeros are broken, so that everything can have an effect; the same for the same options."""
    torch.manual_seed(0)
    net = DiT(channels, patch, **SMALL | options)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * random(*parameter.shape, seed=i)
    return net


def same(a: Tensor, b: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def differ(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() > 1e-3
