"""What an output means: the published coefficients, and every prediction there and back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noiseloom.core.denoiser import Denoiser, FunctionDenoiser, UnderSchedule
from noiseloom.core.objectives import WEIGHTINGS
from noiseloom.core.predictions import PREDICTIONS, Linear, convert
from noiseloom.core.schedules import SCHEDULES
from tests.oracles import Gaussian, exact_denoiser

SAME_SHAPE = [name for name in PREDICTIONS if name != "learned_range"]  # that one has twice the channels
LINEAR = [name for name in PREDICTIONS if isinstance(PREDICTIONS.build(name), Linear)]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_edm_preconditioning() -> None:
    """x0 = c_skip x + c_out F(c_in x), and the weight 1 / c_out^2 (Karras et al. 2022, table 1)."""
    edm, weighting = PREDICTIONS.build("edm"), WEIGHTINGS.build("edm")
    sigma = double(0.5, 1, 80)
    assert isinstance(edm, Linear)
    c_skip, c_out, _, _ = edm.coefficients(torch.ones_like(sigma), sigma)
    assert c_skip.tolist() == pytest.approx([0.5, 0.2, 3.9061e-5], rel=1e-4)
    assert c_out.abs().tolist() == pytest.approx([0.353553, 0.447214, 0.49999], rel=1e-5)
    schedule = SCHEDULES.build("edm")
    t = schedule.time_of_log_snr(-2 * sigma.log())
    per_output = edm.x0_per_output(*schedule.alpha_sigma(t))
    assert weighting(t, schedule, torch.ones_like(t)).tolist() == pytest.approx([8, 5, 4.00016], rel=1e-5)
    assert weighting(t, schedule, per_output).tolist() == pytest.approx([1, 1, 1])


def test_the_input_is_scaled_to_unit_variance() -> None:
    """c_in = 1 / sqrt(sigma_data^2 + sigma^2)."""
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object, previous: object = None) -> Tensor:
            seen.append(x)
            return x

    schedule = SCHEDULES.build("edm")
    denoiser = Denoiser(Network(), schedule, "edm", sigma_data=0.5)
    denoiser(torch.ones(3, 2), schedule.time_of_log_snr(-2 * double(0.5, 1, 80).log()))
    assert seen[0][:, 0].tolist() == pytest.approx([1.414214, 0.894427, 0.0124998], rel=1e-5)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("schedule", ["flow", "trig", "edm", "vp"])
def test_targets_are_inverted(name: str, schedule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = SCHEDULES.build(schedule).alpha_sigma(torch.linspace(0.2, 0.9, 9, dtype=torch.float64))
    x = alpha[:, None] * x0 + sigma[:, None] * noise
    prediction = PREDICTIONS.build(name)
    assert isinstance(prediction, Linear)
    clean, eps = prediction.estimate(x, prediction.target(x0, noise, alpha, sigma), alpha, sigma)
    assert torch.allclose(clean, x0, atol=1e-9)
    assert torch.allclose(eps(), noise, atol=1e-9)


@pytest.mark.parametrize("name", SAME_SHAPE)
def test_both_ends_are_finite_and_agree_with_x(name: str) -> None:
    """Without noise, x0 is x for every prediction that can say so; without signal the noise is x."""
    generator = torch.Generator().manual_seed(0)
    x, output = (torch.randn(2, 5, generator=generator) for _ in range(2))
    prediction = PREDICTIONS.build(name)
    for alpha, sigma in ((1.0, 0.0), (0.0, 1.0)):
        x0, noise = prediction.estimate(x, output, double(alpha, alpha), double(sigma, sigma))
        assert x0.isfinite().all()
        assert noise().isfinite().all()
        if sigma == 0 and name not in ("x0", "categorical"):
            assert torch.allclose(x0, x)
        if alpha == 0 and name not in ("noise", "score"):
            assert torch.allclose(noise(), x)


@pytest.mark.parametrize("to", LINEAR)
@pytest.mark.parametrize("of", LINEAR)
def test_every_prediction_says_what_every_other_does(of: str, to: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, output = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = SCHEDULES.build("sub_vp").alpha_sigma(torch.linspace(0.05, 0.9, 9, dtype=torch.float64))
    first, second = (PREDICTIONS.build(name) for name in (of, to))
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    x0, noise = first.estimate(x, output, alpha, sigma)
    same, eps = second.estimate(x, convert(output, x, alpha, sigma, first, second), alpha, sigma)
    assert torch.allclose(same, x0, rtol=1e-7)
    assert torch.allclose(eps(), noise(), rtol=1e-7)


@pytest.mark.parametrize(("schedule", "sigma_data", "sign"), [("vp", 1.0, 1), ("ve", None, -1), ("cosine", 1.0, 1)])
def test_the_preconditioning_of_vp_ve_and_iddpm(schedule: str, sigma_data: float | None, sign: int) -> None:
    """The other columns of table 1 in Karras et al. 2022: D = x + c_out F(c_in x) at x = x0 + sigma noise, with
    c_out = -sigma and c_in = (sigma^2 + 1)^-1/2 for VP and iDDPM, c_out = sigma and c_in = 1 for VE. All predict the
    noise, VE's network its opposite; ``sigma_data`` 1 or None is c_in."""
    built, exploding = SCHEDULES.build(schedule), SCHEDULES.build("edm")
    denoise = UnderSchedule(Denoiser(_Scaled(sign), built, "noise", sigma_data), built, exploding)
    sigma, x = double(0.1, 2.0, 40.0), torch.tensor([[0.3, -1.0], [2.0, 0.5], [20.0, 7.0]], dtype=torch.float64)
    c_in = 1 / torch.sqrt(sigma**2 + 1) if sigma_data else torch.ones_like(sigma)
    expected = x - sign * sigma[:, None] * torch.sin(c_in[:, None] * x)
    t = exploding.time_of_log_snr(-2 * sigma.log())
    assert torch.allclose(denoise(x, t).x0, expected, rtol=1e-6)


