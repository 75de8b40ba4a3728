"""The variational bound, and the variance that is learned by it, against closed forms.

On normal data the exact denoiser's errors are linear in (x0, noise) and every term quadratic, so that the four corners
(+-s, +-1) give expectations exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from noiseloom.core.bound import Bound, continuous_bound, discrete_bound, normal_nats
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import Example
from noiseloom.core.objectives.variance import Hybrid
from noiseloom.core.predictions import PREDICTIONS, LearnedRange
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.samplers import generate
from noiseloom.core.samplers.ancestral import Posterior
from noiseloom.core.samplers.exponential import Interval
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Euclidean
from tests.oracles import Gaussian, Mixture, exact_denoiser

S = 0.5
ENTROPY = math.log(2 * math.pi * math.e * S**2) / 2
CORNERS = torch.tensor([[S, S, -S, -S]], dtype=torch.float64)


class Corners(Euclidean):
    """Its noise is +-1, once with each sign of the data."""

    def noise(self, like: Any, generators: Sequence[Generator]) -> Tensor:
        return torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).expand(like.shape)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def per_element(bound: Bound) -> float:
    return float(-bound.nats / bound.dimension)


@pytest.mark.parametrize("name", ["flow", "vp", "edm", "linear"])
def test_the_discrete_bound_of_normal_data(name: str) -> None:
    """prior alpha^2 s^2 / 2 sigma^2; levels (SNR(s) - SNR(t)) / 2 s^2 / (1 + s^2 SNR(t)); decoder."""
    schedule = SCHEDULES.build(name)
    bounds = [
        discrete_bound(
            exact_denoiser(Gaussian(S), schedule),
            CORNERS,
            grid={"name": "log_snr", "low": -8.0},
            steps=n,
            space=Corners(),
        )
        for n in (10, 19, 73)
    ]
    snr = torch.cat([torch.linspace(-8, 10, 10, dtype=torch.float64).exp(), double(math.inf)])
    prior = float(snr[0]) * S**2 / 2
    levels = float(((snr[1:-1] - snr[:-2]) / 2 * S**2 / (1 + S**2 * snr[:-2])).sum())
    decoder = math.log(2 * math.pi / float(snr[-2])) / 2 + S**2 / (1 + S**2 * float(snr[-2])) * float(snr[-2]) / 2
    terms = [float(term) / 4 for term in (bounds[0].prior, bounds[0].levels, bounds[0].decoder)]
    assert terms == pytest.approx([prior, levels, decoder], rel=1e-6 if name == "linear" else 1e-9)
    found = [per_element(bound) for bound in bounds]
    assert found[0] > found[1] > found[2] > ENTROPY  # falls with the levels, never below the truth
    bits = float(bounds[0].bits_per_dimension())
    assert bits == pytest.approx(found[0] / math.log(2))
    assert float(bounds[0].bits_per_dimension(2 / 256)) == pytest.approx(bits + 7)


def test_the_discrete_bound_by_other_variances() -> None:
    """KL between normals, with the forward step's variance: never below that with the posterior's for points, and the
    better one for standard normal data."""
    linear = SCHEDULES.build("linear")
    found = {}
    for std, variance in ((1e-3, "small"), (1e-3, "large"), (1.0, "small"), (1.0, "large")):
        x = CORNERS * (std / S)
        bound = discrete_bound(
            exact_denoiser(Gaussian(std), linear), x, steps=20, grid="trailing", variance=variance, space=Corners()
        )
        found[std, variance] = float(bound.levels)
    assert found[1e-3, "small"] < found[1e-3, "large"]
    assert found[1.0, "large"] < found[1.0, "small"]
    # One level by hand.
    t, s = double(1.0)[0], double(0.5)[0]
    bound = discrete_bound(
        exact_denoiser(Gaussian(S), linear), CORNERS, steps=2, grid="uniform", variance="large", space=Corners()
    )
    posterior, (alpha, sigma) = Posterior(Interval(linear, t, s)), linear.alpha_sigma(t)
    error = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    ratio = posterior.small / posterior.large
    expected = (ratio - 1 - torch.log(ratio) + posterior.b**2 * error / posterior.large) / 2
    assert float(bound.levels) / 4 == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["flow", "vp"])
def test_the_continuous_bound_of_normal_data(name: str) -> None:
    """log(1 + s^2 SNR(time_min)) / 2 for the levels: with prior and decoder the entropy, and nothing more but what is
    lost at the ends."""
    schedule = SCHEDULES.build(name)
    bound = continuous_bound(
        exact_denoiser(Gaussian(S), schedule), CORNERS, draws=2000, time_min=1e-3, space=Corners(), seeds=1
    )
    first, last = (1 + S**2 * schedule.log_snr(double(1e-3, 1.0)).exp()).tolist()
    assert float(bound.levels) / 4 == pytest.approx(math.log(first / last) / 2, rel=1e-3)
    assert per_element(bound) == pytest.approx(ENTROPY, abs=1e-2)


def test_the_bound_lies_above_the_likelihood() -> None:
    """Of a mixture: by much with 5 levels, by little with many."""
    data, flow = Mixture(), SCHEDULES.build("flow")
    generator = torch.Generator().manual_seed(0)
    count = 2000
    which = (torch.rand(count, generator=generator) > 0.3).long()
    means, stds = double(*data.means)[which], double(*data.stds)[which]
    x = (means + stds * torch.randn(count, generator=generator, dtype=torch.float64))[:, None]
    exact = -data.log_density(x, double(1.0)[0], double(0.0)[0])[:, 0]
    denoise = exact_denoiser(data, flow)
    gaps = []
    for bound in (
        discrete_bound(denoise, x, steps=8),
        discrete_bound(denoise, x, steps=40),
        continuous_bound(denoise, x, draws=40),
    ):
        gap = -bound.nats - exact
        gaps.append(float(gap.mean()))
        assert gaps[-1] > -3 * float(gap.std()) / count**0.5
    assert gaps[0] > 0.1
    assert gaps[0] > 5 * gaps[1]
    assert abs(gaps[2]) < 0.03


def test_bins_have_probabilities() -> None:
    """Over all bins they sum to 1, and far in a tail they keep their digits."""
    bins = torch.arange(-400, 401, dtype=torch.float64) * 0.05
    nats = normal_nats(bins, double(0.3)[0], double(0.25)[0], 0.05)
    assert float(torch.exp(-nats).sum()) == pytest.approx(1)
    narrow = normal_nats(double(1.0), double(0.3)[0], double(0.25)[0], 1e-4)
    assert float(narrow) == pytest.approx(1.2057913526 - math.log(1e-4), rel=1e-6)
    far = 450 + math.log(2 * math.pi) / 2 - math.log(0.1 * math.sinh(1.5) / 1.5)  # of exp(-30 y) over the bin
    assert float(normal_nats(double(30.0), double(0.0)[0], double(1.0)[0], 0.1)) == pytest.approx(far, abs=1e-3)
    flow = SCHEDULES.build("flow")
    plain, binned = (
        discrete_bound(exact_denoiser(Gaussian(S), flow), CORNERS, steps=20, space=Corners(), bin_width=width)
        for width in (None, 1e-3)
    )
    assert float(binned.bits_per_dimension()) == pytest.approx(float(plain.bits_per_dimension(1e-3)), rel=1e-5)


LEVELS = 8


class PerLevel(nn.Module):
    """The exact noise of N(0, S^2), and a variance learned for each level."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.said = nn.Parameter(torch.zeros(LEVELS, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
        alpha, sigma = (v.reshape(-1, 1) for v in self.schedule.alpha_sigma(t))
        noise = sigma * x / (alpha**2 * S**2 + sigma**2)
        said = self.said[(t * LEVELS).round().long() - 1].reshape(-1, 1).expand(len(x), x.shape[1])
        return torch.cat([noise, said], 1)


