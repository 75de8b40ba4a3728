"""Adams-Bashforth-Moulton on the straight line."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from noiseloom.core.grids import make_grid
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.schedules import SCHEDULES, Schedule
from tests.oracles import Mixture, exact_denoiser


@cache
def problem(schedule: str) -> tuple[Schedule, torch.Tensor, torch.Tensor]:
    """The schedule, quantiles of the noise, and where the mixture's ODE takes them."""
    curve = SCHEDULES.build(schedule)
    x = torch.special.ndtri((torch.arange(32, dtype=torch.float64) + 0.5) / 32) * curve.sigma(1.0)
    return curve, x, Mixture().flow_map(x, curve, 1.0, 0.0)


def error(sampler: object, steps: int, grid: object = "uniform", schedule: str = "flow") -> float:
    """Mean error, all the way from noise to data."""
    curve, x, exact = problem(schedule)
    denoise, solver = exact_denoiser(Mixture(), curve), SAMPLERS.build(sampler)
    for step in sample(solver, denoise, x, make_grid(grid, steps, curve), schedule=curve):
        x = step.x
    return float((x - exact).abs().mean())


def test_equal_steps_have_the_classical_weights() -> None:
    """With velocity 2 at the first call and 1 later: Euler, then (3, -1) / 2, then (23, -16, 5) / 12."""
    calls = []

    def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return x - t * (2.0 if len(calls) == 1 else 1.0)

    x = generate(
        x0, torch.zeros(1, 3, dtype=torch.float64), sampler={"name": "abm", "corrector": False}, steps=4, seeds=0
    )
    start = generate(lambda x, t: x, torch.zeros(1, 3, dtype=torch.float64), sampler="euler", steps=1, seeds=0)
    assert torch.allclose(x, start - (2 + (3 - 2) / 2 + (23 - 16 + 10) / 12 + 1) / 4)
    assert calls == [1.0, 0.75, 0.5, 0.25]


def test_of_order_one_without_a_corrector_it_is_ddim() -> None:
    for schedule in ("flow", "vp", "edm"):
        ddim = error("ddim", 7, schedule=schedule)
        assert error({"name": "abm", "order": 1, "corrector": False}, 7, schedule=schedule) == pytest.approx(
            ddim, rel=1e-9
        )


@pytest.mark.parametrize(("options", "order"), [({"order": 2, "corrector": False}, 2), ({"order": 1}, 2), ({}, 3)])
def test_the_order_holds_to_the_end(options: dict[str, object], order: int) -> None:
    errors = [error({"name": "abm", **options}, steps) for steps in (40, 80, 160)]
    assert min(math.log2(a / b) for a, b in pairwise(errors)) > order - 0.3
    # Log-SNR is infinite at the end: its methods are of lower order there.
    others = [error({"name": "unipc", "order": 3}, steps) for steps in (80, 160)]
    assert math.log2(others[0] / others[1]) < 2.5


@pytest.mark.parametrize("schedule", ["flow", "linear", "edm"])
def test_the_recommended_default_has_the_least_error(schedule: str) -> None:
    for steps in (8, 10, 20):
        best = error("abm", steps, "logistic", schedule)
        for other in ("dpmpp_2m", "unipc", "deis", "ipndm"):
            for grid in ("logistic", "uniform", "karras"):
                assert best < error(other, steps, grid, schedule), (other, grid, steps)
