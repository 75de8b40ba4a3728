"""Editing: known parts and starts, on data where the right answer is known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser, implied_noise
from noiseloom.core.editing import INPAINTING, Looped, Repaint, inpaint, invert, vary
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, generate, trajectory
from noiseloom.core.samplers.tokens import TokenSampler
from noiseloom.core.samples import map_parts, product
from noiseloom.core.schedules import SCHEDULES
from tests.core.toy_modality import pipeline
from tests.oracles import Gaussian, Mixture, exact_denoiser

FLOW = SCHEDULES.build("flow")

NAMES = [name for name in SAMPLERS if not isinstance(SAMPLERS.build(name), TokenSampler)]
CLEAN = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_strength_zero_returns_the_input_and_one_forgets_it(name: str, schedule: str) -> None:
    denoise = exact_denoiser(Gaussian(0.5), SCHEDULES.build(schedule))
    options = {"sampler": name, "steps": 6, "seeds": 0}
    assert torch.equal(vary(denoise, CLEAN, 0.0, **options), CLEAN)
    forgot = vary(denoise, CLEAN, 1.0, **options)
    assert torch.equal(forgot, vary(denoise, CLEAN + 3, 1.0, **options))
    assert torch.equal(forgot, generate(denoise, torch.zeros_like(CLEAN), **options))


@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_a_variation_is_the_exact_map_of_the_noised_input(schedule: str) -> None:
    """With half the noise of the schedule's times: x0 -> alpha x0 + sigma z -> the probability flow back to 0."""
    built, data = SCHEDULES.build(schedule), Gaussian(0.5, 0.2)
    denoise = exact_denoiser(data, built)
    varied = vary(denoise, CLEAN, 0.5, steps=400, seeds=4, sampler="dpmpp_2m")
    noise = generate(lambda x, t: x, torch.zeros_like(CLEAN), seeds=4, schedule="flow", sampler=_Identity(), steps=1)
    alpha, sigma = built.alpha_sigma(0.5)
    assert torch.allclose(varied, data.flow_map(alpha * CLEAN + sigma * noise, built, 0.5, 0.0), atol=2e-3)


def test_more_strength_moves_further() -> None:
    denoise = exact_denoiser(Gaussian(0.5), SCHEDULES.build("flow"))
    distances = [float((vary(denoise, CLEAN, s, steps=40, seeds=0) - CLEAN).norm()) for s in (0.1, 0.4, 0.8)]
    assert distances == sorted(distances)
    with pytest.raises(ValueError, match="strength"):
        vary(denoise, CLEAN, 1.2, seeds=0)


def test_inpainting_samples_the_conditional() -> None:
    """Two coordinates with correlation r, the first known: the second is N(r x, 1 - r^2), by the exact denoiser that
    knows of times per element. A deterministic solver maps standard noise linearly onto it."""
    r, x_known = 0.8, 1.5

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        first, second = x.unbind(1)
        alpha, sigma = 1 - t[:, 1], t[:, 1]
        mean, variance = r * first, 1 - r**2
        posterior = mean + alpha * variance * (second - alpha * mean) / (alpha**2 * variance + sigma**2)
        return torch.stack([first, posterior], 1)

    clean = torch.zeros(500, 2, dtype=torch.float64)
    clean[:, 0] = x_known
    known = torch.tensor([[True, False]]).expand(500, 2)
    noise = generate(denoise, clean, known=known, seeds=0, sampler=_Identity(), steps=1)[:, 1]
    for name in ("dpmpp_2m", "dpmpp_3s", "unipc"):
        out = inpaint(denoise, clean, known, sampler=name, steps=150, seeds=0)
        assert torch.equal(out[:, 0], clean[:, 0])
        assert torch.allclose(out[:, 1], r * x_known + (1 - r**2) ** 0.5 * noise, atol=4e-3)


class _Of(torch.nn.Module):
    """A denoiser whose estimate is ``function(x, t, previous)``."""

    schedule = SCHEDULES.build("flow")

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        return Estimate(self.function(x, t, previous), lambda: torch.zeros_like(x))


LEVELS = [(k + 0.5) / 1000 for k in range(1000)]
LENGTHS = torch.tensor([7, 5, 1])


