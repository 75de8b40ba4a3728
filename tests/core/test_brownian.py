"""Brownian noise: one path for each sample, whatever the steps, the batch or the times of its elements."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.manifolds import Torus
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, default_space, generate, sample
from noiseloom.core.samplers.brownian import BrownianNoise
from noiseloom.core.samples import Sample, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Centred, Euclidean, Product, SymmetricPairs
from tests.core.toy_modality import pipeline
from tests.oracles import Gaussian, Mixture, exact_denoiser

FLOW, EDM = SCHEDULES.build("flow"), SCHEDULES.build("edm")


def noise(times: list[float], like: Tensor, schedule: Schedule = FLOW, seed: int = 0, **options: Any) -> BrownianNoise:
    generators = sample_generators(seed, range(len(like)))
    grid = torch.tensor(times, dtype=torch.float64)
    return BrownianNoise(options.get("space") or Euclidean(), like, generators, schedule, grid)


def snr(schedule: Schedule, t: float) -> float:
    return math.exp(float(schedule.log_snr(t)))


@pytest.mark.parametrize("schedule", [FLOW, EDM, SCHEDULES.build("vp")])
def test_increments_add_up(schedule: Schedule) -> None:
    """W(c) - W(a) = W(b) - W(a) + W(c) - W(b): what is drawn for one step is what is drawn for its parts."""
    like = torch.zeros(2, 5, dtype=torch.float64)
    for a, b, c in ((0.9, 0.6, 0.2), (0.5, 0.4999, 0.31), (0.7, 0.1, 0.01), (0.99, 0.98, 0.3)):
        whole = noise([a, c], like, schedule).of(0) * math.sqrt(snr(schedule, c) - snr(schedule, a))
        parts = noise([a, b, c], like, schedule)
        first = parts.of(0) * math.sqrt(snr(schedule, b) - snr(schedule, a))
        second = parts.of(1) * math.sqrt(snr(schedule, c) - snr(schedule, b))
        assert torch.allclose(first + second, whole, rtol=1e-6)


def test_increments_are_standard_normal_and_independent() -> None:
    """Over 40,000 elements: the covariance of five steps' noise, from pure noise to none, is the identity."""
    steps = noise([1.0, 0.93, 0.5, 0.31, 0.3, 0.0], torch.zeros(1, 40_000, dtype=torch.float64))
    drawn = torch.cat([steps.of(i) for i in range(5)])
    assert torch.allclose(torch.cov(drawn), torch.eye(5, dtype=torch.float64), atol=4 * math.sqrt(2 / 40_000))
    assert float(drawn.mean(1).abs().max()) < 4 / math.sqrt(40_000)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.1)


def test_another_draw_within_a_step_is_fresh() -> None:
    own = noise([0.9, 0.5, 0.1], torch.zeros(1, 3000, dtype=torch.float64))
    draw = own.step(1)
    first, second, third = draw(), draw(), draw()
    assert torch.equal(first, own.of(1))
    for a, b in ((first, second), (second, third)):
        assert abs(float((a * b).mean())) < 4 / math.sqrt(3000)


def test_few_values_are_kept() -> None:
    """As many as the tree is deep, after any number of steps; they need not be kept: the path is a function of time."""
    times = torch.linspace(1, 0, 200).tolist()
    steps = noise(times, torch.zeros(1, 3))
    forth = [steps.of(i) for i in range(199)]
    assert len(steps.nodes) <= 20
    back = [steps.of(i) for i in reversed(range(199))]
    assert all(torch.equal(a, b) for a, b in zip(forth, reversed(back), strict=True))
    assert not torch.equal(forth[50], noise(times, torch.zeros(1, 3), seed=1).of(50))


@pytest.mark.parametrize("schedule", ["flow", "edm", "vp"])
@pytest.mark.parametrize("spec", ["ddpm", "dpmpp_1_sde", "dpmpp_2m_sde", "euler_ancestral"])
def test_with_x0_fixed_any_number_of_steps_gives_the_same_sample(spec: str, schedule: str) -> None:
    """The posterior's steps compose exactly, and so does their noise: 3, 10 or 64 steps end at one point."""
    built = SCHEDULES.build(schedule)

    def end(steps: int, kind: Any) -> Sample:
        grid = torch.linspace(1, 0.25, steps + 1, dtype=torch.float64)
        return generate(
            lambda x, t: torch.full_like(x, 0.4),
            torch.zeros(2, 3, dtype=torch.float64),
            schedule=built,
            sampler=spec,
            grid=grid,
            seeds=0,
            noise=kind,
        )

    few, some, many = (end(steps, "brownian") for steps in (3, 10, 64))
    scale = float(built.sigma(0.25))
    assert torch.allclose(few, many, atol=1e-5 * scale)
    assert torch.allclose(some, many, atol=1e-5 * scale)
    assert not torch.allclose(end(10, "independent"), end(64, "independent"), atol=0.1 * scale)


