"""The adaptive ODE: its error follows its tolerance, each sample has its own steps, all times of the grid are met."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samples import Sample, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Centred, Euclidean, Product
from tests.oracles import Gaussian, Mixture, exact_denoiser

FLOW, EDM = SCHEDULES.build("flow"), SCHEDULES.build("edm")
STARTS = torch.tensor([[-1.8], [-0.7], [-0.25], [0.1], [0.4], [0.9], [2.0]], dtype=torch.float64)  # of sigma(1)
WHOLE = torch.tensor([1.0, 0.0], dtype=torch.float64)


def run(
    rtol: float, x: Tensor, grid: Tensor, schedule: Schedule, data: Any = None, **options: Any
) -> tuple[Tensor, int]:
    """The end, and how many calls it took."""
    spec = {"name": "adaptive", "rtol": rtol, "atol": rtol / 10, **options}
    calls = 0
    for step in sample(SAMPLERS.build(spec), exact_denoiser(data or Mixture(), schedule), x, grid, schedule=schedule):
        x, calls = step.x, calls + step.calls
    return x, calls


@pytest.mark.parametrize("schedule", ["flow", "edm", "vp", "trig"])
def test_the_error_falls_with_the_tolerance(schedule: str) -> None:
    """From pure noise (alpha = 0 under flow and trig) to no noise, against the mixture's exact map: in proportion."""
    built = SCHEDULES.build(schedule)
    x = STARTS * built.sigma(1.0)
    exact = Mixture().flow_map(x, built, 1.0 if schedule in ("vp", "edm") else 1 - 1e-9, 1e-12)
    results = {rtol: run(rtol, x, WHOLE, built) for rtol in (1e-2, 1e-3, 1e-4, 1e-5)}
    errors = {rtol: float((end - exact).abs().max()) for rtol, (end, _) in results.items()}
    assert all(error < 4 * rtol for rtol, error in errors.items()), errors
    assert errors[1e-5] < errors[1e-2] / 200
    calls = [count for _, count in results.values()]
    assert calls[0] < 35
    assert calls[-1] < 10 * calls[0]  # of third order: a tenth of the error costs twice the calls


def test_it_needs_no_more_calls_than_fixed_steps() -> None:
    """Beside the same formula on Karras' grid of as many calls as the sample that takes most."""
    x = STARTS * 80
    exact = Mixture().flow_map(x, EDM, 1.0, 1e-12)
    ours, calls = run(1e-3, x, WHOLE, EDM)
    grid = make_grid("karras", calls, EDM)
    for step in sample(SAMPLERS.build("unipc"), exact_denoiser(Mixture(), EDM), x, grid, schedule=EDM):
        x = step.x
    assert (ours - exact).abs().max() < (x - exact).abs().max()


def test_its_formula_is_of_third_order() -> None:
    """With every error tolerated a step of the grid is one step."""
    edges = [EDM.time_of_log_snr(-2 * math.log(sigma)) for sigma in (10.0, 0.01)]
    exact = Mixture().flow_map(STARTS * 10, EDM, *edges)
    errors = []
    for steps in (80, 320):
        grid = make_grid({"name": "karras", "sigma_max": 10.0, "sigma_min": 0.01}, steps + 1, EDM)[:-1]
        end, calls = run(1e-6, STARTS * 10, grid, EDM, atol=1e9)
        assert calls <= steps + 3
        errors.append(float((end - exact).abs().max()))
    assert 2.8 < math.log(errors[0] / errors[1], 4) < 3.4


@pytest.mark.parametrize("schedule", ["flow", "edm", "vp", "zero_terminal_snr"])
def test_constant_estimates_are_followed_exactly(schedule: str) -> None:
    built = SCHEDULES.build(schedule)
    x0, noise = torch.tensor([[0.7, -1.2]], dtype=torch.float64), torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    grid = torch.tensor([1.0, 0.999999, 0.4, 1e-7, 1e-9, 0.0], dtype=torch.float64)
    alpha, sigma = built.alpha_sigma(grid)
    steps = sample(
        SAMPLERS.build("adaptive"),
        FunctionDenoiser(lambda x, t: x0, built),
        alpha[0] * x0 + sigma[0] * noise,
        grid,
        schedule=built,
    )
    for step in steps:
        expected = alpha[step.index + 1] * x0 + sigma[step.index + 1] * noise
        assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-12), step.index


def test_a_sample_has_its_own_steps() -> None:
    """Bit by bit what it is alone, though the hardest of the batch takes more calls than it."""
    x = STARTS * 80
    together, calls = run(1e-3, x, WHOLE, EDM)
    own = [run(1e-3, x[i : i + 1], WHOLE, EDM) for i in range(len(x))]
    assert torch.equal(together, torch.cat([end for end, _ in own]))
    assert calls == max(count for _, count in own)
    assert min(count for _, count in own) < calls


