"""Perturbed-attention and skip-layer guidance on the DiT, against networks that were really changed."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.backbones import DiT
from noiseloom.core.caching import cached
from noiseloom.core.denoiser import Denoiser, FunctionDenoiser
from noiseloom.core.guidance import (
    APG,
    GUIDANCE,
    Autoguidance,
    CFGPlusPlus,
    ClassifierFree,
    PerCondition,
    PerturbedAttention,
    SkipLayers,
)
from noiseloom.core.samplers import generate, trajectory
from noiseloom.core.samples import known_at_zero
from noiseloom.core.schedules import SCHEDULES
from tests.core.test_caching import NETWORKS, conditions, denoiser

HALF = torch.tensor(0.5, dtype=torch.float64)
KINDS = {"perturbed_attention": PerturbedAttention, "skip_layers": SkipLayers}


class OwnToken(nn.Module):
    """Attention with the identity for its map."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **ignored: Any) -> Tensor:
        return self.attention.output(self.attention.value(x))


def changed(model: Denoiser, kind: str, blocks: tuple[int, ...]) -> Denoiser:
    """The model with some blocks rebuilt."""
    network: Any = copy.deepcopy(model.network)
    for index in blocks:
        if kind == "perturbed_attention":
            network.blocks[index].attention = OwnToken(network.blocks[index].attention)
        else:
            network.blocks[index].forward = lambda x, *others: x
    return Denoiser(network, model.schedule, model.prediction, model.sigma_data)  # type: ignore[arg-type]


