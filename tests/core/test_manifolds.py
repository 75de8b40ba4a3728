"""Angles and directions: paths are geodesics, and the usual samplers follow them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.manifolds import Sphere, Torus, wrapped
from noiseloom.core.objectives import OBJECTIVES, Example
from noiseloom.core.predictions import Estimate
from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.core.samplers import generate
from noiseloom.core.schedules import SCHEDULES
from noiseloom.core.spaces import Product, Space

FLOW = SCHEDULES.build("flow")
SPACES = {"torus": Torus(), "sphere": Sphere()}


def points(space: Space, count: int, seed: int) -> Tensor:
    return space.noise(torch.zeros(count, 4, 3, dtype=torch.float64), sample_generators(seed, range(count)))


def distance(space: Space, a: Tensor, b: Tensor) -> Tensor:
    """Along the geodesic: of each angle, or of each vector."""
    if isinstance(space, Torus):
        return wrapped(a - b).abs()
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


@pytest.mark.parametrize("name", SPACES)
def test_noise_is_uniform(name: str) -> None:
    x = points(SPACES[name], 4000, 0)
    if name == "torus":
        assert x.abs().max() < math.pi
        assert x.var() == pytest.approx(math.pi**2 / 3, rel=0.02)
    else:
        assert torch.allclose(x.norm(dim=-1), torch.ones(4000, 4, dtype=torch.float64))
        assert torch.allclose(x.flatten(0, 1).T.cov(), torch.eye(3, dtype=torch.float64) / 3, atol=0.01)


@pytest.mark.parametrize("name", SPACES)
def test_the_path_is_a_geodesic_walked_evenly(name: str) -> None:
    space = SPACES[name]
    x0, noise = points(space, 64, 1), points(space, 64, 2)
    whole = distance(space, x0, noise)
    for t in (0.0, 0.2, 0.7, 1.0):
        x, _, _ = space.noised(x0, noise, t, FLOW)
        assert torch.allclose(space.project(x), x, atol=1e-12)
        assert torch.allclose(distance(space, x0, x), t * whole, atol=1e-6)
        assert torch.allclose(distance(space, x, noise), (1 - t) * whole, atol=1e-6)


@pytest.mark.parametrize("name", SPACES)
def test_the_line_touches_the_path(name: str) -> None:
    """noise - clean is the velocity, and both ends give x."""
    space, t, step = SPACES[name], 0.4, 1e-5
    x0, noise = points(space, 64, 3), points(space, 64, 4)
    x, clean, noisy = space.noised(x0, noise, t, FLOW)
    ahead, behind = (space.noised(x0, noise, t + way * step, FLOW)[0] for way in (1, -1))
    change = wrapped(ahead - behind) if name == "torus" else ahead - behind
    assert torch.allclose(change / (2 * step), noisy - clean, atol=1e-5)
    assert torch.allclose((1 - t) * clean + t * noisy, x, atol=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_a_single_point_is_reached(name: str) -> None:
    """The velocity towards it is log_x(x0) / t; on a torus Euler's method is exact."""
    space, target = SPACES[name], points(SPACES[name], 1, 5)

    def denoise(x: Tensor, t: Tensor, cond: object = None, previous: object = None) -> Estimate:
        goal = target.expand_as(x)
        if name == "torus":
            x0 = x - wrapped(x - goal)
        else:
            along = goal - (goal * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True) * x
            x0 = x + torch.nn.functional.normalize(along, dim=-1) * distance(space, x, goal).unsqueeze(-1)
        return Estimate(x0, lambda: x0 + (x - x0) / float(t))

    start = torch.zeros(32, 4, 3, dtype=torch.float64)
    errors = []
    for steps in (4, 16, 64):
        x = generate(denoise, start, schedule="flow", sampler="euler", steps=steps, seeds=0, space=space)
        assert isinstance(x, Tensor)
        errors.append(float(distance(space, x, target.expand_as(x)).max()))
    if name == "torus":
        assert max(errors) < 1e-12
    else:
        assert errors[2] < errors[1] / 8 < errors[0] / 64


def test_two_modes_of_an_angle_are_met_in_equal_numbers() -> None:
    """Data at -2 and 1: the exact velocity is the mean over both paths that may lead to x."""
    modes = torch.tensor([-2.0, 1.0], dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor, cond: object = None, previous: object = None) -> Estimate:
        way = wrapped(x.unsqueeze(-1) - modes)
        reach = (way.abs() <= math.pi * t + 1e-9).double()
        x0 = x - (way * reach).sum(-1) / reach.sum(-1).clamp(min=1)
        return Estimate(x0, lambda: x0 + (x - x0) / float(t))

    x = generate(
        denoise, torch.zeros(4000, 1, dtype=torch.float64), schedule="flow", sampler="euler", steps=100, seeds=0,
        space=Torus(),
    )  # fmt: skip
    assert isinstance(x, Tensor)
    near = wrapped(x - modes).abs()
    assert float(near.amin(1).quantile(0.97)) < 0.1
    assert float((near.argmin(1) == 0).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_what_does_not_work_on_a_curve_is_refused() -> None:
    x = torch.zeros(1, 2, 3)
    for sampler in ("dpmpp_2m", "ddpm"):
        with pytest.raises(ValueError, match="torus needs a deterministic sampler without memory"):
            generate(lambda x, t: x, x, schedule="flow", sampler=sampler, steps=2, seeds=0, space=Torus())
    with pytest.raises(ValueError, match="alpha \\+ sigma = 1"):
        generate(lambda x, t: x, x, schedule="edm", sampler="euler", steps=2, seeds=0, space=Sphere())
    with pytest.raises(ValueError, match="no temperature"):
        generate(lambda x, t: x, x, sampler="euler", steps=2, seeds=0, space=Sphere(), temperature=0.5)


def test_an_angle_is_learned_beside_a_gaussian_part() -> None:
    """A product of a torsion and a number, trained by the usual objective and sampled by one call a step."""
    from noiseloom.core.samples import product

    torch.manual_seed(0)
    modes = torch.tensor([-2.5, 0.5])

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(4, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
                torch.nn.Linear(64, 2),
            )  # fmt: skip

        def forward(self, x: object, t: object, cond: object = None, previous: object = None) -> object:
            angle, number = x["angle"], x["number"]  # type: ignore[index]
            time = torch.as_tensor(t).float().expand(len(angle)).unsqueeze(1)
            out = self.layers(torch.cat((angle.sin(), angle.cos(), number, time), 1))
            return product({"angle": out[:, :1], "number": out[:, 1:]})

    from noiseloom.core.spaces import Euclidean

    space = Product({"angle": Torus(), "number": Euclidean()})
    model = Denoiser(Network(), "flow", "velocity", sigma_data=None)
    objective = OBJECTIVES.build("denoising")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        angle = modes[torch.randint(2, (256, 1))] + 0.1 * torch.randn(256, 1)
        x0 = product({"angle": wrapped(angle), "number": angle.sin()})
        loss = objective(model, Example(x0, space, {}), StepRandomness(0, step, range(256), 256)).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start = product({"angle": torch.zeros(512, 1), "number": torch.zeros(512, 1)})
    made = generate(model, start, sampler="midpoint", steps=16, seeds=0, space=space)
    near = wrapped(made["angle"] - modes).abs()  # type: ignore[index]
    assert float((near.amin(1) < 0.5).double().mean()) > 0.9
    assert 0.35 < float((near.argmin(1) == 0).double().mean()) < 0.65
    assert float((made["number"] - made["angle"].sin()).abs().median()) < 0.15  # type: ignore[index]