def test_a_known_element_is_its_own_estimate() -> None:
    for name in SAME_SHAPE:
        denoiser = Denoiser(_Constant(), "flow", name)
        t = torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)
        x = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(1))
        x0 = denoiser(x, t).x0
        assert torch.equal(x0[:, [0, 2]], x[:, [0, 2]])
        assert not torch.equal(x0[:, 1], x[:, 1])


def test_categorical_is_the_exact_posterior_mean() -> None:
    """With the prior's logits as output, x0 is the exact posterior mean under that prior."""
    scale, alpha, sigma = 2.0, double(0.6), double(0.7)
    prior = torch.tensor([0.2, 0.5, 0.3])
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    classes = scale * torch.eye(3)
    log_likelihood = -((x[..., None, :] - 0.6 * classes) ** 2).sum(-1) / (2 * 0.7**2)
    posterior = torch.softmax(log_likelihood + prior.log(), -1)
    prediction = PREDICTIONS.build({"name": "categorical", "scale": scale})
    x0, _ = prediction.estimate(x, prior.log().expand_as(x), alpha, sigma)
    assert torch.allclose(x0, posterior @ classes, atol=1e-6)
    truth = scale * torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 1]]), 3).float()
    loss = prediction.error(x, prior.log().expand_as(x), truth, x, alpha, sigma)
    assert torch.allclose(loss[..., 0], -posterior[0, range(4), [0, 1, 2, 1]].log()[None], atol=1e-6)


@pytest.mark.parametrize("trained", ["flow", "edm", "vp"])
@pytest.mark.parametrize("used", ["flow", "edm", "trig", "linear"])
def test_a_denoiser_under_another_schedule(trained: str, used: str) -> None:
    data, own, other = Gaussian(0.5, 0.3), SCHEDULES.build(trained), SCHEDULES.build(used)
    denoise = UnderSchedule(exact_denoiser(data, own), own, other)
    x, t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], torch.linspace(0.1, 0.8, 5, dtype=torch.float64)
    expected = exact_denoiser(data, other)(x, t)
    assert torch.allclose(denoise(x, t).x0, expected.x0, atol=1e-8)
    assert torch.allclose(denoise(x, t).noise, expected.noise, atol=1e-7)


def test_the_noise_of_a_function() -> None:
    denoise = FunctionDenoiser(lambda x, t: 0.5 * x, SCHEDULES.build("flow"))
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.allclose(denoise(x, double(0.25, 0.5)).noise, x * double(2.5, 1.5)[:, None])
    assert torch.equal(denoise(x, 0.0).noise, torch.zeros_like(x))


def test_wrong_options_are_refused() -> None:
    for spec in ({"name": "edm", "sigma_data": 0.0}, {"name": "categorical", "scale": -1.0}, "epsilon"):
        with pytest.raises(ValueError):
            PREDICTIONS.build(spec)
    assert math.isfinite(float(PREDICTIONS.build("noise").x0_per_output(double(0.0), double(1.0))))


class _Constant(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor, cond: object, previous: object = None) -> Tensor:
        return torch.full_like(x, 0.3)


class _Scaled(torch.nn.Module):
    """F = sin, or its opposite."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, t: Tensor, cond: object, previous: object = None) -> Tensor:
        return self.sign * torch.sin(x)