def trained() -> tuple[Denoiser, Tensor]:
    """Its variances, by the hybrid objective."""
    schedule = SCHEDULES.build("cosine")
    denoiser = Denoiser(PerLevel(schedule), schedule, "learned_range", sigma_data=None)
    objective = Hybrid(levels=LEVELS, weight=1.0)
    t = torch.arange(1, LEVELS + 1, dtype=torch.float64) / LEVELS
    example = Example(CORNERS.expand(LEVELS, 4), Euclidean(), {})
    noise = Corners().noise(example.x0, ())
    said = denoiser.network.said
    for _ in range(8):  # of Newton's, level by level
        loss = objective.at(denoiser, example, t, noise, False).total.sum()
        (slope,) = torch.autograd.grad(loss, said, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), said)
        with torch.no_grad():
            said -= slope / curvature
    return denoiser, t


def test_the_variance_learned_is_that_of_the_exact_posterior() -> None:
    """Of N(0, s^2): small + b^2 s^2 sigma^2 / V (Bao et al. 2022), at every level but the first, whose is the data's
    given x_t, s^2 sigma^2 / V."""
    denoiser, t = trained()
    step = Posterior(Interval(denoiser.schedule, t[1:], t[:-1]))
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    error = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    exact = step.small + step.b**2 * error[1:]
    wanted = 2 * torch.log(exact / step.small) / torch.log(step.large / step.small) - 1
    found = denoiser.network.said.detach()
    assert (wanted.abs() < 1).all()
    assert torch.allclose(found[1:], wanted, atol=0.02)
    first = Posterior(Interval(denoiser.schedule, t[1:2], t[:1])).small
    low, high = math.log(float(first)), math.log(float(sigma[0] ** 2))
    assert low + (high - low) * (float(found[0]) + 1) / 2 == pytest.approx(math.log(float(error[0])), abs=0.05)
    x = denoiser(torch.randn(LEVELS, 4, dtype=torch.float64), t)
    assert x.variance.shape == x.x0.shape

    # Sampled with it, the chain has the data's distribution up to the last step, which adds no noise; neither fixed
    # variance gives it.
    grid = torch.cat([t.flip(0), torch.zeros(1, dtype=torch.float64)])
    z, end = torch.zeros(2000, 4, dtype=torch.float64), math.sqrt(S**2 - float(error[0]))
    sizes = {
        variance: float(generate(denoiser, z, sampler={"name": "ddpm", "variance": variance}, grid=grid, seeds=0).std())
        for variance in ("small", "large", "learned")
    }
    assert sizes["learned"] == pytest.approx(end, abs=0.012)  # 8,000 numbers: three standard errors
    assert sizes["small"] < end - 0.03
    assert sizes["large"] > end + 0.03


