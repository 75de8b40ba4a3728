"""CFG++, CFG-Zero*, APG and dynamic thresholding against the equations of their papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser, UnderSchedule
from noiseloom.core.editing import Looped
from noiseloom.core.grids import make_grid
from noiseloom.core.guidance import APG, CFGPlusPlus, CFGZero, ClassifierFree, DynamicThresholding, PerCondition
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samples import product
from noiseloom.core.schedules import SCHEDULES
from tests.core.test_guidance_registry import FLOW, HALF, Toy, labels, noisy


def unconditional(count: int) -> dict[str, Tensor]:
    return {"label": torch.full((count,), -1)}


@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_cfg_pp_is_the_published_recursion(schedule: str) -> None:
    """Algorithm 2: x_s = alpha_s (x_t - sigma_t (e_u + w (e_c - e_u))) / alpha_t + sigma_s e_u."""
    built, w, x = SCHEDULES.build(schedule), 0.6, noisy(2)
    denoise = Toy(built)
    grid = make_grid("uniform", 12, built) * 0.98
    x = expected = x * float(built.alpha_sigma(grid[0])[1])
    for sampler in ("ddim", "euler"):
        expected = x
        steps = sample(SAMPLERS.build(sampler), CFGPlusPlus(denoise, w), x, grid, schedule=built, cond=labels(2))
        for step in steps:
            (a, sigma), (a_s, sigma_s) = built.alpha_sigma(step.t), built.alpha_sigma(step.s)
            weak = (expected - a * denoise(expected, step.t, unconditional(2)).x0) / sigma
            strong = (expected - a * denoise(expected, step.t, labels(2)).x0) / sigma
            guided = weak + w * (strong - weak)
            expected = a_s * (expected - sigma * guided) / a + sigma_s * weak
            assert torch.allclose(step.x, expected, atol=1e-9 * float(x.abs().max()))


def test_cfg_pp_at_scale_0_is_the_model_without_conditions() -> None:
    x = torch.zeros(2, 3, 2).double()
    plain = generate(Toy(), x, cond=unconditional(2), seeds=0, steps=8)
    assert torch.allclose(generate(CFGPlusPlus(Toy(), 0.0), x, cond=labels(2), seeds=0, steps=8), plain)


@pytest.mark.parametrize(
    "sampler", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "heun", "midpoint", "dpmpp_2s", "dpmpp_3s"]
)
@pytest.mark.parametrize("schedule", ["flow", "vp"])
def test_cfg_pp_of_constant_estimates_is_the_same_by_every_sampler(sampler: str, schedule: str) -> None:
    """Each step then adds alpha_s w (main - weak) to the path of the weak estimate."""
    built, w = SCHEDULES.build(schedule), 0.7

    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        return Estimate(torch.where(cond["label"] >= 0, 1.0, -0.5)[:, None].expand_as(x).double(), x)

    guided = CFGPlusPlus(denoise, w, schedule=built)
    grid = make_grid("uniform", 6, built)
    noise = torch.tensor([[0.3, -1.1]], dtype=torch.float64)
    x = noise
    for step in sample(SAMPLERS.build(sampler), guided, x, grid, schedule=built, cond=labels(1)):
        alpha, sigma = built.alpha_sigma(step.s)
        if step.index == 0:
            a, s = built.alpha_sigma(step.t)
            noise = (x + 0.5 * a) / s
        if step.s == 0 and sampler == "heun":
            continue  # half of the noise is left, whatever the estimates
        # The noise that the weak estimate implies has taken in what the steps before added.
        expected = alpha * (-0.5 + w * 1.5) + sigma * noise
        assert torch.allclose(step.x, expected, atol=1e-9), step.index
        noise = (step.x + 0.5 * alpha) / sigma.clamp(min=1e-300)


def test_cfg_pp_under_another_schedule_and_in_a_loop() -> None:
    """Under another schedule, matched in log-SNR, the steps are the same; a loop turns them and turns them back."""
    vp = SCHEDULES.build("vp")
    x, cond = torch.zeros(2, 5, 2).double(), labels(2)
    grid = make_grid("uniform", 8, vp) * 0.98 + 0.001
    own = FLOW.time_of_log_snr(vp.log_snr(grid))
    start = noisy(2)
    (a, sigma), (b, tau) = vp.alpha_sigma(grid[0]), FLOW.alpha_sigma(own[0])
    first = CFGPlusPlus(Toy(), 0.6)
    (*_, there) = sample(SAMPLERS.build("ddim"), first, start, own, schedule=FLOW, cond=cond)
    seen = UnderSchedule(first, FLOW, vp)
    moved = start * (torch.hypot(a, sigma) / torch.hypot(b, tau))
    (*_, here) = sample(SAMPLERS.build("ddim"), seen, moved, grid, schedule=vp, cond=cond)
    (a, sigma), (b, tau) = vp.alpha_sigma(grid[-1]), FLOW.alpha_sigma(own[-1])
    assert torch.allclose(here.x / torch.hypot(a, sigma), there.x / torch.hypot(b, tau), atol=1e-9)

    looped = generate(Looped(first, torch.tensor([5, 5])), x, cond=cond, seeds=0, steps=8)
    assert torch.allclose(looped, generate(first, x, cond=cond, seeds=0, steps=8))  # Toy does not know places


def test_cfg_pp_needs_a_sampler_that_can_start_elsewhere() -> None:
    with pytest.raises(ValueError, match="cannot move where a step starts"):
        generate(CFGPlusPlus(Toy()), torch.zeros(1, 2).double(), cond=labels(1), sampler="adaptive", seeds=0, steps=4)


def test_cfg_zero_is_the_published_velocity() -> None:
    """Equation 9: (1 - w) s v_u + w v_c with s = <v_c, v_u> / |v_u|^2, of each sample."""
    x, w, denoise = noisy(), 3.0, Toy()
    out = CFGZero(denoise, w)(x, HALF, labels(4))
    weak = (x - denoise(x, HALF, unconditional(4)).x0) / 0.5  # noise - x0 of the flow schedule
    strong = (x - denoise(x, HALF, labels(4)).x0) / 0.5
    s = (strong * weak).sum((1, 2)) / (weak**2).sum((1, 2))
    expected = (1 - w) * s[:, None, None] * weak + w * strong
    assert torch.allclose(out.noise - out.x0, expected)


@pytest.mark.parametrize("schedule", ["vp", "edm"])
def test_cfg_zero_is_the_same_under_every_schedule(schedule: str) -> None:
    built, x = SCHEDULES.build(schedule), noisy()
    t = built.time_of_log_snr(FLOW.log_snr(HALF))
    alpha, sigma = built.alpha_sigma(t)
    same = CFGZero(Toy(built), 3.0)(x * (alpha + sigma), t, labels(4)).x0
    assert torch.allclose(same, CFGZero(Toy(), 3.0)(x, HALF, labels(4)).x0, atol=1e-9)


def test_cfg_zero_of_parallel_velocities_is_the_main_one() -> None:
    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        size = torch.where(cond["label"] >= 0, 1.0, 0.4)[:, None, None]
        return Estimate(x - 0.5 * size * torch.arange(6.0).reshape(1, 3, 2), x)

    x = noisy()
    out = CFGZero(denoise, 7.0, schedule=FLOW)(x, HALF, labels(4)).x0
    assert torch.allclose(out, denoise(x, HALF, labels(4)).x0)


def test_cfg_zero_begins_with_nothing() -> None:
    """4 % of 50 steps leave x as it is, without a call; so do early elements among late ones."""
    denoise = Toy()
    x, grid = noisy(2), make_grid("uniform", 50, FLOW)
    steps = list(sample(SAMPLERS.build("euler"), CFGZero(denoise, 3.0), x, grid, schedule=FLOW, cond=labels(2)))
    assert torch.allclose(steps[1].x, x)
    assert not torch.allclose(steps[2].x, x)
    assert len(denoise.rows) == 48
    t = torch.tensor([[1.0, 0.5, 0.5], [0.5, 0.99, 0.0]], dtype=torch.float64)
    out = CFGZero(denoise, 3.0)(x, t, labels(2))
    assert torch.allclose(out.x0[0, 0], x[0, 0])
    assert torch.allclose(out.x0[1, 1], x[1, 1])
    assert torch.allclose(out.x0[1, 2], x[1, 2])  # known: its own x0, and no part of the product


def test_apg_without_its_parts_is_classifier_free_guidance() -> None:
    x = noisy()
    plain = ClassifierFree(Toy(), 4.0)(x, HALF, labels(4)).x0
    assert torch.allclose(APG(Toy(), 4.0, eta=1.0, momentum=0.0)(x, HALF, labels(4)).x0, plain)


def test_apg_goes_across_the_estimate_and_not_too_far() -> None:
    x, denoise = noisy(), Toy()
    main, weak = denoise(x, HALF, labels(4)).x0, denoise(x, HALF, unconditional(4)).x0
    moved = APG(denoise, 4.0, momentum=0.0)(x, HALF, labels(4)).x0 - main
    assert torch.allclose((moved * main).sum((1, 2)), torch.zeros(4).double(), atol=1e-12)
    d = main - weak
    parallel = (d * main).sum((1, 2), keepdim=True) / (main**2).sum((1, 2), keepdim=True) * main
    assert torch.allclose(moved, 3 * (d - parallel))
    half = APG(denoise, 4.0, eta=0.5, momentum=0.0)(x, HALF, labels(4)).x0 - main
    assert torch.allclose(half, 3 * (d - parallel / 2))
    short = APG(denoise, 4.0, eta=1.0, norm=0.1, momentum=0.0)(x, HALF, labels(4)).x0 - main
    assert torch.allclose(short.flatten(1).norm(dim=1), torch.full((4,), 0.3).double())


def test_apg_remembers_one_trajectory() -> None:
    x, denoise, beta = noisy(), Toy(), -0.5
    guided, average, previous = APG(denoise, 2.0, eta=1.0, momentum=beta), torch.zeros(4, 3, 2), None
    for _ in range(2):  # the second trajectory begins anew
        average, previous = torch.zeros(4, 3, 2), None
        for t in (0.9, 0.6, 0.3):
            main, weak = denoise(x, t, labels(4)).x0, denoise(x, t, unconditional(4)).x0
            average = main - weak + beta * average
            previous = guided(x, t, labels(4), previous).x0
            assert torch.allclose(previous, main + average)


def test_rules_take_a_scale_for_each_condition() -> None:
    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        told = 1.0 * (cond["a"] >= 0) + 10.0 * (~cond["b"].isnan())
        return Estimate(x * 0.1 + told[:, None, None], x)

    x, cond, scales = noisy(), {"a": torch.ones(4).long(), "b": torch.ones(4)}, {"a": 2.0, "b": 3.0}
    expected = PerCondition(denoise, scales, schedule=FLOW)(x, HALF, cond).x0
    apg = APG(denoise, scales=scales, eta=1.0, momentum=0.0, schedule=FLOW)(x, HALF, cond).x0
    assert torch.allclose(apg, expected)
    estimate = CFGPlusPlus(denoise, scales=scales, schedule=FLOW)(x, HALF, cond)
    assert torch.allclose(estimate.x0, expected)
    assert torch.allclose(estimate.shift, 0.5 * (expected - x * 0.1))
    with pytest.raises(ValueError, match="scales are"):
        CFGZero(denoise, scales={}, schedule=FLOW)


def test_dynamic_thresholding_is_that_of_the_paper() -> None:
    x = 3 * noisy(3, seed=4)
    x[2] *= 0.1
    known = FunctionDenoiser(lambda x, t: x, FLOW)
    out = DynamicThresholding(known, percentile=0.8)(x, HALF).x0.numpy()
    for row, expected in zip(out, x.numpy(), strict=True):
        s = max(np.percentile(np.abs(expected).astype(np.float32), 80), 1.0)
        assert np.allclose(row, np.clip(expected, -s, s) / s, atol=1e-6)
    assert np.allclose(out[2], x[2])  # within the range: clipped by nothing
    assert np.abs(out).max() <= 1


def test_dynamic_thresholding_of_some_parts() -> None:
    x = product({"p": 3 * noisy(2), "q": 3 * noisy(2, seed=1)})
    known = FunctionDenoiser(lambda x, t: x, FLOW)
    out = DynamicThresholding(known, bound={"q": 0.5})(x, HALF).x0
    assert torch.equal(out["p"], x["p"])
    assert float(out["q"].abs().amax()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"no part r to bound. Parts: p, q"):
        DynamicThresholding(known, bound={"r": 0.5})(x, HALF)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CFGZero, {"zero_init": 1.0}),
        (APG, {"norm": 0.0}),
        (APG, {"momentum": 1.0}),
        (DynamicThresholding, {"percentile": 0.0}),
        (DynamicThresholding, {"bound": -1.0}),
        (DynamicThresholding, {"bound": {}}),
    ],
)
def test_options_that_make_no_sense_are_told(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(Toy(), **wrong)
