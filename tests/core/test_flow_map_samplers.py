"""Few-step samplers, on the exact flow map of Gaussian data: one step is enough, fresh noise keeps the marginals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.grids import make_grid
from noiseloom.core.predictions import Estimate
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, sample
from noiseloom.core.samples import align_left
from noiseloom.core.schedules import SCHEDULES, Schedule
from tests.oracles import Gaussian, OneHotNoise, exact_denoiser

FLOW = SCHEDULES.build("flow")
SCHEDULE_NAMES = ["flow", "vp", "edm", "trig"]


class ExactFlowMap:
    """A denoiser of two times: the DDIM step to ``cond["target"]`` lands where the ODE does; at s = t it is E[x0|x]."""

    def __init__(self, data: Gaussian, schedule: Schedule) -> None:
        self.data, self.schedule, self.targets = data, schedule, []

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None, previous: Any = None) -> Estimate:
        s = cond["target"]
        self.targets.append(s)
        t, s = (align_left(time.expand(len(x), *time.shape[1:]), x) for time in (t, s))
        (alpha, sigma), (alpha_s, sigma_s) = self.schedule.alpha_sigma(t), self.schedule.alpha_sigma(s)
        determinant = alpha_s - alpha * sigma_s / sigma
        end = self.data.flow_map(x, self.schedule, t, s)
        x0 = torch.where(s < t, (end - sigma_s / sigma * x) / determinant, self.data.x0(x, alpha, sigma))
        return Estimate(x0, (x - alpha * x0) / sigma)


def end(spec: Any, denoise: Any, x: Tensor, grid: Tensor, schedule: Schedule, **options: Any) -> Tensor:
    generators = sample_generators(0, range(len(x)))
    for step in sample(SAMPLERS.build(spec), denoise, x, grid, schedule=schedule, generators=generators, **options):
        x = step.x
    return x


def std(spec: Any, schedule: Schedule, steps: int, mean: float = 0.0) -> tuple[float, float]:
    """The exact standard deviation at the end, and the mean, from a right start."""
    data, grid = Gaussian(0.5, mean), make_grid("uniform", steps, schedule)
    alpha, sigma = schedule.alpha_sigma(grid[0])
    x = torch.zeros(2, 2 * steps + 2, dtype=torch.float64)
    x[0, 0] = data.variance(alpha, sigma).sqrt()  # of zero mean: the linear part
    linear = end(spec, ExactFlowMap(Gaussian(0.5), schedule), x[:1], grid, schedule, space=OneHotNoise())
    silent = type("Silent", (OneHotNoise,), {"noise": lambda self, like, generators: torch.zeros_like(like)})()
    shift = end(spec, ExactFlowMap(data, schedule), (alpha * mean).expand(1, 1), grid, schedule, space=silent)
    return float(linear.norm()), float(shift)


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_a_flow_map_is_exact_in_any_number_of_steps(schedule: str) -> None:
    built, data = SCHEDULES.build(schedule), Gaussian(0.5, 0.3)
    x = built.sigma(1.0) * torch.tensor([[-1.5, 0.2, 2.0], [0.4, -0.6, 0.0]], dtype=torch.float64)
    exact = data.flow_map(x, built, 1.0, 0.0)
    for steps in (1, 2, 5, 30):
        denoise, grid = ExactFlowMap(data, built), make_grid("uniform", steps, built)
        assert torch.allclose(end("flow_map", denoise, x, grid, built), exact, atol=1e-9), steps
        assert torch.equal(torch.stack([s[0] for s in denoise.targets]), grid[1:])
        assert all(s.shape == (2,) for s in denoise.targets)


def test_times_per_element_reach_the_network() -> None:
    data, grid = Gaussian(0.5, 0.3), torch.tensor([[1.0, 0.8], [0.5, 0.8], [0.0, 0.0]], dtype=torch.float64)[:, None]
    x = torch.tensor([[[1.2], [-0.4]], [[0.1], [0.9]]], dtype=torch.float64)
    denoise = ExactFlowMap(data, FLOW)
    out = end("flow_map", denoise, x, grid, FLOW)
    assert [s.shape for s in denoise.targets] == [(2, 2), (2, 2)]
    for i, t in enumerate((1.0, 0.8)):
        assert torch.allclose(out[:, i], data.flow_map(x[:, i], FLOW, t, 0.0), atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("spec", ["lcm", "tcd", {"name": "tcd", "eta": 1.0}, {"name": "tcd", "eta": 0.0}], ids=str)
def test_fresh_noise_keeps_the_marginals(spec: Any, schedule: str) -> None:
    """Of an exact flow map the result is the data's distribution, whatever the number of steps."""
    built = SCHEDULES.build(schedule)
    for steps in (1, 2, 4, 9):
        spread, mean = std(spec, built, steps, mean=0.3)
        assert spread == pytest.approx(0.5, abs=1e-9)
        assert mean == pytest.approx(0.3, abs=1e-9)


def test_what_they_tell_the_network() -> None:
    """lcm goes to 0; tcd to (1 - eta) s, or s where eta = 0."""
    grid, x = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    for spec, targets in (
        ("lcm", [0.0, 0.0, 0.0]),
        ({"name": "tcd", "eta": 0.25}, [0.45, 0.225, 0.0]),
        ({"name": "tcd", "eta": 0.0}, [0.6, 0.3, 0.0]),
    ):
        denoise = ExactFlowMap(Gaussian(), FLOW)
        end(spec, denoise, x, grid, FLOW)
        assert [float(s) for s in denoise.targets] == pytest.approx(targets)


def test_between_two_samplers() -> None:
    """tcd of eta 1 is lcm and of eta 0 flow_map; a network of one time takes flow_map for Euler, and lcm for the
    noising of its estimate, alpha x0 + sigma z."""
    grid, x = make_grid("uniform", 6, FLOW), torch.randn(2, 3, dtype=torch.float64)
    maps, once = ExactFlowMap(Gaussian(), FLOW), exact_denoiser(Gaussian(), FLOW)
    for spec, same, denoise in (
        ({"name": "tcd", "eta": 1.0}, "lcm", maps),
        ({"name": "tcd", "eta": 0.0}, "flow_map", maps),
        ("flow_map", "euler", once),
    ):
        assert torch.equal(end(spec, denoise, x, grid, FLOW), end(same, denoise, x, grid, FLOW)), spec
    generators = sample_generators(0, range(2))
    steps = sample(SAMPLERS.build("lcm"), once, x, grid, schedule=FLOW, space=OneHotRows(), generators=generators)
    for step in steps:
        if step.s > 0:
            noise = OneHotRows().noise(x, generators)
            assert torch.allclose(step.x, (1 - step.s) * step.x0 + step.s * noise)


class OneHotRows(OneHotNoise):
    """The same noise at every draw."""

    def noise(self, like: Tensor, generators: Any) -> Tensor:
        return torch.eye(*like.shape, dtype=like.dtype)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_wrong_options_are_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        SAMPLERS.build({"name": "tcd", "eta": eta})
