"""Posterior sampling against exact posteriors: normal data in closed form, a mixture by quadrature."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser, implied_noise
from noiseloom.core.guidance import GUIDANCE
from noiseloom.core.measurements import MEASUREMENTS
from noiseloom.core.posterior import POSTERIORS, Linearised, conjugate_gradients
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samples import Sample, map_parts, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from tests.core.toy_modality import pipeline
from tests.oracles import Gaussian, Mixture, exact_denoiser

FLOW = SCHEDULES.build("flow")
COUNT = 4096


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Normal:
    """N(mean, covariance) in n dimensions, with its exact denoiser and posteriors of linear measurements."""

    def __init__(self, n: int, seed: int = 3) -> None:
        root = seeded(n, n, seed=seed)
        self.mean, self.covariance = seeded(n, seed=seed + 1), root @ root.T / n + 0.05 * torch.eye(n).double()

    def denoiser(self, schedule: Schedule) -> FunctionDenoiser:
        def x0(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = schedule.alpha_sigma(t)
            return self.given(x, alpha * torch.eye(len(self.mean)).double(), float(sigma))[0]

        return FunctionDenoiser(x0, schedule)

    def given(self, y: Tensor, a: Tensor, sigma_y: float) -> tuple[Tensor, Tensor]:
        """Mean (batch, n) and covariance of x0 given y = A x0 + sigma_y noise."""
        seen = a @ self.covariance @ a.T + sigma_y**2 * torch.eye(len(a)).double()
        gain = torch.linalg.solve(seen, a @ self.covariance).T
        return self.mean + (y - self.mean @ a.T) @ gain.T, self.covariance - gain @ a @ self.covariance


def exactly(mean: Tensor, covariance: Tensor, samples: Tensor) -> None:
    """Means, and all covariances, within 3 standard errors."""
    n = len(samples)
    apart = samples - samples.mean(0)
    found = apart.T @ apart / (n - 1)
    variance = covariance.diagonal()
    assert bool(((samples.mean(0) - mean).abs() < 3 * torch.sqrt(variance / n)).all())
    errors = torch.sqrt((covariance**2 + variance[:, None] * variance) / (n - 1))
    assert bool(((found - covariance).abs() < 3 * errors).all())


# The estimate itself


@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_mmps_is_the_posterior_mean_of_any_normal_data(schedule: str, sigma_y: float) -> None:
    """Of x0 given x_t and y together, by a rectangular A that sees 3 combinations of 5 numbers."""
    data, built, a = Normal(5), SCHEDULES.build(schedule), seeded(3, 5, seed=8)
    x, y, measurement = seeded(4, 5, seed=1), seeded(4, 3, seed=2), MEASUREMENTS.build({"name": "linear", "matrix": a})
    options = {"name": "mmps", "sigma_y": sigma_y, "iterations": 12}
    denoise = POSTERIORS.build(options, denoise=data.denoiser(built), y=y, measurement=measurement)
    for level in (-6.0, 0.0, 6.0):
        t = built.time_of_log_snr(level)
        alpha, sigma = built.alpha_sigma(t)
        exact = max(sigma_y, 1e-6)
        both = torch.cat([a / exact, alpha / sigma * torch.eye(5).double()])  # y / sigma_y and x_t / sigma: noise of 1
        expected = data.given(torch.cat([y / exact, x / sigma], 1), both, 1.0)[0]
        estimate = denoise(x, t)
        assert torch.allclose(estimate.x0, expected, atol=1e-6)
        assert torch.allclose(estimate.noise, (x - alpha * expected) / sigma, atol=1e-6 / float(sigma))
        assert not estimate.x0.requires_grad


@pytest.mark.parametrize("schedule", ["flow", "vp", "edm"])
def test_pigdm_is_the_posterior_mean_where_the_covariance_is_a_number(schedule: str) -> None:
    built, a = SCHEDULES.build(schedule), seeded(2, 4, seed=8)
    data = Normal(4)
    data.covariance = 0.25 * torch.eye(4).double()
    x, y, measurement = seeded(3, 4, seed=1), seeded(3, 2, seed=2), MEASUREMENTS.build({"name": "linear", "matrix": a})
    told = {"denoise": data.denoiser(built), "y": y, "measurement": measurement}
    denoise = POSTERIORS.build({"name": "pigdm", "sigma_y": 0.3, "std": 0.5}, **told)
    for level in (-6.0, 0.0, 6.0):
        t = built.time_of_log_snr(level)
        alpha, sigma = built.alpha_sigma(t)
        scaled = torch.cat([a / 0.3, alpha / sigma * torch.eye(4).double()])
        expected = data.given(torch.cat([y / 0.3, x / sigma], 1), scaled, 1.0)[0]
        assert torch.allclose(denoise(x, t).x0, expected, atol=1e-9)
    other = POSTERIORS.build({"name": "pigdm", "sigma_y": 0.3, "std": 1.0}, **told)  # another r is another estimate
    assert not torch.allclose(other(x, 0.4).x0, denoise(x, 0.4).x0, atol=1e-3)


def test_pigdm_measures_the_size_of_the_data() -> None:
    """For each sample by itself the one that makes the measurement as large as y, over its noise."""
    x, measurement = seeded(2, 6), MEASUREMENTS.build({"name": "downsample", "factor": 2})
    y = torch.tensor([[3.0, 0.0, 1.0], [0.4, 0.5, -0.3]], dtype=torch.float64)
    told = {"denoise": exact_denoiser(Gaussian(0.5), FLOW), "measurement": measurement}
    times = torch.tensor([[0.4, 0.4, 0.4, 0.4, 0.9, 0.9]], dtype=torch.float64)
    measured = POSTERIORS.build({"name": "pigdm", "sigma_y": 0.1}, y=y, **told)
    for row in range(2):
        std = math.sqrt((float(y[row].square().sum()) - 0.03) / 1.5)
        one = POSTERIORS.build({"name": "pigdm", "sigma_y": 0.1, "std": std}, y=y[row : row + 1], **told)
        for t in (0.4, times):
            assert torch.allclose(measured(x, t).x0[row], one(x[row : row + 1], t).x0[0])


# 4,096 samples


@pytest.mark.parametrize("spec", [{"name": "pigdm", "std": 0.5}, "mmps"], ids=str)
@pytest.mark.parametrize("schedule", ["flow", "edm", "vp"])
def test_the_posterior_of_a_number(spec: Any, schedule: str) -> None:
    """Prior N(0, 1/4), y = x + n, sigma_y = 0.1, y = 1: the posterior is N(.961538462, .009615385)."""
    built = SCHEDULES.build(schedule)
    named = {"sigma_y": 0.1, **(spec if isinstance(spec, dict) else {"name": spec})}
    y = torch.ones(COUNT, 1, dtype=torch.float64)
    told = {"denoise": exact_denoiser(Gaussian(0.5), built), "y": y, "measurement": lambda x0: x0}
    grid = {"name": "log_snr", "high": 12.0}
    made = generate(POSTERIORS.build(named, **told), y, sampler="dpmpp_3m", grid=grid, steps=40, seeds=0)
    exactly(torch.tensor([0.961538462]), torch.tensor([[0.009615385]]), made)


@pytest.mark.parametrize("sampler", ["dpmpp_3m", "dpmpp_3m_sde"])
def test_the_posterior_of_correlated_numbers(sampler: str) -> None:
    data, a = Normal(4), seeded(2, 4, seed=9)
    y = torch.tensor([[1.0, -0.5]], dtype=torch.float64).expand(COUNT, 2)
    measurement = MEASUREMENTS.build({"name": "linear", "matrix": a})
    denoise = POSTERIORS.build(
        {"name": "mmps", "sigma_y": 0.2}, denoise=data.denoiser(FLOW), y=y, measurement=measurement
    )
    steps = 60 if sampler == "dpmpp_3m_sde" else 30
    grid = {"name": "log_snr", "low": -12.0, "high": 12.0}
    x = torch.zeros(COUNT, 4, dtype=torch.float64)
    made = generate(denoise, x, sampler=sampler, grid=grid, steps=steps, seeds=1)
    mean, covariance = data.given(y[:1], a, 0.2)
    exactly(mean[0], covariance, made)


@pytest.mark.parametrize("zeta, mean, variance", [(0.05, 0.605, 0.139), (0.2, 0.997, 0.0134)])
def test_dps_is_biased(zeta: float, mean: float, variance: float) -> None:
    """The same posterior. Small steps leave most of the prior: a mean .36 too low, a variance 14 times too large. Large
    ones end at the measurement, y = 1: a mean .035, or 23 standard errors, too high, and the steps' own variance."""
    linear = SCHEDULES.build({"name": "linear", "levels": 100, "beta_end": 0.2})
    y = torch.ones(COUNT, 1, dtype=torch.float64)
    told = {"denoise": exact_denoiser(Gaussian(0.5), linear), "y": y, "measurement": lambda x0: x0}
    denoise = POSTERIORS.build({"name": "dps", "zeta": zeta, "levels": 100}, **told)
    made = generate(denoise, y, sampler="ddpm", steps=100, seeds=0)
    assert float(made.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / COUNT))
    assert float(made.var()) == pytest.approx(variance, rel=0.1)
    assert abs(float(made.mean()) - 0.961538) > 20 * math.sqrt(0.009615 / COUNT)


