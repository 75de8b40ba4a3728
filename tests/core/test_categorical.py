"""Tokens: exact marginals from exact denoisers, at any number of steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noiseloom.core.categorical import Categorical, drawn, masked_token
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import OBJECTIVES, Example
from noiseloom.core.predictions import PREDICTIONS, Estimate
from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.core.samplers import generate, trajectory
from noiseloom.core.samples import product
from noiseloom.core.schedules import SCHEDULES
from noiseloom.core.spaces import Euclidean, Product

FLOW = SCHEDULES.build("flow")
SHARES = torch.tensor([0.5, 0.3, 0.2])
SAMPLERS = {
    "absorbing": ["masked", {"name": "masked", "remask": 0.5}],
    "uniform": ["uniform_tokens"],
}


class Exact:
    """The posterior of independent tokens with these shares."""

    schedule = FLOW

    def __init__(self, prior: str) -> None:
        self.prior, self.calls = prior, 0

    def __call__(self, x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        self.calls += 1
        if self.prior == "absorbing":
            x0 = torch.where(x[..., -1:] > 0, F.pad(SHARES, (0, 1)).to(x), x)
        else:
            kept = (1 - torch.as_tensor(t)).to(x)
            likely = SHARES * (kept * x + (1 - kept) / 3)
            x0 = likely / likely.sum(-1, keepdim=True)
        return Estimate(x0, lambda: x)


def start(prior: str, count: int = 1000, length: int = 10) -> Tensor:
    return torch.zeros(count, length, 4 if prior == "absorbing" else 3)


@pytest.mark.parametrize("prior, spec", [(p, s) for p, some in SAMPLERS.items() for s in some], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 16])
def test_shares_are_exact_at_any_number_of_steps(prior: Any, spec: Any, steps: int) -> None:
    x = generate(Exact(prior), start(prior), sampler=spec, steps=steps, seeds=0, space=Categorical(prior))
    assert isinstance(x, Tensor)
    assert torch.equal(x.sum(-1), torch.ones(1000, 10))
    assert torch.allclose(x.mean((0, 1))[:3], SHARES, atol=4 * (0.25 / 10_000) ** 0.5)


def test_confidence_shows_as_many_as_the_schedule_says_the_surest_first() -> None:
    """Which is not the data's distribution, by design: likely classes are shown more often."""

    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        sure = torch.linspace(0.4, 0.9, 10)[None, :, None]
        x0 = torch.cat((sure, 1 - sure, 0 * sure, 0 * sure), -1).expand_as(x)
        return Estimate(torch.where(x[..., -1:] > 0, x0, x), lambda: x)

    options: dict[str, Any] = {"sampler": {"name": "confidence", "temperature": 0.0}, "space": Categorical()}
    steps = trajectory(denoise, start("absorbing", 2), schedule="flow", steps=5, seeds=0, **options)
    shown = [step.x[..., -1] == 0 for step in steps]  # type: ignore[index]
    assert [one.sum(1).tolist() for one in shown] == [[2, 2], [4, 4], [6, 6], [8, 8], [10, 10]]
    assert all(bool((after >= before).all()) for before, after in pairwise(shown))


