"""Grids against the published spacings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from noiseloom.core.grids import GRIDS, check_grid, make_grid, shorten
from noiseloom.core.schedules import SCHEDULES

LINEAR = SCHEDULES.build("linear")


def levels(spec: Any, steps: int) -> list[int]:
    """The discrete timesteps that a grid visits; its last time must be 0."""
    grid = make_grid(spec, steps, LINEAR)
    assert grid[-1] == 0
    return [round(float(t) * 1000) - 1 for t in grid[:-1]]


def sigmas(grid: torch.Tensor, schedule: Any) -> list[float]:
    alpha, sigma = schedule.alpha_sigma(grid)
    return (sigma / alpha).tolist()


def test_discrete_spacings() -> None:
    assert levels("trailing", 10) == list(range(999, 0, -100))
    assert levels("leading", 10) == list(range(900, -1, -100))
    assert levels("linspace", 10) == list(range(999, -1, -111))
    assert levels("trailing", 13) == [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76]
    assert levels("trailing", 1000) == levels("leading", 1000) == list(range(999, -1, -1))


def test_spacings_of_a_continuous_schedule() -> None:
    flow = SCHEDULES.build("flow")
    assert torch.allclose(make_grid("trailing", 8, flow), make_grid("uniform", 8, flow))
    assert make_grid({"name": "leading", "levels": 100}, 4, flow).tolist() == pytest.approx([0.76, 0.51, 0.26, 0.01, 0])


@pytest.mark.parametrize("name", ["edm", "flow", "trig", "vp", "linear"])
def test_karras(name: str) -> None:
    schedule = SCHEDULES.build(name)
    values = {n: sigmas(make_grid({"name": "karras", "sigma_max": 80.0}, n, schedule), schedule) for n in (5, 10, 18)}
    tolerance = {"rel": 1e-7, "abs": 1e-12} if name != "linear" else {"rel": 1e-4, "abs": 1e-9}
    assert values[5] == pytest.approx([80, 17.5278320, 2.51521898, 0.169752756, 0.002, 0], **tolerance)
    ten = [80, 42.4151893, 21.1086767, 9.72320136, 4.06612360, 1.50174198, 0.469979058, 0.116638564, 0.0204353346]
    assert values[10] == pytest.approx([*ten, 0.002, 0], **tolerance)
    assert values[18][:4] == pytest.approx([80, 57.5859847, 40.7855738, 28.3745846], **tolerance)
    assert values[18][-4:] == pytest.approx([0.0229345184, 0.00752802, 0.002, 0], rel=1e-5, abs=1e-9)


def test_exponential() -> None:
    """Crowson's exponential and polyexponential spacings, sigma = exp(ramp^rho log(max / min)) min."""
    edm = SCHEDULES.build("edm")
    found = sigmas(make_grid({"name": "exponential", "sigma_max": 10.0, "sigma_min": 0.1}, 5, edm), edm)
    assert found == pytest.approx([10, 10**0.5, 1, 10**-0.5, 0.1, 0], abs=1e-12)
    spec = {"name": "exponential", "sigma_max": 10.0, "sigma_min": 0.1, "rho": 2.0}
    expected = [0.1 * 100 ** (k * k / 16) for k in (4, 3, 2, 1, 0)]
    assert sigmas(make_grid(spec, 5, edm), edm) == pytest.approx([*expected, 0], abs=1e-12)
    for wrong in ({"name": "exponential", "rho": 0.0}, {"name": "beta", "a": 0.0}):
        with pytest.raises(ValueError):
            make_grid(wrong, 5, edm)