def test_dps_is_the_published_algorithm() -> None:
    """Ancestral steps, each followed by a move of zeta along the gradient of the residual's norm."""
    levels, zeta, a = 20, 0.3, seeded(2, 3, seed=5)
    schedule = SCHEDULES.build({"name": "linear", "levels": levels, "beta_end": 0.5})
    prior, y = Normal(3).denoiser(schedule), seeded(2, 2, seed=6)
    denoise = POSTERIORS.build(
        {"name": "dps", "zeta": zeta, "levels": levels}, denoise=prior, y=y, measurement=lambda x0: x0 @ a.T
    )
    alphas = torch.cat([torch.ones(1).double(), schedule.alpha(torch.arange(1, levels + 1).double() / levels)]) ** 2
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    noises = [torch.stack([torch.randn(3, generator=g) for g in generators]).double() for _ in range(levels + 1)]
    x = noises[0]
    for i in range(levels, 0, -1):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = prior(x, i / levels).x0
            norms = (y - x0 @ a.T).norm(dim=1)
            (gradient,) = torch.autograd.grad(norms.sum(), x)
        here, before = alphas[i], alphas[i - 1]
        beta = 1 - here / before
        mean = before.sqrt() * beta / (1 - here) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - here) * x
        spread = torch.sqrt(beta * (1 - before) / (1 - here))
        x = (mean + spread * noises[levels + 1 - i] - zeta * gradient).detach()
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    begun = torch.stack([torch.randn(3, generator=g) for g in generators]).double()
    grid = torch.linspace(1, 0, levels + 1, dtype=torch.float64)
    with torch.no_grad():
        for step in sample(SAMPLERS.build("ddpm"), denoise, begun, grid, schedule=schedule, generators=generators):
            ours = step.x
    assert torch.allclose(ours, x, atol=1e-9)


