"""Few-step objectives at work: tiny networks reach the exact distribution, and all of them train on every kind of
sample."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.backbones import DiT
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.manifolds import Torus
from noiseloom.core.objectives import OBJECTIVES, Example, Objective
from noiseloom.core.predictions import Estimate, scale_like
from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.core.samplers import SAMPLERS
from noiseloom.core.samples import Sample, product
from noiseloom.core.schedules import SCHEDULES, Schedule
from noiseloom.core.spaces import Euclidean, Product
from tests.oracles import Gaussian, exact_denoiser, final_std

DATA, FLOW = Gaussian(0.5, 0.2), SCHEDULES.build("flow")
FEW_STEP = [
    "consistency",
    "consistency_continuous",
    "dmd",
    "meanflow",
    "progressive",
    "reflow",
    "shortcut",
    "trajectory",
]


def taught(data: Any = DATA, schedule: Schedule = FLOW) -> Callable[..., Estimate]:
    exact = exact_denoiser(data, schedule)

    def teacher(x: Tensor, t: Tensor, cond: Any = None, previous: Any = None) -> Estimate:
        said = exact(x.double(), t)
        return Estimate(said.x0.to(x), said.noise.to(x))

    return teacher


class Affine(nn.Module):
    """``slope x + shift``, both learned functions of (t, t - s): all that a flow map of normal data is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
        t = t.reshape(-1, 1).to(x)
        s = cond["target"].reshape(-1, 1).to(x) if "target" in cond else t
        slope, shift = self.net(torch.cat([t, t - s], 1)).chunk(2, -1)
        return slope * x + shift


def train(objective: Objective, model: Denoiser, steps: int, rate: float = 1e-2, count: int = 16) -> None:
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], rate)
    g = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        x0 = DATA.mean + DATA.std * torch.randn(count, 64, generator=g)
        losses = objective(model, Example(x0, Euclidean(), {}), StepRandomness(0, step, range(count), count))
        optimizer.zero_grad(set_to_none=True)
        losses.total.mean().backward()
        optimizer.step()


@torch.no_grad()
def std_after(model: Denoiser, calls: int) -> float:
    """Of what so many jumps of a flow map make of standard normal noise."""
    x = torch.special.ndtri((torch.arange(500).double() + 0.5) / 500)[:, None].float()
    grid = torch.linspace(1, 0, calls + 1, dtype=torch.float64)
    for t, s in pairwise(grid):
        said = model(x, t.expand(500), {"target": s.expand(500)})
        alpha, sigma = model.schedule.alpha_sigma(s)
        x = scale_like(alpha, x) * said.x0 + scale_like(sigma, x) * said.noise
    return float(x.std())


EULER_16 = final_std(SAMPLERS.build("euler"), FLOW, torch.linspace(1, 0, 17, dtype=torch.float64), 1.0)
LEARNED: list[tuple[dict[str, Any], int, float, dict[int, float]]] = [
    # objective, training steps, the exact std, and by calls how far from it
    ({"name": "meanflow", "same": 0.5, "power": 0.0, "times": "uniform"}, 200, 0.5, {1: 0.06, 4: 0.03}),
    ({"name": "consistency", "steps": 60, "last": 64}, 100, 0.5, {1: 0.04}),
    ({"name": "consistency_continuous", "warmup": 40}, 100, 0.5, {1: 0.05}),
    ({"name": "shortcut", "levels": 4, "still": 0.5}, 200, EULER_16, {1: 0.03, 2: 0.03, 4: 0.03}),
    ({"name": "progressive", "levels": 4, "steps": 90}, 150, EULER_16, {1: 0.03, 2: 0.03, 4: 0.03}),
    (
        {"name": "trajectory", "own_states": 0.5, "sampler": "heun", "steps": 8, "jumps": 2},
        100,
        0.5,
        {1: 0.02, 4: 0.02},
    ),
]


@pytest.mark.parametrize("spec, steps, std, bounds", LEARNED, ids=[entry[0]["name"] for entry in LEARNED])
def test_a_small_network_learns_the_map(spec: dict[str, Any], steps: int, std: float, bounds: dict[int, float]) -> None:
    """What a jump is taught from limits it: a shortcut model of 16 steps becomes Euler's method of 16 steps."""
    torch.manual_seed(0)
    model = Denoiser(Affine(), FLOW)
    teacher = taught() if spec["name"] in ("progressive", "trajectory") else None
    train(OBJECTIVES.build(spec, teacher=teacher), model, steps)
    for calls, bound in bounds.items():
        assert abs(std_after(model, calls) - std) < bound, calls


def test_matching_learns_the_distribution() -> None:
    """A generator that makes the mean first; its fake denoiser must be ahead of it."""
    torch.manual_seed(0)
    model = Denoiser(Affine(), FLOW)
    train(OBJECTIVES.build("denoising"), model, 80)
    assert std_after(model, 1) < 0.15
    train(OBJECTIVES.build({"name": "dmd", "calls": 1}, teacher=taught(), model=model), model, 300)
    assert abs(std_after(model, 1) - DATA.std) < 0.04