def test_one_draw_gives_a_class_and_a_number_that_does_not_know_it() -> None:
    uniform = torch.rand(50_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    token, number = drawn(SHARES.expand(50_000, 3), uniform)
    assert torch.allclose(token.double().mean(0), SHARES.double(), atol=0.01)
    for k in range(3):
        mine = number[token[:, k] == 1].sort().values
        even = torch.linspace(0, 1, len(mine), dtype=torch.float64)
        assert float((mine - even).abs().max()) < 2 / len(mine) ** 0.5  # Kolmogorov-Smirnov, p < 1e-3


@pytest.mark.parametrize("prior", SAMPLERS)
def test_tokens_are_kept_with_the_schedules_share(prior: Any) -> None:
    space = Categorical(prior)
    classes = 4 if prior == "absorbing" else 3
    x0 = F.one_hot(torch.zeros(4000, 5, dtype=torch.long), classes).float()
    noise = space.noise(x0, sample_generators(0, range(4000)))
    before = None
    for name in ("flow", "vp"):
        schedule = SCHEDULES.build(name)
        for t in (0.0, 0.3, 0.8, 1.0):
            x, _, _ = space.noised(x0, noise, t, schedule)
            kept = float(torch.sigmoid(schedule.log_snr(t) / 2))
            expected = kept + (1 - kept) / 3 if prior == "uniform" else kept
            assert float(x[..., 0].mean()) == pytest.approx(expected, abs=0.012)
            if name == "flow" and before is not None:
                assert bool((x[..., 0] <= before).all())  # what has turned stays so
            before = x[..., 0] if name == "flow" else None


def test_unmasking_needs_no_more_calls_than_steps_and_known_tokens_stay() -> None:
    denoise, x = Exact("absorbing"), start("absorbing", 8)
    x[:, :4] = F.one_hot(torch.tensor([2, 1, 0, 2]), 4).float()
    known = torch.zeros(8, 10, dtype=torch.bool)
    known[:, :4] = True
    out = generate(denoise, x, sampler="masked", steps=5, seeds=0, space=Categorical(), known=known)
    assert denoise.calls == 5
    assert torch.equal(out[:, :4], x[:, :4])  # type: ignore[index]
    assert bool((out[..., -1] == 0).all())  # type: ignore[index]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    for prior, specs in SAMPLERS.items():
        for spec in specs:
            options: Any = {"sampler": spec, "steps": 4, "space": Categorical(prior)}  # type: ignore[arg-type]
            both = generate(Exact(prior), start(prior, 2), seeds=[3, 5], **options)
            alone = generate(Exact(prior), start(prior, 1), seeds=[5], **options)
            assert torch.equal(both[1:], alone)  # type: ignore[index]


def test_wrong_samplers_are_refused() -> None:
    with pytest.raises(ValueError, match="absorbing tokens need a sampler of theirs: masked, confidence"):
        generate(Exact("absorbing"), start("absorbing", 1), sampler="euler", steps=2, seeds=0, space=Categorical())
    with pytest.raises(ValueError, match="is for tokens"):
        generate(lambda x, t: x, torch.zeros(1, 3), sampler="masked", steps=2, seeds=0)


def test_the_prediction_of_classes() -> None:
    """A token that shows is its own clean self, the mask is never predicted, and the loss is of masked tokens."""
    prediction = PREDICTIONS.build({"name": "classes", "prior": "absorbing"})
    x = torch.stack((torch.tensor([0.0, 1, 0, 0]), masked_token(torch.zeros(4))))[None]
    output = torch.tensor([1.0, 0, 0, 9]).expand(1, 2, 4)
    half = torch.tensor(0.5, dtype=torch.float64)
    x0, _ = prediction.estimate(x, output, half, half)
    assert torch.equal(x0[0, 0], x[0, 0])
    assert torch.allclose(x0[0, 1, :3], torch.softmax(output[0, 1, :3], -1))
    assert x0[0, 1, 3] == 0
    truth = F.one_hot(torch.tensor([[1, 0]]), 4).float()
    error = prediction.error(x, output, truth, x, half, half)
    assert error[0, :, 0].tolist() == pytest.approx([0, float(-torch.log_softmax(output[0, 1, :3], -1)[0])])


def test_tokens_and_numbers_are_learned_together() -> None:
    """Classes and a number that depends on the class; the mixed state is sampled by one call a step."""
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(6, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
                torch.nn.Linear(64, 5),
            )  # fmt: skip

        def forward(self, x: Any, t: Any, cond: Any = None, previous: Any = None) -> Any:
            time = torch.as_tensor(t).float().expand(len(x["number"])).unsqueeze(1)
            out = self.layers(torch.cat((x["token"][:, 0], x["number"], time), 1))
            return product({"token": out[:, None, :4], "number": out[:, 4:]})

    space = Product({"token": Categorical(), "number": Euclidean()})
    predictions = {"token": {"name": "classes", "prior": "absorbing"}, "number": "velocity"}
    model = Denoiser(Network(), "flow", predictions, sigma_data={"token": None, "number": 1.0})  # type: ignore[dict-item]
    objective = OBJECTIVES.build("denoising")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 600)
    for step in range(600):
        token = torch.multinomial(SHARES, 64, replacement=True)
        number = token[:, None] - 1.0 + 0.05 * torch.randn(64, 1)
        x0 = product({"token": F.one_hot(token, 4).float()[:, None], "number": number})
        loss = objective(model, Example(x0, space, {}), StepRandomness(0, step, range(64), 64)).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    empty = product({"token": torch.zeros(1000, 1, 4), "number": torch.zeros(1000, 1)})
    sampler = {"name": "by_part", "samplers": {"token": "masked", "number": "ddim"}}
    made = generate(model, empty, sampler=sampler, steps=40, seeds=0, space=space)
    token = made["token"][:, 0].argmax(-1)  # type: ignore[index]
    assert torch.allclose(F.one_hot(token, 3).float().mean(0), SHARES, atol=0.06)
    assert float((made["number"][:, 0] - (token - 1.0)).abs().median()) < 0.1  # type: ignore[index]