def test_the_posterior_of_a_mixture_by_quadrature() -> None:
    """Between the two modes neither is exact: MMPS, which knows the covariance at each x, errs by .013 in the mean and
    by .009 in the standard deviation (.096); PiGDM, with the prior's one variance, makes the latter 80 % too large."""
    data, sigma_y = Mixture(), 0.1
    alpha, sigma = torch.ones(1).double(), torch.zeros(1).double()
    places = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    weights = torch.softmax(data.log_density(places, alpha, sigma) - (places / sigma_y) ** 2 / 2, 0)
    mean = float((weights * places).sum())
    std = math.sqrt(float((weights * (places - mean) ** 2).sum()))
    y = torch.zeros(COUNT, 1, dtype=torch.float64)
    error = {}
    for name, own in (("pigdm", {"std": math.sqrt(0.63535)}), ("mmps", {})):
        options = {"name": name, "sigma_y": sigma_y, **own}
        denoise = POSTERIORS.build(options, denoise=exact_denoiser(data, FLOW), y=y, measurement=lambda x0: x0)
        made = generate(denoise, y, sampler="dpmpp_2m", steps=60, seeds=0)
        error[name] = float(made.mean()) - mean, float(made.std()) - std
    assert max(map(abs, error["mmps"])) < 0.02
    assert abs(error["pigdm"][0]) < 0.02
    assert error["pigdm"][1] == pytest.approx(0.8 * std, rel=0.15)


# Products, known elements, other measurements


def parted(schedule: Schedule) -> FunctionDenoiser:
    """Two parts of independent normal numbers."""
    denoise = exact_denoiser(Gaussian(0.5), schedule)
    return FunctionDenoiser(lambda x, t: map_parts(lambda part: denoise(part, t).x0, x), schedule)