def test_matching_has_no_gradient_where_the_fake_denoiser_says_what_the_teacher_says() -> None:
    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            alpha, sigma = (v.reshape(-1, 1) for v in FLOW.alpha_sigma(t))
            return DATA.x0(x, alpha, sigma) + self.shift

    model = Denoiser(Exact(), FLOW, "x0", sigma_data=None)
    objective = OBJECTIVES.build({"name": "dmd", "calls": 1}, teacher=taught(), model=model)
    example = batch_of(6).example

    def gradient(step: int) -> Tensor | None:
        model.zero_grad()
        objective(model, example, StepRandomness(0, step, range(6), 6)).total.sum().backward()
        return model.network.shift.grad

    assert float(gradient(0).abs()) < 1e-12
    assert gradient(1) is None  # the fake denoiser's turn
    with torch.no_grad():
        objective.fake.network.shift.fill_(0.1)  # it takes the samples to lie too high
    assert float(gradient(0)) > 0.1


def test_a_trajectory_is_followed_as_well_as_its_solver_goes() -> None:
    """Of a student that says the exact map, the squared distance falls with the fourth power of Heun's steps."""
    from .test_flow_maps import exact

    model, example = exact("flow"), batch_of(6).example

    def distance(steps: int) -> float:
        spec = {"name": "trajectory", "sampler": "heun", "steps": steps, "calls": [2]}
        with torch.no_grad():
            ((name, losses),) = OBJECTIVES.build(spec, teacher=taught(), jumps=2).held_out(model, example, range(6), 0)
        assert name == "calls2"
        return float(losses.total.mean())

    assert 12 < distance(16) / distance(32) < 20