def noisy(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 4, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_weak_estimate_is_that_of_the_changed_network(name: str, kind: str) -> None:
    model, cond, blocks = denoiser(**NETWORKS[name]), conditions(2), (1, 3)
    guided: Any = GUIDANCE.build({"name": kind, "blocks": blocks, "scale": 0.0}, denoise=model)
    with torch.no_grad():
        weak = changed(model, kind, blocks)(noisy(), HALF, cond).x0
        plain = model(noisy(), HALF, cond).x0
        torch.testing.assert_close(guided(noisy(), HALF, cond).x0, weak, atol=1e-4, rtol=1e-4)
        assert (weak - plain).abs().amax() > 1e-3
        guided.scale = 3.0
        out = guided(noisy(), HALF, cond).x0
    torch.testing.assert_close(out, plain + 2 * (plain - weak), atol=5e-4, rtol=1e-4)


class Counted(Denoiser):
    rows: list[int]

    def forward(self, x: Any, t: Any, cond: Any = None, previous: Any = None) -> Any:
        self.rows.append(len(x))
        return super().forward(x, t, cond, previous)


def counted() -> Counted:
    model = denoiser()
    counting = Counted(model.network, model.schedule, model.prediction, model.sigma_data)  # type: ignore[arg-type]
    counting.rows = []
    return counting


@pytest.mark.parametrize("kind", KINDS)
def test_around_guidance_by_conditions_the_differences_add_up(kind: str) -> None:
    """As published: e_u + w (e_c - e_u) + s (e_c - e_weak), of one call of three estimates."""
    model, cond = counted(), conditions(2)
    around = KINDS[kind](ClassifierFree(model, 3.0, keep=("context", "given")), scale=2.5, blocks=(2,))
    with torch.no_grad():
        out = around(noisy(), HALF, cond).x0
        assert model.rows == [6]
        main, weak = model(noisy(), HALF, cond).x0, changed(model, kind, (2,))(noisy(), HALF, cond).x0
        without = model(noisy(), HALF, {**cond, "label": torch.full((2,), -1)}).x0
        torch.testing.assert_close(out, without + 3 * (main - without) + 1.5 * (main - weak), atol=5e-4, rtol=1e-4)
        # Where the inner guidance has nothing to say, or the outer one, the other remains.
        alone = KINDS[kind](model, scale=2.5, blocks=(2,))(noisy(), HALF, cond).x0
        idle = KINDS[kind](ClassifierFree(model, 1.0), scale=2.5, blocks=(2,))
        torch.testing.assert_close(idle(noisy(), HALF, cond).x0, alone, atol=1e-5, rtol=1e-4)
        outside = KINDS[kind](ClassifierFree(model, 3.0, (9.0, 10.0)), scale=2.5, blocks=(2,))
        torch.testing.assert_close(outside(noisy(), HALF, cond).x0, alone, atol=1e-5, rtol=1e-4)
        neutral = KINDS[kind](ClassifierFree(model, 3.0), scale=1.0)
        assert torch.equal(neutral(noisy(), HALF, cond).x0, ClassifierFree(model, 3.0)(noisy(), HALF, cond).x0)


def test_around_other_rules_too() -> None:
    model, cond = counted(), {"label": torch.tensor([1, 2])}
    with torch.no_grad():
        main = model(noisy(), HALF, cond).x0
        weak = changed(model, "skip_layers", (2,))(noisy(), HALF, cond).x0
        for inner in (APG(model, 3.0), PerCondition(model, {"label": 2.0}), CFGPlusPlus(model, 0.5)):
            around = SkipLayers(inner, scale=2.0, blocks=(2,))(noisy(), HALF, cond)
            own = inner(noisy(), HALF, cond)
            torch.testing.assert_close(around.x0, own.x0 + main - weak, atol=1e-4, rtol=1e-4)
            assert (around.shift is None) == (own.shift is None)
        both = SkipLayers(PerturbedAttention(model, 2.0, blocks=(1,)), 2.0, blocks=(2,))
        other = changed(model, "perturbed_attention", (1,))(noisy(), HALF, cond).x0
        torch.testing.assert_close(both(noisy(), HALF, cond).x0, 3 * main - weak - other, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache(kind: str) -> None:
    """A threshold of 0 caches nothing; above it a sample still does not depend on its batch."""
    model, x = denoiser(), torch.zeros(3, 3, 4, 4, 2)

    def made(threshold: float | None, rows: list[int]) -> tuple[Tensor, Counter[str]]:
        counts: Counter[str] = Counter()
        asked = model if threshold is None else cached(model, {"name": "first_block", "threshold": threshold}, counts)
        guided = KINDS[kind](ClassifierFree(asked, 2.0), blocks=(2,))
        cond = {"label": torch.tensor([1, 2, 3])[rows]}
        return generate(guided, x[rows], cond=cond, seeds=[5 + row for row in rows], steps=8), counts

    plain, _ = made(None, [0, 1, 2])
    torch.testing.assert_close(made(0.0, [0, 1, 2])[0], plain, atol=1e-4, rtol=1e-4)
    three, counts = made(0.5, [0, 1, 2])
    assert 0 < counts["skipped"] < counts["calls"] == 9 * 8
    torch.testing.assert_close(made(0.5, [2])[0], three[2:], atol=1e-4, rtol=1e-4)


def test_trajectories_share_a_network() -> None:
    """Two guidances that perturb other blocks of one network, step about step."""
    model, x = denoiser(), torch.zeros(1, 3, 4, 4, 2)
    cond = {"label": torch.tensor([1])}
    with torch.no_grad():
        ways = [PerturbedAttention(model, 3.0, blocks=(1,)), SkipLayers(model, 3.0, blocks=(3,))]
        alone = [[step.x for step in trajectory(way, x, cond=cond, seeds=0, steps=3)] for way in ways]
        runs = [trajectory(way, x, cond=cond, seeds=0, steps=3) for way in ways]
        for i, steps in enumerate(zip(*runs, strict=True)):
            assert all(torch.equal(step.x, own[i]) for step, own in zip(steps, alone, strict=True))


@pytest.mark.parametrize("attention", ["full", "factorised"])
def test_a_past_has_a_row_for_the_weak_estimate(attention: str) -> None:
    model = denoiser(causal=True, attention=attention, depth=6)
    clean, later = noisy(), noisy()
    clean[:, 2] = later[:, 2]
    cond = {"label": torch.tensor([1, 2])}
    t = known_at_zero(HALF, torch.tensor([[True, True, False]] * 2), clean)
    for make in (lambda model: model, lambda model: ClassifierFree(model, 2.0)):
        for kind in KINDS.values():
            guided = kind(make(model), 2.0, blocks=(1, 4))
            with torch.no_grad():
                whole = guided(clean, t, cond).x0[:, 2:]
                past = guided.remember(clean[:, :2], cond)
                piece = guided(later[:, 2:], HALF, {**cond, "past": past}).x0
                torch.testing.assert_close(piece, whole, atol=1e-4, rtol=1e-4)
                narrow = kind(make(model), 2.0, blocks=(1, 4), interval=(5.0, 6.0))
                outside = narrow(later[:, 2:], HALF, {**cond, "past": past}).x0
                torch.testing.assert_close(outside, make(model)(clean, t, cond).x0[:, 2:], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_perturbed_is_told() -> None:
    function = FunctionDenoiser(lambda x, t: x, SCHEDULES.build("flow"))
    with pytest.raises(ValueError, match="for the network dit"):
        PerturbedAttention(function)
    model = denoiser()
    with pytest.raises(ValueError, match=r"blocks are some of 1 to 4, got \[0\]"):
        SkipLayers(model, blocks=(0,))
    with pytest.raises(ValueError, match=r"blocks are some of 0 to 4, got \[5\]"):
        PerturbedAttention(Autoguidance(model, model), blocks=(5,))
    with pytest.raises(ValueError, match="does not fit 2 samples and 5 blocks"):
        model(noisy(), HALF, {"perturbed": torch.zeros(2, 3)})
    assert PerturbedAttention(model).blocks == (2,)
    assert isinstance(model.network, DiT)
