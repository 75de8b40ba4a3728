"""Solvers converge at the order they declare, measured on a mixture whose exact trajectories are known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.grids import make_grid
from noiseloom.core.samplers import SAMPLERS, Sampler, sample
from noiseloom.core.samplers.adaptive import Adaptive
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Euclidean
from tests.oracles import Gaussian, Mixture, exact_denoiser

STARTS = torch.tensor([[-18.0, -7.0, -2.5, 1.0, 4.0, 9.0, 20.0]], dtype=torch.float64)  # at sigma / alpha = 10
DATA = Mixture()
EDM = SCHEDULES.build("edm")
# at sigma / alpha = 0.01: x / alpha is the same under every schedule
ARRIVALS = DATA.flow_map(
    STARTS, EDM, *EDM.time_of_log_snr(-2 * torch.log(torch.tensor([10, 0.01], dtype=torch.float64)))
)


def karras(steps: int, schedule: Schedule) -> Tensor:
    """sigma / alpha from 10 to 0.01; the step to 0 is left out, whose error does not fall with n."""
    return make_grid({"name": "karras", "sigma_max": 10.0, "sigma_min": 0.01}, steps + 1, schedule)[:-1]


def error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    """The largest distance from the exact trajectories at the end."""
    grid = karras(steps, schedule)
    scale = schedule.alpha(grid[0])
    for step in sample(sampler, exact_denoiser(DATA, schedule), STARTS * scale, grid, schedule=schedule):
        x = step.x
    return float((x / schedule.alpha(grid[-1]) - ARRIVALS).abs().max())


def error_from_exact_starts(sampler: Sampler, schedule: Schedule, grid: Tensor, starts: Tensor = STARTS) -> float:
    """The same, where the history of a multistep method is of exact values: a first step of order 1 costs O(h^2) once.
    A corrector is left to start by itself, for it improves on values that are predicted."""
    scale, denoise = schedule.alpha(grid[0]), exact_denoiser(DATA, schedule)
    started = 0 if getattr(sampler, "corrector", 0) else getattr(sampler, "memory", 0)
    x, state = starts * scale, sampler.begin(Euclidean())
    for i, move in enumerate(sampler.plan(schedule, grid)):
        x, state = sampler.step(lambda x, t, *_: denoise(x, t), x, move, state, torch.Tensor)
        if i < started or i == len(grid) - 2:
            exact = DATA.flow_map(starts * scale, schedule, grid[0], grid[i + 1])
            x, off = (exact, x - exact) if i < started else (x, x - exact)
    return float((off / schedule.alpha(grid[-1])).abs().max())


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
    t, s = EDM.time_of_log_snr(-2 * torch.log(torch.tensor([10, 0.01], dtype=torch.float64)))
    expected = [-1.23715122, -0.83405121, 0.21939969, 0.45138272, 0.60065644, 0.81604151, 1.239356]
    assert DATA.flow_map(STARTS[0], EDM, t, s).tolist() == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_declared_order_is_reached(name: str) -> None:
    sampler = deterministic(name)
    if sampler is None or isinstance(sampler, Adaptive):  # its steps are its own
        return
    steps = (40, 80, 160) if sampler.order < 4 else (160, 320)  # higher orders show later
    errors = [error_from_exact_starts(sampler, EDM, karras(count, EDM)) for count in steps]
    for coarse, fine in pairwise(errors):
        assert sampler.order - 0.25 < math.log2(coarse / fine) < sampler.order + 0.4


def equal_steps(steps: int) -> Tensor:
    """EDM's times of sigma / alpha from 2 to 0.5."""
    return EDM.time_of_log_snr(-2 * torch.log(torch.linspace(2, 0.5, steps + 1, dtype=torch.float64)))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["lms", "ipndm"])
def test_classical_weights_on_equal_steps(name: str, order: int) -> None:
    """Where steps of sigma / alpha are equal, the classical weights are the exact ones, of their full order."""
    sampler = SAMPLERS.build({"name": name, "order": order})

    coarse, fine = (error_from_exact_starts(sampler, EDM, equal_steps(steps), STARTS / 5) for steps in (40, 160))
    assert order - 0.3 < math.log2(coarse / fine) / 2 < order + 0.6


def test_runge_kutta_steps_start_pndm_at_its_order() -> None:
    """No exact starts: DDIM's first step would leave order 2."""

    def own_start_error(name: str, steps: int) -> float:
        grid = equal_steps(steps)
        for step in sample(SAMPLERS.build(name), exact_denoiser(DATA, EDM), STARTS / 5, grid, schedule=EDM):
            x = step.x
        return float((x - DATA.flow_map(STARTS / 5, EDM, grid[0], grid[-1])).abs().max())

    for name, low, high in (("pndm", 3.7, 4.6), ("ipndm", 1.6, 2.6)):
        assert low < math.log2(own_start_error(name, 40) / own_start_error(name, 160)) / 2 < high


@pytest.mark.parametrize("schedule", ["flow", "vp", "trig", "ve"])
@pytest.mark.parametrize("name", ["heun", "midpoint", "dpmpp_2m", "dpmpp_3s", "dpm_3", "res_3s", "deis", "unipc"])
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
        ("lms", {20: 5.8e-3, 40: 5.6e-4, 80: 4.4e-5}),
    ],
    ids=str,
)
def test_errors_against_independent_figures(spec: Any, expected: dict[int, float]) -> None:
    for steps, value in expected.items():
        assert error(SAMPLERS.build(spec), EDM, steps) == pytest.approx(value, rel=0.03)


def test_unipc_gains_an_order_by_its_corrector() -> None:
    for order in (1, 2, 3):
        errors = {
            (corrector, n): error(SAMPLERS.build({"name": "unipc", "order": order, "corrector": corrector}), EDM, n)
            for corrector in (False, True)
            for n in (80, 160)
        }
        slope = math.log2(errors[True, 80] / errors[True, 160])
        assert order + 0.8 < slope < order + 1.3, slope
        assert errors[True, 160] < errors[False, 160] / 4


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("name", ["unipc", "deis", "lms"])
def test_multistep_reaches_any_order_from_exact_starts(name: str, order: int) -> None:
    options = {"corrector": False} if name == "unipc" else {}
    sampler = SAMPLERS.build({"name": name, "order": order, **options})
    coarse, fine = (error_from_exact_starts(sampler, EDM, karras(steps, EDM)) for steps in (80, 320))
    slope = math.log2(coarse / fine) / 2
    assert order - 0.35 < slope < order + 0.8, slope


def test_the_step_to_zero_has_a_fixed_relative_error() -> None:
    """x0 instead of x at sigma_min: sigma_min^2 / (2 s^2), whatever the number of steps."""
    data = Gaussian(0.5)
    grid = make_grid({"name": "karras", "sigma_max": 10.0, "sigma_min": 0.01}, 320, EDM)
    x = torch.tensor([[3.0]], dtype=torch.float64)
    for step in sample(SAMPLERS.build("dpmpp_3s"), exact_denoiser(data, EDM), x, grid, schedule=EDM):
        final = step.x
    relative = 1 - float(final / data.flow_map(x, EDM, grid[0], 0.0))
    assert relative == pytest.approx(0.01**2 / (2 * 0.25), rel=0.01)