def test_beta() -> None:
    """Beta(1/2, 1/2) has the quantiles sin^2(pi u / 2); Beta(1, 1) is uniform."""
    flow = SCHEDULES.build("flow")
    found = make_grid({"name": "beta", "a": 0.5, "b": 0.5}, 4, flow).tolist()
    assert found == pytest.approx([math.sin(math.pi * u / 8) ** 2 for u in (4, 3, 2, 1, 0)], abs=1e-12)
    assert make_grid({"name": "beta", "a": 1.0, "b": 1.0}, 4, flow).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_karras_starts_where_the_schedule_does() -> None:
    edm, flow = SCHEDULES.build({"name": "edm", "sigma_max": 40.0}), SCHEDULES.build("flow")
    assert sigmas(make_grid("karras", 3, edm), edm)[0] == pytest.approx(40)
    assert sigmas(make_grid("karras", 3, flow), flow)[0] == pytest.approx(80)
    assert make_grid("karras", 1, edm).tolist() == pytest.approx([1, 0])
    with pytest.raises(ValueError, match="log-SNR"):
        make_grid({"name": "karras", "sigma_max": 80.0}, 3, edm)


def test_log_snr_is_uniform() -> None:
    for name in ("flow", "vp"):
        schedule = SCHEDULES.build(name)
        grid = make_grid({"name": "log_snr", "high": 8.0}, 11, schedule)
        assert schedule.log_snr(grid[:-1]).diff().std() < 1e-9
        assert float(schedule.log_snr(grid[-2])) == pytest.approx(8.0)
        assert grid[-1] == 0
    assert float(SCHEDULES.build("flow").log_snr(make_grid("log_snr", 5, SCHEDULES.build("flow"))[0])) == pytest.approx(
        -10
    )


# Rules for some schedules only: noise beyond t = 1 cannot be shifted to, and levels are a table's.
SUITS = {"diffusers": ("linear",), "shifted": ("flow",)}


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "explicit"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_rule_falls_to_zero(name: str, steps: int) -> None:
    for schedule in SUITS.get(name, ("flow", "linear", "edm")):
        grid = make_grid(name, steps, SCHEDULES.build(schedule))
        assert grid.shape == (steps + 1,)
        assert grid.dtype == torch.float64
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()


def test_explicit() -> None:
    flow = SCHEDULES.build("flow")
    assert make_grid({"name": "explicit", "times": [1, 0.5, 0]}, None, flow).tolist() == [1, 0.5, 0]
    assert make_grid(torch.tensor([0.5, 0.0]), 1, flow).tolist() == [0.5, 0]
    assert len(make_grid("uniform", None, flow)) == 51
    for grid, steps in (
        ([1, 0.5, 0], 50),
        ([0.5, 1.0], None),
        ([0.5, 0.5], None),
        ([2.0, 0.0], None),
        ([math.nan], None),
    ):
        with pytest.raises(ValueError):
            make_grid({"name": "explicit", "times": grid}, steps, flow)
    with pytest.raises(ValueError, match="at least 1"):
        make_grid("uniform", 0, flow)
    with pytest.raises(ValueError, match="do not fit"):
        make_grid("leading", 2000, flow)


def test_an_element_may_wait_but_not_go_back() -> None:
    waits = torch.tensor([[1.0, 1.0], [1.0, 0.5], [0.0, 0.0]])
    assert check_grid(waits).dtype == torch.float64
    with pytest.raises(ValueError, match="fall"):
        check_grid(waits.flip(0))


def test_shorten() -> None:
    grid = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    assert shorten(grid, 1.0).tolist() == grid.tolist()
    assert shorten(grid, 0.6).tolist() == pytest.approx([0.6, 0.5, 0.25, 0.0])
    assert shorten(grid, 0.5).tolist() == [0.5, 0.25, 0.0]
    assert shorten(grid, 0.0).tolist() == [0.0]
    both = torch.stack([grid, torch.tensor([0.3, 0.3, 0.3, 0.1, 0.0])], 1)
    assert shorten(both, 0.25).flatten().tolist() == pytest.approx([0.25, 0.25, 0.25, 0.1, 0, 0])
    with pytest.raises(ValueError, match="strength"):
        shorten(grid, 1.5)