def test_self_conditioning_is_a_samples_own() -> None:
    """The estimate handed on is the sample's last one, also while others of the batch still work."""

    def denoise(x: Tensor, t: Tensor, cond: Any, previous: Tensor | None) -> Estimate:
        before = torch.zeros_like(x) if previous is None else previous
        return Estimate(Mixture().x0(x + 0.05 * before, *EDM.alpha_sigma(t[:, None].expand(x.shape))), x)

    x, grid = STARTS * 80, torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64)

    def end(x: Tensor) -> Tensor:
        for step in sample(SAMPLERS.build("adaptive"), denoise, x, grid, schedule=EDM):
            x = step.x
        return x

    assert torch.equal(end(x), torch.cat([end(row[None]) for row in x]))


def test_elements_with_times_of_their_own() -> None:
    """One waits, one starts late, one is done early; those that move do so to the tolerance."""
    grid = torch.tensor([[1.0, 1.0, 0.5], [0.4, 1.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)[
        :, None
    ]
    x = torch.tensor([[[-0.9], [0.8], [0.3]], [[0.5], [-0.4], [0.7]]], dtype=torch.float64)
    ends = []
    for rtol in (1e-3, 1e-5):
        end, _ = run(rtol, x, grid, FLOW)
        ends.append(end)
        for i, t in enumerate((1 - 1e-9, 1 - 1e-9, 0.5)):
            exact = Mixture().flow_map(x[:, i], FLOW, t, 1e-12)
            assert torch.allclose(end[:, i], exact, atol=10 * rtol)
    still = sample(SAMPLERS.build("adaptive"), exact_denoiser(Mixture(), FLOW), x, grid, schedule=FLOW)
    first, second, *_ = still
    assert torch.equal(first.x[:, 1], x[:, 1])
    assert torch.equal(second.x[:, 2], first.x[:, 2])


def test_known_elements_and_padding_do_not_count() -> None:
    """Padding, whatever the network makes of it, and known elements change neither the steps nor the rest."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    known = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    x = torch.randn(2, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * mask[..., None]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = FLOW.alpha_sigma(t)
        good = Mixture().x0(x, *(v.reshape(v.shape + (1,) * (3 - v.ndim)) for v in (alpha, sigma)))
        return torch.where(mask[: len(x), : x.shape[1], None], good, 100 * torch.sin(99 * x + t.amax()))

    def end(rows: slice, width: int) -> Sample:
        space = Euclidean(mask[rows, :width], known[rows, :width])
        options: dict[str, Any] = {"known": known[rows, :width], "space": space, "seeds": [4, 5][rows]}
        return generate(denoise, x[rows, :width], sampler="adaptive", steps=1, **options)

    whole = end(slice(0, 2), 4)
    assert torch.equal(whole[known], x[known])
    assert torch.equal(whole[:1, :2], end(slice(0, 1), 2))


def test_products() -> None:
    """The worse part decides, and each part reaches its own map."""
    mask = torch.ones(2, 4, dtype=torch.bool)
    space = Product({"p": Centred(mask), "q": Euclidean()})
    wide, narrow = Gaussian(1.0), Gaussian(0.1, 0.4)
    noise = space.noise(
        product({"p": torch.zeros(2, 4, 3).double(), "q": torch.zeros(2, 5).double()}), [torch.Generator()] * 2
    )

    def denoise(x: Any, t: Tensor) -> Sample:
        p = wide.x0(x["p"], *(v[:, None, None] for v in EDM.alpha_sigma(t)))
        return product({"p": p, "q": narrow.x0(x["q"], *(v[:, None] for v in EDM.alpha_sigma(t)))})

    x = noise * 80
    sampler = SAMPLERS.build({"name": "adaptive", "rtol": 1e-4, "atol": 1e-4})
    steps = sample(sampler, FunctionDenoiser(denoise, EDM), x, WHOLE, schedule=EDM, space=space)
    for step in steps:
        assert torch.allclose(step.x["p"], wide.flow_map(x["p"], EDM, 1.0, 0.0), atol=2e-3)
        assert torch.allclose(step.x["q"], narrow.flow_map(x["q"], EDM, 1.0, 0.0), atol=2e-3)


def test_it_comes_to_an_end() -> None:
    """With too few calls it says so; what is not finite is no reason to go on."""
    with pytest.raises(ValueError, match="20 calls did not reach the end"):
        run(1e-6, STARTS, WHOLE, FLOW, max_calls=20)
    out = generate(
        lambda x, t: torch.where(x > 0, torch.nan, 0.1 * x), torch.zeros(8, 1), sampler="adaptive", steps=1, seeds=0
    )
    assert isinstance(out, Tensor)
    assert out.isnan().any()
    assert out.isfinite().any()
    for wrong in ({"rtol": 0.0}, {"atol": -1.0}, {"gains": [0.3]}, {"max_calls": 0}):
        with pytest.raises(ValueError):
            SAMPLERS.build({"name": "adaptive", **wrong})
