"""Editing: known parts and starts, on data where the right answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.editing import Looped, inpaint, vary
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, generate
from noiseloom.core.schedules import SCHEDULES
from tests.oracles import Gaussian, exact_denoiser

CLEAN = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_strength_zero_returns_the_input_and_one_forgets_it(name: str, schedule: str) -> None:
    denoise = exact_denoiser(Gaussian(0.5), SCHEDULES.build(schedule))
    options = {"sampler": name, "steps": 6, "seeds": 0}
    assert torch.equal(vary(denoise, CLEAN, 0.0, **options), CLEAN)
    forgot = vary(denoise, CLEAN, 1.0, **options)
    assert torch.equal(forgot, vary(denoise, CLEAN + 3, 1.0, **options))
    assert torch.equal(forgot, generate(denoise, torch.zeros_like(CLEAN), **options))


@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_a_variation_is_the_exact_map_of_the_noised_input(schedule: str) -> None:
    """With half the noise of the schedule's times: x0 -> alpha x0 + sigma z -> the probability flow back to 0."""
    built, data = SCHEDULES.build(schedule), Gaussian(0.5, 0.2)
    denoise = exact_denoiser(data, built)
    varied = vary(denoise, CLEAN, 0.5, steps=400, seeds=4, sampler="dpmpp_2m")
    noise = generate(lambda x, t: x, torch.zeros_like(CLEAN), seeds=4, schedule="flow", sampler=_Identity(), steps=1)
    alpha, sigma = built.alpha_sigma(0.5)
    assert torch.allclose(varied, data.flow_map(alpha * CLEAN + sigma * noise, built, 0.5, 0.0), atol=2e-3)


def test_more_strength_moves_further() -> None:
    denoise = exact_denoiser(Gaussian(0.5), SCHEDULES.build("flow"))
    distances = [float((vary(denoise, CLEAN, s, steps=40, seeds=0) - CLEAN).norm()) for s in (0.1, 0.4, 0.8)]
    assert distances == sorted(distances)
    with pytest.raises(ValueError, match="strength"):
        vary(denoise, CLEAN, 1.2, seeds=0)


def test_inpainting_samples_the_conditional() -> None:
    """Two coordinates with correlation r, the first known: the second is N(r x, 1 - r^2), by the exact denoiser that
    knows of times per element. A deterministic solver maps standard noise linearly onto it."""
    r, x_known = 0.8, 1.5

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        first, second = x.unbind(1)
        alpha, sigma = 1 - t[:, 1], t[:, 1]
        mean, variance = r * first, 1 - r**2
        posterior = mean + alpha * variance * (second - alpha * mean) / (alpha**2 * variance + sigma**2)
        return torch.stack([first, posterior], 1)

    clean = torch.zeros(500, 2, dtype=torch.float64)
    clean[:, 0] = x_known
    known = torch.tensor([[True, False]]).expand(500, 2)
    noise = generate(denoise, clean, known=known, seeds=0, sampler=_Identity(), steps=1)[:, 1]
    for name in ("dpmpp_2m", "dpmpp_3s", "unipc"):
        out = inpaint(denoise, clean, known, sampler=name, steps=150, seeds=0)
        assert torch.equal(out[:, 0], clean[:, 0])
        assert torch.allclose(out[:, 1], r * x_known + (1 - r**2) ** 0.5 * noise, atol=4e-3)


class _Of(torch.nn.Module):
    """A denoiser whose estimate is ``function(x, t, previous)``."""

    schedule = SCHEDULES.build("flow")

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        return Estimate(self.function(x, t, previous), lambda: torch.zeros_like(x))


LEVELS = [(k + 0.5) / 1000 for k in range(1000)]
LENGTHS = torch.tensor([7, 5, 1])


def test_turning_changes_nothing_where_places_are_alike() -> None:
    """The exact denoiser of independent elements commutes with turning, and so does all of sampling."""
    denoise = exact_denoiser(Gaussian(0.5), SCHEDULES.build("vp"))
    looped = Looped(_Of(lambda x, t, previous: denoise(x, t).x0), LENGTHS)
    looped.schedule = denoise.schedule
    x = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0.9, 0.31, 0.02):
        ours, theirs = looped(x, t), denoise(x, torch.tensor(t, dtype=torch.float64))
        assert torch.allclose(ours.x0, theirs.x0)
        assert torch.allclose(ours.noise, theirs.noise)
    options = {"steps": 6, "seeds": [1, 2, 3], "schedule": "vp"}
    assert torch.allclose(generate(looped, x, **options), generate(denoise, x, **options))


def test_turning_keeps_padding_where_it_is() -> None:
    x = torch.arange(21.0).reshape(3, 7, 1)
    seen: list[Tensor] = []
    looped = Looped(_Of(lambda x, t, previous: seen.append(x) or x), LENGTHS)
    for t in LEVELS[::50]:
        assert torch.equal(looped(x, t).x0, x)
    for turned in seen:
        for row, before, length in zip(turned, x, LENGTHS.tolist(), strict=True):
            assert torch.equal(row[length:], before[length:])
            turns = [torch.equal(row[:length], before[:length].roll(k, 0)) for k in range(length)]
            assert any(turns)
    assert len({tuple(turned[0].flatten().tolist()) for turned in seen}) == 7


def test_no_place_of_a_loop_is_its_end_for_long() -> None:
    """A network that does something else at the first place does it, over all levels, at each place as often."""

    def first(x: Tensor, t: Any, previous: Any) -> Tensor:
        out = torch.zeros_like(x)
        out[:, 0] = 1
        return out

    looped, x = Looped(_Of(first), LENGTHS), torch.zeros(3, 7, 1)
    often = torch.stack([looped(x, t).x0 for t in LEVELS]).mean(0)[..., 0]
    for row, length in zip(often, LENGTHS.tolist(), strict=True):
        assert torch.allclose(row[:length], torch.tensor(1 / length), atol=5e-3)
        assert not row[length:].any()
    apart = [float(looped(x, t).x0[0, :, 0].argmax()) for t in torch.linspace(1, 0, 21)]
    assert len(set(apart)) == 7  # also over the few levels of a sampler


def test_times_and_the_last_estimate_are_turned_along() -> None:
    x = torch.arange(21.0).reshape(3, 7, 1)
    times = (x[..., 0] / 21).double()
    turned_alike = Looped(_Of(lambda x, t, previous: x / 21 - t[..., None] + previous), LENGTHS)
    assert torch.allclose(turned_alike(x, times, None, 2 * x).x0, 2 * x.double())
    per_sample = Looped(_Of(lambda x, t, previous: x + t[:, None, None]), LENGTHS)
    assert torch.allclose(
        per_sample(x, torch.tensor([0.1, 0.2, 0.3])).x0, x + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    )


class _Identity(type(SAMPLERS.build("ddim"))):  # type: ignore[misc]
    """Leaves x as it is: what comes out is the start."""

    def __init__(self) -> None:
        super().__init__(1)

    def step(
        self, denoise: object, x: Tensor, coefficients: object, state: object, noise: object
    ) -> tuple[Tensor, object]:
        return x, state
