"""Averages of weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from noiseloom.core.training import EMA, fixed_rate, power_function, power_function_exponent


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.9722), (0.10, 6.9372), (0.15, 3.5579)])
def test_the_exponent_of_a_width(std: float, exponent: float) -> None:
    """The figures of Karras et al. 2024."""
    gamma = power_function_exponent(std)
    assert gamma == pytest.approx(exponent, abs=5e-5)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(std**2, rel=1e-9)


def test_a_width_out_of_range_is_refused() -> None:
    for std in (0.0, 0.3):
        with pytest.raises(ValueError, match="width"):
            power_function_exponent(std)


def average(beta: object, values: list[float]) -> float:
    module = nn.Linear(1, 1, bias=False)
    ema = EMA(module, beta)  # type: ignore[arg-type]
    for t, value in enumerate(values, 1):
        nn.init.constant_(module.weight, value)
        ema.update(t)
    return ema.state_dict()["weight"].item()


def test_the_power_function_average_in_closed_form() -> None:
    """beta_t = (1 - 1/t)^n telescopes: update i has weight (1 - beta_i) (i / T)^n. And the width is what was asked."""
    n, steps = power_function_exponent(0.1) + 1, 1000
    values = [math.sin(0.01 * i) for i in range(1, steps + 1)]
    weights = [(1 - (1 - 1 / i) ** n) * (i / steps) ** n for i in range(1, steps + 1)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(w * v for w, v in zip(weights, values, strict=True))
    assert average(power_function(0.1), values) == pytest.approx(expected, abs=1e-5)
    times = [i / steps for i in range(1, steps + 1)]
    mean = sum(w * t for w, t in zip(weights, times, strict=True))
    variance = sum(w * (t - mean) ** 2 for w, t in zip(weights, times, strict=True))
    assert math.sqrt(variance) == pytest.approx(0.1, rel=0.01)


def test_a_fixed_rate_ramps_up() -> None:
    beta = fixed_rate(0.9)
    assert beta(1) == pytest.approx(2 / 11)
    assert beta(10_000) == 0.9
    assert average(beta, [3.0] * 400) == pytest.approx(3.0, abs=1e-4)


def test_averages_are_swapped_in_and_out_again_even_after_an_error() -> None:
    module = nn.Linear(2, 2)
    ema = EMA(module, power_function(0.1))
    before = {name: p.clone() for name, p in module.named_parameters()}
    averaged = {name: torch.full_like(p, 7.0) for name, p in before.items()}
    ema.load_state_dict(averaged)

    def inside() -> None:
        with ema.swapped_in():
            assert all((p == 7).all() for p in module.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_averages_of_low_precision_weights_are_float32() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    ema = EMA(module, lambda t: 0.999)
    nn.init.constant_(module.weight, 1.0)
    ema.load_state_dict({"weight": torch.zeros(1, 1)})
    ema.update(1)
    assert ema.values[0].dtype == torch.float32
    assert ema.values[0].item() == pytest.approx(1e-3)
