"""Schedules against independent values, their limits and their inverses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.schedules import SCHEDULES, Learned, Table, scales

HF_SIGMOID = {
    "name": "table",
    "betas": 1e-4 + (0.02 - 1e-4) * torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)),
}
ALL = [name if name != "table" else HF_SIGMOID for name in SCHEDULES]

# alpha^2 at levels 0, 249, 499, 749, 999 of 1000, sigma / alpha at the first and the last, and the sum of all alpha^2.
TABLES = [
    (
        "linear",
        [0.9999, 0.5240853738, 0.07858724288, 0.003350550439, 4.035829765e-05],
        (0.0100005, 157.40728),
        275.51323340,
    ),
    (
        "scaled_linear",
        [0.99915, 0.6754324137, 0.2776696505, 0.0566234916, 0.004660098513],
        (0.029167158, 14.614641),
        373.37663057,
    ),
    (
        "cosine",
        [0.9999587158, 0.8470121613, 0.4938435904, 0.1442721024, 2.428766907e-09],
        (0.0064254128, 20291.17),
        495.57751258,
    ),
    (
        "sigmoid_beta",
        [0.9998507948, 0.9037446654, 0.3019310566, 0.005732198886, 3.968181991e-05],
        (0.012215869, 158.74337),
        428.53670133,
    ),
    ("sigmoid", [0.9996997208, 0.8508535479, 0.5, 0.1491464521, 3.002791997e-07], (0.017331168, 1824.8926), 499.5),
    (
        {"name": "zero_terminal_snr", "schedule": "linear"},
        [0.9999, 0.5215333407, 0.07602875055, 0.0026895217, 0],
        (0.0100005, math.inf),
        274.05808437,
    ),
    (
        {"name": "zero_terminal_snr", "schedule": "scaled_linear"},
        [0.99915, 0.6541890065, 0.2423591666, 0.03317148283, 0],
        (0.029167158, math.inf),
        352.17934167,
    ),
]


def test_all_schedules_are_tested() -> None:
    assert {s if isinstance(s, str) else s["name"] for s in ALL} == set(SCHEDULES)


@pytest.mark.parametrize("spec, alpha2, ratios, total", TABLES, ids=lambda v: str(v)[:24])
def test_discrete_schedules(spec: Any, alpha2: list[float], ratios: tuple[float, float], total: float) -> None:
    schedule = SCHEDULES.build(spec)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert (alpha[[0, 249, 499, 749, 999]] ** 2).tolist() == pytest.approx(alpha2, rel=1e-8)
    assert (sigma / alpha)[[0, 999]].tolist() == pytest.approx(ratios, rel=1e-6)
    assert float((alpha**2).sum()) == pytest.approx(total, rel=1e-9)


def test_continuous_vp() -> None:
    schedule = SCHEDULES.build("vp")  # beta from 0.1 to 20
    alpha, sigma = schedule.alpha_sigma(torch.tensor([1.0, 0.5, 1e-3], dtype=torch.float64))
    assert (sigma / alpha).tolist() == pytest.approx([152.16697, 3.41291831, 0.010485993], rel=1e-7)
    assert float(alpha[0]) == pytest.approx(0.00657158649, rel=1e-8)


@pytest.mark.parametrize(
    "shift, t, expected",
    [
        (3.0, [0.1, 0.5, 0.9], [0.25, 0.75, 0.9642857143]),
        (7.0, [0.1, 0.5, 0.9], [0.4375, 0.875, 0.984375]),
        (math.exp(0.5), [0.5], [0.6224593312]),
        (math.exp(1.15), [0.5], [0.7595109]),
    ],
)
def test_shifted_flow(shift: float, t: list[float], expected: list[float]) -> None:
    schedule = SCHEDULES.build({"name": "shifted", "schedule": "flow", "shift": shift})
    alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    assert sigma.tolist() == pytest.approx(expected, rel=1e-7)
    assert torch.allclose(alpha + sigma, torch.ones_like(sigma), atol=1e-15)


def test_the_formulas_of_ve_edm_flow_and_trig() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = {
        "ve": (torch.ones(4), 0.01 * torch.sqrt(5000 ** (2 * t) - 1)),
        "edm": (torch.ones(4), 80 * t**7),
        "flow": (1 - t, t),
        "trig": (torch.tensor([1, math.cos(math.pi / 8), math.sqrt(0.5), 0]), torch.sin(t * math.pi / 2)),
    }
    for name, (alpha, sigma) in expected.items():
        actual = SCHEDULES.build(name).alpha_sigma(t)
        assert torch.allclose(actual[0], alpha.double(), atol=1e-7), name
        assert torch.allclose(actual[1], sigma.double(), rtol=1e-12, atol=1e-15), name


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s if isinstance(s, str) else s["name"])
@torch.no_grad()
def test_log_snr_falls_and_is_inverted(spec: Any) -> None:
    schedule = SCHEDULES.build(spec)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert log_snr[0] == math.inf
    assert not log_snr.isnan().any()
    assert (log_snr[1:] < log_snr[:-1]).all()
    assert torch.allclose(schedule.time_of_log_snr(log_snr), t, atol=1e-9)
    alpha, sigma = schedule.alpha_sigma(t)
    assert float(alpha[0]) == 1
    assert float(sigma[0]) == 0
    assert torch.allclose(2 * torch.log(alpha / sigma), log_snr, rtol=1e-9)
    size = {"preserving": alpha**2 + sigma**2, "flow": alpha + sigma, "sub": alpha**2 + sigma, "exploding": alpha}
    assert torch.allclose(size[schedule.scaling], torch.ones_like(t), atol=1e-12)


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s if isinstance(s, str) else s["name"])
def test_the_inverse_stays_in_the_unit_interval(spec: Any) -> None:
    far = torch.tensor([-math.inf, -500.0, 500.0, math.inf], dtype=torch.float64)
    t = SCHEDULES.build(spec).time_of_log_snr(far)
    assert not t.isnan().any()
    assert t[0] == 1
    assert t[-1] == 0
    assert ((t >= 0) & (t <= 1)).all()


def test_shapes_and_types_are_kept() -> None:
    t = torch.rand(3, 4, 2)
    for spec in ALL:
        alpha, sigma = SCHEDULES.build(spec).alpha_sigma(t)
        assert alpha.shape == sigma.shape == t.shape
        assert alpha.dtype == sigma.dtype == torch.float64
        assert SCHEDULES.build(spec).alpha(0.5).shape == ()


def test_scales_are_exact_at_infinity() -> None:
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    for scaling in ("preserving", "flow", "sub"):
        alpha, sigma = scales(ends, scaling)
        assert alpha.tolist() == [0, 1]
        assert sigma.tolist() == [1, 0]


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "vp", "beta_min": 2.0, "beta_max": 1.0},
        {"name": "ve", "sigma_min": 0.0},
        {"name": "edm", "rho": 0.0},
        {"name": "table", "betas": [0.1, 1.0, 0.2]},
        {"name": "table", "betas": [0.1]},
        {"name": "shifted", "shift": -1.0},
        {"name": "laplace", "scale": 0.0},
        {"name": "learned", "pieces": 0},
        {"name": "zero_terminal_snr", "schedule": "flow"},
        {"name": "flow", "shift": 3.0},
        "no such schedule",
    ],
)
def test_wrong_values_are_refused(spec: Any) -> None:
    with pytest.raises(ValueError):
        SCHEDULES.build(spec)


def test_a_table_hits_its_levels_exactly() -> None:
    betas = torch.rand(997, dtype=torch.float64) * 0.02 + 1e-4
    table = Table(betas)
    t = torch.arange(1, 998, dtype=torch.float64) / 997
    assert torch.equal(table.alpha(t) ** 2 > 0, torch.ones(997, dtype=torch.bool))
    assert torch.allclose(table.alpha(t) ** 2, torch.cumprod(1 - betas, 0), rtol=1e-12)


def test_sub_vp() -> None:
    """alpha as that of vp, sigma = 1 - alpha^2 (Song et al. 2021)."""
    t = torch.tensor([1e-6, 0.01, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = SCHEDULES.build("sub_vp").alpha_sigma(t)
    assert torch.allclose(alpha, SCHEDULES.build("vp").alpha(t), rtol=1e-9)
    expected = -torch.expm1(-(t * t * 19.9 / 2 + 0.1 * t))
    assert torch.allclose(sigma, expected, rtol=1e-9)


def test_laplace() -> None:
    """lambda = mu - b sgn(1/2 - t) log(1 - 2 |t - 1/2|) (Hang et al. 2024)."""
    t = torch.tensor([0.01, 0.3, 0.5, 0.8, 0.999], dtype=torch.float64)
    expected = 1.5 - 0.7 * torch.sign(0.5 - t) * torch.log(1 - 2 * (t - 0.5).abs())
    assert torch.allclose(SCHEDULES.build({"name": "laplace", "mean": 1.5, "scale": 0.7}).log_snr(t), expected)


def test_gvp_is_trig() -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.equal(SCHEDULES.build("gvp").log_snr(t), SCHEDULES.build("trig").log_snr(t))


def test_a_learned_schedule() -> None:
    """It learns the warp that lowers a bound of 4 levels, in closed form for normal data, and stays a schedule:
    falling, inverted, with the ends of the one it warps."""
    torch.manual_seed(0)
    base = SCHEDULES.build("vp")
    schedule = SCHEDULES.build({"name": "learned", "schedule": "vp", "pieces": 8})
    assert isinstance(schedule, Learned)
    t, levels = torch.linspace(0, 1, 41, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
    assert torch.allclose(schedule.log_snr(t)[1:], base.log_snr(t)[1:], rtol=1e-6)

    def bound() -> (
        torch.Tensor
    ):  # (SNR(s) - SNR(t)) s^2 sigma_t^2 / V_t / 2 of all levels but the first, and the decoder
        snr = schedule.log_snr(levels[1:]).exp()
        return ((snr[:-1] - snr[1:]) / (4 + snr[1:])).sum() / 2 - torch.log(snr[0]) / 2

    start = float(bound().detach())
    for _ in range(20):
        (slope,) = torch.autograd.grad(bound(), schedule.steepness)
        with torch.no_grad():
            schedule.steepness -= 0.3 * slope.sign()
    assert float(bound().detach()) < start - 0.03
    with torch.no_grad():
        level = schedule.log_snr(t)
        assert (level[1:] < level[:-1]).all()
        assert not torch.allclose(level[1:], base.log_snr(t)[1:], rtol=0.05)
        assert torch.allclose(schedule.time_of_log_snr(level), t, atol=1e-9)
        assert level[[0, -1]].tolist() == base.log_snr(t)[[0, -1]].tolist()


def test_a_learned_schedule_is_part_of_its_denoiser() -> None:
    """Trained with it, and stored with it."""
    denoiser = Denoiser(torch.nn.Linear(1, 1), {"name": "learned", "pieces": 4}, "velocity")
    assert "schedule.steepness" in denoiser.state_dict()
    assert any(name == "schedule.steepness" for name, _ in denoiser.named_parameters())