def test_turning_changes_nothing_where_places_are_alike() -> None:
    """The exact denoiser of independent elements commutes with turning, and so does all of sampling."""
    denoise = exact_denoiser(Gaussian(0.5), SCHEDULES.build("vp"))
    looped = Looped(_Of(lambda x, t, previous: denoise(x, t).x0), LENGTHS)
    looped.schedule = denoise.schedule
    x = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0.9, 0.31, 0.02):
        ours, theirs = looped(x, t), denoise(x, torch.tensor(t, dtype=torch.float64))
        assert torch.allclose(ours.x0, theirs.x0)
        assert torch.allclose(ours.noise, theirs.noise)
    options = {"steps": 6, "seeds": [1, 2, 3], "schedule": "vp"}
    assert torch.allclose(generate(looped, x, **options), generate(denoise, x, **options))


def test_turning_keeps_padding_where_it_is() -> None:
    x = torch.arange(21.0).reshape(3, 7, 1)
    seen: list[Tensor] = []
    looped = Looped(_Of(lambda x, t, previous: seen.append(x) or x), LENGTHS)
    for t in LEVELS[::50]:
        assert torch.equal(looped(x, t).x0, x)
    for turned in seen:
        for row, before, length in zip(turned, x, LENGTHS.tolist(), strict=True):
            assert torch.equal(row[length:], before[length:])
            turns = [torch.equal(row[:length], before[:length].roll(k, 0)) for k in range(length)]
            assert any(turns)
    assert len({tuple(turned[0].flatten().tolist()) for turned in seen}) == 7


def test_no_place_of_a_loop_is_its_end_for_long() -> None:
    """A network that does something else at the first place does it, over all levels, at each place as often."""

    def first(x: Tensor, t: Any, previous: Any) -> Tensor:
        out = torch.zeros_like(x)
        out[:, 0] = 1
        return out

    looped, x = Looped(_Of(first), LENGTHS), torch.zeros(3, 7, 1)
    often = torch.stack([looped(x, t).x0 for t in LEVELS]).mean(0)[..., 0]
    for row, length in zip(often, LENGTHS.tolist(), strict=True):
        assert torch.allclose(row[:length], torch.tensor(1 / length), atol=5e-3)
        assert not row[length:].any()
    apart = [float(looped(x, t).x0[0, :, 0].argmax()) for t in torch.linspace(1, 0, 21)]
    assert len(set(apart)) == 7  # also over the few levels of a sampler


def test_times_and_the_last_estimate_are_turned_along() -> None:
    x = torch.arange(21.0).reshape(3, 7, 1)
    times = (x[..., 0] / 21).double()
    turned_alike = Looped(_Of(lambda x, t, previous: x / 21 - t[..., None] + previous), LENGTHS)
    assert torch.allclose(turned_alike(x, times, None, 2 * x).x0, 2 * x.double())
    per_sample = Looped(_Of(lambda x, t, previous: x + t[:, None, None]), LENGTHS)
    assert torch.allclose(
        per_sample(x, torch.tensor([0.1, 0.2, 0.3])).x0, x + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    )


class _Identity(type(SAMPLERS.build("ddim"))):  # type: ignore[misc]
    """Leaves x as it is: what comes out is the start."""

    def __init__(self) -> None:
        super().__init__(1)

    def step(
        self, denoise: object, x: Tensor, coefficients: object, state: object, noise: object
    ) -> tuple[Tensor, object]:
        return x, state


# RePaint: denoisers that have not learned with known parts


def correlated(r: float) -> Any:
    """The exact denoiser of two numbers of variance 1 and correlation r, at one time for both."""
    covariance = torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64)

    def x0(x: Tensor, t: Tensor) -> Tensor:
        assert t.numel() == 1 or bool((t == t.flatten()[0]).all())
        assert t.ndim < 2
        alpha, sigma = FLOW.alpha_sigma(t.flatten()[0])
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(2).double()
        return x @ torch.linalg.solve(noisy, alpha * covariance)

    return FunctionDenoiser(x0, FLOW)


def repainted(jump: int, resamples: int, **options: Any) -> Tensor:
    clean = torch.zeros(2, 1000, 2, dtype=torch.float64)
    clean[..., 0] = 1.5
    walk = INPAINTING.build({"name": "repaint", "jump": jump, "resamples": resamples})
    told = {"known": torch.tensor([True, False]).expand(2, 1000, 2), "steps": 20, "seeds": 0, **options}
    with torch.no_grad():
        steps = list(walk(correlated(0.9), clean, **told))
    assert [step.index for step in steps] == list(range(len(steps)))
    assert {step.steps for step in steps} == {len(steps)}
    assert torch.equal(steps[-1].x[..., 0], clean[..., 0])
    return steps[-1].x[..., 1]


