"""What training counts and which times it visits: against published values and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import TIME_DISTRIBUTIONS, WEIGHTINGS, Denoising, Example
from noiseloom.core.objectives.importance import LossSecondMoment
from noiseloom.core.objectives.weightings import robust
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.schedules import SCHEDULES
from noiseloom.core.spaces import Euclidean

FLOW = SCHEDULES.build("flow")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weight(spec: Any, snr: Tensor) -> list[float]:
    """On the error of x0."""
    return WEIGHTINGS.build(spec)(FLOW.time_of_log_snr(snr.log()), FLOW, torch.ones_like(snr)).tolist()


def test_weights_of_the_signal_to_noise_ratio() -> None:
    snr = double(0.01, 1.0, 5.0, 400.0)
    assert weight("truncated_snr", snr) == pytest.approx([1, 1, 5, 400])
    assert weight("snr_plus_one", snr) == pytest.approx([1.01, 2, 6, 401])
    assert weight("p2", snr) == pytest.approx([0.01 / 1.01, 1 / 2, 5 / 6, 400 / 401])
    assert weight({"name": "p2", "k": 2.0, "gamma": 0.5}, snr) == pytest.approx((snr / (2 + snr).sqrt()).tolist())
    assert weight("soft_min_snr", snr) == pytest.approx((5 * snr / (5 + snr)).tolist())
    assert weight("velocity", snr) == pytest.approx([1.21, 4, (1 + math.sqrt(5)) ** 2, 441])
    assert weight({"name": "velocity", "limit": 400.0}, snr)[-1] == 400


def test_soft_min_snr_is_crowsons_weight() -> None:
    """(sigma s)^2 / (sigma^2 + s^2)^2 on the error of EDM's output, whose x0 is c_out times it."""
    s, sigma = 0.5, double(0.05, 0.5, 3.0)
    on_output = double(*weight({"name": "soft_min_snr", "gamma": s**-2}, sigma**-2)) * (sigma * s) ** 2
    assert torch.allclose(on_output / (sigma**2 + s**2), (sigma * s) ** 2 / (sigma**2 + s**2) ** 2)


@pytest.mark.parametrize(
    ("weighting", "prediction", "schedule"),
    [("velocity", "velocity", "flow"), ("snr_plus_one", "v", "trig"), ("snr", "noise", "vp"), ("snr", "noise", "ve")],
)
def test_a_network_of_x0_with_the_loss_of_another_prediction(weighting: str, prediction: str, schedule: str) -> None:
    """The weighting makes the error of x0 that of the velocity, v or noise that x and x0 imply."""
    generator = torch.Generator().manual_seed(0)
    x0, noise, said = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t, example = double(0.1, 0.4, 0.7, 0.95), Example(x0, Euclidean(), {})

    class Says(nn.Module):
        def __init__(self, convert: bool) -> None:
            super().__init__()
            self.convert = convert

        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            if not self.convert:
                return said
            alpha, sigma = (v[:, None] for v in SCHEDULES.build(schedule).alpha_sigma(t))
            eps = (x - alpha * said) / sigma
            return {"velocity": eps - said, "v": alpha * eps - sigma * said, "noise": eps}[prediction]

    def loss(name: str, weight: str, convert: bool) -> Tensor:
        denoiser = Denoiser(Says(convert), schedule, name, sigma_data=None)
        return Denoising(weight).at(denoiser, example, t, noise, False).total

    assert torch.allclose(loss("x0", weighting, False), loss(prediction, "output", True), rtol=1e-5)


