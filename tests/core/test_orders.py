"""Solvers converge at the order they declare, measured on a mixture whose exact trajectories are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.grids import make_grid
from noiseloom.core.samplers import SAMPLERS, Sampler, State, sample
from noiseloom.core.schedules import SCHEDULES, Schedule
from tests.oracles import Gaussian, Mixture, exact_denoiser

STARTS = torch.tensor([[-18.0, -7.0, -2.5, 1.0, 4.0, 9.0, 20.0]], dtype=torch.float64)  # at sigma / alpha = 10
DATA = Mixture()


def karras(steps: int, schedule: Schedule) -> Tensor:
    """sigma / alpha from 10 to 0.01; the step to 0 is left out, whose error does not fall with n."""
    return make_grid({"name": "karras", "sigma_max": 10.0, "sigma_min": 0.01}, steps + 1, schedule)[:-1]


def error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    """The largest distance from the exact trajectories at the end."""
    grid = karras(steps, schedule)
    scale = schedule.alpha(grid[0])
    for step in sample(sampler, exact_denoiser(DATA, schedule), STARTS * scale, grid, schedule=schedule):
        x = step.x
    exact = DATA.flow_map(STARTS * scale, schedule, grid[0], grid[-1])
    return float(((x - exact) / schedule.alpha(grid[-1])).abs().max())


def deterministic(name: str) -> Sampler | None:
    off = {key: 0.0 for key in ("eta", "s_churn") if key in SAMPLERS.options(name)}
    sampler = SAMPLERS.build({"name": name, **off})
    return None if sampler.stochastic else sampler


def test_the_mixture_oracle() -> None:
    alpha, at = torch.tensor(1.0, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    values = {
        0.1: (-1.623394513, -0.868800745, 0.045252798, 0.969811321),
        1.0: (-1.213710111, -1.337113075, 0.169115110, 0.541316711),
        10.0: (-3.224769145, -3.228532075, 0.120541676, 0.126867822),
    }
    for sigma, expected in values.items():
        level = torch.tensor(sigma, dtype=torch.float64)
        actual = DATA.log_density(at, alpha, level).tolist() + DATA.x0(at, alpha, level).tolist()
        assert actual == pytest.approx(expected, abs=1e-9)
    assert DATA.log_density(at, alpha, 0 * alpha).tolist() == pytest.approx([-1.695166959, -0.878852577], abs=1e-9)
    edm = SCHEDULES.build("edm")
    t, s = edm.time_of_log_snr(-2 * torch.log(torch.tensor([10, 0.01], dtype=torch.float64)))
    expected = [-1.23715122, -0.83405121, 0.21939969, 0.45138272, 0.60065644, 0.81604151, 1.239356]
    assert DATA.flow_map(STARTS[0], edm, t, s).tolist() == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_declared_order_is_reached(name: str) -> None:
    sampler = deterministic(name)
    if sampler is None:
        return
    edm = SCHEDULES.build("edm")
    slope = math.log2(error(sampler, edm, 40) / error(sampler, edm, 160)) / 2
    assert sampler.order - 0.15 < slope < sampler.order + 0.4, slope


@pytest.mark.parametrize("schedule", ["flow", "vp", "trig", "ve"])
@pytest.mark.parametrize("name", ["heun", "midpoint", "dpmpp_2m", "dpmpp_3s", "deis", "unipc"])
def test_orders_hold_under_other_schedules(name: str, schedule: str) -> None:
    built = SCHEDULES.build(schedule)
    sampler = SAMPLERS.build(name)
    slope = math.log2(error(sampler, built, 40) / error(sampler, built, 160)) / 2
    assert sampler.order - 0.3 < slope < sampler.order + 0.6, slope


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("euler", {20: 7.5e-2, 40: 3.4e-2, 80: 1.7e-2}),
        ("heun", {20: 1.1e-2, 40: 2.6e-3, 80: 6.4e-4}),
        ({"name": "dpmpp_2m", "simplified": True}, {20: 1.2e-2}),
        ({"name": "deis", "order": 2}, {20: 8.1e-3}),
        ({"name": "deis", "order": 2, "coordinate": "rho"}, {20: 2.1e-2}),
        ("dpmpp_3m", {20: 6.2e-3, 40: 5.2e-4, 80: 5.9e-5}),
        ({"name": "deis", "order": 3}, {20: 2.0e-3, 40: 2.6e-4, 80: 3.0e-5}),
        ({"name": "deis", "order": 4, "coordinate": "rho"}, {20: 5.8e-3, 40: 5.6e-4, 80: 4.4e-5}),
    ],
    ids=str,
)
def test_errors_against_independent_figures(spec: Any, expected: dict[int, float]) -> None:
    for steps, value in expected.items():
        assert error(SAMPLERS.build(spec), SCHEDULES.build("edm"), steps) == pytest.approx(value, rel=0.03)


def test_unipc_gains_an_order_by_its_corrector() -> None:
    edm = SCHEDULES.build("edm")
    for order in (1, 2, 3):
        errors = {
            (corrector, n): error(SAMPLERS.build({"name": "unipc", "order": order, "corrector": corrector}), edm, n)
            for corrector in (False, True)
            for n in (80, 160)
        }
        slope = math.log2(errors[True, 80] / errors[True, 160])
        assert order + 0.8 < slope < order + 1.3, slope
        assert errors[True, 160] < errors[False, 160] / 4


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("name", ["unipc", "deis"])
def test_multistep_reaches_its_order_from_exact_starts(name: str, order: int) -> None:
    """A first-order first step costs O(h^2) once; with exact values for the first steps the order is nominal."""
    options = {"corrector": False} if name == "unipc" else {}
    edm, sampler = SCHEDULES.build("edm"), SAMPLERS.build({"name": name, "order": order, **options})
    denoise = exact_denoiser(DATA, edm)

    def exact_start_error(steps: int) -> float:
        grid = karras(steps, edm)
        first = order - 1
        exact = [DATA.flow_map(STARTS, edm, grid[0], t) for t in (*grid[: first + 1], grid[-1])]
        estimates = [denoise(x, t).x0 for x, t in zip(exact[:first], grid[:first], strict=True)]
        if name == "deis":  # it keeps noises
            sigma = edm.sigma(grid)
            estimates = [(x - x0) / s for x, x0, s in zip(exact[:first], estimates, sigma[:first], strict=True)]
        x, state = exact[first], State(None, tuple(reversed(estimates)), None)
        for move in sampler.plan(edm, grid)[first:]:
            x, state = sampler.step(lambda x, t, previous: denoise(x, t), x, move, state, torch.Tensor)
        return float((x - exact[-1]).abs().max())

    slope = math.log2(exact_start_error(80) / exact_start_error(320)) / 2
    assert order - 0.35 < slope < order + 0.8, slope


def test_the_step_to_zero_has_a_fixed_relative_error() -> None:
    """x0 instead of x at sigma_min: sigma_min^2 / (2 s^2), whatever the number of steps."""
    edm, data = SCHEDULES.build("edm"), Gaussian(0.5)
    grid = make_grid({"name": "karras", "sigma_max": 10.0, "sigma_min": 0.01}, 320, edm)
    x = torch.tensor([[3.0]], dtype=torch.float64)
    for step in sample(SAMPLERS.build("dpmpp_3s"), exact_denoiser(data, edm), x, grid, schedule=edm):
        final = step.x
    relative = 1 - float(final / data.flow_map(x, edm, grid[0], 0.0))
    assert relative == pytest.approx(0.01**2 / (2 * 0.25), rel=0.01)
