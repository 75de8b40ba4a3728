"""The loop: one answer under every schedule, time per element, known parts, seeds, re-entrancy, every combination."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noiseloom.core as core
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.predictions import PREDICTIONS, Estimate
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, Step, generate, noised, sample, trajectory
from noiseloom.core.samplers.tokens import TokenSampler
from noiseloom.core.samples import Sample, parts, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Centred, Euclidean, Product, SymmetricPairs
from tests.oracles import Gaussian, Mixture, exact_denoiser

FLOW = SCHEDULES.build("flow")
NAMES = [name for name in SAMPLERS if not isinstance(SAMPLERS.build(name), TokenSampler)]  # those have their own tests
STOCHASTIC = [name for name in NAMES if SAMPLERS.build(name).stochastic]


def last(steps: Iterator[Step]) -> Sample:
    for step in steps:
        x = step.x
    return x


def run(name: Any, x: Tensor, grid: Tensor, schedule: Schedule = FLOW, data: Any = None, **options: Any) -> Tensor:
    denoise = exact_denoiser(data or Mixture(), schedule)
    generators = sample_generators(0, range(len(x)))
    return last(sample(SAMPLERS.build(name), denoise, x, grid, schedule=schedule, generators=generators, **options))


# One answer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_schedules_with_equal_log_snr_differ_by_a_factor_only(name: str) -> None:
    """x / alpha is the same under VP, VE, EDM, flow and trig; noise drawn on the way too."""
    spec: Any = name
    if not SAMPLERS.build(name).invariant:
        if "coordinate" not in SAMPLERS.options(name):
            return
        spec = {"name": name, "coordinate": "sigma"}
    noise = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for schedule in (SCHEDULES.build(s) for s in ("vp", "ve", "edm", "flow", "trig", "linear")):
        grid = make_grid({"name": "log_snr", "low": -7.0, "high": 9.0}, 12, schedule)
        ends.append(run(spec, schedule.sigma(grid[0]) * noise, grid, schedule))
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], atol=1e-8 if end is not ends[-1] else 1e-4)


def test_names_for_the_same_method() -> None:
    x, grid = torch.randn(2, 5, dtype=torch.float64), make_grid("uniform", 9, FLOW)
    for same in (
        ("ddim", "euler", "dpmpp_1", {"name": "unipc", "order": 1, "corrector": False}, {"name": "deis", "order": 1}),
        ("ddpm", "dpmpp_1_sde", {"name": "ddim", "eta": 1.0}),
        ("dpmpp_2m", {"name": "unipc", "order": 2, "corrector": False}, {"name": "dpmpp_2m_sde", "eta": 0.0}),
        ("dpmpp_3m", {"name": "unipc", "order": 3, "corrector": False}, {"name": "dpmpp_3m_sde", "eta": 0.0}),
        ("heun", {"name": "edm", "s_churn": 0.0}),
    ):
        ends = [run(spec, x, grid) for spec in same]
        assert all(torch.allclose(end, ends[0], atol=1e-11) for end in ends), same


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_3m", "deis", "unipc"])
def test_one_gaussian_map_under_every_schedule(name: str) -> None:
    """x_1 -> m + s (x - alpha m) / sqrt(V)."""
    data = Gaussian(0.5, 0.3)
    for schedule in (SCHEDULES.build(s) for s in ("flow", "trig", "vp", "edm", "zero_terminal_snr")):
        level = torch.linspace(-8.5, 12, 300, dtype=torch.float64)
        grid = torch.cat([torch.tensor([1.0]), schedule.time_of_log_snr(level), torch.tensor([0.0])])
        x = schedule.sigma(1.0) * torch.tensor([[-1.0, 0.4, 2.0]], dtype=torch.float64)
        expected = data.flow_map(x, schedule, 1.0, 0.0)
        tolerance = 0.02 if name == "euler" else 2e-3
        assert torch.allclose(run(name, x, grid, schedule, data), expected, atol=tolerance), schedule


# Time per element -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["flow", "edm", "linear"])
def test_equal_times_per_element_are_one_time(name: str, schedule: str) -> None:
    built = SCHEDULES.build(schedule)
    x = built.sigma(1.0) * torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = make_grid("uniform", 7, built)
    expected = run(name, x, grid, built)
    for shape in ((2,), (2, 3), (2, 3, 4), (1, 3)):
        each = grid.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
        assert torch.allclose(run(name, x, each, built), expected, rtol=1e-9, atol=1e-9), shape


@pytest.mark.parametrize("name", NAMES)
def test_an_element_walks_its_own_times(name: str) -> None:
    """Each of three elements has a grid of its own; noise aside, it ends where it would have alone."""
    sampler = {"name": name, **{key: 0.0 for key in ("eta", "s_churn") if key in SAMPLERS.options(name)}}
    if SAMPLERS.build(sampler).stochastic or not SAMPLERS.build(sampler).elementwise:
        return
    x = torch.randn(1, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grids = [
        torch.linspace(1, 0, 9).double(),
        torch.linspace(1, 0, 9).double() ** 2,
        torch.linspace(0.6, 0, 9).double(),
    ]
    together = run(sampler, x, torch.stack(grids, 1)[:, None])
    for i, grid in enumerate(grids):
        assert torch.allclose(together[:, i], run(sampler, x[:, i], grid), atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["flow", "edm", "zero_terminal_snr"])
def test_an_element_whose_time_does_not_move_is_untouched(name: str, schedule: str) -> None:
    built = SCHEDULES.build(schedule)
    # Elements: waits in the middle, waits at first, done early, clean throughout, noise throughout.
    grid = torch.tensor(
        [
            [1.0, 1.0, 1.0, 0.0, 1.0],
            [0.8, 1.0, 0.4, 0.0, 1.0],
            [0.6, 1.0, 0.0, 0.0, 1.0],
            [0.6, 0.7, 0.0, 0.0, 1.0],
            [0.6, 0.4, 0.0, 0.0, 1.0],
            [0.3, 0.2, 0.0, 0.0, 1.0],
            [0.1, 0.1, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 0.0, 1.0],
        ],
        dtype=torch.float64,
    )[:, None]
    x = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0))
    denoise = exact_denoiser(Mixture(), built)
    generators = sample_generators(0, [0])
    before = x
    for step in sample(SAMPLERS.build(name), denoise, x, grid, schedule=built, generators=generators):
        still = step.t == step.s
        assert torch.equal(step.x[still], before[still])
        assert (step.x[~still] != before[~still]).all()
        assert step.x.isfinite().all()
        before = step.x


@pytest.mark.parametrize("name", ["dpmpp_3m", "deis", "unipc"])
def test_an_element_that_waited_starts_its_history_anew(name: str) -> None:
    moving = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    waits = torch.tensor([0.9, 0.7, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    x = torch.randn(1, 4, dtype=torch.float64)
    middle = run(name, x, moving[:3])
    expected = run(name, middle, moving[2:])
    assert torch.allclose(run(name, x, waits[:, None]), expected, atol=1e-10)


# Known parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_known_parts_are_bit_equal_and_seen_clean(name: str) -> None:
    known = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    clean = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, t: Tensor, cond: Any, previous: Any) -> Estimate:
        assert torch.equal(x[known], clean[known])
        assert t.shape == known.shape
        assert (t[known] == 0).all()
        assert (t[~known] > 0).all() or name in ("heun", "edm")  # Heun looks at the end of its step
        return Estimate(0.5 * x, x)

    steps = trajectory(denoise, clean, sampler=name, steps=6, seeds=0, known=known)
    for step in steps:
        assert torch.equal(step.x[known], clean[known])
    assert not torch.equal(step.x[~known], clean[~known])


@pytest.mark.parametrize("name", NAMES)
def test_known_parts_of_a_product(name: str) -> None:
    """Points that are anchored by the known ones, and the pairs between those."""
    points = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    known = product({"p": points, "q": points[:, :, None] & points[:, None]})
    clean = product({"p": torch.zeros(2, 4, 3), "q": torch.zeros(2, 4, 4, 2)})
    clean["p"][0, 0], clean["p"][0, 1], clean["q"][0, 0, 1], clean["q"][0, 1, 0] = 1.3, -1.3, 0.7, 0.7
    space = Product({"p": Centred(MASK, points), "q": SymmetricPairs(MASK, points)})
    denoiser = Denoiser(Network(), "flow", {"p": "velocity", "q": "x0"})
    out = generate(denoiser, clean, sampler=name, steps=5, seeds=0, space=space, cond={}, known=known)
    for part in ("p", "q"):
        assert torch.equal(out[part][known[part]], clean[part][known[part]])
        assert torch.allclose(space.project(out)[part], out[part], atol=1e-5)
    assert (out["p"][~points & MASK] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_known_points_does_not_move_the_others(name: str) -> None:
    """The space is anchored by the known points themselves, not by what the denoiser makes of them."""
    known = torch.tensor([[True, True, False]])
    clean = torch.tensor([[[1.0], [-1.0], [0.0]]])
    wild = torch.tensor([[[100.0], [50.0], [0.5]]])
    space = Centred(torch.ones(1, 3, dtype=torch.bool), known)
    sampler = {"name": name, "coordinate": "sigma"} if name in ("heun", "edm") else name
    out = generate(lambda x, t: wild, clean, sampler=sampler, known=known, space=space, steps=6, seeds=0)
    assert float(out[0, 2]) == pytest.approx(0.5, abs=1e-4)


def test_what_is_unknown_starts_from_noise() -> None:
    """The values of unknown elements do not matter."""
    known = torch.tensor([[True, False, False]])
    results = [
        generate(lambda x, t: x.mean() * x, torch.tensor([[1.0, a, b]]), known=known, seeds=3, steps=5)
        for a, b in ((0.0, 0.0), (5.0, -math.pi))
    ]
    assert torch.equal(*results)


def test_known_values_outside_the_space_are_refused() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    known = torch.tensor([[True, True, False]])
    x = torch.zeros(1, 3, 2)
    x[0, 0] = 1.0
    options: dict[str, Any] = {"space": Centred(mask, known), "known": known, "seeds": 0, "steps": 3}
    with pytest.raises(ValueError, match="do not lie in the space"):
        generate(lambda x, t: x, x, **options)
    x[0, 1] = -1.0
    assert torch.equal(generate(lambda x, t: x, x, **options)[known], x[known])


# Randomness and state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    def make(seeds: Any, x: Tensor) -> Tensor:
        return generate(lambda x, t: torch.tanh(x) * 0.8, x, sampler=name, seeds=seeds, steps=6)

    whole = make([3, 4, 5, 6], torch.zeros(4, 3, 2))
    assert torch.equal(whole[1:3], make([4, 5], torch.zeros(2, 3, 2)))
    assert torch.equal(make(7, torch.zeros(3, 2)), make(7, torch.zeros(5, 2))[:3])
    assert not torch.equal(whole[0], whole[1])


def test_without_seeds_torch_decides() -> None:
    def make() -> Tensor:
        return generate(lambda x, t: 0.5 * x, torch.zeros(2, 3), steps=3)

    torch.manual_seed(1)
    first, second = make(), make()
    torch.manual_seed(1)
    assert torch.equal(first, make())
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_two_samplings_may_take_turns(name: str) -> None:
    sampler, grid = SAMPLERS.build(name), make_grid("uniform", 8, FLOW)
    denoise = exact_denoiser(Mixture(), FLOW)
    starts = [torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    def begin(i: int) -> Iterator[Step]:
        return sample(sampler, denoise, starts[i], grid, schedule=FLOW, generators=sample_generators(i, range(2)))

    for one, other in zip(begin(0), begin(1), strict=True):
        turns = one.x, other.x
    assert torch.equal(turns[0], last(begin(0)))
    assert torch.equal(turns[1], last(begin(1)))


@pytest.mark.parametrize("name", NAMES)
def test_the_previous_estimate_is_handed_on(name: str) -> None:
    estimates: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor, cond: Any, previous: Tensor | None) -> Estimate:
        assert (previous is None) == (not estimates)
        assert previous is None or previous is estimates[-1]
        estimates.append(x * 0.5)
        return Estimate(estimates[-1], x)

    for step in trajectory(denoise, torch.zeros(1, 2), sampler=name, steps=4, seeds=0):
        assert step.x0 is estimates[-1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["flow", "edm"])
def test_inputs_are_not_written_to(name: str, schedule: str) -> None:
    built = SCHEDULES.build(schedule)
    x, estimate = torch.randn(2, 3), torch.randn(2, 3)
    copies = x.clone(), estimate.clone()
    generators = sample_generators(0, range(2))
    steps = sample(
        SAMPLERS.build(name),
        lambda x, t, cond, previous: Estimate(estimate, x),
        x,
        make_grid("uniform", 5, built),
        schedule=built,
        generators=generators,
    )
    results, kept = [], []
    for step in steps:
        results.append(step.x)
        kept.append(step.x.clone())
    assert torch.equal(x, copies[0])
    assert torch.equal(estimate, copies[1])
    assert all(torch.equal(a, b) for a, b in zip(results, kept, strict=True))


def test_gradients_flow_through_a_trajectory() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    x = last(trajectory(lambda x, t: scale * torch.tanh(x), torch.zeros(1, 3), sampler="dpmpp_2m", steps=4, seeds=0))
    x.sum().backward()
    assert scale.grad is not None
    assert scale.grad != 0
    assert not generate(lambda x, t: scale * x, torch.zeros(1, 3), steps=2, seeds=0).requires_grad


# Everything with everything -------------------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
KINDS = {
    "whole": (Euclidean(), (2, 4, 2)),
    "masked": (Euclidean(MASK), (2, 4, 2)),
    "centred": (Centred(MASK), (2, 4, 3)),
    "pairs": (SymmetricPairs(MASK), (2, 4, 4, 3)),
}


class Network(nn.Module):
    """Something that mixes all elements of a part."""

    def forward(self, x: Sample, t: Any, cond: Any, previous: Sample | None = None) -> Sample:
        every = parts(x)
        return product({name: torch.tanh(v + v.mean()) - 0.1 * len(cond) for name, v in every.items()})


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "table"])
def test_every_sampler_with_every_schedule_prediction_and_space(schedule: str) -> None:
    """All predictions of as many channels as x in all spaces at once, as the parts of one sample; in float32."""
    combinations = {f"{kind}-{p}": (KINDS[kind], p) for kind in KINDS for p in PREDICTIONS if p != "learned_range"}
    space = Product({name: kind[0] for name, (kind, _) in combinations.items()})
    x = product({name: torch.zeros(kind[1]) for name, (kind, _) in combinations.items()})
    predictions = {name: p for name, (_, p) in combinations.items()}
    denoiser = Denoiser(Network(), schedule, predictions, sigma_data=0.7)
    for name in NAMES:
        sampler = {"name": name, **({"rtol": 0.5} if name == "adaptive" else {})}  # a few calls are enough here
        out = generate(denoiser, x, sampler=sampler, steps=4, seeds=[1, 2], space=space, cond={"mask": MASK})
        projected = space.project(out)
        for part in combinations:
            size = 1 + float(out[part].abs().max())
            assert out[part].dtype == torch.float32
            assert out[part].isfinite().all(), (name, part)
            assert torch.allclose(projected[part], out[part], atol=1e-5 * size), (name, part)


def test_products_sample_as_their_parts_do() -> None:
    class Halve(nn.Module):
        def forward(self, x: Sample, t: Any, cond: Any, previous: Sample | None = None) -> Sample:
            return product({name: 0.5 * v for name, v in parts(x).items()})

    whole = Denoiser(Halve(), "flow", "x0", sigma_data=None)
    x = product({"a": torch.zeros(1, 3), "b": torch.zeros(1, 2, 2)})
    for name in NAMES:
        out = generate(whole, x, sampler=name, steps=5, seeds=0)
        alone = generate(lambda x, t: 0.5 * x, torch.zeros(1, 3), sampler=name, steps=5, seeds=0)
        if name not in STOCHASTIC:
            assert torch.allclose(out["a"], alone, atol=1e-6), name
        assert out["b"].isfinite().all()


# The front door -------------------------------------------------------------------------------------------------------


def test_generate_takes_names_objects_and_functions() -> None:
    x = torch.zeros(2, 3)
    expected = generate(lambda x, t: 0.5 * x, x, seeds=0)
    grid = make_grid("uniform", 50, FLOW)
    assert torch.equal(core.generate(lambda x, t: 0.5 * x, x, seeds=0, schedule="flow", sampler="dpmpp_2m"), expected)
    objects = {"schedule": FLOW, "sampler": SAMPLERS.build("dpmpp_2m"), "grid": grid}
    assert torch.equal(generate(lambda x, t: 0.5 * x, x, seeds=0, **objects), expected)
    assert generate(lambda x, t: 0.5 * x, x, seeds=0, sampler={"name": "ddim", "eta": 0.5}).shape == x.shape
    for wrong in (
        {"sampler": "dpm"},
        {"grid": "karas"},
        {"schedule": "flo"},
        {"steps": 0},
        {"seeds": [1, 2, 3]},
        {"grid": grid, "steps": 3},
    ):
        with pytest.raises(ValueError):
            generate(lambda x, t: x, x, **wrong)
    with pytest.raises(TypeError):
        generate(lambda x, t: x, x, number_of_steps=3)


def test_a_denoiser_is_sampled_under_its_own_schedule_or_another() -> None:
    """The exact denoiser of one schedule, sampled under another on equal log-SNR, gives the same result."""
    vp = SCHEDULES.build("vp")
    denoise = exact_denoiser(Mixture(), vp)
    grid = {"name": "log_snr", "low": -8.0, "high": 8.0}
    x = torch.zeros(2, 3, dtype=torch.float64)
    own, other = (generate(denoise, x, schedule=s, grid=grid, steps=20, seeds=0) for s in (None, "flow"))
    assert torch.equal(own, generate(denoise, x, schedule="vp", grid=grid, steps=20, seeds=0))
    assert torch.allclose(own, other, atol=1e-7)


def test_the_loop_refuses_what_cannot_work() -> None:
    x, denoise = torch.zeros(1, 2), exact_denoiser(Gaussian(), FLOW)
    grid = make_grid("uniform", 3, FLOW)
    with pytest.raises(ValueError, match="generator"):
        sample(SAMPLERS.build("ddpm"), denoise, x, grid, schedule=FLOW)
    with pytest.raises(ValueError, match="go together"):
        sample(SAMPLERS.build("ddim"), denoise, x, grid, schedule=FLOW, known=x > 0)
    with pytest.raises(ValueError, match="fall"):
        sample(SAMPLERS.build("ddim"), denoise, x, grid.flip(0), schedule=FLOW)


def test_noised_is_the_forward_process() -> None:
    x0, noise = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert torch.allclose(noised(x0, noise, t, FLOW), (1 - t)[:, None] * x0 + t[:, None] * noise)


def test_temperature_scales_the_start_and_so_the_spread() -> None:
    """On Gaussian data the ODE is linear: half the noise to start from gives half the spread, exactly."""

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # data N(0, 4), flow
        return 4 * (1 - t) * x / (4 * (1 - t) ** 2 + t**2)

    like = torch.zeros(8, 3, dtype=torch.float64)
    full, half = (generate(denoise, like, steps=10, seeds=0, temperature=value) for value in (1.0, 0.5))
    assert torch.allclose(half, full / 2)
    with pytest.raises(ValueError, match="no part atoms to give a temperature"):
        generate(denoise, like, steps=2, seeds=0, temperature={"atoms": 0.5})
