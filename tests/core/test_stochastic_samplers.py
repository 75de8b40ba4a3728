"""Samplers that add noise: their exact output on Gaussian data, what they equal, and what their options do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samplers.langevin import PredictorCorrector, raised
from noiseloom.core.samplers.restart import Restart
from noiseloom.core.samples import Sample, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Centred, Euclidean, Product
from tests.core.test_samplers import ANCESTRAL
from tests.oracles import Gaussian, Mixture, OneHotNoise, exact_denoiser, final_std

EDM, FLOW, VP = (SCHEDULES.build(name) for name in ("edm", "flow", "vp"))
ANCESTRALS = ("euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral")


def law(spec: Any, schedule: Schedule, grid: Tensor, spread: float = 1.0) -> list[float]:
    """Exactly, on N(0, 1/4) data: the standard deviation after each step over the right one, ``spread`` at the start;
    like ``final_std``, for samplers of any number of draws."""
    sampler, data = SAMPLERS.build(spec), Gaussian(0.5)
    plan = sampler.plan(schedule, grid)
    x = torch.zeros(1, 2 + sum(2 + len(move.then) for move in plan), dtype=torch.float64)
    right = data.variance(*schedule.alpha_sigma(grid)).sqrt()
    x[0, 0] = spread * right[0]
    denoise, generators = exact_denoiser(data, schedule), [torch.Generator()]
    steps = sample(sampler, denoise, x, grid, schedule=schedule, space=OneHotNoise(), generators=generators)
    return [float(step.x.norm() / right[step.index + 1]) for step in steps]


def error(spec: Any, steps: int, schedule: Schedule = FLOW, high: float = 16.0) -> float:
    """The largest on the way from log-SNR -8 to ``high``, of a right start."""
    grid = make_grid({"name": "log_snr", "low": -8.0, "high": high}, steps + 1, schedule)[:-1]
    return max(abs(value - 1) for value in law(spec, schedule, grid))


def end(spec: Any, grid: Tensor, schedule: Schedule = FLOW, data: Any = None, **options: Any) -> Tensor:
    x = schedule.sigma(grid[0].amax()) * torch.randn(
        2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    denoise = exact_denoiser(data or Mixture(), schedule)
    generators = sample_generators(0, range(2))
    for step in sample(SAMPLERS.build(spec), denoise, x, grid, schedule=schedule, generators=generators, **options):
        x = step.x
    return x


# Ancestral ------------------------------------------------------------------------------------------------------------


def test_euler_ancestral_on_karras_grids() -> None:
    for points, value in zip((5, 10, 18, 20, 40, 80), ANCESTRAL, strict=True):
        grid = make_grid("karras", points, EDM)
        assert final_std(SAMPLERS.build("euler_ancestral"), EDM, grid, start=80.0) == pytest.approx(value, abs=1.5e-9)


@pytest.mark.parametrize("schedule", ["flow", "edm", "vp", "zero_terminal_snr"])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_euler_ancestral_is_ddim(schedule: str, eta: float) -> None:
    """The same law, and as each step has one noise of the same size, the same samples."""
    built = SCHEDULES.build(schedule)
    grid = make_grid("uniform", 9, built)
    ours, theirs = (end({"name": name, "eta": eta}, grid, built) for name in ("euler_ancestral", "ddim"))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 if schedule != "zero_terminal_snr" else 1e-5)


@pytest.mark.parametrize("name, inner", zip(ANCESTRALS, ("euler", "midpoint", "dpmpp_2s"), strict=True))
def test_without_eta_the_inner_method_is_left(name: str, inner: str) -> None:
    grid = make_grid("uniform", 7, EDM)
    assert torch.allclose(end({"name": name, "eta": 0.0}, grid, EDM), end(inner, grid, EDM), atol=1e-12)


@pytest.mark.parametrize("name", ANCESTRALS)
def test_ancestral_samplers_reach_the_data(name: str) -> None:
    """The noise is right in law, so the distribution is too as steps are small, at the rate of the inner method."""
    order = SAMPLERS.build(name).order
    for schedule in (FLOW, EDM, VP):
        errors = [error(name, steps, schedule) for steps in (60, 240)]
        assert math.log(errors[0] / errors[1], 4) > order - 0.2
        assert errors[1] < (0.06 if order == 1 else 0.006)


@pytest.mark.parametrize("schedule", [FLOW, EDM, VP])
def test_raising_is_the_forward_process(schedule: Schedule) -> None:
    """(alpha, sigma) of a time, raised, are those of the later time; nothing happens where it is not later."""
    low = torch.tensor([0.0, 0.2, 0.5, 0.5, 0.9], dtype=torch.float64)
    high = torch.tensor([0.3, 0.7, 1.0, 0.5, 0.2], dtype=torch.float64)
    keep, added = raised(schedule, low, high)
    to = torch.where(high > low, high, low)
    assert torch.allclose(keep * schedule.alpha(low), schedule.alpha(to), atol=1e-12)
    assert torch.allclose((keep * schedule.sigma(low)) ** 2 + added**2, schedule.sigma(to) ** 2, rtol=1e-10)
    assert keep[3:].tolist() == [1, 1]
    assert added[3:].tolist() == [0, 0]


# Reverse SDE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("diffusion", ["sde", "sigma", "constant"])
def test_any_diffusion_keeps_the_marginals(diffusion: str, eta: float) -> None:
    """On Gaussian data, exactly: the standard deviation of every time is right as steps are small."""
    for order in (1, 2):
        spec = {"name": "reverse_sde", "diffusion": diffusion, "eta": eta, "order": order}
        errors = [error(spec, steps, high=4.0) for steps in (100, 400)]
        assert order - 0.2 < math.log(errors[0] / errors[1], 4) < order + 0.5


def test_the_sde_is_the_module_equation_and_no_diffusion_the_ode() -> None:
    grid = make_grid("uniform", 9, FLOW)
    for eta in (0.5, 1.0):
        for order in (1, 2):
            spec = {"name": "reverse_sde", "diffusion": "sde", "eta": eta, "order": order}
            assert torch.equal(
                end(spec, grid), end({"name": f"dpmpp_{order}{'m' * (order > 1)}_sde", "eta": eta}, grid)
            )
    for diffusion in ("sigma", "constant"):
        assert torch.equal(end({"name": "reverse_sde", "diffusion": diffusion, "eta": 0.0}, grid), end("euler", grid))


@pytest.mark.parametrize("diffusion, w", [("sigma", lambda u: u), ("constant", lambda u: u * 0 + 1)])
def test_noise_of_a_small_step_is_that_of_the_diffusion_coefficient(
    diffusion: str, w: Callable[[Tensor], Tensor]
) -> None:
    """Under flow a step of dt adds noise of variance w(t) dt; and g^2 = 2 t / (1 - t) for the forward process's."""
    t = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    dt = 1e-7
    for law, value in ((diffusion, w(t)), ("sde", 2 * t / (1 - t))):
        sampler = SAMPLERS.build({"name": "reverse_sde", "diffusion": law, "eta": 2.0})
        spreads = [sampler.plan(FLOW, torch.stack((time, time - dt)))[0].spread for time in t]
        assert torch.tensor(spreads) ** 2 / (2 * dt) == pytest.approx(value.numpy(), rel=1e-3)


