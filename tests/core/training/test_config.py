"""The options of a run and the learning rate of a step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from noiseloom.core.training import TrainerConfig, learning_rate


def rates(decay: str, steps: int = 100, warmup: int = 10) -> list[float]:
    config = TrainerConfig(steps=steps, warmup=warmup, lr=1.0, decay=decay, decay_fraction=0.5)
    return [learning_rate(config, step) for step in range(steps)]


def test_warm_up_is_linear_and_never_zero() -> None:
    assert rates("cosine")[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates("constant", warmup=0)[0] == 1.0


def test_decays() -> None:
    for decay, half in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0), ("wsd", 1.0)):
        values = rates(decay)
        assert values[10] == 1.0
        assert values[55] == pytest.approx(half)
        assert all(a >= b for a, b in pairwise(values[10:]))
        assert 0 < values[-1] <= (1.0 if decay == "constant" else 0.03)
    assert rates("wsd")[77] == pytest.approx((1 - 67 / 90) / 0.5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"decay": "cosin"}, "cosine, linear, constant, wsd"),
        ({"precision": "fp16"}, "fp32, bf16"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": -1.0}, "lr must not be negative"),
        ({"decay_fraction": 0.0}, "decay_fraction"),
    ],
)
def test_wrong_values_are_refused_by_name(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**option)
