"""Where samples live: projections, noise of the right law, and no influence of padding or neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.randomness import sample_generators
from noiseloom.core.samples import product
from noiseloom.core.spaces import Centred, Euclidean, Product, Space, SymmetricPairs

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
KNOWN = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
SPACES: dict[str, tuple[Space, tuple[int, ...]]] = {
    "euclidean": (Euclidean(), (3, 5, 2)),
    "masked": (Euclidean(MASK), (3, 5, 2)),
    "centred": (Centred(MASK), (3, 5, 3)),
    "anchored": (Centred(MASK, KNOWN), (3, 5, 3)),
    "pairs": (SymmetricPairs(MASK), (3, 5, 5, 4)),
}


def padded(x: Tensor, space: Space) -> Tensor:
    """The elements of ``x`` that are padding."""
    if isinstance(space, SymmetricPairs):
        return x[~(MASK[:, :, None] & MASK[:, None] & ~torch.eye(5, dtype=torch.bool))]
    return x[:0] if getattr(space, "mask", None) is None else x[~MASK]


@pytest.mark.parametrize("name", list(SPACES))
def test_projection_is_idempotent_and_keeps_noise(name: str) -> None:
    space, shape = SPACES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    once = space.project(x)
    assert torch.allclose(space.project(once), once, atol=1e-6)
    noise = space.noise(x, sample_generators(0, range(3)))
    assert noise.shape == x.shape
    assert (padded(noise, space) == 0).all()
    assert (padded(once, space) == 0).all()
    if name != "anchored":
        assert torch.allclose(space.project(noise), noise, atol=1e-6)


def test_centred_and_anchored_means() -> None:
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0)) + 2
    centred, anchored = Centred(MASK).project(x), Centred(MASK, KNOWN).project(x)
    assert centred.sum(1).abs().max() < 1e-5
    assert (anchored * KNOWN[..., None])[[0, 2]].sum(1).abs().max() < 1e-5  # the known points' mean
    assert anchored[1].sum(0).abs().max() < 1e-5  # nothing known: everybody's
    shift = x[0, :3] - anchored[0, :3]
    assert torch.allclose(shift, shift[:1].expand(3, 3), atol=1e-6)  # a translation and no more


def test_pairs_are_symmetric_without_a_diagonal() -> None:
    space, shape = SPACES["pairs"]
    for x in (space.noise(torch.empty(shape), sample_generators(1, range(3))), space.project(torch.randn(shape))):
        assert torch.equal(x, x.transpose(1, 2))
        assert (x.diagonal(dim1=1, dim2=2) == 0).all()


def test_the_variance_of_noise() -> None:
    """1 per coordinate; (n - 1) / n for n centred points; 1 per pair."""
    generators = sample_generators(0, range(4000))
    mask = torch.ones(4000, 4, dtype=torch.bool)
    flat = Euclidean(mask).noise(torch.empty(4000, 4, 2), generators)
    points = Centred(mask).noise(torch.empty(4000, 4, 2), generators)
    pairs = SymmetricPairs(mask).noise(torch.empty(4000, 4, 4, 1), generators)
    assert float(flat.var()) == pytest.approx(1, abs=0.04)
    assert float(points.var()) == pytest.approx(3 / 4, abs=0.03)
    assert float(pairs[:, 0, 1].var()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", list(SPACES))
def test_noise_depends_neither_on_padding_nor_on_neighbours(name: str) -> None:
    space, shape = SPACES[name]
    whole = space.noise(torch.empty(shape), sample_generators(5, range(3)))
    if isinstance(space, Euclidean) and space.mask is None:
        alone: Any = Euclidean()
        size = shape[1:]
    else:
        known = None if space.known is None else KNOWN[:1, :3]  # type: ignore[attr-defined]
        alone = type(space)(MASK[:1, :3], known)  # type: ignore[call-arg]
        size = (3, 3, 4) if name == "pairs" else (3, shape[2])
    first = alone.noise(torch.empty(1, *size), sample_generators(5, [0]))
    cut = tuple(slice(0, n) for n in size)
    assert torch.equal(first[0], whole[0][cut])


def test_means_leave_out_padding_and_known_elements() -> None:
    values = torch.arange(15.0).reshape(3, 5, 1)
    assert Euclidean().mean(values).tolist() == [2, 7, 12]
    assert Euclidean(MASK).mean(values).tolist() == [1, 7, 10]
    assert Euclidean(MASK, KNOWN).mean(values).tolist() == [2, 7, 0]  # 0: nothing to score
    assert Centred(MASK, KNOWN).mean(values.expand(3, 5, 3)).tolist() == [2, 7, 0]
    pairs = torch.zeros(3, 5, 5, 1)
    pairs[0, 0, 1], pairs[0, 0, 2], pairs[0, 1, 2] = 3, 6, 9
    assert SymmetricPairs(MASK).mean(pairs)[0] == 6
    assert SymmetricPairs(MASK, KNOWN).mean(pairs)[0] == 7.5  # the pair of two known points is left out
    assert Euclidean(MASK).mean_square(torch.full((3, 5, 2), 2.0)).tolist() == [4, 4, 4]


def test_a_product_is_its_parts() -> None:
    names = {"centred", "pairs"}
    space = Product({name: SPACES[name][0] for name in names})
    like = product({name: torch.zeros(SPACES[name][1]) for name in names})
    noise = space.noise(like, sample_generators(0, range(3)))
    for name in names:
        assert torch.allclose(SPACES[name][0].project(noise[name]), noise[name], atol=1e-6)
    assert set(space.mean_square(noise)) == names
    other = space.noise(like, sample_generators(0, range(3)))
    assert all(torch.equal(noise[name], other[name]) for name in names)


def test_one_generator_for_each_sample() -> None:
    for space in (Euclidean(), Euclidean(MASK)):
        with pytest.raises(ValueError, match="generators"):
            space.noise(torch.empty(3, 5, 2), sample_generators(0, range(2)))
