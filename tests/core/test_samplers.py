"""Every sampler's exact output on Gaussian data, its variances and its limits, without Monte Carlo."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.samplers import SAMPLERS, LinearSampler, Sampler, sample
from noiseloom.core.samplers.langevin import Churn
from noiseloom.core.samplers.runge_kutta import RungeKutta
from noiseloom.core.samplers.tokens import TokenSampler
from noiseloom.core.schedules import SCHEDULES, Schedule
from tests.oracles import Gaussian, OneHotNoise, exact_denoiser, final_std

NAMES = [name for name in SAMPLERS if not isinstance(SAMPLERS.build(name), TokenSampler)]  # those have their own tests
EDM, FLOW, LINEAR = (SCHEDULES.build(name) for name in ("edm", "flow", "linear"))
EULER = [0.233628932, 0.365213065, 0.423031436, 0.430537877, 0.464850774, 0.482320420]
ANCESTRAL = [0.179508448, 0.301882885, 0.367845599, 0.378280532, 0.432175155, 0.464103409]

# Data N(0, 1/4), x = 80 z, Karras' grid of 5, 10, 18, 20, 40, 80 values of sigma, then 0: the final standard deviation.
KARRAS = [
    ("euler", EULER),
    ("ddim", EULER),
    ("dpmpp_1", EULER),
    ("heun", [1.257886308, 0.609798001, 0.527624637, 0.521823542, 0.504876865, 0.501145314]),
    (
        {"name": "dpmpp_2m", "simplified": True},
        [0.432652068, 0.579386658, 0.531140074, 0.524618876, 0.505192425, 0.501180044],
    ),
    ({"name": "ddim", "eta": 1.0}, ANCESTRAL),
    ("dpmpp_1_sde", ANCESTRAL),
    ("ddpm", ANCESTRAL),
    (
        {"name": "dpmpp_2m_sde", "simplified": True},
        [0.342851839, 0.583413355, 0.565631600, 0.555918701, 0.513812074, 0.503189705],
    ),
    (
        {"name": "edm", "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
        [1.630115328, 0.690830493, 0.564049890, 0.554208718, 0.520267518, 0.509566692],
    ),
    ({"name": "ddpm", "variance": "exact", "sigma_data": 0.5}, [0.5] * 6),
]


@pytest.mark.parametrize("spec, expected", KARRAS, ids=lambda v: str(v)[:60])
def test_standard_deviations_on_karras_grids(spec: Any, expected: list[float]) -> None:
    for points, value in zip((5, 10, 18, 20, 40, 80), expected, strict=True):
        grid = make_grid("karras", points, EDM)
        assert final_std(SAMPLERS.build(spec), EDM, grid, start=80.0) == pytest.approx(value, abs=1.5e-9)


@pytest.mark.parametrize(
    "spec, spacing, expected",
    [
        ("ddpm", "leading", {1000: 0.496110080, 100: 0.468255876, 10: 0.333263113}),
        ({"name": "ddpm", "variance": "large"}, "leading", {1000: 0.500751510, 100: 0.508489826, 10: 0.589025408}),
        ({"name": "ddpm", "variance": "exact", "sigma_data": 0.5}, "leading", {1000: 0.5, 100: 0.5, 10: 0.5}),
        ("ddim", "leading", {10: 0.374128494, 50: 0.472439113, 100: 0.485980567}),
        ("ddim", "trailing", {10: 0.369954809, 50: 0.471402673, 100: 0.485447102}),
    ],
)
def test_standard_deviations_under_the_linear_schedule(spec: Any, spacing: str, expected: dict[int, float]) -> None:
    """Started from N(0, 1), as DDPM does, at whatever level the spacing begins."""
    for steps, value in expected.items():
        grid = make_grid(spacing, steps, LINEAR)
        assert final_std(SAMPLERS.build(spec), LINEAR, grid, start=1.0) == pytest.approx(value, abs=5e-9)


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("euler", {1: 0, 2: 0.2, 4: 0.340540541, 10: 0.430782605, 50: 0.485396738}),
        ("heun", {1: 0.5, 2: 0.48, 4: 0.504834696, 10: 0.501719912, 50: 0.500088808}),
    ],
)
def test_standard_deviations_under_flow(spec: str, expected: dict[int, float]) -> None:
    for steps, value in expected.items():
        grid = make_grid("uniform", steps, FLOW)
        assert final_std(SAMPLERS.build(spec), FLOW, grid, start=1.0) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "table"])
def test_the_exact_variance_is_exact_in_one_step_or_many(schedule: str) -> None:
    built = SCHEDULES.build(schedule)
    start = float(Gaussian(0.5).variance(*built.alpha_sigma(1.0)).sqrt().detach())
    for steps in (1, 3, 20):
        sampler = SAMPLERS.build({"name": "ddpm", "variance": "exact", "sigma_data": 0.5})
        assert final_std(sampler, built, make_grid("uniform", steps, built), start) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    "spec",
    [
        "ddpm",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
        {"name": "ddpm", "variance": "large"},
        "edm",
        "sa_solver",
        {"name": "sa_solver", "low": 0.0, "high": 1e9, "predictor_order": 2, "corrector_order": 1},
    ],
    ids=str,
)
def test_stochastic_samplers_converge_to_the_data(spec: Any) -> None:
    grids = [make_grid({"name": "log_snr", "low": -8.0, "high": 16.0}, n, FLOW) for n in (60, 240)]
    sampler = SAMPLERS.build(spec if spec != "edm" else {"name": "edm", "s_noise": 1.0})
    start = float(Gaussian(0.5).variance(*FLOW.alpha_sigma(grids[0][0])).sqrt())
    errors = [abs(final_std(sampler, FLOW, grid, start) - 0.5) for grid in grids]
    assert errors[1] < 0.015
    assert errors[1] < errors[0] / 3


def test_posterior_variances_of_the_linear_schedule() -> None:
    """DDPM's at one level of 1000, and DDIM's between spaced levels."""

    def variance(spec: Any, level: int, before: int) -> float:
        grid = torch.tensor([level + 1, before + 1], dtype=torch.float64) / 1000
        return SAMPLERS.build(spec).plan(LINEAR, grid)[0].spread ** 2

    assert variance("ddpm", 487, 486) == pytest.approx(0.0097915720, rel=1e-7)
    assert variance({"name": "ddpm", "variance": "large"}, 999, 998) == pytest.approx(0.02, rel=1e-9)
    assert variance("ddpm", 999, 998) == pytest.approx(0.0199999835, rel=1e-6)
    for spec in ({"name": "ddim", "eta": 1.0}, "ddpm", "dpmpp_2m_sde"):
        assert variance(spec, 420, 400) == pytest.approx(0.1477195128, rel=1e-8)
        assert variance(spec, 980, 960) == pytest.approx(0.3246052359, rel=1e-8)
    assert variance({"name": "ddim", "eta": 0.5}, 420, 400) == pytest.approx(0.1477195128 / 4, rel=1e-8)


def deterministic(name: str) -> Sampler | None:
    """The sampler with its noise turned off, if it can be."""
    options = SAMPLERS.options(name)
    off = {key: 0.0 for key in ("eta", "s_churn") if key in options}
    sampler = SAMPLERS.build({"name": name, **off})
    return None if sampler.stochastic else sampler


def ends_with_half_the_noise(sampler: Sampler, schedule: Schedule) -> bool:
    """Heun's slope at t = 0 has no noise in it (the mean of the noise given clean data), unlike that of constant x0."""
    return isinstance(sampler, (RungeKutta, Churn)) and sampler.calls_per_step == 2 and schedule.scaling != "exploding"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["flow", "edm", "vp", {"name": "zero_terminal_snr"}])
