"""What every registered guidance must do: it is found by its name, and tested by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import implied_noise
from noiseloom.core.guidance import GUIDANCE
from noiseloom.core.predictions import Estimate, scale_like
from noiseloom.core.samplers import generate, trajectory
from noiseloom.core.samples import Sample, align_left, batch_size, map_parts, parts, product
from noiseloom.core.schedules import SCHEDULES

FLOW = SCHEDULES.build("flow")
NAMES = sorted(GUIDANCE)


class Toy:
    """N(1, 0.25) where the label is given, N(-0.2, 0.49) where it is not; another mean where a block is perturbed.
    Counts the rows of its calls."""

    def __init__(self, schedule: Any = FLOW, mean: float = 1.0) -> None:
        self.schedule, self.mean, self.rows = schedule, mean, []
        self.network = SimpleNamespace(run_blocks=None, blocks=range(3))

    def __call__(self, x: Sample, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        self.rows.append(batch_size(x))
        assert previous is None or batch_size(previous) == batch_size(x)
        given = cond["label"] >= 0
        means = torch.where(given, self.mean, -0.2).double()
        if "perturbed" in cond:
            assert cond["perturbed"].shape == (batch_size(x), 3)
            means = means + 0.3 * cond["perturbed"].any(1)

        def one(part: Tensor, time: Any) -> Tensor:
            alpha, sigma = (scale_like(v, part) for v in self.schedule.alpha_sigma(torch.as_tensor(time).double()))
            mean, variance = align_left(means, part), align_left(torch.where(given, 0.25, 0.49).double(), part)
            return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (part - alpha * mean)

        x0 = map_parts(one, x, t)
        return Estimate(x0, lambda: implied_noise(x, x0, t, self.schedule))


def log_prob(x: Sample, t: Any, cond: Any) -> Tensor:
    return -sum(((part - 0.3) ** 2).flatten(1).sum(1) for part in parts(x).values()) / 2  # type: ignore[return-value]


NEEDS: dict[str, dict[str, Any]] = {
    "autoguidance": {"guide": Toy(mean=0.4)},
    "per_condition": {"scales": {"label": 3.0}},
    "classifier": {"log_prob": log_prob},
    "energy": {"energy": lambda x0, cond: -log_prob(x0, 0.0, cond)},
    "chain": {"links": ["classifier_free", {"name": "dynamic_thresholding", "bound": 0.5}]},
    "dynamic_thresholding": {"bound": 0.5},
}
NEUTRAL: dict[str, dict[str, Any] | None] = {  # the rest are neutral at scale 1
    "per_condition": {"scales": {"label": 1.0}},
    "classifier": {"scale": 0.0},
    "energy": {"scale": 0.0},
    "chain": {"links": [{"name": "classifier_free", "scale": 1.0}, {"name": "dynamic_thresholding", "bound": 1e9}]},
    "dynamic_thresholding": {"bound": 1e9},
    "cfg_pp": None,  # its noise is never that of the main estimate
}


def build(name: str, denoise: Any, **options: Any) -> Any:
    return GUIDANCE.build({"name": name, **NEEDS.get(name, {}), **options}, denoise=denoise)


def labels(count: int) -> dict[str, Tensor]:
    return {"label": torch.full((count,), 3)}


def noisy(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


HALF = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_it_acts_and_at_its_neutral_scale_nothing_changes(name: str) -> None:
    denoise, x = Toy(), noisy()
    plain = denoise(x, HALF, labels(4)).x0
    assert (build(name, denoise)(x, HALF, labels(4)).x0 - plain).abs().amax() > 1e-3
    neutral = NEUTRAL.get(name, {"scale": 1.0})
    if neutral is None:
        return
    denoise.rows.clear()
    out = build(name, denoise, **neutral)(x, HALF, labels(4))
    assert torch.equal(out.x0, plain)
    assert out.shift is None
    assert denoise.rows == [4]


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_follows_from_x0(name: str) -> None:
    x, t = noisy(), torch.tensor([0.1, 0.5, 0.9, 0.95], dtype=torch.float64)
    estimate = build(name, Toy())(x, t, labels(4))
    moved = x if estimate.shift is None else x + estimate.shift
    alpha, sigma = (align_left(v, x) for v in FLOW.alpha_sigma(t))
    assert torch.allclose(alpha * estimate.x0 + sigma * estimate.noise, moved)


@pytest.mark.parametrize("name", [name for name in NAMES if "interval" in GUIDANCE.options(name)])
def test_outside_the_interval_there_is_one_call_and_its_estimate(name: str) -> None:
    denoise, x = Toy(), noisy(3)
    t = FLOW.time_of_log_snr(-2 * torch.log(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)))
    guided = build(name, denoise, interval=(0.3, 2.0))
    inside, outside = build(name, denoise)(x, t, labels(3)), denoise(x, t, labels(3))
    out = guided(x, t, labels(3))
    assert torch.allclose(out.x0[1], inside.x0[1], atol=1e-12)
    assert torch.equal(out.x0[[0, 2]], outside.x0[[0, 2]])
    assert torch.allclose(out.noise[1], inside.noise[1], atol=1e-12)
    assert torch.allclose(out.noise[[0, 2]], outside.noise[[0, 2]], atol=1e-12)
    denoise.rows.clear()
    for one in t[[0, 2]]:
        alone = guided(x, one, labels(3))
        assert torch.equal(alone.x0, denoise(x, one, labels(3)).x0)
        assert alone.shift is None
    assert denoise.rows == [3, 3, 3, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_seeded_sample_does_not_depend_on_its_batch(name: str) -> None:
    seeds = [5, 6, 7, 8]
    for sampler in ("ddim", "dpmpp_2m"):
        options = {"sampler": sampler, "steps": 6}
        four = generate(build(name, Toy()), torch.zeros(4, 3, 2).double(), cond=labels(4), seeds=seeds, **options)
        two = generate(build(name, Toy()), torch.zeros(2, 3, 2).double(), cond=labels(2), seeds=seeds[2:], **options)
        assert torch.allclose(four[2:], two, atol=1e-12)
        assert four.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_guided_as_they_are_alone(name: str) -> None:
    p, q = noisy(seed=1), noisy(seed=2)[:, :, 0]
    options = {"bound": {"p": 0.5, "q": 0.5}} if name == "dynamic_thresholding" else {}
    t = product({"p": torch.full((4, 3), 0.5).double(), "q": torch.full((4,), 0.5).double()})
    for time in (HALF, t):
        both = build(name, Toy(), **options)(product({"p": p, "q": q}), time, labels(4))
        for part, x in (("p", p), ("q", q)):
            alone = build(name, Toy())(x, HALF, labels(4))
            assert torch.allclose(both.x0[part], alone.x0)
            assert torch.allclose(both.noise[part], alone.noise)


@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_count(name: str) -> None:
    x = noisy()
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 2:] = mask[1, 1:] = False
    wild = torch.where(mask[..., None], x, 50.0)
    if name in ("classifier", "energy"):
        return  # what a log-probability counts is its own business
    out = build(name, Toy())(wild, HALF, {**labels(4), "mask": mask}).x0
    for row, length in enumerate((2, 1, 3, 3)):
        alone = build(name, Toy())(x[row : row + 1, :length], HALF, labels(1)).x0
        assert torch.allclose(out[row, :length], alone[0], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_that_take_turns_are_those_alone(name: str) -> None:
    """One denoiser each, as the pipeline makes them; without momentum they may share it."""
    shared: Any = build(name, Toy(), **({"momentum": 0.0} if name == "apg" else {}))
    for fresh in (lambda: build(name, Toy()), lambda: shared):

        def start(seed: int, fresh: Any = fresh) -> Any:
            return trajectory(fresh(), torch.zeros(2, 3, 2).double(), cond=labels(2), seeds=seed, steps=6)

        alone = [[step.x for step in start(seed)] for seed in (1, 2)]
        turns = zip(start(1), start(2), strict=True)
        for i, (first, second) in enumerate(turns):
            assert torch.equal(first.x, alone[0][i])
            assert torch.equal(second.x, alone[1][i])


def test_a_chain_is_guidance_around_guidance() -> None:
    x, cond = noisy(), labels(4)
    links = [{"name": "classifier_free", "scale": 4.0}, {"name": "dynamic_thresholding", "bound": 0.5}]
    inner = build("classifier_free", Toy(), scale=4.0)
    assert torch.equal(
        build("chain", Toy(), links=links)(x, HALF, cond).x0, build("dynamic_thresholding", inner)(x, HALF, cond).x0
    )
    for wrong in ([], "classifier_free", {"name": "classifier_free"}):
        with pytest.raises(ValueError, match="a chain needs links"):
            build("chain", Toy(), links=wrong)
