"""The weights of solvers against quadrature, published steps and order conditions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from noiseloom.core.grids import make_grid
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, sample
from noiseloom.core.samplers.exponential import moments, node_weights
from noiseloom.core.schedules import SCHEDULES
from tests.oracles import Mixture, OneHotNoise, exact_denoiser

EDM, FLOW = SCHEDULES.build("edm"), SCHEDULES.build("flow")


def test_moments_against_quadrature() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(120)
    u, w = (torch.tensor(v / 2) for v in (nodes + 1, weights))
    for k in (1e-9, 1e-3, 0.3, 0.999, 1.001, 3.0, 20.0, 60.0, -1e-3, -0.7, -4.0, -15.0):
        actual = moments(torch.tensor(k, dtype=torch.float64), 5)
        for n in range(5):
            expected = float((w * k * torch.exp(-k * (1 - u)) * u**n).sum())
            assert float(actual[n]) == pytest.approx(expected, rel=2e-13), (k, n)
    for value in moments(torch.tensor(math.inf, dtype=torch.float64), 4):
        assert value == 1
    for value in moments(torch.tensor(0.0, dtype=torch.float64), 4):
        assert value == 0


def test_node_weights_integrate_polynomials_exactly() -> None:
    nodes = [torch.tensor([v], dtype=torch.float64) for v in (0.0, -0.7, -2.0, 1.0)]
    integrals = moments(torch.tensor([1.3], dtype=torch.float64), 4)
    every = [torch.tensor([True])] * 4
    weights = node_weights(nodes, every, integrals)
    for power in range(4):
        total = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
        assert float(total) == pytest.approx(float(integrals[power]), rel=1e-12)
    fewer = node_weights(nodes, [torch.tensor([v]) for v in (True, False, True, False)], integrals)
    assert [float(w) == 0 for w in fewer] == [False, True, False, True]
    for power in range(2):
        total = sum(w * node**power for w, node in zip(fewer, nodes, strict=True))
        assert float(total) == pytest.approx(float(integrals[power]), rel=1e-12)


def test_methods_that_are_one_and_the_same() -> None:
    x, grid = torch.randn(2, 5, dtype=torch.float64), make_grid("uniform", 9, FLOW)
    still = {"name": "sa_solver", "eta": 0.0, "predictor_order": 3}
    for one, other in (
        ("dpm_1", "ddim"),
        ("res_2s", "dpmpp_2s"),
        ("res_2m", "dpmpp_2m"),
        ({"name": "lms", "order": 3}, {"name": "deis", "order": 3, "coordinate": "rho"}),
        (still | {"corrector_order": 3}, {"name": "unipc", "order": 3}),
        (still | {"corrector_order": 0}, "dpmpp_3m"),
        ({"name": "sa_solver", "eta": 0.7, "low": 1e3, "high": 1e4}, {"name": "unipc", "order": 3}),
        (
            {"name": "sa_solver", "eta": 0.7, "low": 0.0, "high": math.inf, "corrector_order": 0},
            {"name": "dpmpp_3m_sde", "eta": 0.7},
        ),
    ):
        ends = []
        for spec in (one, other):
            for step in sample(
                SAMPLERS.build(spec),
                exact_denoiser(Mixture(), FLOW),
                x,
                grid,
                schedule=FLOW,
                generators=sample_generators(0, range(2)),
            ):
                end = step.x
            ends.append(end)
        assert torch.allclose(*ends, atol=1e-11), (one, other)


def lagrange(nodes: list[float], values: list[np.ndarray], k: float) -> np.ndarray:
    """``int_0^1 k e^(-k (1 - u)) P(u) du`` by quadrature, P the polynomial through the values at the nodes."""
    points, weights = np.polynomial.legendre.leggauss(60)
    u, total = (points + 1) / 2, 0.0
    for j, node in enumerate(nodes):
        basis = np.prod([(u - other) / (node - other) for other in nodes[:j] + nodes[j + 1 :]], axis=0)
        total = total + values[j] * float((weights / 2 * k * np.exp(-k * (1 - u)) * basis).sum())
    return total


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_sa_solver_is_a_predictor_and_a_corrector_that_redoes_the_step(eta: float) -> None:
    """As published: the step is done again from where it began, with the same noise and the estimate at its end
    (Xue et al. 2023, alg. 1, with predictors of order 2 and correctors of 3 estimates)."""
    levels = np.array([-1.5, -0.9, -0.2, 0.2, 1.1])
    data, noises = Mixture(), np.random.default_rng(0).standard_normal((4, 3))
    x, estimates = np.array([-3.0, 0.5, 4.0]), []

    def denoise(x: np.ndarray, level: float) -> np.ndarray:
        return data.x0(*(torch.as_tensor(v, dtype=torch.float64) for v in (x, 1.0, math.exp(-level)))).numpy()

    def redone(x: np.ndarray, i: int, first: int, last: int) -> np.ndarray:
        """The step from level i by the polynomial through the estimates from ``first`` to ``last``."""
        h = levels[i + 1] - levels[i]
        share = eta if 0.5 < math.exp(-levels[i]) <= 3.0 else 0.0
        sigma, sigma_s, picked = math.exp(-levels[i]), math.exp(-levels[i + 1]), range(max(first, 0), last + 1)
        places, k = [(levels[j] - levels[i]) / h for j in picked], (1 + share) * h
        mean = sigma_s / sigma * math.exp(-share * h) * x + lagrange(places, [estimates[j] for j in picked], k)
        return mean + sigma_s * math.sqrt(1 - math.exp(-2 * share * h)) * noises[i]

    start = x
    for i in range(4):
        estimates.append(denoise(x, levels[i]))
        if i:
            x = redone(start, i - 1, i - 2, i)
        start, x = x, redone(x, i, i - 1, i)

    class Drawn(OneHotNoise):
        def noise(self, like: Any, generators: Any) -> Tensor:
            object.__setattr__(self, "drawn", self.drawn + 1)
            return torch.tensor(noises[self.drawn - 1][None])

    spec = {"name": "sa_solver", "eta": eta, "predictor_order": 2, "corrector_order": 2, "low": 0.5, "high": 3.0}
    grid = EDM.time_of_log_snr(2 * torch.tensor(levels))
    for step in sample(
        SAMPLERS.build(spec),
        exact_denoiser(data, EDM),
        torch.tensor([[-3.0, 0.5, 4.0]], dtype=torch.float64),
        grid,
        schedule=EDM,
        space=Drawn(),
        generators=[torch.Generator()],
    ):
        end = step.x
    assert end[0].tolist() == pytest.approx(x.tolist(), abs=1e-12)


@pytest.mark.parametrize("c2, c3", [(0.5, 1.0), (0.3, 0.8), (1 / 3, 2 / 3)])
def test_res_meets_the_stiff_order_conditions(c2: float, c3: float) -> None:
    """Hochbruck and Ostermann 2005, table 2: sum b = phi_1, sum b c = phi_2, sum b psi_2 = 0 at any h, and
    sum b c^2 / 2 = phi_3 at h = 0."""

    def phi(order: int, z: float) -> float:  # z^n / (n + order)! summed over n
        return sum(z**n / math.factorial(n + order) for n in range(40))

    for h in (1e-3, 0.5, 2.0):
        sampler = SAMPLERS.build({"name": "res_3s", "c2": c2, "c3": c3})
        (move,) = sampler.plan(EDM, EDM.time_of_log_snr(torch.tensor([0.4, 0.4 + 2 * h], dtype=torch.float64)))
        _, inner, outer = (stage.weights for stage in move.stages)
        a32, a31 = (w / h for w in inner[1:])
        b3, b2, b1 = (w / h for w in outer[1:])
        psi = [c2**2 * phi(2, -c2 * h), c3**2 * phi(2, -c3 * h) - a32 * c2]
        assert a31 + a32 == pytest.approx(c3 * phi(1, -c3 * h), rel=1e-9)
        assert b1 + b2 + b3 == pytest.approx(phi(1, -h), rel=1e-9)
        assert b2 * c2 + b3 * c3 == pytest.approx(phi(2, -h), rel=1e-9)
        assert b2 * psi[0] + b3 * psi[1] == pytest.approx(0, abs=1e-9)
        if h == 1e-3:
            assert (b2 * c2**2 + b3 * c3**2) / 2 == pytest.approx(1 / 6, rel=1e-2)