def test_samples_converge_along_the_path() -> None:
    """Strong convergence on the mixture, of order 1 as the noise is additive: the same seeds at 64, 128 and 256 steps
    come ever nearer to one sample each; with independent noise they do not come near at all."""

    def end(spec: str, steps: int, kind: Any) -> Tensor:
        grid = make_grid({"name": "log_snr", "low": -7.0, "high": 9.0}, steps + 1, FLOW)[:-1]
        out = generate(
            exact_denoiser(Mixture(), FLOW),
            torch.zeros(1, 300, dtype=torch.float64),
            sampler=spec,
            grid=grid,
            seeds=[5],
            noise=kind,
        )
        assert isinstance(out, Tensor)
        return out

    for spec in ("ddpm", "dpmpp_2m_sde", "euler_ancestral", "dpmpp_2s_ancestral", "reverse_sde"):
        ends = [end(spec, steps, "brownian") for steps in (64, 128, 256)]
        far, near = ((a - b).abs().mean() for a, b in pairwise(ends))
        assert near < far / 1.6, (spec, far, near)
        assert near < 0.025, spec
        loose = [end(spec, steps, "independent") for steps in (128, 256)]
        assert (loose[0] - loose[1]).abs().mean() > 0.3, spec


@pytest.mark.parametrize("spec", ["ddpm", "edm", "restart", "predictor_corrector", "lcm"])
def test_a_sample_does_not_depend_on_its_batch(spec: str) -> None:
    def make(seeds: Any, x: Tensor) -> Sample:
        return generate(lambda x, t: torch.tanh(x) * 0.8, x, sampler=spec, seeds=seeds, steps=6, noise="brownian")

    whole = make([3, 4, 5, 6], torch.zeros(4, 3, 2))
    assert torch.equal(whole[1:3], make([4, 5], torch.zeros(2, 3, 2)))
    assert not torch.equal(whole[0], whole[1])


def test_the_distribution_is_the_same() -> None:
    """Gaussian data under the exact reverse variance: the standard deviation is exact at any number of steps."""
    denoise = exact_denoiser(Gaussian(0.5), FLOW)
    sampler = {"name": "ddpm", "variance": "exact", "sigma_data": 0.5}
    x = torch.zeros(1, 20_000, dtype=torch.float64)
    for steps in (4, 33):
        out = generate(denoise, x, sampler=sampler, steps=steps, seeds=0, noise="brownian")
        assert float(out.std()) == pytest.approx(0.5, abs=0.01)


def test_elements_with_times_of_their_own() -> None:
    """Each has the increment of its own times, and one that waits has none."""
    like = torch.zeros(2, 3, 4, dtype=torch.float64)
    grid = torch.tensor([[0.9, 0.5, 0.7], [0.6, 0.5, 0.1]], dtype=torch.float64)[:, None]
    generators = sample_generators(0, range(2))
    together = BrownianNoise(Euclidean(), like, generators, FLOW, grid).of(0)
    for element, times in enumerate(((0.9, 0.6), (0.5, 0.5), (0.7, 0.1))):
        alone = noise(list(times), like).of(0)
        assert torch.allclose(together[:, element], alone[:, element])
    assert (together[:, 1] == 0).all()


def test_products_and_spaces() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    space = Product({"p": Centred(mask), "q": SymmetricPairs(mask)})
    like = product({"p": torch.zeros(2, 4, 3), "q": torch.zeros(2, 4, 4, 2)})
    grid = torch.tensor([0.8, 0.3], dtype=torch.float64)
    drawn = BrownianNoise(space, like, sample_generators(0, range(2)), FLOW, grid).of(0)
    for part, projected in space.project(drawn).items():
        assert torch.allclose(drawn[part], projected, atol=1e-5)
        assert float(drawn[part].abs().max()) > 0.1


def test_a_pipeline_takes_it_from_a_checkpoint_or_a_caller() -> None:
    """More steps come nearer to the same sample, alone and in another batch."""
    pipe = pipeline()
    options: dict[str, Any] = {"sampler": "ddpm", "length": 3, "progress": False, "seed": 1}

    def distance(coarse: int, fine: int, **noise: Any) -> float:
        ends = [torch.tensor(list(pipe.sample(32, steps=steps, **options, **noise))) for steps in (coarse, fine)]
        return float((ends[0] - ends[1]).abs().mean())

    assert distance(64, 128, noise="brownian") < distance(16, 32, noise="brownian") / 2.5
    assert distance(64, 128, noise="brownian") < distance(64, 128) / 10
    told = pipe.sample(4, steps=8, noise="brownian", **options)
    assert told.settings["noise"] == "brownian"
    small = pipe.sample(4, steps=8, noise="brownian", batch_size=1, **options)
    assert torch.allclose(torch.tensor(list(told)), torch.tensor(list(small)), atol=1e-6)
    pipe.config["sampling"] = {"noise": "brownian"}
    assert list(pipe.sample(4, steps=8, **options)) == list(told)
    with pytest.raises(ValueError, match="independent, brownian"):
        pipe.sample(1, noise="white", **options)


def test_what_cannot_be_is_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="normal"):
        BrownianNoise(Torus(), x, sample_generators(0, [0]), FLOW, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="independent, brownian"):
        generate(lambda x, t: x, x, sampler="ddpm", seeds=0, noise="white")  # type: ignore[arg-type]
    denoise = FunctionDenoiser(lambda x, t: x, FLOW)
    grid = make_grid("uniform", 3, FLOW)
    with pytest.raises(ValueError, match="generator"):
        sample(SAMPLERS.build("ddpm"), denoise, x, grid, schedule=FLOW, noise="brownian")
    assert isinstance(default_space(x), Euclidean)