def test_resampling_brings_what_is_made_into_agreement_with_what_is_known() -> None:
    """The unknown number is N(1.35, .19) given the known one. Without going back its mean is a third too low and its
    variance twice too large; the more often steps are taken again, the nearer both come."""
    sampler = {"name": "ddpm", "variance": "exact"}
    made = [repainted(2, times, sampler=sampler) for times in (1, 4, 40)]
    errors = [abs(float(values.mean()) - 1.35) for values in made]
    assert errors[0] > 0.4
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.03
    assert float(made[0].var()) > 0.35
    assert float(made[2].var()) == pytest.approx(0.19, rel=0.12)
    assert abs(float(repainted(2, 40, sampler="dpmpp_2m").mean()) - 1.35) < 0.05  # any sampler will do


def test_the_runs_of_repaint() -> None:
    assert Repaint(2, 3).runs(5) == [(0, 1), *[(1, 3)] * 3, *[(3, 5)] * 3]
    assert Repaint(2, 2).runs(4) == [(0, 2), (2, 4), (2, 4)]  # from noise alone there is nothing to go back to
    assert Repaint(10, 10).runs(3) == [(0, 3)]
    assert Repaint(10, 10).runs(0) == []
    assert sum(last - first for first, last in Repaint(10, 10).runs(250)) == 10 + 240 * 10


def test_repaint_keeps_products_and_samples_apart() -> None:
    """Parts known in one sample or another, of a product; a sample is the same alone."""
    exact = exact_denoiser(Gaussian(0.5), FLOW)
    denoise = FunctionDenoiser(lambda x, t: map_parts(lambda part: exact(part, t).x0, x), FLOW)
    clean = product({"a": CLEAN, "b": CLEAN[:, :, None]})
    flags = torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    known = product({"a": flags, "b": flags.flip(1)})

    def made(rows: slice, **options: Any) -> Any:
        walk = Repaint(2, 2)(denoise, clean[rows], known=known[rows], steps=5, seeds=[3, 4, 5][rows], **options)
        with torch.no_grad():
            return list(walk)[-1].x

    together = made(slice(0, 3))
    for name in ("a", "b"):
        assert torch.equal(together[name][known[name]], clean[name][known[name]])
        assert not torch.equal(together[name][~known[name]], clean[name][~known[name]])
        for row in range(3):
            assert torch.allclose(made(slice(row, row + 1))[name][0], together[name][row])
    varied = made(slice(0, 3), strength=1e-4)
    assert torch.allclose(varied["a"], clean["a"], atol=1e-2)


def test_repaint_is_for_known_parts() -> None:
    with pytest.raises(ValueError, match="needs known parts"):
        list(Repaint()(correlated(0.5), CLEAN))
    with pytest.raises(ValueError, match="all frames together"):
        list(Repaint()(correlated(0.5), CLEAN, known=CLEAN > 0, order="pyramid"))
    with pytest.raises(ValueError, match="at least 1"):
        INPAINTING.build({"name": "repaint", "jump": 0})
    assert INPAINTING.build("known") is trajectory


# Inversion


@pytest.mark.parametrize(
    "schedule, sampler",
    [
        *[("flow", sampler) for sampler in ("ddim", "heun", "dpmpp_2s")],
        ("vp", "midpoint"),
        ("edm", "dpmpp_2s"),
        ({"name": "zero_terminal_snr"}, "ddim"),
    ],
)
def test_inversion_reconstructs(schedule: Any, sampler: str) -> None:
    """From the noise that is found the sampler makes the sample again: to rounding with the fixed point."""
    built = SCHEDULES.build(schedule)
    denoise = exact_denoiser(Mixture(), built)
    options: Any = {"sampler": sampler, "steps": 8, "grid": "uniform"}
    clean = torch.tensor([-1.3, -1.0, -0.8, 0.1, 0.6, 1.4], dtype=torch.float64)[:, None]
    errors = []
    for iterations in (0, 8, 200):
        noise = invert(denoise, clean, iterations=iterations, **options)
        errors.append(float((generate(denoise, clean, start=noise, **options) - clean).abs().max()))
    assert errors[2] < 1e-10
    assert errors[1] < errors[0]