# Predictor and corrector ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["flow", "edm", "vp"])
@pytest.mark.parametrize("predictor", ["euler", "dpmpp_2m", "unipc", "heun", "reverse_sde"])
def test_corrections_forget_the_error_made_above(predictor: str, schedule: str) -> None:
    """A start of half the right spread: without corrections it stays wrong, with them less and less so. What is left is
    the predictor's own error, and Langevin's, of the order of its step, 2 snr^2 = 0.05."""
    built = SCHEDULES.build(schedule)
    grid = make_grid({"name": "log_snr", "low": -8.0, "high": 16.0}, 41, built)[:-1]
    errors = [
        abs(law({"name": "predictor_corrector", "predictor": predictor, "corrections": n}, built, grid, 0.5)[-1] - 1)
        for n in (0, 1, 10)
    ]
    assert errors[1] < errors[0]
    assert errors[2] < 0.06


def test_a_langevin_step_leaves_its_marginal() -> None:
    """At a small size its stationary variance is the marginal's: the bias is of the order of the step."""
    denoise, alpha, sigma = exact_denoiser(Gaussian(0.5), FLOW), *FLOW.alpha_sigma(0.4)
    exact = float(Gaussian(0.5).variance(alpha, sigma))
    biases = []
    for snr in (0.3, 0.1):
        move = PredictorCorrector("euler", 1, snr).plan(FLOW, torch.tensor([0.5, 0.4], dtype=torch.float64))[0].then[0]
        (stage,), spread = move.stages, move.spread
        assert float(stage.t) == pytest.approx(0.4)
        slope = stage.weights[0] + stage.weights[1] * float(denoise(torch.ones(1, dtype=torch.float64), stage.t).x0)
        biases.append(spread**2 / (1 - slope**2) / exact - 1)
    assert abs(biases[1]) < 0.02
    assert biases[1] == pytest.approx(biases[0] / 9, rel=0.2)
    assert move.stages[0].weights[0] == pytest.approx(math.exp(-2 * 0.1**2))


def test_a_corrector_leaves_the_predictors_history_alone() -> None:
    """Of vanishing size, it does not change what a multistep predictor makes."""
    grid = make_grid("uniform", 9, FLOW)
    for predictor in ("dpmpp_3m", "unipc", "heun", "deis"):
        spec = {"name": "predictor_corrector", "predictor": predictor, "snr": 1e-7, "corrections": 3}
        assert torch.allclose(end(spec, grid), end(predictor, grid), atol=1e-5), predictor
        none = {"name": "predictor_corrector", "predictor": predictor, "corrections": 0}
        assert torch.equal(end(none, grid), end(predictor, grid))
        assert not SAMPLERS.build(none).stochastic


