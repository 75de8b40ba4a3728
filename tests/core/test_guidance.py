"""Guidance against closed forms on Gaussians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.guidance import GUIDANCE, Autoguidance, ClassifierFree, PerCondition
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samples import product
from noiseloom.core.schedules import SCHEDULES
from tests.oracles import Gaussian, exact_denoiser

FLOW, EDM = SCHEDULES.build("flow"), SCHEDULES.build({"name": "edm", "sigma_max": 80.0})


class Conditional:
    """Gaussians: one where the condition ``label`` is given, another where it is not. Counts its calls."""

    def __init__(self, given: Gaussian, absent: Gaussian, schedule: Any) -> None:
        self.given, self.absent, self.schedule = given, absent, schedule
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None, previous: Any = None) -> Estimate:
        self.sizes.append(len(x))
        assert previous is None or len(previous) == len(x)
        alpha, sigma = self.schedule.alpha_sigma(t)
        alpha, sigma = (v.reshape(-1, 1) if v.ndim else v for v in (alpha, sigma))
        has = (cond["label"] >= 0)[:, None]
        assert "mask" not in cond or len(cond["mask"]) == len(x)
        return Estimate(torch.where(has, self.given.x0(x, alpha, sigma), self.absent.x0(x, alpha, sigma)), x)


def labels(count: int) -> dict[str, Tensor]:
    return {"label": torch.full((count,), 3)}


def test_equal_variances_give_a_shifted_gaussian() -> None:
    """Mean m0 + w (m1 - m0), standard deviation unchanged."""
    denoise = Conditional(Gaussian(0.5, 1.0), Gaussian(0.5, -0.2), FLOW)
    guided = ClassifierFree(denoise, scale=3.0)
    x = torch.zeros(3, 2, dtype=torch.float64)
    out = generate(guided, x, cond=labels(3), seeds=0, steps=400)
    plain = generate(exact_denoiser(Gaussian(0.5, -0.2 + 3 * 1.2), FLOW), x, seeds=0, steps=400)
    assert torch.allclose(out, plain, atol=1e-9)
    assert set(denoise.sizes) == {6}  # both branches in one call


@pytest.mark.parametrize("kind", ["classifier_free", "autoguidance"])
def test_unequal_standard_deviations(kind: str) -> None:
    """From sigma = T: T (sc / sqrt(sc^2 + T^2))^w (su / sqrt(su^2 + T^2))^(1 - w)."""
    good, weak, scale, top = Gaussian(0.5), Gaussian(1.0), 2.0, 80.0
    expected = top * (0.25 / (0.25 + top**2)) ** (scale / 2) * (1 / (1 + top**2)) ** ((1 - scale) / 2)
    assert expected == pytest.approx(0.250009764, abs=1e-9)
    if kind == "classifier_free":
        guided: Any = GUIDANCE.build({"name": kind, "scale": scale}, denoise=Conditional(good, weak, EDM))
    else:
        guided = GUIDANCE.build(
            {"name": kind, "scale": scale, "guide": exact_denoiser(weak, EDM)}, denoise=exact_denoiser(good, EDM)
        )
    grid = make_grid({"name": "karras", "sigma_min": 1e-4}, 200, EDM)
    x = torch.tensor([[top]], dtype=torch.float64)
    for step in sample(SAMPLERS.build("dpmpp_3s"), guided, x, grid, schedule=EDM, cond=labels(1)):
        out = step.x
    assert float(out) == pytest.approx(expected, rel=2e-5)


def test_scale_one_and_zero() -> None:
    given, absent = Gaussian(0.5, 1.0), Gaussian(0.7, -0.2)
    denoise = Conditional(given, absent, FLOW)
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    alpha, sigma = FLOW.alpha_sigma(0.5)
    assert torch.allclose(ClassifierFree(denoise, scale=1.0)(x, t, labels(4)).x0, given.x0(x, alpha, sigma))
    assert denoise.sizes == [4]
    assert torch.allclose(ClassifierFree(denoise, scale=0.0)(x, t, labels(4)).x0, absent.x0(x, alpha, sigma))


def test_the_noise_follows_from_x0() -> None:
    guided = ClassifierFree(Conditional(Gaussian(0.5, 1.0), Gaussian(0.7), FLOW), scale=4.0, rescale=0.5)
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    estimate = guided(x, t, labels(4))
    alpha, sigma = (v[:, None] for v in FLOW.alpha_sigma(t))
    assert torch.allclose(alpha * estimate.x0 + sigma * estimate.noise, x)


def test_the_interval_is_in_sigma_over_alpha() -> None:
    given, absent = Gaussian(0.5, 1.0), Gaussian(0.5, -0.2)
    x = torch.randn(3, 2, dtype=torch.float64)
    for schedule in (FLOW, EDM, SCHEDULES.build("vp")):
        denoise = Conditional(given, absent, schedule)
        guided = ClassifierFree(denoise, scale=3.0, interval=(0.3, 2.0))
        everywhere = ClassifierFree(denoise, scale=3.0)
        t = schedule.time_of_log_snr(-2 * torch.log(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)))
        inside, outside = everywhere(x, t, labels(3)).x0, denoise(x, t, labels(3)).x0
        assert torch.allclose(guided(x, t, labels(3)).x0, torch.stack([outside[0], inside[1], outside[2]]))
        denoise.sizes.clear()
        for one in t:
            guided(x, one, labels(3))
        assert denoise.sizes == [3, 6, 3]  # no second branch outside


def test_rescale_restores_the_standard_deviation() -> None:
    denoise = Conditional(Gaussian(0.5, 1.0), Gaussian(2.0, -0.2), FLOW)
    x, t = torch.randn(2, 50, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    main = denoise(x, t, labels(2)).x0.std(1)
    plain = ClassifierFree(denoise, scale=5.0)(x, t, labels(2)).x0.std(1)
    for phi in (0.0, 0.7, 1.0):
        rescaled = ClassifierFree(denoise, scale=5.0, rescale=phi)(x, t, labels(2)).x0.std(1)
        assert torch.allclose(rescaled, phi * main + (1 - phi) * plain)
    # Padding does not count.
    mask = torch.arange(50).expand(2, 50) < 30
    noisy = torch.where(mask, x, 100.0)
    cut = ClassifierFree(denoise, scale=5.0, rescale=1.0)(x[:, :30], t, labels(2)).x0
    padded = ClassifierFree(denoise, scale=5.0, rescale=1.0)(noisy, t, {**labels(2), "mask": mask}).x0
    assert torch.allclose(padded[:, :30], cut)


def test_products_previous_estimates_and_kept_conditions() -> None:
    seen: dict[str, Any] = {}

    def denoise(x: Any, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        seen.update(cond=cond, previous=previous, t=t)
        given = (~cond["a"].isnan()).float()[:, None]
        return Estimate(product({name: v * given for name, v in x.items()}), x)

    x = product({"p": torch.ones(2, 3), "q": torch.ones(2, 1)})
    t = product({"p": torch.full((2, 3), 0.5).double(), "q": torch.full((2,), 0.5).double()})
    cond = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1, 2]), "mask": torch.ones(2, 3, dtype=torch.bool)}
    guided = ClassifierFree(denoise, scale=3.0, keep=("b",), schedule=FLOW)
    out = guided(x, t, cond, x).x0
    assert torch.equal(out["p"], torch.full((2, 3), 3.0))
    assert torch.equal(out["q"], torch.full((2, 1), 3.0))
    assert seen["cond"]["a"][:2].isnan().all()
    assert seen["cond"]["b"].tolist() == [1, 2, 1, 2]
    assert seen["cond"]["mask"].all()
    assert len(seen["previous"]) == len(seen["t"]) == 4


def test_guidance_that_cannot_act_is_an_error() -> None:
    denoise = FunctionDenoiser(lambda x, t: x, FLOW)
    x, t = torch.ones(2, 2), torch.tensor(0.5, dtype=torch.float64)
    for cond in (None, {}, {"mask": torch.ones(2, 2, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="condition to leave out"):
            ClassifierFree(denoise, scale=2.0)(x, t, cond)
    with pytest.raises(ValueError, match="schedule"):
        Autoguidance(lambda x, t, cond, previous: Estimate(x, x), denoise)
    for wrong in ({"interval": (2.0, 1.0)}, {"rescale": 2.0}, {"strength": 1.0}):
        with pytest.raises(ValueError):
            GUIDANCE.build({"name": "classifier_free", **wrong}, denoise=denoise)


def test_where_everything_is_to_be_kept_nothing_is_guided() -> None:
    """A recipe keeps what guides badly; data without other conditions is sampled as it is, by one call a step."""
    denoise = Conditional(Gaussian(0.5, 1.0), Gaussian(0.5, -0.2), FLOW)
    x, t = torch.ones(2, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    cond = {**labels(2), "mask": torch.ones(2, 2, dtype=torch.bool), "spacing": torch.ones(2, 1)}
    out = ClassifierFree(denoise, scale=3.0, keep=("label",))(x, t, cond)
    assert torch.equal(out.x0, denoise(x, t, cond).x0)
    assert denoise.sizes == [2, 2]
    with pytest.raises(ValueError, match="condition to leave out"):
        ClassifierFree(denoise, scale=3.0)(x, t, {"spacing": torch.ones(2, 1)})


def test_guidance_over_history_is_a_weighted_sum_of_scores() -> None:
    """History guidance (Song et al. 2025): (1 - w) of the score without the known frames and w of that with them. Of
    frames that correlate by r the next one is N(r h, 1 - r^2), or N(0, 1): both scores are linear, so is their sum."""
    r, scale = 0.6, 1.8
    given = torch.tensor([[0.7], [-1.2]], dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor, cond: Any = None, previous: Any = None) -> Estimate:
        alpha, sigma = FLOW.alpha_sigma(t)
        told = ~cond["given"].isnan()
        mean, variance = torch.where(told, r * cond["given"], 0.0), 1 - r**2 * told.double()
        return Estimate(mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean), x)

    guided: Any = GUIDANCE.build(
        {"name": "per_condition", "scales": {"given": scale}, "schedule": FLOW}, denoise=denoise
    )
    t = torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = FLOW.alpha_sigma(t)
    x = torch.randn(2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(mean: Any, variance: float) -> Tensor:
        return -(x - alpha * mean) / (alpha**2 * variance + sigma**2)

    expected = (1 - scale) * score(0.0, 1.0) + scale * score(r * given, 1 - r**2)
    x0 = guided(x, t, {"given": given, "label": torch.tensor([1, 2])}).x0
    torch.testing.assert_close((alpha * x0 - x) / sigma**2, expected)


def test_each_condition_has_its_own_scale() -> None:
    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        told = 1.0 * (cond["a"] >= 0) + 10.0 * (~cond["b"].isnan()) + 100.0 * (~cond["c"].isnan())
        return Estimate(x * 0 + told[:, None], x)

    x, t = torch.zeros(2, 3), torch.full((2,), 0.5).double()
    cond = {"a": torch.tensor([1, 2]), "b": torch.ones(2), "c": torch.ones(2)}
    guided = PerCondition(denoise, {"a": 2.0, "b": 3.0}, schedule=FLOW)
    assert torch.equal(guided(x, t, cond).x0, torch.full((2, 3), 100.0 + 2 * 1 + 3 * 10))
    same = PerCondition(denoise, {"b": 2.5, "a": 2.5}, schedule=FLOW)(x, t, cond).x0
    assert torch.allclose(same, ClassifierFree(denoise, 2.5, keep=("c",), schedule=FLOW)(x, t, cond).x0)
    with pytest.raises(ValueError, match="no condition d to guide by; given: a, b, c"):
        PerCondition(denoise, {"d": 2.0}, schedule=FLOW)(x, t, cond)
