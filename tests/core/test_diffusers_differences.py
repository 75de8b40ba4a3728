"""Where diffusers' schedulers are not right, and the closed form that shows it."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from noiseloom.core.grids import make_grid
from noiseloom.core.interchange import from_diffusers
from noiseloom.core.samplers import SAMPLERS
from noiseloom.core.samplers.exponential import moments
from noiseloom.core.schedules import SCHEDULES
from tests.core.their_schedulers import scheduler_of
from tests.oracles import Gaussian, final_std

pytestmark = pytest.mark.filterwarnings("ignore:.*differs from sampler")


def test_flow_match_euler_shifts_its_smallest_sigma_twice() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    theirs, spec = scheduler_of(config, 20), from_diffusers(config)
    ours = make_grid(spec.grid, 20, SCHEDULES.build(spec.schedule))
    once = 3 * 1e-3 / (1 + 2 * 1e-3)
    assert float(ours[-2]) == pytest.approx(once, rel=1e-12) == pytest.approx(0.002994, abs=1e-6)
    assert float(theirs.sigmas[-2]) == pytest.approx(3 * once / (1 + 2 * once), rel=1e-5)
    # The right ones are shifts of equally spaced times: undone, their differences are equal.
    even = ours[:-1] / (3 - 2 * ours[:-1])
    torch.testing.assert_close(even.diff(), torch.full((19,), -0.999 / 19, dtype=torch.float64))


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 13), ("linspace", 10)])
def test_ddim_steps_past_the_level_that_it_goes_on_from(spacing: str, steps: int) -> None:
    """On standard normal data the DDIM step is the identity wherever it leads; of data of standard deviation s the
    network is told 845 while x has the noise of level 846: the spread that results is not the linear map's."""
    config = {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": spacing}
    spec = from_diffusers(config)
    schedule, data = SCHEDULES.build(spec.schedule), Gaussian(0.5)

    def spread(steps: int) -> tuple[float, float]:
        theirs, x = scheduler_of(config, steps), torch.ones(1, dtype=torch.float64)
        for level in theirs.timesteps:
            alpha, sigma = schedule.alpha_sigma((level.double() + 1) / 1000)
            x0 = data.x0(x, alpha, sigma)
            x = theirs.step((x - alpha * x0) / sigma, level, x, return_dict=False)[0]
        grid = make_grid(spec.grid, steps, schedule)
        return float(x), final_std(SAMPLERS.build("ddim"), schedule, grid, 1.0)

    levels = [int(level) for level in scheduler_of(config, steps).timesteps]
    assert levels[1] - 1000 // steps != levels[2]
    theirs, right = spread(steps)
    assert abs(theirs / right - 1) > 3e-3
    if spacing == "trailing":
        assert levels[1:3] == [922, 845]  # it steps to 846
        theirs, right = spread(10)
        assert theirs == pytest.approx(right, rel=1e-5)


def test_ddpm_of_large_variance_ends_in_noise() -> None:
    """At t = 0 there is none; theirs adds that of the whole last step, sigma(t)^2, unless the last level is 0."""
    config = {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_large"}
    theirs = scheduler_of(config | {"timestep_spacing": "trailing"}, 10)
    x = torch.zeros(1, 100_000, dtype=torch.float64)
    last = theirs.step(x, theirs.timesteps[-1], x, generator=Generator().manual_seed(0)).prev_sample
    assert float(last.std()) == pytest.approx(float(SCHEDULES.build("linear").sigma(0.1)), rel=0.01)


def test_third_order_weights_of_dpm_solver_are_not_those_of_third_order() -> None:
    """x0 quadratic in log-SNR is integrated exactly by the exact weights, and by diffusers' to second order only."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_exponential_sigmas": True}
    spec = from_diffusers(config | {"final_sigmas_type": "sigma_min", "lower_order_final": False})
    schedule = SCHEDULES.build(spec.schedule)
    theirs = scheduler_of({**config, "final_sigmas_type": "sigma_min", "lower_order_final": False}, 40)
    grid = make_grid(spec.grid, 40, schedule)
    level = schedule.log_snr(grid) / 2
    x0 = level**2

    def exact(t: int, s: int, x: Tensor) -> Tensor:
        """x_s by the integral, ``int e^(l - l_s) l^2 dl`` by parts."""
        antiderivative = (level[[t, s]] ** 2 - 2 * level[[t, s]] + 2) * torch.exp(level[[t, s]] - level[s])
        shrink = schedule.sigma(grid[s]) / schedule.sigma(grid[t])
        return shrink * x + schedule.alpha(grid[s]) * (antiderivative[1] - antiderivative[0])

    x = torch.zeros(1, dtype=torch.float64)
    last = moments(level.diff(), 3)[2]
    ours = SAMPLERS.build("dpmpp_3m").plan(schedule, grid)
    for i in range(10):
        right = exact(i, i + 1, x)
        weights = ours[i].stages[0].weights
        mine = weights[0] * x + sum(w * x0[i - j] for j, w in enumerate(weights[1:]) if i >= j)
        sigma, alpha, alpha_s = schedule.sigma(grid[i]), schedule.alpha(grid[i]), schedule.alpha(grid[i + 1])
        other = theirs.step((x - alpha * x0[i]) / sigma, theirs.timesteps[i], x, return_dict=False)[0]
        if i >= 2:
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
            missing = alpha_s * (level[i + 1] - level[i]) ** 2 * last[i] / 2  # half of the second difference's weight
            assert float(right - other) == pytest.approx(float(missing), rel=0.02)
        x = right


def test_deis_on_a_flow_does_not_arrive() -> None:
    config = {"_class_name": "DEISMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    theirs = scheduler_of(config, 10)
    assert float(theirs.sigmas[-1]) == float(theirs.sigmas[-2]) > 0.09
    with pytest.raises(ValueError, match="end before 0"):
        from_diffusers(config)