def test_the_bound_with_a_learned_variance_is_the_lowest() -> None:
    denoiser, t = trained()
    grid = torch.cat([t.flip(0), torch.zeros(1, dtype=torch.float64)])
    bounds = {
        variance: per_element(discrete_bound(denoiser, CORNERS, grid=grid, variance=variance, space=Corners()))  # type: ignore[arg-type]
        for variance in ("small", "large", "learned")
    }
    assert min(bounds["small"], bounds["large"]) > ENTROPY + 0.01
    assert bounds["learned"] == pytest.approx(ENTROPY, abs=1e-6)  # the chain is exact, and so is its bound


def test_the_mean_is_not_trained_by_the_bound() -> None:
    schedule = SCHEDULES.build("cosine")

    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3, 0.1]))

        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            return torch.cat([self.weight[0] * x, self.weight[1] * torch.ones_like(x)], 1)

    denoiser = Denoiser(Free(), schedule, "learned_range", sigma_data=None)
    example = Example(torch.ones(6, 3), Euclidean(), {})

    def gradient(weight: float) -> Tensor:
        loss = Hybrid(levels=8, weight=weight)(denoiser, example, StepRandomness(0, 0, range(6), 6)).total.sum()
        return torch.autograd.grad(loss, denoiser.network.weight)[0]

    plain, hybrid = gradient(0.0), gradient(1.0)
    assert float(plain[0]) == pytest.approx(float(hybrid[0]))
    assert float(plain[0]) != 0
    assert float(plain[1]) == 0
    assert float(hybrid[1]) != 0


def test_what_has_no_variance_is_refused() -> None:
    flow = SCHEDULES.build("flow")
    denoise = exact_denoiser(Gaussian(S), flow)
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="learned_range"):
        generate(denoise, x, sampler={"name": "ddpm", "variance": "learned"}, steps=3, seeds=0)
    with pytest.raises(ValueError, match="learned_range"):
        discrete_bound(denoise, x, steps=3, variance="learned")
    with pytest.raises(ValueError, match="twice the channels"):
        PREDICTIONS.build("learned_range").estimate(x, x, *flow.alpha_sigma(double(0.5, 0.5)))
    with pytest.raises(ValueError, match="learned_range"):
        Hybrid()(Denoiser(PerLevel(flow), flow), Example(x, Euclidean(), {}), StepRandomness(0, 0, range(2), 2))
    with pytest.raises(ValueError, match="variance"):
        discrete_bound(denoise, x, variance="medium")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels"):
        Hybrid(levels=1)
    assert isinstance(PREDICTIONS.build({"name": "learned_range", "of": "v"}), LearnedRange)