# Restart --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["flow", "edm", "vp"])
@pytest.mark.parametrize("inner", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_restart_forgets_the_error_made_above(inner: str, schedule: str) -> None:
    """A wrong start, of half the right spread: the ODE keeps it wrong, going up and down mends it."""
    built = SCHEDULES.build(schedule)
    grid = make_grid({"name": "log_snr", "low": -8.0, "high": 16.0}, 61, built)[:-1]

    def wrong(repeats: int) -> float:
        return abs(law(Restart(inner, [(0.1, 3.0)], repeats, steps=20), built, grid, 0.5)[-1] - 1)

    assert wrong(0) > 0.3
    assert wrong(1) < 0.1
    assert wrong(4) < (0.1 if inner == "euler" else 0.02)


def test_restart_goes_where_it_is_told() -> None:
    """Times of all calls: down the grid, and at the first time of it at or below low, up to high and down again."""
    grid = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    ratio = lambda t: t / (1 - t)  # noqa: E731
    sampler = Restart("euler", [(ratio(0.31), ratio(0.6)), (ratio(0.85), ratio(0.99))], repeats=2, steps=2)
    times: list[float] = []

    def x0(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t))
        return 0.5 * x

    steps = sample(
        sampler, FunctionDenoiser(x0, FLOW), torch.ones(1, 3), grid, schedule=FLOW, generators=sample_generators(0, [0])
    )
    counts = [step.calls for step in steps]
    a, b = ((0.5 * (ratio(high) ** (1 / 7) + ratio(low) ** (1 / 7))) ** 7 for low, high in ((0.8, 0.99), (0.3, 0.6)))
    down, again = [0.99, a / (1 + a)], [0.6, b / (1 + b)]
    assert times == pytest.approx([1.0, *down, *down, 0.8, 0.5, *again, *again, 0.3, 0.1])
    assert counts == [5, 1, 5, 1, 1]


def test_restart_never_rises_above_the_start() -> None:
    """A variation of strength 0.5 keeps what it starts from: the noise goes up to where it began."""
    highest = 0.0

    def x0(x: Tensor, t: Tensor) -> Tensor:
        nonlocal highest
        highest = max(highest, float(t))
        return 0.5 * x

    sampler = {"name": "restart", "intervals": [[0.1, 50.0]]}
    generate(x0, torch.ones(1, 2), sampler=sampler, steps=10, strength=0.5, seeds=0)
    assert highest == pytest.approx(0.5)


def test_elements_restart_each_at_its_own_time() -> None:
    grid = torch.stack([torch.linspace(1, 0, 9), torch.linspace(0.6, 0, 9)], 1).double()[:, None]
    x = torch.randn(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampler = Restart("dpmpp_2s", [(0.3, 1.2)], repeats=1, steps=3)
    zero = type("Silent", (Euclidean,), {"noise": lambda self, like, generators: torch.zeros_like(like)})()
    denoise = exact_denoiser(Mixture(), FLOW)

    def last(x: Tensor, grid: Tensor) -> Tensor:
        for step in sample(sampler, denoise, x, grid, schedule=FLOW, space=zero, generators=[torch.Generator()]):
            x = step.x
        return x

    together = last(x, grid)
    for i in range(2):
        assert torch.allclose(together[:, i], last(x[:, i], grid[:, 0, i]), atol=1e-9)


# All ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ANCESTRALS, "reverse_sde", "predictor_corrector", "restart"])
def test_products(name: str) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    space = Product({"p": Centred(mask), "q": Euclidean(mask)})

    def denoise(x: Any, t: Any) -> Sample:
        return product({"p": 0.5 * x["p"], "q": torch.tanh(x["q"])})

    x = product({"p": torch.zeros(2, 4, 3), "q": torch.zeros(2, 4, 2)})
    out = generate(denoise, x, sampler=name, steps=6, seeds=0, space=space)
    for part, projected in space.project(out).items():
        assert torch.allclose(out[part], projected, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "euler_ancestral", "eta": 1.5},
        {"name": "reverse_sde", "diffusion": "linear"},
        {"name": "reverse_sde", "eta": -1.0},
        {"name": "predictor_corrector", "snr": 0.0},
        {"name": "predictor_corrector", "corrections": -1},
        {"name": "predictor_corrector", "predictor": "adaptive"},
        {"name": "restart", "intervals": [[0.3, 0.1]]},
        {"name": "restart", "steps": 0},
        {"name": "restart", "inner": "no_such"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(spec: Any) -> None:
    with pytest.raises(ValueError):
        SAMPLERS.build(spec)