@pytest.mark.parametrize("name", ["pigdm", "mmps", "dps"])
def test_products_are_measured_across_their_parts(name: str) -> None:
    """y is the sum of a number of each part: their exact posterior, or for DPS the same as of one tensor."""
    x, y = product({"a": seeded(3, 2), "b": seeded(3, 1, 2, seed=1)}), seeded(3, 2, seed=2)
    options = {"name": name, **({} if name == "dps" else {"sigma_y": 0.3}), **({"std": 0.5} if name == "pigdm" else {})}
    ours = POSTERIORS.build(
        options, denoise=parted(FLOW), y=y, measurement=lambda x0: x0["a"] + x0["b"][:, 0]
    )(x, 0.4)  # fmt: skip
    whole = torch.cat([x["a"], x["b"][:, 0]], 1)
    theirs = POSTERIORS.build(
        options, denoise=exact_denoiser(Gaussian(0.5), FLOW), y=y, measurement=lambda x0: x0[:, :2] + x0[:, 2:]
    )(whole, 0.4)
    for found, wanted in ((ours.x0, theirs.x0), (ours.noise, theirs.noise)):
        assert torch.allclose(found["a"], wanted[:, :2])
        assert torch.allclose(found["b"][:, 0], wanted[:, 2:])
    if name != "dps":
        variance = 0.16 * 0.25 / (0.36 * 0.25 + 0.16)  # of x0 given x_t
        prior = exact_denoiser(Gaussian(0.5), FLOW)(whole, torch.tensor(0.4, dtype=torch.float64)).x0
        gain = variance / (2 * variance + 0.09) * (y - prior[:, :2] - prior[:, 2:])
        assert torch.allclose(theirs.x0, prior + torch.cat([gain, gain], 1))


def test_a_part_that_is_not_measured_is_left_alone() -> None:
    x, y = product({"a": seeded(3, 2), "b": seeded(3, 4, seed=1)}), seeded(3, 2, seed=2)
    prior = parted(FLOW)
    ours = POSTERIORS.build("mmps", denoise=prior, y=y, measurement=lambda x0: x0["a"])(x, 0.4)
    assert torch.equal(ours.x0["b"], prior(x, torch.tensor(0.4, dtype=torch.float64)).x0["b"])
    assert not torch.allclose(ours.x0["a"], prior(x, torch.tensor(0.4, dtype=torch.float64)).x0["a"], atol=1e-2)


@pytest.mark.parametrize("name", ["pigdm", "mmps", "dps"])
def test_times_per_element_and_known_ones(name: str) -> None:
    """An element at t = 0 stays; the others are moved as they would be without it, where nothing connects them."""
    x, y = seeded(2, 3), seeded(2, 3, seed=2)
    times = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]], dtype=torch.float64)
    options = {"denoise": exact_denoiser(Gaussian(0.5), FLOW), "measurement": lambda x0: x0}
    ours = POSTERIORS.build(name, y=y, **options)(x, times)
    assert torch.equal(ours.x0[times == 0], x[times == 0])
    if name != "dps":  # whose step is as long whatever the residual
        free = POSTERIORS.build(name, y=y, **options)(x, 0.5)
        assert torch.allclose(ours.x0[times > 0], free.x0[times > 0])
    pure = POSTERIORS.build(name, y=y, **options)(x, 1.0)  # alpha = 0
    assert torch.equal(pure.x0, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["pigdm", "mmps", "dps"])
def test_copies_of_a_batch_are_measured_alike(name: str) -> None:
    data, x, a = Normal(5), seeded(4, 5), seeded(3, 5, seed=8)
    told = {"denoise": data.denoiser(FLOW), "y": seeded(2, 3, seed=2), "measurement": lambda x0: x0 @ a.T}
    denoise = POSTERIORS.build(name, **told)
    both = [denoise(part, 0.3).x0 for part in x.split(2)]
    assert torch.allclose(denoise(x, 0.3).x0, torch.cat(both), rtol=1e-12)


def test_what_is_guided_agrees_with_the_measurement() -> None:
    """Guidance around a posterior: of both estimates the measurement is y, and so it is of what they lead to."""

    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        alpha, sigma = FLOW.alpha_sigma(torch.as_tensor(t))
        x0 = Gaussian(0.5).x0(x - alpha * cond["mean"].nan_to_num(), alpha, sigma) + cond["mean"].nan_to_num()
        return Estimate(x0, lambda: implied_noise(x, x0, t, FLOW))

    y, measurement = seeded(3, 2), MEASUREMENTS.build("downsample")
    told = {"denoise": denoise, "y": y, "measurement": measurement, "schedule": FLOW}
    given = POSTERIORS.build({"name": "mmps", "sigma_y": 0.0}, **told)
    guided = GUIDANCE.build({"name": "classifier_free", "scale": 5.0}, denoise=given)
    cond = {"mean": torch.ones(3, 1, dtype=torch.float64)}
    made = generate(guided, torch.zeros(3, 4, dtype=torch.float64), cond=cond, steps=20, seeds=0)
    assert torch.allclose(measurement(made), y, atol=1e-6)