def test_inversion_without_the_fixed_point_improves_with_steps() -> None:
    """DDIM inversion (Song et al. 2021) is of first order: half the error at twice the steps."""
    denoise = exact_denoiser(Gaussian(0.5, 0.2), SCHEDULES.build("flow"))
    errors = []
    for steps in (40, 80, 160):
        options: Any = {"steps": steps, "sampler": "ddim"}
        noise = invert(denoise, CLEAN, iterations=0, **options)
        errors.append(float((generate(denoise, CLEAN, start=noise, **options) - CLEAN).abs().max()))
    assert errors[0] < 0.2
    for before, after in pairwise(errors):
        assert before / after == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_inversion_finds_the_noise_of_the_exact_flow(schedule: str) -> None:
    """As steps shrink, the exact map of the probability flow from t = 0 to the start, or to any strength, at the order
    of the solver."""
    built, data = SCHEDULES.build(schedule), Gaussian(0.5, 0.2)
    denoise = exact_denoiser(data, built)
    for strength in (1.0, 0.6):
        exact, errors = data.flow_map(CLEAN, built, 0.0, strength), []
        for steps in (40, 80):
            options: Any = {"sampler": "heun", "steps": steps, "strength": strength}
            noise = invert(denoise, CLEAN, iterations=8, **options)
            assert torch.allclose(generate(denoise, CLEAN, start=noise, **options), CLEAN, atol=1e-5)
            errors.append(float((noise - exact).abs().max() / exact.abs().max()))
        assert errors[1] < 5e-3
        assert errors[0] > 3 * errors[1]


def test_inversion_of_products_with_a_condition() -> None:
    """Another condition makes an edit of what was inverted: means that are 1 apart give samples that are 1 apart."""

    def denoise(x: Any, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        alpha, sigma = FLOW.alpha_sigma(t)
        x0 = map_parts(lambda part: Gaussian(0.5, float(cond["mean"])).x0(part, alpha, sigma), x)
        return Estimate(x0, lambda: implied_noise(x, x0, t, FLOW))

    clean = product({"a": CLEAN, "b": CLEAN[:, :, None]})
    options: Any = {"sampler": "ddim", "steps": 10, "schedule": "flow"}
    noise = invert(denoise, clean, cond={"mean": torch.tensor(0.0)}, iterations=40, **options)
    same = generate(denoise, clean, start=noise, cond={"mean": torch.tensor(0.0)}, **options)
    edited = generate(denoise, clean, start=noise, cond={"mean": torch.tensor(1.0)}, **options)
    for name in ("a", "b"):
        assert torch.allclose(same[name], clean[name], atol=1e-10)
        assert torch.allclose(edited[name], clean[name] + 1, atol=1e-10)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc", "deis"])
def test_what_cannot_be_inverted_is_refused(sampler: str) -> None:
    with pytest.raises(ValueError, match="without noise or history"):
        invert(correlated(0.5), CLEAN, sampler=sampler, steps=5)
    with pytest.raises(ValueError, match="iterations"):
        invert(correlated(0.5), CLEAN, iterations=-1)


# In a pipeline


def test_a_pipeline_repaints() -> None:
    pipe = pipeline()
    options: Any = {"count": 4, "length": 3, "first": 2.0, "progress": False, "sampler": "ddpm", "steps": 6}
    made = pipe.sample(inpainting={"name": "repaint", "jump": 2, "resamples": 2}, **options)
    assert all(row[0] == 2.0 and len(row) == 3 for row in made)
    again = pipe.sample(inpainting={"name": "repaint", "jump": 2, "resamples": 2}, **{**options, "batch_size": 1})
    assert torch.allclose(torch.tensor(list(made)), torch.tensor(list(again)), atol=1e-5)
    assert list(made) != list(pipe.sample(**options))
    with pytest.raises(ValueError, match="needs known parts"):
        pipe.sample(1, inpainting="repaint", progress=False)


def test_a_pipeline_inverts_its_input() -> None:
    """The toy's input is a row of sevens: without guidance they come back, with a level asked for they follow it."""
    pipe = pipeline()
    pipe.modality.from_input = {"strength": 0.9}
    options: Any = {"count": 2, "length": 3, "progress": False, "sampler": "ddim", "steps": 8, "inversion": 60}
    assert torch.allclose(torch.tensor(list(pipe.sample(**options))), torch.full((2, 3), 7.0), atol=1e-3)
    moved = torch.tensor(list(pipe.sample(level=3.0, **options)))  # inverted by a mean of 1, made by one of 3
    assert 7.1 < float(moved.min()) == pytest.approx(float(moved.max()), abs=1e-3)
    with pytest.raises(ValueError, match="without noise or history"):
        pipe.sample(**{**options, "sampler": "dpmpp_2m"})
    del pipe.modality.from_input
    with pytest.raises(ValueError, match="inversion is for an input"):
        pipe.sample(**options)