def test_constant_estimates_are_followed_exactly(name: str, schedule: Any) -> None:
    """Where x0 does not depend on x, x_t = alpha x0 + sigma noise at every time, from pure noise (alpha = 0) on."""
    sampler, built = deterministic(name), SCHEDULES.build(schedule)
    if sampler is None:
        return
    x0, noise = torch.tensor([[0.7, -1.2]], dtype=torch.float64), torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    grid = make_grid("uniform", 12, built)
    alpha, sigma = built.alpha_sigma(grid)
    denoise = FunctionDenoiser(lambda x, t: x0, built)
    for step in sample(sampler, denoise, alpha[0] * x0 + sigma[0] * noise, grid, schedule=built):
        if step.s == 0 and ends_with_half_the_noise(sampler, built):
            continue
        expected = alpha[step.index + 1] * x0 + sigma[step.index + 1] * noise
        assert torch.allclose(step.x, expected, atol=1e-12), step.index


@pytest.mark.parametrize("name", [name for name in NAMES if SAMPLERS.build(name).stochastic])
@pytest.mark.parametrize("schedule", ["flow", "edm", "vp", {"name": "zero_terminal_snr"}])
def test_noise_has_the_right_size_at_every_step(name: str, schedule: Any) -> None:
    """Where x0 is constant, x_t - alpha x0 has standard deviation sigma, whatever noise was removed and added."""
    built = SCHEDULES.build(schedule)
    sampler = SAMPLERS.build({"name": name, "s_noise": 1.0} if name == "edm" else name)
    grid = make_grid("uniform", 12, built)
    alpha, sigma = built.alpha_sigma(grid)
    x0 = torch.zeros(1, 40, dtype=torch.float64)
    x0[0, -1] = 0.7  # an axis without noise
    x = alpha[0] * x0
    x[0, 0] = sigma[0]
    denoise = FunctionDenoiser(lambda x, t: x0, built)
    generators = [torch.Generator()]
    for step in sample(sampler, denoise, x, grid, schedule=built, space=OneHotNoise(), generators=generators):
        if step.s == 0 and ends_with_half_the_noise(sampler, built):
            continue
        rest = step.x - alpha[step.index + 1] * x0
        assert float(rest[0, -1].abs()) < 1e-9
        assert float(rest.norm()) == pytest.approx(float(sigma[step.index + 1]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_samplers_declare_what_they_are(name: str) -> None:
    sampler = SAMPLERS.build(name)
    assert isinstance(sampler, Sampler)
    assert sampler.order >= 1
    calls, draws = 0, 0

    class Counting(OneHotNoise):
        def noise(self, like: Any, generators: Any) -> Tensor:
            nonlocal draws
            draws += 1
            return super().noise(like, generators)

    def x0(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * x

    grid = torch.linspace(0.9, 0.02, 8, dtype=torch.float64)
    steps = sample(
        sampler,
        FunctionDenoiser(x0, FLOW),
        torch.ones(1, 20, dtype=torch.float64),
        grid,
        schedule=FLOW,
        space=Counting(),
        generators=[torch.Generator()],
    )
    assert [step.index for step in steps] == list(range(7))
    assert calls == (calls if sampler.calls_per_step is None else 7 * sampler.calls_per_step)
    assert calls >= 7
    assert (draws > 0) == sampler.stochastic


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(SAMPLERS.build(name), LinearSampler)])
def test_coefficients_are_plain_numbers(name: str) -> None:
    """So that a step neither makes tensors of them nor waits for a device; only times are tensors, on the CPU."""
    for move in SAMPLERS.build(name).plan(FLOW, make_grid("uniform", 6, FLOW)):
        numbers = [*(move.lift or ()), *([] if move.spread is None else [move.spread])]
        for stage in move.stages:
            numbers += [*stage.weights, *(stage.record or ()), *(stage.correct or ())]
            assert stage.t.dtype == torch.float64
            assert stage.t.shape == ()
        assert all(type(number) is float and math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("name", ["flow", "vp", "edm", "linear"])
def test_the_exact_map_is_the_limit(name: str) -> None:
    """x_t -> alpha_s m + sqrt(V_s / V_t) (x - alpha_t m), reached to 1e-6 by a third-order solver."""
    schedule, data = SCHEDULES.build(name), Gaussian(0.5, 0.3)
    limits = schedule.time_of_log_snr(torch.tensor([-8.0, 8.0], dtype=torch.float64))
    grid = make_grid({"name": "log_snr", "low": -8.0, "high": 8.0}, 161, schedule)[:-1]
    x = torch.tensor([[-1.5, 0.2, 2.0]], dtype=torch.float64)
    for step in sample(SAMPLERS.build("dpmpp_3s"), exact_denoiser(data, schedule), x, grid, schedule=schedule):
        final = step.x
    assert torch.allclose(final, data.flow_map(x, schedule, *limits), atol=1e-6 if name != "linear" else 1e-4)


@pytest.mark.parametrize(
    "spec",
    [
        "no_such_sampler",
        {"name": "ddim", "eta": 2.0},
        {"name": "ddim", "simplified": True},
        {"name": "ddpm", "variance": "guessed"},
        {"name": "unipc", "order": 0},
        {"name": "deis", "coordinate": "t"},
        {"name": "heun", "coordinate": "log"},
        {"name": "edm", "s_min": 2.0, "s_max": 1.0},
        {"name": "dpmpp_2m_sde", "eta": -1.0},
        {"name": "ipndm", "order": 0},
        {"name": "res_2s", "c2": 0.0},
        {"name": "res_3s", "c2": 2 / 3},
        {"name": "res_3s", "c2": 0.5, "c3": 0.4},
        {"name": "sa_solver", "low": 2.0, "high": 1.0},
        {"name": "sa_solver", "corrector_order": -1},
    ],
    ids=str,
)
def test_wrong_options_are_refused(spec: Any) -> None:
    with pytest.raises(ValueError):
        SAMPLERS.build(spec)
