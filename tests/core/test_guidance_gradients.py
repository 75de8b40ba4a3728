"""Classifier and energy guidance against exact posteriors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.guidance import ENERGIES, GUIDANCE, CFGPlusPlus, Classifier, ClassifierFree, EnergyGuidance
from noiseloom.core.registry import UnknownName
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samples import product
from noiseloom.core.schedules import SCHEDULES
from tests.core.test_guidance_registry import HALF, Toy, labels, noisy
from tests.oracles import Gaussian, Mixture, exact_denoiser

PRIOR, ERROR, SEEN = Gaussian(0.5), 0.1, 1.0  # x0 is N(0, 0.25), and 1 = x0 + N(0, 0.01) has been seen
POSTERIOR = Gaussian(0.009615384615384616**0.5, 0.9615384615384616)
SCHEDULED = [SCHEDULES.build(name) for name in ("flow", "vp", {"name": "edm", "sigma_max": 80.0})]


def likelihood(schedule: Any) -> Any:
    """log p(y | x_t): y is normal with mean E[x0 | x_t] and variance Var[x0 | x_t] + ERROR^2."""

    def log_prob(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        alpha, sigma = (v.reshape(-1, 1) if v.ndim else v for v in schedule.alpha_sigma(t))
        variance = PRIOR.std**2 * sigma**2 / PRIOR.variance(alpha, sigma) + ERROR**2
        return (-((SEEN - PRIOR.x0(x, alpha, sigma)) ** 2) / (2 * variance)).sum(1)

    return log_prob


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_a_gaussian_prior_and_likelihood_give_the_exact_posterior(schedule: Any) -> None:
    denoise = exact_denoiser(PRIOR, schedule)
    guided = Classifier(denoise, likelihood(schedule))
    x, t = torch.linspace(-2, 2, 7).double()[:, None], torch.linspace(0.02, 0.98, 7).double()
    alpha, sigma = (v[:, None] for v in schedule.alpha_sigma(t))
    assert torch.allclose(guided(x, t).x0, POSTERIOR.x0(x, alpha, sigma), atol=1e-9)
    grid = make_grid({"name": "karras", "sigma_min": 1e-3}, 60, schedule)
    start = torch.tensor([[-1.0], [0.5]], dtype=torch.float64) * float(schedule.alpha_sigma(grid[0])[1])
    for step in sample(SAMPLERS.build("dpmpp_3s"), guided, start, grid, schedule=schedule):
        x = step.x
    expected = POSTERIOR.flow_map(start, schedule, grid[0], grid[-1])
    assert torch.allclose(x, expected, atol=2e-3 * POSTERIOR.std)


def test_the_classifier_of_a_mixture_makes_its_component() -> None:
    """p(x) p(c | x) is the class: the score of the mixture and that of the class's probability add up to its own."""
    data, schedule = Mixture(), SCHEDULED[0]

    def log_prob(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        alpha, sigma = (v.expand_as(x) for v in schedule.alpha_sigma(t))
        _, _, joint = data._components(x, alpha, sigma)
        return torch.log_softmax(joint, -1)[..., 1].sum(1)

    def mixture(x: Tensor, t: Tensor) -> Tensor:
        return data.x0(x, *(v.expand_as(x) for v in schedule.alpha_sigma(t)))

    x, t = torch.linspace(-2, 2, 9).double()[:, None], torch.tensor(0.4).double()
    own = Gaussian(data.stds[1], data.means[1]).x0(x, *schedule.alpha_sigma(t))
    for name in (None, 1.0):
        denoise = FunctionDenoiser(mixture, schedule)
        guided = Classifier(denoise, log_prob) if name is None else Classifier(denoise, log_prob, scale=name)
        assert torch.allclose(guided(x, t).x0, own, atol=1e-9)
    plain = mixture(x, t)
    assert torch.allclose(Classifier(denoise, log_prob, scale=3.0)(x, t).x0, plain + 3 * (own - plain), atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_gradients_of_the_estimate_are_as_the_formulas_say(schedule: Any) -> None:
    """Through the denoiser: (sigma^2 / alpha) dx0/dx g; of x0 alone: r^2 g / (1 + w r^2 h)."""
    denoise, w = exact_denoiser(PRIOR, schedule), 0.3

    def log_prob(x0: Tensor, t: Tensor, cond: Any) -> Tensor:
        return (-((SEEN - x0) ** 2) / (2 * ERROR**2)).sum(1)

    x, t = torch.linspace(-2, 2, 5).double()[:, None], torch.linspace(0.1, 0.9, 5).double()
    alpha, sigma = (v[:, None] for v in schedule.alpha_sigma(t))
    plain = PRIOR.x0(x, alpha, sigma)
    uphill, slope = (SEEN - plain) / ERROR**2, alpha * PRIOR.std**2 / PRIOR.variance(alpha, sigma)
    r2 = sigma**2 / (alpha**2 + sigma**2)
    for gradient, factor in (("through", sigma**2 / alpha * slope), ("x0", r2 / (1 + w * r2 / ERROR**2))):
        with torch.no_grad():
            out = Classifier(denoise, log_prob, w, gradient=gradient)(x, t)  # type: ignore[arg-type]
        assert torch.allclose(out.x0, plain + w * factor * uphill)
        assert not out.x0.requires_grad


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_of_unit_normal_data_a_normal_energy_gives_the_exact_posterior(schedule: Any) -> None:
    """The variance of x0 given x_t is r^2 then. Posterior: precision 1 + w / ERROR^2; each element by itself."""
    w, denoise = 0.5, exact_denoiser(Gaussian(1.0), schedule)
    guided = EnergyGuidance(denoise, lambda x0, cond: ((x0 - SEEN) ** 2).flatten(1).sum(1) / (2 * ERROR**2), w)
    variance = 1 / (1 + w / ERROR**2)
    posterior = Gaussian(variance**0.5, variance * w / ERROR**2 * SEEN)
    x, t = noisy(5), torch.linspace(0.1, 0.9, 5).double()
    alpha, sigma = (v[:, None, None] for v in schedule.alpha_sigma(t))
    assert torch.allclose(guided(x, t).x0, posterior.x0(x, alpha, sigma))


def test_a_linear_energy_moves_the_mean_and_a_hill_is_no_obstacle() -> None:
    """exp(-2 x) moves a unit normal by -2; where an energy bends down there is nothing to slow the way."""
    schedule = SCHEDULED[0]
    denoise, x = exact_denoiser(Gaussian(1.0), schedule), noisy()
    linear = EnergyGuidance(denoise, lambda x0, cond: 2 * x0.flatten(1).sum(1))
    assert torch.allclose(linear(x, HALF).x0, Gaussian(1.0, -2.0).x0(x, *schedule.alpha_sigma(HALF)))
    hill = EnergyGuidance(denoise, lambda x0, cond: -(x0**2).flatten(1).sum(1) / 2)
    assert torch.allclose(hill(x, HALF).x0, 1.5 * denoise(x, HALF).x0)


def test_an_energy_falls_as_its_scale_rises() -> None:
    def energy(x0: Tensor, cond: Any) -> Tensor:
        return ((x0 - 0.2) ** 2).flatten(1).sum(1)

    x, ends = torch.zeros(8, 3, 2).double(), []
    for scale in (0.0, 1.0, 100.0):
        out = generate(EnergyGuidance(Toy(), energy, scale), x, cond=labels(8), seeds=0, steps=20)
        ends.append(float(energy(out, None).mean()))
    assert ends[0] > 1.5 * ends[1] > 1.5 * ends[2]


def test_nothing_is_added_without_signal_and_to_known_elements() -> None:
    guided = Classifier(Toy(), lambda x, t, cond: x.flatten(1).sum(1))
    x, t = noisy(2), torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
    moved = (guided(x, t, labels(2)).x0 - Toy()(x, t, labels(2)).x0)[..., 0]
    assert torch.allclose(moved, torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]).double())


