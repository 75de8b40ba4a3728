"""Likelihoods against exact densities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import FunctionDenoiser
from noiseloom.core.likelihood import TABLEAUX, bits_per_dimension, log_likelihood
from noiseloom.core.predictions import Estimate
from noiseloom.core.samples import align_left, map_parts, product
from noiseloom.core.schedules import SCHEDULES
from noiseloom.core.spaces import Centred, Euclidean, Product, SymmetricPairs
from tests.oracles import Gaussian, Mixture, exact_denoiser

FLOW = SCHEDULES.build("flow")
DATA = Gaussian(0.5, 0.3)
FACTOR = torch.tensor([[0.6, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.25, 0.5]], dtype=torch.float64)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_normal(x: Tensor, mean: float, std: float) -> Tensor:
    return (-((x - mean) ** 2) / (2 * std**2) - math.log(2 * math.pi * std**2) / 2).flatten(1).sum(1)


def test_the_density_of_one_number() -> None:
    """log N(1; 0.3, 0.25) is -1.2057913526 nats, 1.7395892 bits."""
    found = log_likelihood(exact_denoiser(DATA, FLOW), double(1.0)[:, None], steps=100)
    assert found.nats.tolist() == pytest.approx([-1.2057913526], abs=1e-7)
    assert found.bits_per_dimension().tolist() == pytest.approx([1.7395892], abs=1e-7)
    # bytes scaled to [-1, 1] lie 2/256 apart: 7 bits more
    assert found.bits_per_dimension(2 / 256).tolist() == pytest.approx([8.7395892], abs=1e-7)
    with pytest.raises(ValueError, match="bin_width"):
        found.bits_per_dimension(0.0)


@pytest.mark.parametrize(
    ("schedule", "solver"), [*(("flow", name) for name in TABLEAUX), ("trig", "rk4"), ("vp", "rk4"), ("edm", "rk4")]
)
def test_isotropic_normal_data_has_no_variance_over_signs(schedule: str, solver: str) -> None:
    """The Jacobian is diagonal, so that e^T J e is its trace for every vector of signs. The model is N(0, sigma(1)^2)
    carried along the ODE: where alpha(1) = 0 that is the data's distribution, elsewhere all but."""
    built, x = SCHEDULES.build(schedule), double(0.4, -0.9, 1.3, 0.2).reshape(1, 2, 2).expand(6, 2, 2)
    found = log_likelihood(
        exact_denoiser(DATA, built), x, solver=solver, steps=240 if solver == "heun" else 40, seeds=range(6)
    )
    assert float(found.nats.std()) < 1e-12
    alpha, sigma = built.alpha_sigma(double(1.0))
    end = DATA.flow_map(x, built, 0.0, 1.0)
    stretch = 4 * math.log(float(torch.sqrt((alpha * 0.5) ** 2 + sigma**2)) / 0.5)
    model = log_normal(end, 0.0, float(sigma)) + stretch
    assert found.nats.tolist() == pytest.approx(model.tolist(), abs=1e-4)
    if float(alpha) == 0:
        assert model.tolist() == pytest.approx(log_normal(x, 0.3, 0.5).tolist(), abs=1e-9)


def test_the_density_of_a_mixture() -> None:
    data, x = Mixture(), double(-1.3, -1.0, -0.2, 0.0, 0.6, 1.0, 1.4)[:, None]
    exact = data.log_density(x, double(1.0)[0], double(0.0)[0])[:, 0]
    assert exact[[3, 5]].tolist() == pytest.approx([-1.695166959, -0.878852577])
    denoise = exact_denoiser(data, FLOW)
    each: list[dict[str, Any]] = [
        {"steps": 100},
        {"steps": 100, "divergence": "exact"},
        {"solver": "dopri5", "tolerance": 1e-6},
        {"solver": "bosh3", "tolerance": 1e-5},
    ]
    for options in each:
        assert log_likelihood(denoise, x, **options).nats.tolist() == pytest.approx(exact.tolist(), abs=5e-5), options