@pytest.mark.parametrize("name", ["pigdm", "mmps", "dps"])
def test_samples_do_not_depend_on_their_batch(name: str) -> None:
    data, x, y = Normal(5), seeded(4, 5), seeded(4, 3, seed=2)
    y[1] *= 100
    a = seeded(3, 5, seed=8)

    def estimate(rows: slice) -> Sample:
        told = {"denoise": data.denoiser(FLOW), "y": y[rows], "measurement": lambda x0: x0 @ a.T}
        return POSTERIORS.build(name, **told)(x[rows], 0.3).x0

    for row in range(4):
        assert torch.allclose(estimate(slice(0, 4))[row], estimate(slice(row, row + 1))[0], rtol=1e-12)


def test_a_nonlinear_measurement_is_followed() -> None:
    """The magnitudes of a signal's spectrum, known but for little noise: samples have them."""
    measurement = MEASUREMENTS.build("magnitude")
    clean = 0.5 * seeded(1, 8, seed=3).expand(64, 8)
    y = measurement(clean)
    denoise = exact_denoiser(Gaussian(0.5), FLOW)
    made = generate(denoise, clean, seeds=0, steps=60)
    before = float((measurement(made) - y).abs().mean())
    for name, most in (("mmps", 0.1), ("pigdm", 0.1), ("dps", 0.5)):
        options = {"name": name, **({"zeta": 0.05} if name == "dps" else {"sigma_y": 0.01})}
        given = POSTERIORS.build(options, denoise=denoise, y=y, measurement=measurement)
        made = generate(given, clean, seeds=0, steps=60)
        after = float((measurement(made) - y).abs().mean())
        assert after < most * before


# Measurements


def test_measurements() -> None:
    x = torch.arange(24.0).reshape(2, 4, 3)
    build = MEASUREMENTS.build
    assert build({"name": "mask", "known": [[True, False, True, False]]})(x)[:, 1::2].abs().sum() == 0
    assert torch.equal(build({"name": "mask", "known": [[1, 0, 1, 0]]})(x)[:, ::2], x[:, ::2])
    assert torch.equal(build({"name": "every", "step": 3})(x), x[:, ::3])
    assert torch.equal(build({"name": "every", "axis": 2, "start": 1, "step": 1, "stop": 2})(x), x[:, :, 1:2])
    assert torch.equal(build("downsample")(x), (x[:, ::2] + x[:, 1::2]) / 2)
    assert torch.equal(build({"name": "downsample", "factor": [2, 3]})(x)[:, :, 0], x.reshape(2, 2, 6).mean(2))
    assert build({"name": "downsample", "factor": 3})(x).shape == (2, 1, 3)
    matrix = torch.arange(24.0).reshape(2, 12)
    assert torch.equal(build({"name": "linear", "matrix": matrix.tolist()})(x), x.flatten(1) @ matrix.T)
    assert torch.allclose(build({"name": "blur", "width": [0, 2.0]})(torch.ones(1, 3, 5)), torch.ones(1, 3, 5))
    point = torch.zeros(1, 41)
    point[0, 20] = 1
    spread = build({"name": "blur", "width": 2.0})(point)[0]
    places = torch.arange(41.0)
    assert float((spread * (places - 20) ** 2).sum()) == pytest.approx(4.0, rel=1e-3)
    assert torch.allclose(build("magnitude")(x), build("magnitude")(x.roll(1, 1)), atol=1e-5)
    both = build("downsample")(product({"a": x, "b": x[:, :2]}))
    assert torch.equal(both["b"], both["a"][:, :1])