def test_products_and_parts_that_a_log_probability_does_not_see() -> None:
    x = product({"p": noisy(), "q": noisy(seed=3)})
    guided = Classifier(Toy(), lambda x, t, cond: -(x["p"] ** 2).flatten(1).sum(1))
    out, plain = guided(x, HALF, labels(4)).x0, Toy()(x, HALF, labels(4)).x0
    assert torch.allclose(out["p"], plain["p"] - x["p"])  # sigma^2 / alpha = 1/2, times 2 x
    assert torch.equal(out["q"], plain["q"])


def test_energies_around_guidance() -> None:
    """Around classifier-free guidance it is the guided estimate that has an energy; a start that moves stays moved."""
    x, energy = noisy(), lambda x0, cond: (x0**2).flatten(1).sum(1) / 2
    inner = ClassifierFree(Toy(), 3.0)
    before = inner(x, HALF, labels(4)).x0
    out = EnergyGuidance(inner, energy, 1.0)(x, HALF, labels(4)).x0  # type: ignore[arg-type]
    assert torch.allclose(out, before * 2 / 3)
    for gradient in ("x0", "through"):
        moved = EnergyGuidance(CFGPlusPlus(Toy()), energy, 1.0, gradient)(x, HALF, labels(4))  # type: ignore[arg-type]
        assert torch.allclose(moved.shift, CFGPlusPlus(Toy())(x, HALF, labels(4)).shift)