@pytest.mark.parametrize(("solver", "order"), [(name, tableau.order) for name, tableau in TABLEAUX.items()])
def test_orders(solver: str, order: int) -> None:
    """Over the inside of the interval; sums of coefficients say nothing of higher orders."""
    x, denoise = double(-1.2, 0.1, 0.9)[:, None], exact_denoiser(Mixture(), FLOW)

    def nats(name: str, steps: int) -> Tensor:
        grid = torch.linspace(0.95, 0.4, steps + 1, dtype=torch.float64)
        return log_likelihood(denoise, x, solver=name, grid=grid).nats

    best, steps = nats("dopri5", 80), 8 if order > 3 else 20
    coarse, fine = ((nats(solver, n) - best).abs().max() for n in (steps, 2 * steps))
    assert math.log2(float(coarse / fine)) > order - 0.35


def test_steps_and_probes_of_a_sample_do_not_depend_on_its_batch() -> None:
    data, x = Mixture(), double(-1.3, 0.0, 0.6, 4.0)[:, None]
    denoise = exact_denoiser(data, FLOW)
    options: dict[str, Any] = {"solver": "dopri5", "tolerance": 1e-5}
    together = log_likelihood(denoise, x, seeds=range(4), **options).nats
    alone = [log_likelihood(denoise, x[i : i + 1], seeds=[i], **options).nats for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


def correlated() -> tuple[FunctionDenoiser, Tensor, Tensor]:
    """Normal data with a full covariance, its exact denoiser, and points with their log-densities."""
    covariance = FACTOR @ FACTOR.T
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ FACTOR.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x)

    def x0(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v[..., None, None] for v in FLOW.alpha_sigma(t))
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(3).double())
        return (gain @ x[..., None])[..., 0]

    return FunctionDenoiser(x0, FLOW), x, exact


def test_probes_are_unbiased() -> None:
    denoise, x, exact = correlated()
    assert torch.allclose(log_likelihood(denoise, x, divergence="exact", steps=100).nats, exact, atol=1e-6)
    many = x[:1].expand(400, 3)
    for divergence in ("rademacher", "gaussian"):
        nats = log_likelihood(denoise, many, divergence=divergence, steps=20, seeds=7).nats  # type: ignore[arg-type]
        error = float(nats.std()) / 20
        assert error > 1e-4
        assert abs(float(nats.mean() - exact[0])) < 3 * error + 1e-4
    one, four = (log_likelihood(denoise, many, probes=n, steps=20, seeds=7).nats.var() for n in (1, 4))
    assert float(one / four) == pytest.approx(4, rel=0.4)


def test_only_real_elements_count() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    x = torch.tensor([[0.4, -0.9, 1.3, 77.0], [0.2, 5.0, 5.0, 5.0]], dtype=torch.float64)
    found = log_likelihood(exact_denoiser(Gaussian(0.5), FLOW), x, space=Euclidean(mask), steps=100)
    expected = [float(log_normal(x[:1, :3], 0.0, 0.5)), float(log_normal(x[1:, :1], 0.0, 0.5))]
    assert found.dimension.tolist() == [3, 1]
    assert found.nats.tolist() == pytest.approx(expected, abs=1e-6)


def test_known_elements_are_conditions() -> None:
    """p(x_2, x_3 | x_1): the ODE of the conditional, with the known element at its value."""
    _, x, exact = correlated()
    whole = FACTOR @ FACTOR.T
    slope, rest = whole[1:, :1] / whole[0, 0], whole[1:, 1:] - whole[1:, :1] @ whole[:1, 1:] / whole[0, 0]

    def given(x: Tensor, t: Tensor) -> Tensor:  # knows that x_1 is at t = 0
        assert (t[:, 0] == 0).all()
        mean = x[:, :1] @ slope.T
        alpha, sigma = (v[:, 1][:, None, None] for v in FLOW.alpha_sigma(t))
        gain = alpha * rest @ torch.linalg.inv(alpha**2 * rest + sigma**2 * torch.eye(2).double())
        others = mean + (gain @ (x[:, 1:] - alpha[:, 0] * mean)[..., None])[..., 0]
        return torch.cat([x[:, :1], others], 1)

    known = torch.tensor([[True, False, False]]).expand(5, 3)
    found = log_likelihood(
        FunctionDenoiser(given, FLOW), x, known=known, space=Euclidean(None, known), divergence="exact", steps=100
    )
    marginal = log_normal(x[:, :1], 0.0, 0.6)
    assert found.dimension.tolist() == [2] * 5
    assert torch.allclose(found.nats, exact - marginal, atol=1e-6)


