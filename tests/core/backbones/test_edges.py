"""A network that is told where the grid ends knows a wall from the middle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.backbones.dit import DiT
from noiseloom.core.backbones.positions import between_ends


def net(**options: Any) -> DiT:
    """Small, of random weights: as it is made it says nothing."""
    torch.manual_seed(0)
    network = DiT(**{"channels": 2, "width": 48, "depth": 2, "heads": 2, "patch": (1, 1, 1), **options}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return network.eval().requires_grad_(False)


def uniform(*grid: int) -> Tensor:
    """A sample that is the same everywhere."""
    return torch.tensor([0.3, -0.7], dtype=torch.float64).view(1, 2, *[1] * len(grid)).expand(1, 2, *grid)


def test_places_lie_between_the_ends() -> None:
    assert between_ends((2, 1)).tolist() == [[0.25, 0.5], [0.75, 0.5]]
    assert between_ends((4,)).flatten().tolist() == [0.125, 0.375, 0.625, 0.875]


def test_without_edges_a_uniform_sample_stays_uniform_and_with_them_walls_show() -> None:
    out = net()(uniform(3, 4, 5), 0.5)
    torch.testing.assert_close(out, out[..., :1, :1, :1].expand_as(out))
    assert not [key for key in net().state_dict() if "edges" in key]
    for axis in range(3):  # told of one axis, it varies along that one
        out = net(edges=[axis])(uniform(3, 4, 5), 0.5)
        spread = [float((out.amax(d) - out.amin(d)).max()) for d in (2, 3, 4)]
        assert spread.index(max(spread)) == axis
        assert max(spread) > 10 * sorted(spread)[1] > 0  # attention to what varies makes a little of the others


def test_a_wall_is_told_apart_however_large_the_grid() -> None:
    """With the grid twice as fine between the same walls, places at equal shares are told the same."""
    network = net(channels_last=True, patch=(1,), edges=[0])
    x = torch.zeros(1, 3, 2, dtype=torch.float64)
    before: list[Tensor] = []
    network.embed.register_forward_hook(lambda _, __, out: before.append(out))
    network.blocks[0].register_forward_pre_hook(lambda _, given: before.append(given[0].flatten(1, 2)))
    network(x, 0.5)
    network(torch.zeros(1, 9, 2, dtype=torch.float64), 0.5)
    small, large = before[1] - before[0], before[3] - before[2]
    torch.testing.assert_close(small[:, 1], large[:, 4])  # the middle
    torch.testing.assert_close(small[:, 0], large[:, 1])  # 1/6 from the wall
    assert (small[:, 0] - small[:, 2]).abs().max() > 1e-3


def test_edges_change_nothing_else() -> None:
    """The same weights, the new ones zero: the same output."""
    x = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, told = net(), net(edges=[0, 2])
    extra = set(told.state_dict()) - set(plain.state_dict())
    assert extra == {"edges.weight"}
    told.load_state_dict({**plain.state_dict(), "edges.weight": torch.zeros_like(told.edges.weight)})  # type: ignore[union-attr]
    torch.testing.assert_close(told(x, 0.5), plain(x, 0.5), atol=0, rtol=0)


def test_a_causal_network_does_not_know_the_end() -> None:
    with pytest.raises(ValueError, match="leave 0 out of edges"):
        net(causal=True, edges=[0, 1])
    net(causal=True, edges=[1, 2])
