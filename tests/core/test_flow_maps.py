"""Flow maps against exact ones: on normal data the map of the probability-flow ODE is known in closed form, so that the
losses of a model that says it, and their gradients, are zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.backbones import DiT
from noiseloom.core.backbones.layers import attend
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import OBJECTIVES, PAIRINGS, Example
from noiseloom.core.objectives.derivatives import derivative_along, rates
from noiseloom.core.objectives.flow_maps import implied, landing, robust
from noiseloom.core.predictions import Estimate
from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.core.schedules import SCHEDULES
from noiseloom.core.spaces import Euclidean
from tests.oracles import Gaussian, exact_denoiser

S = 0.5
DATA = Gaussian(S, mean=0.2)
SCHEDULED = ["flow", "trig", "vp", "edm"]


class ExactMap(nn.Module):
    """The output that means the exact step from t to the target, plus ``change`` times a function of x."""

    def __init__(self, schedule: str, data: Gaussian = DATA) -> None:
        super().__init__()
        self.schedule, self.data = SCHEDULES.build(schedule), data
        self.change = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
        t = t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim == 1 else t
        s = cond["target"].reshape(-1, *[1] * (x.ndim - 1)) if "target" in cond else t
        (alpha, sigma), (alpha_s, sigma_s) = self.schedule.alpha_sigma(t), self.schedule.alpha_sigma(s)
        there = self.data.flow_map(x, self.schedule, t, s)
        moves = t - s > 1e-12
        d = torch.where(moves, alpha_s * sigma - alpha * sigma_s, 1.0)
        here = self.data.x0(x, alpha, sigma)
        x0 = torch.where(moves, (sigma * there - sigma_s * x) / d, here)
        noise = torch.where(moves, (alpha_s * x - alpha * there) / d, (x - alpha * here) / sigma)
        return noise - x0 + self.change * torch.cos(x)


def exact(schedule: str, data: Gaussian = DATA) -> Denoiser:
    return Denoiser(ExactMap(schedule, data), schedule, "velocity", sigma_data=None)


def batch(count: int = 6, dims: int = 4) -> Example:
    x0 = DATA.mean + S * torch.randn(count, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Example(x0, Euclidean(), {})


def random(step: int = 0, count: int = 6) -> StepRandomness:
    return StepRandomness(1, step, range(count), count)


def taught(model: Denoiser, data: Gaussian = DATA) -> Callable[..., Estimate]:
    teacher = exact_denoiser(data, model.schedule)
    return lambda x, t, cond=None, previous=None: teacher(x, t)


def slope(objective: Callable[[], Tensor], change: nn.Parameter, value: float) -> Tensor:
    """The gradient of a loss at a change of the exact map."""
    with torch.no_grad():
        change.fill_(value)
    (gradient,) = torch.autograd.grad(objective(), [change])
    return gradient.abs()


@pytest.mark.parametrize("schedule", SCHEDULED)
@pytest.mark.parametrize("name", ["meanflow", "consistency_continuous"])
def test_the_derivatives_vanish_at_the_exact_map(name: str, schedule: str) -> None:
    """With the velocity of a teacher that knows the data, the identity of each holds at every sample and time."""
    model, example = exact(schedule), batch()
    own = {"same": 0.3, "power": 0.0} if name == "meanflow" else {"normalise": None, "warmup": 0}
    objective = OBJECTIVES.build({"name": name, **own}, teacher=taught(model))
    held = torch.stack([losses.total.detach() for _, losses in objective.held_out(model, example, range(6), 0)])
    assert held.max() < 1e-13
    change = model.network.change
    assert slope(lambda: objective(model, example, random()).total.mean(), change, 0.0) < 1e-8
    assert slope(lambda: objective(model, example, random()).total.mean(), change, 0.1) > 0.01


def test_a_central_difference_does_nearly_as_well() -> None:
    model, example = exact("flow"), batch()
    objective = OBJECTIVES.build({"name": "meanflow", "derivative": "central", "power": 0.0}, teacher=taught(model))
    held = torch.stack([losses.total.detach() for _, losses in objective.held_out(model, example, range(6), 0)])
    assert 1e-20 < held.max() < 1e-8


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_a_jump_is_two_of_half_its_size(schedule: str) -> None:
    """All but the smallest jumps of a shortcut model, whose halves are steps of the ordinary denoiser."""
    model, example = exact(schedule), batch()
    objective = OBJECTIVES.build({"name": "shortcut", "levels": 4}, teacher=taught(model))
    noise = example.space.noise(example.x0, sample_generators(0, range(6)))
    t = torch.tensor([1.0, 1.0, 0.5, 0.75, 0.25, 0.5], dtype=torch.float64)
    size = torch.tensor([1.0, 0.5, 0.5, 0.25, 0.25, 0.0], dtype=torch.float64)  # the last is ordinary denoising

    def total() -> Tensor:
        return objective.at(model, example, t, t - size, noise).total.mean()

    assert slope(total, model.network.change, 0.0) < 1e-5
    assert slope(total, model.network.change, 0.1) > 0.01
    model.network.change.data.zero_()
    assert float(total().detach()) < 1e-10


@pytest.mark.parametrize("schedule, count", [("flow", 8), ("edm", 64)])
def test_consistency_of_neighbouring_times(schedule: str, count: int) -> None:
    """One step of Heun's method is off by h^3, so that the squared difference falls as h^6."""
    model, example = exact(schedule), batch()
    objective = OBJECTIVES.build({"name": "consistency", "power": 0.0}, teacher=taught(model))
    noise = example.space.noise(example.x0, sample_generators(0, range(6)))
    t = torch.full((6,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        coarse, fine = (
            objective.at(model, example, t, n, noise, adapted=False).total.mean() for n in (count, 2 * count)
        )
    assert 40 < float(coarse / fine) < 90


def test_consistency_walks_through_numbers_of_times() -> None:
    counted = OBJECTIVES.build({"name": "consistency", "steps": 80, "first": 10, "last": 1280})
    assert [counted.count(step) for step in range(0, 90, 10)] == [10, 20, 40, 80, 160, 320, 640, 1280, 1280]
    assert OBJECTIVES.build("consistency").count(0) == 1280


@pytest.mark.parametrize("schedule", ["trig", "edm"])
def test_trigflow_of_normal_data(schedule: str) -> None:
    """Data of standard deviation sigma_data do not move in TrigFlow: F = -tan(a / 2) x / sigma_data, which is minus
    the output of the prediction edm, and f(x) = sigma_data x / sqrt(alpha^2 sigma_data^2 + sigma^2)."""
    built, data = SCHEDULES.build(schedule), Gaussian(S)

    class Tangent(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            alpha, sigma = (v[:, None] for v in built.alpha_sigma(t))
            return torch.tan(torch.atan2(sigma, alpha * S) / 2) * x

    model = Denoiser(Tangent(), built, {"name": "edm", "sigma_data": S}, sigma_data=S)
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    alpha, sigma = (v[:, None] for v in built.alpha_sigma(t))
    end = model(x, t, {"target": torch.zeros_like(t)}).x0
    assert torch.allclose(end, S * x / torch.sqrt((alpha * S) ** 2 + sigma**2), rtol=1e-12)
    assert torch.allclose(end, data.flow_map(x, built, t[:, None], torch.zeros(1)), rtol=1e-6)
    objective = OBJECTIVES.build("consistency_continuous", teacher=taught(model, data))
    for _, losses in objective.held_out(model, batch(), range(6), 0):
        assert float(losses.total.max()) < 1e-14


def test_average_velocities_of_normal_data() -> None:
    """u = x (1 - sqrt(V(s) / V(t))) / (t - s)."""
    model, x = exact("flow", Gaussian(S)), torch.tensor([[1.0]], dtype=torch.float64)
    for s, t, value in ((0.0, 1.0, 0.5), (0.0, 0.5, 0.211145618), (0.2, 0.8, 0.742166340)):
        with torch.no_grad():
            said = model(x, torch.tensor([t], dtype=torch.float64), {"target": torch.tensor([s], dtype=torch.float64)})
        assert float(said.noise - said.x0) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_a_jump_and_an_estimate_say_the_same(schedule: str) -> None:
    built, g = SCHEDULES.build(schedule), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1.0, 0.9, 0.4, 0.2], dtype=torch.float64)
    s = torch.tensor([0.0, 0.5, 0.3, 0.2], dtype=torch.float64)
    x, x_s = (landing(Estimate(x0, noise), time, built) for time in (t, s))
    back = implied(x, x_s, t, s, built)
    assert torch.allclose(back[0][:3], x0[:3])
    assert torch.allclose(back[1][:3], noise[:3])
    assert torch.equal(back[0][3], x[3])  # what does not move


def test_rates() -> None:
    """d alpha/dt and d sigma/dt, also at both ends."""
    t = torch.tensor([0.0, 1e-3, 0.3, 0.8, 1.0], dtype=torch.float64)
    half = math.pi / 2
    expected = {
        "flow": (-torch.ones_like(t), torch.ones_like(t)),
        "trig": (-half * torch.sin(half * t), half * torch.cos(half * t)),
        "edm": (torch.zeros_like(t), 560 * t**6),
    }
    for name, values in expected.items():
        for found, value in zip(rates(SCHEDULES.build(name), t), values, strict=True):
            assert torch.allclose(found, value, rtol=1e-4, atol=1e-6), name


def test_a_robust_loss_has_the_gradient_of_its_weight() -> None:
    loss = torch.tensor([0.0, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    for power in (0.0, 0.3, 0.5, 1.0):
        (gradient,) = torch.autograd.grad(robust(loss, power, 1e-2).sum(), [loss])
        assert torch.allclose(gradient, (loss.detach() + 1e-2) ** -power)
        assert float(robust(loss, power, 1e-2)[0]) == 0


def shaken(net: nn.Module) -> nn.Module:
    """What starts at zero would hide what is behind it."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def test_forward_mode_goes_through_the_transformer() -> None:
    torch.manual_seed(0)
    net = shaken(DiT(3, (2,), width=16, depth=1, heads=2, two_times=True, labels=4, context_dim=5)).double()
    model, mask = Denoiser(net), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    x, way = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    t, s = torch.tensor([[0.3, 0.8], [0.0, 0.5]], dtype=torch.float64)
    context = torch.randn(2, 2, 5, dtype=torch.float64)
    cond = {"target": s, "label": torch.tensor([1, -1]), "mask": mask, "context": context}

    def u(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, cond).noise

    exactly = derivative_along(u, x, t, way)
    near, nearer = ((derivative_along(u, x, t, way, "central", h) - exactly).abs().max() for h in (2e-4, 1e-4))
    assert 3.8 < float(near / nearer) < 4.2  # of second order


def test_forward_mode_goes_through_a_compiled_network() -> None:
    """As if it were not compiled: code that is would leave out what a tensor carries with it."""
    net = nn.Tanh()
    x, t = torch.randn(2, 3, 4)[0], torch.full((3,), 0.5, dtype=torch.float64)
    exactly = derivative_along(lambda x, t: net(x), x, t, torch.ones_like(x))
    assert torch.allclose(exactly, 1 - torch.tanh(x) ** 2)
    net.compile(backend="aot_eager")
    net(x)
    assert torch.equal(derivative_along(lambda x, t: net(x), x, t, torch.ones_like(x)), exactly)


def test_attention_spelled_out_is_attention() -> None:
    import torch.autograd.forward_ad as forward_ad

    q, k, v = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64)
    mask = torch.rand(2, 1, 5, 5) < 0.7
    mask[..., 0] = True
    for seen in (None, mask):
        plain = attend(q, k, v, seen)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(attend(forward_ad.make_dual(q, torch.ones_like(q)), k, v, seen))
        assert torch.allclose(dual.primal, plain, rtol=1e-12)
        step = 1e-6
        change = (attend(q + step, k, v, seen) - attend(q - step, k, v, seen)) / (2 * step)
        assert torch.allclose(dual.tangent, change, atol=1e-7)


def test_optimal_transport_stays_within_equal_conditions() -> None:
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 12, 5, generator=g)
    label = torch.tensor([0] * 5 + [1] * 6 + [-1])
    pair = PAIRINGS.build("optimal_transport")
    paired = pair(Example(x0, Euclidean(), {"label": label}), noise, [])
    rows = [int((noise == row).all(1).nonzero()) for row in paired]
    assert sorted(rows) == list(range(12))
    assert rows != list(range(12))
    assert torch.equal(label[rows], label)

    def cost(noise: Tensor) -> float:
        return float((noise - x0).square().sum())

    whole = pair(Example(x0, Euclidean(), {}), noise, [])
    assert cost(whole) < cost(paired) < cost(noise)
    swapped = whole.clone()
    for i in range(12):  # no exchange of two is cheaper
        for j in range(i):
            swapped[[i, j]] = whole[[j, i]]
            assert cost(swapped) >= cost(whole) - 1e-5
            swapped[[i, j]] = whole[[i, j]]


def test_the_nearest_noise_depends_on_its_own_sample_only() -> None:
    x0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    objective = OBJECTIVES.build({"name": "denoising", "pairing": {"name": "nearest", "candidates": 3}})

    def noise(rows: list[int]) -> Tensor:
        return objective.draw_noise(Example(x0[rows], Euclidean(), {}), sample_generators(0, rows))

    assert torch.equal(noise([0, 1, 2])[2:], noise([2]))
    g = sample_generators(0, [0])
    drawn = torch.cat([torch.randn(1, 4, generator=g[0]) for _ in range(3)])
    assert torch.equal(noise([0])[0], drawn[(drawn - x0[0]).square().sum(1).argmin()])
