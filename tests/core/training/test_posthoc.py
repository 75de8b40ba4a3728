"""Averages reconstructed from snapshots."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from noiseloom.core.training import (
    EMA,
    CheckpointError,
    TrainerConfig,
    power_function,
    power_function_exponent,
    reconstruct,
)
from noiseloom.core.training.posthoc import Profile, Snapshots, coefficients, inner_products
from tests.core.training import toy

STEPS, EVERY = 600, 50


def test_inner_products() -> None:
    """Against the integral of the two profiles; with different ends, the product ends at the earlier one."""
    pairs = [(Profile(1000, 0.05), Profile(600, 0.1)), (Profile(400, 0.1), Profile(400, 0.1))]
    for a, b in pairs:
        found = float(inner_products([a], [b])[0, 0])
        tau = np.linspace(0, min(a.updates, b.updates), 400_001)
        product = np.ones_like(tau)
        for profile in (a, b):
            gamma = power_function_exponent(profile.std)
            product *= (gamma + 1) * (tau / profile.updates) ** gamma / profile.updates
        assert found == pytest.approx(np.trapezoid(product, tau), rel=1e-6)
        assert found == pytest.approx(float(inner_products([b], [a])[0, 0]))


def test_what_is_stored_is_its_own_reconstruction() -> None:
    stored = [Profile(t, std) for t in range(100, 1001, 100) for std in (0.05, 0.1)]
    for k in (5, 19):
        assert np.allclose(coefficients(stored, stored[k]), np.eye(20)[k], atol=1e-6)
    assert coefficients(stored, Profile(1000, 0.075)).sum() == pytest.approx(1, abs=1e-3)


def weights(t: int) -> list[float]:
    """A trajectory of three weights: one that stays, one that settles, one that swings."""
    return [2.0, 1 - math.exp(-t / 150), math.sin(0.02 * t)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ema")
    module = nn.Linear(3, 1, bias=False)
    snapshots = Snapshots(module, (0.05, 0.1), root)
    for t in range(1, STEPS + 1):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([weights(t)]))
        snapshots.update(t)
        if t % EVERY == 0:
            snapshots.store(t, t)
    return root


@pytest.mark.parametrize("end", [STEPS, 400])
@pytest.mark.parametrize("std", [0.05, 0.06, 0.08, 0.12, 0.15])
def test_any_width_of_a_known_trajectory(folder: Path, std: float, end: int) -> None:
    """As the average that was kept of it all along; less exact beyond the widths that were stored."""
    module = nn.Linear(3, 1, bias=False)
    ema = EMA(module, power_function(std))
    for t in range(1, end + 1):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([weights(t)]))
        ema.update(t)
    found = reconstruct(folder, std, end)["weight"]
    error = (found - ema.state_dict()["weight"]).abs().max()
    assert float(error) < (2e-6 if std == 0.05 else 4e-3 if std <= 0.12 else 1.5e-2)
    other = {0.05: 0.1}.get(std, 0.05)
    assert float((reconstruct(folder, other, end)["weight"] - ema.state_dict()["weight"]).abs().max()) > 1e-2


def test_what_cannot_be_reconstructed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"trainer\.ema_snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(CheckpointError, match="no snapshots of step 7; it has 50, 100"):
        reconstruct(folder, 0.1, 7)
    with pytest.raises(ValueError, match="width"):
        reconstruct(folder, 0.5)


def test_snapshots_of_a_run_are_the_same_bits_however_often_it_stops(tmp_path: Path) -> None:
    options = {"ema_snapshots": 2, "checkpoint_every": 1, "ema_snapshot_stds": (0.1, 0.2)}
    toy.run(tmp_path / "once", steps=6, decay="constant", **options)
    for steps in (1, 3, 6):
        toy.run(tmp_path / "often", steps=steps, decay="constant", **options)
    once = sorted((tmp_path / "once" / "ema").rglob("*.safetensors"))
    assert len(once) == 6
    for path in once:
        other = tmp_path / "often" / path.relative_to(tmp_path / "once")
        assert path.read_bytes() == other.read_bytes(), path
    found = reconstruct(tmp_path / "often" / "ema", 0.1)
    assert found.keys() == dict(toy.denoiser().named_parameters()).keys()


def test_runs_without_snapshots_are_what_they_were(tmp_path: Path) -> None:
    """Their configuration does not name them, so that runs begun before go on."""
    assert "ema_snapshots" not in TrainerConfig().fixed()
    assert TrainerConfig(ema_snapshots=5).fixed()["ema_snapshot_stds"] == [0.05, 0.1]
    toy.run(tmp_path, steps=2)
    assert not (tmp_path / "ema").exists()
    assert not list(tmp_path.rglob("snapshots.safetensors"))
    with pytest.raises(ValueError, match="ema_snapshots"):
        TrainerConfig(ema_snapshots=-1)