def test_the_score_with_the_weight_of_the_noise() -> None:
    """sigma^2 |score error|^2 is the error of the noise (Song et al. 2021, eq. 7)."""
    x0, noise = torch.ones(3, 2, dtype=torch.float64), torch.full((3, 2), -0.5, dtype=torch.float64)
    t, example = double(0.1, 0.5, 0.9), Example(x0, Euclidean(), {})

    class Zero(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            return torch.zeros_like(x)

    denoiser = Denoiser(Zero(), "sub_vp", "score", sigma_data=None)
    assert Denoising("snr").at(denoiser, example, t, noise, False).total.tolist() == pytest.approx([0.25] * 3)
    sigma = SCHEDULES.build("sub_vp").sigma(t)
    plain = Denoising("output").at(denoiser, example, t, noise, False).total
    assert plain.tolist() == pytest.approx((0.25 / sigma**2).tolist(), rel=1e-5)


def test_robust_losses() -> None:
    """Pseudo-Huber is sqrt(L + c^2) - c, and the adaptive weight 1 / (L + c): values, or gradients."""
    loss = double(0.0, 0.3, 20.0).requires_grad_()
    c = 0.03
    huber = robust(loss, 0.5, c**2)
    assert torch.allclose(huber, 2 * ((loss + c**2).sqrt() - c))
    (slope,) = torch.autograd.grad(robust(loss, 1.0, 1e-3).sum(), loss)
    assert torch.allclose(slope, 1 / (loss + 1e-3))
    (slope,) = torch.autograd.grad(robust(loss, 0.75, 1e-3).sum(), loss)
    assert torch.allclose(slope, (loss + 1e-3) ** -0.75)
    assert robust(loss, 0.0, c) is loss


def test_a_robust_objective() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            return torch.zeros_like(x)

    example = Example(torch.full((2, 3), 2.0), Euclidean(), {})
    denoiser = Denoiser(Zero(), "flow", "x0", None)
    losses = Denoising(power=0.5, floor=1.0).at(denoiser, example, double(0.2, 0.6), torch.zeros(2, 3), False)
    assert losses.total.tolist() == pytest.approx([2 * (math.sqrt(5) - 1)] * 2)
    assert losses.parts[""].tolist() == [4, 4]  # what is reported stays plain
    with pytest.raises(ValueError, match="power"):
        Denoising(power=2.0)


def test_laplace_times() -> None:
    """Log-SNR is Laplace on any schedule; under the schedule of that name uniform times do it."""
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for schedule in ("flow", "vp"):
        built = SCHEDULES.build(schedule)
        level = built.log_snr(TIME_DISTRIBUTIONS.build({"name": "laplace", "mean": 1.0, "scale": 0.7})(u, built))
        assert float(level.mean()) == pytest.approx(1.0, abs=1e-3)
        assert float((level - 1).abs().mean()) == pytest.approx(0.7, rel=2e-3)
    laplace = SCHEDULES.build({"name": "laplace", "mean": 1.0, "scale": 0.7})
    assert torch.allclose(level, laplace.log_snr(u), atol=1e-6)


class Steps:
    """A loss known at each time, drawn by an objective's times, step after step."""

    def __init__(self, times: LossSecondMoment) -> None:
        self.times = times

    def run(self, steps: range, pieces: int = 1, batch: int = 64) -> list[tuple[Tensor, Tensor]]:
        seen = []
        for step in steps:
            for k in range(pieces):
                places = range(batch * k // pieces, batch * (k + 1) // pieces)
                self.times.start(step)
                t = self.times(StepRandomness(0, step, places, batch).uniform(), FLOW)
                loss = 1 + 4 * t  # E[L^2] = (1 + 4 t)^2
                from noiseloom.core.objectives import Losses

                seen.append((t, self.times.corrected(Losses(loss, {"": loss}, t)).total))
        return seen


def test_times_by_the_second_moment_of_the_loss() -> None:
    """The density becomes that of the loss, each corrected loss its mean, 3, and the mean over times stays 3."""
    times = LossSecondMoment(bins=10, warm=5)
    steps = Steps(times)
    steps.run(range(60))
    middle = 1 + 4 * (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    assert torch.allclose(times.probabilities(), middle / middle.sum(), rtol=0.05)
    assert float(times.probabilities().sum()) == pytest.approx(1)
    late = steps.run(range(60, 80))
    corrected = torch.cat([loss for _, loss in late])
    assert float(corrected.mean()) == pytest.approx(3, rel=0.01)
    assert float(corrected.std()) < 0.25  # of uniform times: 4 / sqrt(12) = 1.15
    quarter = torch.cat([t for t, _ in late])
    assert float((quarter > 0.5).double().mean()) == pytest.approx(4 / 6, abs=0.03)  # int_1/2^1 (1 + 4t) dt / 3


def test_second_moments_are_saved_and_do_not_depend_on_pieces() -> None:
    whole, cut = LossSecondMoment(bins=8, warm=2), LossSecondMoment(bins=8, warm=2)
    Steps(whole).run(range(12))
    Steps(cut).run(range(12), pieces=4)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value.double(), cut.state_dict()[name].double(), rtol=1e-5), name
    again = LossSecondMoment(bins=8, warm=2)
    again.load_state_dict(whole.state_dict())
    on, off = (torch.cat([t for t, _ in Steps(times).run(range(12, 16))]) for times in (whole, again))
    assert torch.equal(on, off)
    assert "times.moments" in Denoising(times="loss_second_moment").state_dict()


def test_second_moments_in_an_objective() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            return torch.zeros_like(x)

    denoiser, example = Denoiser(Zero(), "flow", "velocity"), Example(torch.ones(16, 3), Euclidean(), {})
    objective = Denoising(times={"name": "loss_second_moment", "bins": 4, "warm": 1})
    for step in range(3):
        objective(denoiser, example, StepRandomness(0, step, range(16), 16))
    assert float(objective.times.seen.sum()) == 32  # the last step is taken in when the next one starts
    held = [losses.t for _, losses in objective.eval().held_out(denoiser, example, range(16), 0)]
    assert [float(t[0]) for t in held] == [(k + 0.5) / 8 for k in range(8)]
    with pytest.raises(ValueError, match="time_axes"):
        Denoising(times="loss_second_moment", time_axes=1)
    with pytest.raises(ValueError, match="denoising"):
        LossSecondMoment()(torch.rand(3, dtype=torch.float64), FLOW)
    with pytest.raises(ValueError, match="bins"):
        LossSecondMoment(bins=0)
