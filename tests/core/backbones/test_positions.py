import math

import pytest
import torch

from noiseloom.core.backbones import grid_positions, rotary, rotate

WAVELENGTHS = [(4.0, 400.0), (3.0, 30.0), (0.1, 10.0)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(q: torch.Tensor, k: torch.Tensor, at_q: torch.Tensor, at_k: torch.Tensor) -> torch.Tensor:
    wavelengths = WAVELENGTHS[: at_q.shape[-1]]
    dim = q.shape[-1]
    return rotate(q, rotary(at_q, dim, wavelengths)) @ rotate(k, rotary(at_k, dim, wavelengths)).mT


def test_grid_positions_run_over_the_last_axis_first() -> None:
    expected = [[0, 0], [0, 10], [0, 20], [0.5, 0], [0.5, 10], [0.5, 20]]
    assert grid_positions((2, 3), (0.5, 10)).tolist() == expected


def test_spacing_per_sample_gives_positions_per_sample() -> None:
    positions = grid_positions((2, 3), torch.tensor([[0.5, 10.0], [2.0, 1.0]]))
    torch.testing.assert_close(positions[0], grid_positions((2, 3), (0.5, 10)))
    torch.testing.assert_close(positions[1], grid_positions((2, 3), (2, 1)))


def test_a_pair_turns_by_its_wavelength() -> None:
    # 3 pairs between wavelengths 1 and 100: 1, 10 and 100; feature i pairs with i + 3.
    cos, sin = rotary(torch.tensor([[0.25]]), 6, [(1.0, 100.0)])
    turned = rotate(torch.tensor([[[[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]]], dtype=torch.float64), (cos, sin))
    angles = torch.tensor([math.pi / 2, math.pi / 20, math.pi / 200], dtype=torch.float64)
    torch.testing.assert_close(turned[0, 0, 0], torch.cat((angles.cos(), angles.sin())))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scores_depend_on_differences_of_positions_only(axes: int) -> None:
    q, k = random(2, 2, 5, 16, seed=1), random(2, 2, 5, 16, seed=2)
    at_q, at_k, shift = random(5, axes, seed=3), random(5, axes, seed=4), 7 * random(axes, seed=5)
    torch.testing.assert_close(scores(q, k, at_q, at_k), scores(q, k, at_q + shift, at_k + shift))
    for axis in range(axes):  # and on the difference along every axis
        moved = at_q.clone()
        moved[:, axis] += 0.3
        assert not torch.allclose(scores(q, k, at_q, at_k), scores(q, k, moved, at_k), atol=1e-2)


def test_far_positions_keep_their_precision() -> None:
    q, k, at = random(1, 1, 5, 16, seed=1), random(1, 1, 5, 16, seed=2), random(5, 1, seed=3)
    far = 2.0**20
    torch.testing.assert_close(scores(q, k, at + far, at + far), scores(q, k, at, at), atol=1e-6, rtol=0)


def test_rotation_keeps_lengths_and_gradients() -> None:
    x = random(2, 3, 5, 16).requires_grad_()
    turned = rotate(x, rotary(random(5, 2, seed=1), 16, WAVELENGTHS[:2]))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    (gradient,) = torch.autograd.grad(turned.square().sum(), x)  # the norm's: a rotation's inverse is its transpose
    torch.testing.assert_close(gradient, 2 * x)


def test_positions_per_sample() -> None:
    x, positions = random(2, 3, 5, 16), random(2, 5, 2, seed=1)
    together = rotate(x, rotary(positions, 16, WAVELENGTHS[:2]))
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], rotate(x[i : i + 1], rotary(positions[i], 16, WAVELENGTHS[:2])))


def test_units_not_indices() -> None:
    """The same second has the same angle at twice the frame rate."""
    slow, fast = (rotary(grid_positions((n,), (step,)), 8, [(0.2, 20.0)]) for n, step in ((5, 0.1), (10, 0.05)))
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b[::2])


@pytest.mark.parametrize(
    ("positions", "dim", "wavelengths", "message"),
    [
        ((5, 1), 7, [(1.0, 2.0)], "even head dimension"),
        ((5, 3), 4, [(1.0, 2.0)] * 3, "even head dimension >= 6"),
        ((5, 2), 8, [(1.0, 2.0)], "2 axes"),
        ((5, 1), 8, [(2.0, 1.0)], "shortest"),
    ],
)
def test_errors(positions: tuple[int, int], dim: int, wavelengths: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotary(torch.zeros(positions), dim, wavelengths)