def test_automatic_adjoints_are_the_matrices() -> None:
    """On a linear measurement and a linear denoiser: A v, A^T u and J^T w as matrices; of a nonlinear one about x0."""
    a, j, x = seeded(2, 5), seeded(5, 5, seed=1), seeded(3, 5, seed=2).requires_grad_()
    u, v = seeded(3, 2, seed=3), seeded(3, 5, seed=4)
    at = Linearised(x, x @ j.T, lambda x0: x0 @ a.T, seeded(3, 2, seed=5))
    for _ in range(2):  # the graph is kept
        assert torch.allclose(at.forward(v), v @ a.T)
        assert torch.allclose(at.adjoint(u), u @ a)
        assert torch.allclose(at.pulled(v), v @ j)
    x0 = (x @ j.T).detach()
    at = Linearised(x, x @ j.T, lambda x0: (x0**2) @ a.T, seeded(3, 2, seed=5))
    assert torch.allclose(at.forward(v), (2 * x0 * v) @ a.T)
    assert torch.allclose(at.adjoint(u), 2 * x0 * (u @ a))


def test_conjugate_gradients_solve_each_row_by_itself() -> None:
    root = seeded(3, 6, 6)
    matrices = root @ root.mT + 0.1 * torch.eye(6).double()
    b = seeded(3, 6, seed=1)
    b[2] = 0
    u = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, 60, tolerance=1e-12)
    assert torch.allclose((matrices @ u[..., None])[..., 0], b, atol=1e-8)
    assert not u[2].any()
    matrices[0] *= -1  # not positive: left at 0, the others solved
    u = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, 60, tolerance=1e-12)
    assert not u[0].any()
    assert torch.allclose((matrices @ u[..., None])[1:, :, 0], b[1:], atol=1e-8)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("nearest", "Choices: dps, mmps, pigdm"),
        ({"name": "mmps", "iterations": 0}, "iteration"),
        ({"name": "pigdm", "std": 0.0}, "std"),
        ({"name": "pigdm", "sigma_y": -1.0}, "sigma_y"),
        ({"name": "dps", "levels": 0}, "levels"),
        ({"name": "dps", "sigma_y": 1.0}, "no option 'sigma_y'"),
    ],
)
def test_wrong_options_are_refused(spec: Any, message: str) -> None:
    told = {"denoise": exact_denoiser(Gaussian(0.5), FLOW), "y": torch.zeros(1, 2), "measurement": lambda x0: x0}
    with pytest.raises(ValueError, match=message):
        POSTERIORS.build(spec, **told)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="the measurement of a sample"):
        POSTERIORS.build(
            "mmps",
            denoise=exact_denoiser(Gaussian(0.5), FLOW),
            y=torch.zeros(2, 3),
            measurement=MEASUREMENTS.build("downsample"),
        )(torch.zeros(2, 4), 0.5)
    for wrong in ({"name": "downsample", "factor": 0}, {"name": "blur", "width": -1.0}, {"name": "every", "step": 0}):
        with pytest.raises(ValueError):
            MEASUREMENTS.build(wrong)
    with pytest.raises(ValueError, match="no block of 5"):
        MEASUREMENTS.build({"name": "downsample", "factor": 5})(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="needs a schedule"):
        POSTERIORS.build("mmps", denoise=lambda x, t: x, y=torch.zeros(1), measurement=lambda x0: x0)


# In a pipeline


def test_a_pipeline_measures_its_input() -> None:
    """The toy's input is a row of sevens, of which every second one is seen; padding is not."""
    pipe = pipeline()
    pipe.modality.from_input = {}
    told: Any = {"posterior": {"name": "mmps", "sigma_y": 0.01}, "measurement": {"name": "every", "step": 2}}
    options: Any = {"count": 6, "progress": False, "steps": 20, "seed": 3}
    free, made = pipe.sample(**options), pipe.sample(**options, **told)
    assert {len(row) for row in made} > {2}
    for row, before in zip(made, free, strict=True):
        assert row[::2] == pytest.approx([7.0] * len(row[::2]), abs=0.1)
        assert row[1::2] == pytest.approx(before[1::2], abs=1e-4)
    for row in pipe.sample(guidance=3.0, level=2.0, **options, **told):
        assert row[::2] == pytest.approx([7.0] * len(row[::2]), abs=0.2)
    for wrong, message in (
        ({"posterior": "mmps"}, "go together"),
        ({"measurement": "every"}, "go together"),
        ({**told, "posterior": "exact"}, "Choices: dps, mmps, pigdm"),
        ({**told, "measurement": {"name": "every", "steps": 1}}, "no option 'steps'"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.sample(**options, **wrong)
    del pipe.modality.from_input
    with pytest.raises(ValueError, match="posterior is for an input"):
        pipe.sample(**options, **told)
