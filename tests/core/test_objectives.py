"""Losses against their optima in closed form. Errors are quadratic in (x0, noise), so that the four corners (+-s, +-1)
give the exact expectation over x0 ~ N(0, s^2) and standard normal noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import TIME_DISTRIBUTIONS, WEIGHTINGS, Denoising, Example
from noiseloom.core.predictions import PREDICTIONS
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.samples import Sample, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Centred, Euclidean, Product
from tests.oracles import Gaussian

S = 0.5


class Function(nn.Module):
    """A network that is a formula of (x, alpha, sigma)."""

    def __init__(self, formula: Callable[..., Tensor], schedule: Schedule) -> None:
        super().__init__()
        self.formula, self.schedule = formula, schedule
        self.previous: list[Any] = []

    def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
        self.previous.append(previous)
        alpha, sigma = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in self.schedule.alpha_sigma(t))
        return self.formula(x, alpha, sigma)


def expected_loss(formula: Callable[..., Tensor], schedule: str, prediction: Any, t: Tensor, **options: Any) -> Tensor:
    """The exact expected loss at each of the times ``t``."""
    built = SCHEDULES.build(schedule)
    x0 = torch.tensor([S, S, -S, -S], dtype=torch.float64).expand(len(t), 4)
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).expand(len(t), 4)
    denoiser = Denoiser(Function(formula, built), built, prediction, sigma_data=None)
    return Denoising(**options).at(denoiser, Example(x0, Euclidean(), {}), t, noise, False).total


def test_the_edm_optimum_is_one_at_every_noise_level() -> None:
    """With sigma_data = s the best network says 0, and its loss is exactly 1."""
    edm, prediction = SCHEDULES.build("edm"), {"name": "edm", "sigma_data": S}
    t = edm.time_of_log_snr(-2 * torch.log(torch.tensor([0.002, 0.1, 0.5, 1, 10, 80], dtype=torch.float64)))
    best = expected_loss(lambda x, a, s: 0 * x, "edm", prediction, t)
    assert best.tolist() == pytest.approx([1] * 6, rel=1e-6)
    for slope in (0.05, -0.05):
        assert (expected_loss(lambda x, a, s, k=slope: k * x, "edm", prediction, t) > best).all()


def test_the_smallest_denoising_error() -> None:
    """s^2 sigma^2 / (s^2 + sigma^2) for x0, and the EDM weighting brings it to 1 as well."""
    edm, data = SCHEDULES.build("edm"), Gaussian(S)
    sigma = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    t = edm.time_of_log_snr(-2 * torch.log(sigma))
    plain = expected_loss(data.x0, "edm", "x0", t, weighting="x0")
    assert plain.tolist() == pytest.approx((S**2 * sigma**2 / (S**2 + sigma**2)).tolist(), rel=1e-6)
    assert float(plain[1]) == pytest.approx(0.2, rel=1e-6)
    weighted = expected_loss(data.x0, "edm", "x0", t, weighting={"name": "edm", "sigma_data": S})
    assert weighted.tolist() == pytest.approx([1, 1, 1], rel=1e-6)


def test_the_flow_matching_optimum() -> None:
    """s^2 / V(t), whose mean over t is s pi / 2."""
    data = Gaussian(S)

    def velocity(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma - alpha * S**2) / data.variance(alpha, sigma) * x

    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    at = expected_loss(velocity, "flow", "velocity", t)
    assert at.tolist() == pytest.approx([1.176470588, 0.8, 0.307692308], rel=1e-6)
    every = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert float(expected_loss(velocity, "flow", "velocity", every).mean()) == pytest.approx(S * math.pi / 2, rel=1e-6)
    for change in (0.05, -0.05):
        worse = expected_loss(lambda x, a, s, c=change: velocity(x, a, s) + c * x, "flow", "velocity", t)
        assert (worse > at).all()


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "output"])
def test_a_weighting_means_the_same_for_every_prediction(weighting: str) -> None:
    """One and the same estimate of x0, said in every way, has one loss: the weight times the error of x0."""
    schedule, t = SCHEDULES.build("vp"), torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64)

    def losses(name: str) -> Tensor:
        prediction = PREDICTIONS.build(name)

        def say(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:  # the output that means x0 = 0.3 x
            a, b, _, _ = prediction.coefficients(alpha, sigma)  # type: ignore[attr-defined]
            return (0.3 - a) / b * x

        return expected_loss(say, "vp", name, t, weighting=weighting)

    expected = losses("x0")
    for name in ("noise", "v", "velocity", "edm"):
        assert torch.allclose(losses(name), expected, rtol=2e-5), name
    weight = WEIGHTINGS.build(weighting)(t, schedule, torch.ones_like(t))
    error = expected_loss(lambda x, a, s: 0.3 * x, "vp", "x0", t, weighting="x0")
    assert torch.allclose(expected, (weight * error).to(expected), rtol=1e-5)


def test_weights() -> None:
    flow = SCHEDULES.build("flow")
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    snr, one = ((1 - t) / t) ** 2, torch.ones(3, dtype=torch.float64)
    expected = {
        "x0": one,
        "snr": snr,
        "min_snr": snr.clamp(max=5),
        "edm": snr + 4,
        "sigmoid": snr / (1 + torch.exp(torch.log(snr) + 3)),
        "likelihood": (1 - t) / t**3,  # -SNR' / 2
    }
    for name, value in expected.items():
        assert torch.allclose(WEIGHTINGS.build(name)(t, flow, one), value, rtol=1e-6), name


def test_time_distributions() -> None:
    """Densities: 1 / (d quantile / du)."""
    flow, edm = SCHEDULES.build("flow"), SCHEDULES.build("edm")

    def density(name: Any, t: float, schedule: Schedule = flow) -> float:
        quantile = TIME_DISTRIBUTIONS.build(name)
        u = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
        times = quantile(u, schedule)
        assert (times.diff() > 0).all()
        near = torch.searchsorted(times, torch.tensor(t, dtype=torch.float64))
        return float((u[near + 1] - u[near - 1]) / (times[near + 1] - times[near - 1]))

    for t, value in ((0.1, 0.396575), (0.5, 1.595769), (0.9, 0.396575)):
        assert density("logit_normal", t) == pytest.approx(value, rel=1e-3)
    assert density("uniform", 0.3) == pytest.approx(1)
    assert density({"name": "uniform", "low": 0.2, "high": 0.7}, 0.3) == pytest.approx(2)
    assert density("beta", 0.3) == pytest.approx(2 * 0.7, rel=1e-3)
    assert density({"name": "beta", "a": 2.0, "b": 1.0}, 0.3) == pytest.approx(0.6, rel=1e-3)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert float(edm.sigma(TIME_DISTRIBUTIONS.build("log_normal")(half, edm))) == pytest.approx(math.exp(-1.2))
    levels = flow.log_snr(TIME_DISTRIBUTIONS.build("log_snr")(torch.linspace(0.1, 0.9, 9).double(), flow))
    assert torch.allclose(levels.diff(), torch.full((8,), -2.0, dtype=torch.float64))


def test_what_is_known_or_padding_is_not_scored() -> None:
    flow = SCHEDULES.build("flow")
    mask = torch.tensor([[1, 1, 1, 0]], dtype=torch.bool)
    known = torch.tensor([[1, 0, 0, 0]], dtype=torch.bool)
    seen = {}

    class Network(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            seen.update(x=x, t=t)
            return torch.zeros_like(x)

    x0, noise = torch.tensor([[5.0, 2.0, 4.0, 9.0]]), torch.full((1, 4), 7.0)
    example = Example(x0, Euclidean(mask, known), {}, known)
    denoiser = Denoiser(Network(), flow, "x0", sigma_data=None)
    loss = Denoising().at(denoiser, example, torch.tensor([0.5], dtype=torch.float64), noise, False)
    assert loss.total.tolist() == [(4 + 16) / 2]
    assert seen["x"][0, 0] == 5.0
    assert seen["t"].tolist() == [[0.0, 0.5, 0.5, 0.5]]


def test_parts_are_reported_and_weighted() -> None:
    class Zero(nn.Module):
        def forward(self, x: Sample, t: Any, cond: Any, previous: Any = None) -> Sample:
            return product({name: torch.zeros_like(v) for name, v in x.items()})

    mask = torch.ones(2, 2, dtype=torch.bool)
    x0 = product({"p": torch.tensor([[[1.0], [-1.0]], [[2.0], [-2.0]]]), "q": torch.full((2, 3), 3.0)})
    example = Example(x0, Product({"p": Centred(mask), "q": Euclidean()}), {})
    denoiser = Denoiser(Zero(), "flow", {"p": "x0", "q": "velocity"}, None)
    noise = product({"p": torch.zeros(2, 2, 1), "q": torch.full((2, 3), 1.0)})
    t = torch.tensor([0.5, 0.25], dtype=torch.float64)
    losses = Denoising(part_weights={"q": 0.5}).at(denoiser, example, t, noise, False)
    assert losses.parts["p"].tolist() == [1, 4]
    assert losses.parts["q"].tolist() == [4, 4]
    assert losses.total.tolist() == [3, 6]
    per_part = Denoising(weighting={"p": "snr", "q": "output"}).at(denoiser, example, t, noise, False)
    assert per_part.parts["p"].tolist() == pytest.approx([1, 36])
    learned = Denoising(uncertainty=["p", "q"]).at(denoiser, example, t, noise, False)
    assert learned.total.tolist() == [5, 8]  # log-variances start at 0


def test_a_step_of_training_is_reproducible_and_stratified() -> None:
    flow = SCHEDULES.build("flow")
    network = Function(lambda x, a, s: 0 * x, flow)
    denoiser = Denoiser(network, flow, "velocity")
    example = Example(torch.ones(8, 3), Euclidean(), {})
    objective = Denoising(self_condition=0.5)
    runs = [objective(denoiser, example, StepRandomness(0, step, range(8), 8)) for step in (1, 1, 2)]
    assert torch.equal(runs[0].total, runs[1].total)
    assert not torch.equal(runs[0].total, runs[2].total)
    assert (torch.sort(runs[0].t).values * 8).floor().tolist() == list(range(8))
    # Two processes with four places each see what one with eight sees.
    half = Example(torch.ones(4, 3), Euclidean(), {})
    pair = [objective(denoiser, half, StepRandomness(0, 1, places, 8)).total for places in (range(4), range(4, 8))]
    assert torch.equal(torch.cat(pair), runs[0].total)
    network.previous.clear()
    for step in range(40):
        objective(denoiser, example, StepRandomness(0, step, range(8), 8))
    conditioned = sum(previous is not None for previous in network.previous)
    assert 8 < conditioned < 32  # about half of the steps, with one call more each
    assert len(network.previous) == 40 + conditioned


def test_times_per_element_are_uniform_and_the_first_stratified() -> None:
    flow = SCHEDULES.build("flow")
    denoiser = Denoiser(Function(lambda x, a, s: 0 * x, flow), flow, "velocity")
    example = Example(torch.ones(64, 5, 2), Euclidean(), {})
    t = Denoising(time_axes=1).draw_times(example, denoiser, StepRandomness(0, 0, range(64), 64))
    assert t.shape == (64, 5)
    assert (torch.sort(t[:, 0]).values * 64).floor().tolist() == list(range(64))
    assert t.mean(0).tolist() == pytest.approx([0.5] * 5, abs=0.12)
    assert (torch.corrcoef(t.T) - torch.eye(5)).abs().max() < 0.4


def test_times_are_apart_in_a_share_of_the_steps() -> None:
    flow = SCHEDULES.build("flow")
    denoiser = Denoiser(Function(lambda x, a, s: 0 * x, flow), flow, "velocity")
    example = Example(torch.ones(8, 5, 2), Euclidean(), {})

    def shapes(**options: Any) -> list[tuple[int, ...]]:
        objective = Denoising(**options)
        randoms = [StepRandomness(0, step, range(8), 8) for step in range(200)]
        return [tuple(objective.draw_times(example, denoiser, random).shape) for random in randoms]

    assert set(shapes(time_axes=1)) == {(8, 5)}
    assert set(shapes(time_axes=1, apart=0.0)) == {(8,)}
    assert set(shapes(apart=1.0)) == {(8,)}
    some = shapes(time_axes=1, apart=0.25)
    assert set(some) == {(8,), (8, 5)}
    assert 50 - 18 < some.count((8, 5)) < 50 + 18  # three standard errors
    with pytest.raises(ValueError, match=r"apart lies in \[0, 1\], got 25"):
        Denoising(time_axes=1, apart=25)