def test_rectified_pairs_lie_on_the_paths_of_the_teacher() -> None:
    """And a denoiser that knows their straight lines has no loss."""
    from .test_flow_maps import exact

    example, end = batch_of(6).example, DATA.flow_map(torch.zeros(1, dtype=torch.float64), FLOW, 1.0, 0.0)
    objective = OBJECTIVES.build({"name": "reflow", "sampler": "heun", "steps": 64}, teacher=taught())
    paired, noise = objective.pair(exact("flow"), example, sample_generators(0, range(6)))
    expected = DATA.flow_map(noise, FLOW, 1.0, 0.0)
    assert torch.allclose(paired.x0, expected, atol=3e-4)

    class Straight(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            t = t.reshape(-1, 1)
            eps = (x - (1 - t) * end) / ((1 - t) * DATA.std + t)  # x = (1 - t) (end + std eps) + t eps
            return eps - (end + DATA.std * eps)

    model = Denoiser(Straight(), FLOW, sigma_data=None)
    for _, losses in objective.held_out(model, example, range(6), 0):
        assert float(losses.total.max()) < 1e-7


class Both(nn.Module):
    """A network for a signal and the classes of its places."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = DiT(2, (2,), width=16, depth=1, heads=2, labels=3, two_times=True)
        self.kinds = DiT(3, (1,), channels_last=True, width=16, depth=1, heads=2, labels=3, two_times=True)
        for parameter in self.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)

    def forward(self, x: Sample, t: Any, cond: Any, previous: Any = None) -> Sample:
        if isinstance(x, Tensor):
            return self.signal(x, t, cond)
        times = {name: t[name] if hasattr(t, "keys") else t for name in ("signal", "kinds")}
        return product({name: getattr(self, name)(x[name], times[name], cond) for name in times})


class Batch:
    def __init__(self, example: Example, model: Denoiser | None = None) -> None:
        self.example, self.model = example, model


def batch_of(count: int) -> Batch:
    x0 = DATA.mean + DATA.std * torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(Example(x0, Euclidean(), {}))


def made(kind: str, rows: list[int]) -> Batch:
    """Samples of one tensor, or of two parts, one of classes, with padding and known places."""
    torch.manual_seed(0)
    signal = torch.randn(4, 2, 6)[rows]
    kinds = torch.nn.functional.one_hot(torch.randint(3, (4, 5)), 3).float()[rows]
    mask = (torch.arange(20).reshape(4, 5) < 19)[rows]  # the last of all is padding
    cond = {"label": torch.tensor([0, 2, -1, 1])[rows]}
    net = Both()
    if kind == "tensor":
        return Batch(Example(signal, Euclidean(), cond), Denoiser(net, FLOW))
    prediction = {"signal": "velocity", "kinds": {"name": "categorical"}}
    model = Denoiser(net, FLOW, prediction, {"signal": 1.0, "kinds": 0.5})
    given = {"signal": torch.arange(6).expand(len(rows), 1, 6) < 2, "kinds": torch.arange(5).expand(len(rows), 5) < 2}
    spaces = {
        "signal": Euclidean(known=given["signal"].expand(-1, 2, -1)),
        "kinds": Euclidean(mask, given["kinds"]),
    }
    x0 = product({"signal": signal, "kinds": kinds * mask[..., None]})
    return Batch(Example(x0, Product(spaces), cond, product(given)), model)


def few_step(name: str, model: Denoiser) -> Objective:
    """A small one, of the model's own first weights."""
    import copy

    frozen = copy.deepcopy(model).requires_grad_(False)
    small: dict[str, Any] = {
        "consistency": {"last": 20},
        "progressive": {"levels": 2, "steps": 3},
        "shortcut": {"levels": 2, "still": 0.5},
        "trajectory": {"steps": 4, "own_states": 0.5, "self_condition": True},
        "reflow": {"steps": 2},
        "dmd": {"calls": 2, "ratio": 2},
        "meanflow": {"same": 0.5},
    }
    return OBJECTIVES.build({"name": name, **small.get(name, {})}, teacher=frozen, model=model)


@pytest.mark.parametrize("kind", ["tensor", "known"])
@pytest.mark.parametrize("name", FEW_STEP)
def test_every_objective_trains_every_kind_of_sample(name: str, kind: str) -> None:
    batch = made(kind, [0, 1, 2, 3])
    objective = few_step(name, batch.model)
    optimizer = torch.optim.Adam([*batch.model.parameters(), *objective.parameters()], 1e-3)
    before = [p.detach().clone() for p in batch.model.parameters()]
    for step in range(3):
        losses = objective(batch.model, batch.example, StepRandomness(0, step, range(4), 4))
        assert losses.total.shape == (4,)
        losses.total.mean().backward()
        for parameter in batch.model.parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert bool(losses.total.isfinite().all())
    assert any(not torch.equal(old, new) for old, new in zip(before, batch.model.parameters(), strict=True))


@pytest.mark.parametrize("name", FEW_STEP)
def test_a_held_out_loss_depends_on_its_own_item(name: str) -> None:
    whole, one = made("tensor", [0, 1, 2]), made("tensor", [1])
    objective = few_step(name, whole.model)
    with torch.no_grad():
        views = dict(objective.held_out(whole.model, whole.example, [5, 6, 7], 3))
        alone = dict(objective.held_out(whole.model, one.example, [6], 3))
    assert list(views) == list(alone)
    for view, losses in views.items():
        assert torch.allclose(losses.total[1:2], alone[view].total, rtol=1e-3), view
        assert bool((losses.total > -1e-6).all())


@pytest.mark.parametrize("name", FEW_STEP)
def test_a_teacher_is_neither_trained_nor_saved(name: str) -> None:
    model = made("tensor", [0]).model
    objective = few_step(name, model)
    own = {"fake"} if name == "dmd" else set()
    assert {key.split(".")[0] for key in [*dict(objective.named_parameters()), *objective.state_dict()]} <= own


def test_guidance_is_trained_in() -> None:
    """The optimum of a model from data with guidance w is w v_c + (1 - w) v: told once, it says so."""

    class Said(nn.Module):
        """1 with the label, 0 without."""

        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            return (cond["label"] >= 0).to(x).reshape(-1, 1).expand_as(x)

    objective = OBJECTIVES.build({"name": "meanflow", "guidance": 3.0, "power": 0.0})
    example = Example(torch.zeros(2, 4), Euclidean(), {"label": torch.tensor([1, -1])})
    t = torch.full((2,), 0.5, dtype=torch.float64)
    losses = objective.at(Denoiser(Said(), FLOW, sigma_data=None), example, t, t, torch.ones(2, 4))
    assert losses.total.tolist() == pytest.approx([(3.0 * 1 + -2.0 * 0 - 1) ** 2, 3.0**2])


def test_what_cannot_be_learned_is_refused() -> None:
    model = made("tensor", [0]).model
    for name in ("trajectory", "progressive", "reflow", "dmd"):
        spec = {"name": name, "steps": 4} if name == "progressive" else name
        with pytest.raises(ValueError, match="teacher"):
            OBJECTIVES.build(spec, model=model)
    with pytest.raises(ValueError, match="deterministic"):
        OBJECTIVES.build({"name": "trajectory", "sampler": "ddpm"}, teacher=taught())
    uneven = OBJECTIVES.build({"name": "trajectory", "steps": 6, "calls": [4], "jumps": 1}, teacher=taught())
    with pytest.raises(ValueError, match="does not pass through the times of 4 calls"):
        uneven.stops(FLOW)
    with pytest.raises(ValueError, match="forward, central"):
        OBJECTIVES.build({"name": "meanflow", "derivative": "backward"})
    curved = Example(torch.zeros(2, 3), Torus(), {})
    with pytest.raises(ValueError, match="flat"):
        OBJECTIVES.build("meanflow")(model, curved, StepRandomness(0, 0, range(2), 2))