def test_a_gradient_goes_through_guidance_by_gradients() -> None:
    """Two energies, each through the denoiser: the outer one's reaches x through the inner one's estimate."""
    data = Gaussian(0.5)
    x, slope = noisy(), 0.5 * 0.25 / float(data.variance(HALF, HALF))
    denoise: Any = exact_denoiser(data, SCHEDULED[0])
    energy: Any = lambda x0, cond: (x0**2).flatten(1).sum(1) / 2  # noqa: E731
    for gradient in ("x0", "through"):
        inner = EnergyGuidance(denoise, energy, 1.0, gradient)  # type: ignore[arg-type]
        before = inner(x, HALF).x0
        with torch.no_grad():
            out = EnergyGuidance(inner, energy, 1.0, "through")(x, HALF)
        # The steps of an inner energy are held fixed: dx0/dx is the denoiser's own.
        assert torch.allclose(out.x0, before - 0.5 * slope * before)
        assert not out.x0.requires_grad


def test_energies_by_name() -> None:
    if "test-square" not in ENERGIES:

        @ENERGIES.register("test-square")
        class Square:
            def __init__(self, centre: float = 0.0, modality: Any = None) -> None:
                self.centre, self.modality = centre, modality

            def __call__(self, x0: Tensor, cond: Any) -> Tensor:
                return ((x0 - self.centre) ** 2).flatten(1).sum(1)

    x, spec = noisy(), {"name": "test-square", "centre": 0.5}
    energy = GUIDANCE.build({"name": "energy", "energy": spec}, denoise=Toy(), modality="sound")
    same = GUIDANCE.build({"name": "classifier", "log_prob": spec, "gradient": "x0"}, denoise=Toy(), modality="sound")
    direct = EnergyGuidance(Toy(), lambda x0, cond: ((x0 - 0.5) ** 2).flatten(1).sum(1))
    for guided in (energy, same):
        assert torch.equal(guided(x, HALF, labels(4)).x0, direct(x, HALF, labels(4)).x0)
    with pytest.raises(UnknownName, match="unknown energy 'test-sqare'"):
        GUIDANCE.build({"name": "energy", "energy": "test-sqare"}, denoise=Toy())
    with pytest.raises(ValueError, match="gradient must be"):
        EnergyGuidance(Toy(), spec, gradient="x1")  # type: ignore[arg-type]
