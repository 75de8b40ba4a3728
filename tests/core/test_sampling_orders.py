"""Sampling orders: matrices of (steps x frames) times, and what every sampler makes of independent frames in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import check_grid, make_grid
from noiseloom.core.orders import ORDERS, arrange
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samples import product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Euclidean
from tests.oracles import Gaussian, Mixture, exact_denoiser, final_std

FLOW = SCHEDULES.build("flow")
NAMES = [name for name in SAMPLERS if SAMPLERS.build(name).elementwise and not hasattr(SAMPLERS.build(name), "prior")]
SPECS: list[Any] = [
    "autoregressive", {"name": "autoregressive", "chunk": 2}, "pyramid", {"name": "pyramid", "lag": 3}, "full_sequence",
]  # fmt: skip


def levels(spec: Any, steps: int, frames: int) -> list[list[int]]:
    """The matrix in integers: how many steps each frame has still to go."""
    times = torch.arange(steps, -1, -1).double()
    return ORDERS.build(spec)(times, frames).long().tolist()


def test_the_matrices() -> None:
    assert levels("full_sequence", 2, 3) == [[2, 2, 2], [1, 1, 1], [0, 0, 0]]
    assert levels("autoregressive", 2, 3) == [[2, 2, 2], [1, 2, 2], [0, 2, 2], [0, 1, 2], [0, 0, 2], [0, 0, 1], [0] * 3]
    chunks = [[2, 2, 2], [1, 1, 2], [0, 0, 2], [0, 0, 1], [0, 0, 0]]
    assert levels({"name": "autoregressive", "chunk": 2}, 2, 3) == chunks
    assert levels("pyramid", 2, 3) == [[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 1], [0, 0, 0]]
    wide = [[3, 3], [2, 3], [1, 3], [0, 2], [0, 1], [0, 0]]
    assert levels({"name": "pyramid", "lag": 2}, 3, 2) == wide
    assert levels({"name": "pyramid", "lag": 9}, 2, 3) == levels("autoregressive", 2, 3)  # no step without a move
    assert levels({"name": "autoregressive", "chunk": 9}, 2, 3) == levels("full_sequence", 2, 3)


def test_known_frames_take_no_steps_and_no_sample_sees_its_batch() -> None:
    times, x = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), torch.zeros(2, 4, 3, 5)
    known = torch.zeros(2, 4, 3, dtype=torch.bool)
    known[0, :2], known[1, 2], known[1, 3, 0] = True, True, True  # the last frame is known in part: it is made
    grid = check_grid(arrange("autoregressive", times, x, known))
    assert grid.shape == (7, 2, 4)
    assert (grid[:, 0].T * 2).tolist() == [[0] * 7, [0] * 7, [2, 1, 0, 0, 0, 0, 0], [2, 2, 2, 1, 0, 0, 0]]
    assert (grid[:, 1, 2] == 0).all()
    for row in (0, 1):
        alone = arrange("autoregressive", times, x[row : row + 1], known[row : row + 1])
        assert torch.equal(grid[: len(alone), row : row + 1], alone)
        assert (grid[len(alone) :, row] == 0).all()
    assert torch.equal(arrange("pyramid", times, x, known[:, :, 1]), arrange("pyramid", times, x, known.all(2)))
    everything = torch.ones(2, dtype=torch.bool)
    assert torch.equal(arrange("pyramid", times, x, everything), times)
    assert torch.equal(arrange(None, times, x, known), times)
    assert arrange("full_sequence", times, x, known) is times


def test_what_is_no_sequence_is_refused() -> None:
    times, x = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="an order is for sequences"):
        arrange("pyramid", times, product({"a": x}))
    with pytest.raises(ValueError, match="an order is for sequences"):
        arrange("pyramid", times, x[:, 0])
    with pytest.raises(ValueError, match="an order already"):
        arrange("pyramid", times[:, None], x)
    with pytest.raises(ValueError, match="Choices: autoregressive, full_sequence, pyramid"):
        arrange("pyramids", times, x)
    for wrong in ({"name": "pyramid", "lag": 0}, {"name": "autoregressive", "chunk": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            arrange(wrong, times, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["flow", "edm", "linear"])
def test_independent_frames_end_where_they_would_together(name: str, schedule: str) -> None:
    """The trajectory of a frame does not know when it is walked; noise aside."""
    built = SCHEDULES.build(schedule)
    spec = {"name": name, **{key: 0.0 for key in ("eta", "s_churn") if key in SAMPLERS.options(name)}}
    sampler = SAMPLERS.build(spec)
    if sampler.stochastic:
        return
    x = built.sigma(1.0) * torch.randn(2, 5, 3, dtype=torch.float64, generator=Generator().manual_seed(0))
    times, denoise = make_grid("uniform", 6, built), exact_denoiser(Mixture(), built)

    def end(grid: Tensor) -> Tensor:
        for step in sample(sampler, denoise, x, grid, schedule=built):
            out = step.x
        return out

    expected = end(times)
    for order in SPECS:
        torch.testing.assert_close(end(arrange(order, times, x)), expected, rtol=1e-9, atol=1e-9)


class DrawsAsAxes(Euclidean):
    """The n-th noise is the n-th axis, for each frame: frames are then linear maps of their draws."""

    def noise(self, like: Any, generators: Any) -> Tensor:
        axis = generators[0].initial_seed()
        generators[0].manual_seed(axis + 1)
        return torch.eye(like.shape[2], dtype=like.dtype)[axis].expand_as(like)


@pytest.mark.parametrize("name", [*NAMES, {"name": "edm", "s_churn": 1.0}], ids=str)
@pytest.mark.parametrize("schedule", ["flow", "edm"])
def test_the_law_of_a_frame_does_not_depend_on_the_order(name: Any, schedule: str) -> None:
    """On Gaussian data, exactly, for the samplers that draw noise too."""
    built = SCHEDULES.build(schedule)
    sampler, times = SAMPLERS.build(name), make_grid("uniform", 5, built)
    start = float(built.sigma(1.0))
    expected = final_std(sampler, built, times, start)
    for order in SPECS:
        x = torch.zeros(1, 3, 60, dtype=torch.float64)
        x[..., 0] = start
        grid, draws = arrange(order, times, x), [Generator().manual_seed(1)]
        place = {"schedule": built, "space": DrawsAsAxes(), "generators": draws}
        for step in sample(sampler, exact_denoiser(Gaussian(0.5), built), x, grid, **place):
            out = step.x
        assert out.norm(dim=-1)[0].tolist() == pytest.approx([expected] * 3, rel=1e-9), order


def chained(schedule: Schedule, coupling: float) -> Any:
    """The exact denoiser of an autoregressive Gaussian ``f_k = coupling f_(k-1) + noise`` at times per frame."""

    def x0(x: Tensor, t: Tensor) -> Tensor:
        frames = x.shape[1]
        indices = torch.arange(frames)
        data = coupling ** (indices[:, None] - indices).abs().double()
        alpha, sigma = schedule.alpha_sigma(torch.as_tensor(t, dtype=torch.float64).expand(1, frames)[0])
        joint = alpha[:, None] * data * alpha + torch.diag(sigma**2 + 1e-12)
        return torch.einsum("ij,bjc->bic", (data * alpha) @ torch.linalg.inv(joint), x)

    return FunctionDenoiser(x0, schedule)


@pytest.mark.parametrize("order", [None, *SPECS], ids=str)
def test_frames_that_depend_on_each_other_keep_their_covariance(order: Any) -> None:
    """Every order samples the same joint distribution: each column of x is one axis of the noise."""
    x = torch.zeros(1, 4, 4, dtype=torch.float64)
    grid = arrange(order, make_grid("uniform", 400, FLOW), x)
    (out,) = [
        step.x
        for step in sample(SAMPLERS.build("heun"), chained(FLOW, 0.8), x + torch.eye(4), grid, schedule=FLOW)
        if step.index == step.steps - 1
    ]
    indices = torch.arange(4)
    expected = 0.8 ** (indices[:, None] - indices).abs().double()
    torch.testing.assert_close(out[0] @ out[0].T, expected, rtol=0.0, atol=5e-3)


def test_generate_takes_an_order_known_frames_and_a_strength() -> None:
    denoise = exact_denoiser(Gaussian(0.5), FLOW)
    x = torch.randn(2, 4, 3, generator=Generator().manual_seed(0))
    known = torch.zeros(2, 4, dtype=torch.bool)
    known[:, 0] = known[1, 2] = True
    options = {"steps": 5, "seeds": 0, "sampler": "dpmpp_2m", "known": known, "strength": 0.6}
    plain, ordered = (generate(denoise, x, order=order, **options) for order in (None, "autoregressive"))
    assert torch.equal(ordered[known], x[known])
    torch.testing.assert_close(ordered, plain)
    seen: list[int] = []

    def counted(x: Tensor, t: Tensor, cond: Any = None, previous: Any = None) -> Any:
        seen.append(len(x))
        return denoise(x, t, cond, previous)

    counted.schedule = FLOW  # type: ignore[attr-defined]
    generate(counted, x, order="autoregressive", steps=5, seeds=0, known=known)
    assert len(seen) == 5 * 3  # the first frame is known in both samples, the third in one


def test_a_sample_in_an_order_does_not_depend_on_its_batch() -> None:
    x = torch.zeros(3, 4, 2, dtype=torch.float64)
    known = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    denoise = exact_denoiser(Gaussian(0.5), FLOW)
    for sampler in ("dpmpp_2m", "ddpm", "edm"):
        options = {"sampler": sampler, "order": "pyramid", "steps": 4}
        together = generate(denoise, x, seeds=[7, 8, 9], known=known, **options)
        for row in range(3):
            alone = generate(denoise, x[row : row + 1], seeds=[7 + row], known=known[row : row + 1], **options)
            torch.testing.assert_close(together[row : row + 1], alone)