def test_conditions_reach_the_denoiser() -> None:
    class Shifted:
        schedule = FLOW

        def __call__(self, x: Tensor, t: Tensor, cond: Any = None, previous: Any = None) -> Estimate:
            alpha, sigma = (align_left(v, x) for v in FLOW.alpha_sigma(t))
            mean = cond["mean"][:, None]
            return FunctionDenoiser(
                lambda x, t: mean + alpha * 0.25 * (x - alpha * mean) / (alpha**2 * 0.25 + sigma**2), FLOW
            )(x, t)

    x, mean = double(1.0, 1.0)[:, None], double(0.3, 2.0)
    found = log_likelihood(Shifted(), x, cond={"mean": mean}, steps=100)
    expected = [float(log_normal(x[:1], m, 0.5)) for m in (0.3, 2.0)]
    assert found.nats.tolist() == pytest.approx(expected, abs=1e-6)


def test_product_states_and_subspaces() -> None:
    """Points of zero mean have one point's numbers less; symmetric pairs count once."""
    count = 100
    mask = torch.ones(count, 3, dtype=torch.bool)
    space = Product({"points": Centred(mask), "pairs": SymmetricPairs(mask), "plain": Euclidean()})
    shapes = {"points": (3, 2), "pairs": (3, 3, 1), "plain": (4,)}
    like = product({name: torch.zeros(count, *shape, dtype=torch.float64) for name, shape in shapes.items()})
    x = space.noise(like, [torch.Generator().manual_seed(0) for _ in range(count)])  # the same, over and over

    def x0(x: Any, t: Tensor) -> Any:
        alpha, sigma = FLOW.alpha_sigma(t)
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return map_parts(lambda part: part * align_left(gain, part), x)

    denoise = FunctionDenoiser(x0, FLOW)
    exact = log_likelihood(denoise, x, space=space, divergence="exact", steps=12)
    assert set(exact.dimension.tolist()) == {4 + 3 + 4}
    pairs = x["pairs"][0, [0, 0, 1], [1, 2, 2], 0]
    square = float((x["points"][0] ** 2).sum() + (pairs**2).sum() + (x["plain"][0] ** 2).sum())
    expected = -square / (2 * 0.25) - 11 / 2 * math.log(2 * math.pi * 0.25)
    assert float(exact.nats[0]) == pytest.approx(expected, abs=1e-4)
    drawn = log_likelihood(denoise, x, space=space, divergence="gaussian", steps=12).nats
    error = float(drawn.std()) / count**0.5
    assert 0.01 < error < 1
    assert abs(float(drawn.mean()) - expected) < 3 * error
    with pytest.raises(ValueError, match="signs do not lie"):
        log_likelihood(denoise, x, space=space)


def test_wrong_options_are_refused() -> None:
    denoise, x = exact_denoiser(Gaussian(), FLOW), torch.zeros(1, 2, dtype=torch.float64)
    for options, word in (
        ({"solver": "euler"}, "rk4"),
        ({"tolerance": 1e-3}, "dopri5"),
        ({"divergence": "none"}, "exact"),
        ({"grid": torch.linspace(1, 0, 5)[:, None].expand(5, 2)}, "one time"),
    ):
        with pytest.raises(ValueError, match=word):
            log_likelihood(denoise, x, **options)  # type: ignore[arg-type]
    assert bits_per_dimension(double(-1.0), double(2.0)).tolist() == pytest.approx([1 / (2 * math.log(2))])
