"""Energies of mel frames: loudness and brightness of sounds made for it, and that guidance makes them fall."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import noiseloom
from noiseloom.core.guidance import ENERGIES
from noiseloom.modalities.audio.energies import Brightness, Loudness
from noiseloom.modalities.audio.mel import PRESETS
from noiseloom.modalities.audio.representation import REPRESENTATIONS

PRESET = "speech-8k"


def audio(channels: int = 1) -> Any:
    built = REPRESENTATIONS.build({"name": "mel", "preset": PRESET, "channels": channels})
    return SimpleNamespace(
        representation=built, mean=torch.full((built.width,), -5.0), std=torch.full((built.width,), 2.0)
    )


def frames(sound: Tensor, modality: Any) -> Tensor:
    """The normalised frames of (channels, n)."""
    return ((modality.representation.encode(sound[None]) - modality.mean) / modality.std).double()


def tone(hertz: float, gain: float = 0.1) -> Tensor:
    t = torch.arange(4000) / PRESETS[PRESET].rate
    return gain * torch.sin(2 * math.pi * hertz * t)[None]


@pytest.mark.parametrize("hertz", [400.0, 1000.0, 2500.0])
def test_the_centroid_of_a_tone_is_its_frequency(hertz: float) -> None:
    x0 = frames(tone(hertz), audio())
    octaves = Brightness(hertz, audio()).excess(x0, None)
    assert abs(float(octaves)) < 0.12
    assert float(Brightness(hertz / 2, audio()).excess(x0, None) - octaves) == pytest.approx(1.0)


def test_twice_as_loud_is_one_doubling_and_6_dB() -> None:
    one, two = (frames(tone(1000.0, gain), audio()) for gain in (0.1, 0.2))
    energy = Loudness(-40.0, audio())
    assert float(energy.excess(two, None) - energy.excess(one, None)) == pytest.approx(1.0, abs=1e-3)
    power = (one * 2 - 5).exp().square().mean()
    level = 10 * math.log10(float(power))
    assert float(Loudness(level, audio()).excess(one, None)) == pytest.approx(0.0, abs=1e-6)
    assert float(energy(one, None)) == pytest.approx(one.shape[1] * ((level + 40) / 6.0206) ** 2 / 2, rel=1e-4)


@pytest.mark.parametrize("energy", [Loudness(-30.0, audio(2)), Brightness(800.0, audio(2))])
def test_padding_does_not_count_and_the_way_down_goes_down(energy: Any) -> None:
    random = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 6, 128, generator=random, dtype=torch.float64).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    value = energy(x0, {"mask": mask})
    assert float(value[1]) == pytest.approx(float(energy(x0[1:, :4], None)))
    (gradient,) = torch.autograd.grad(value.sum(), x0)
    assert (gradient[1, 4:] == 0).all()
    lower = energy(x0 - 0.01 * gradient, {"mask": mask})
    assert (lower < value).all()


def test_what_has_no_mel_is_told() -> None:
    wave = SimpleNamespace(representation=REPRESENTATIONS.build({"name": "wave", "rate": 8000}))
    for modality in (wave, None):
        with pytest.raises(ValueError, match="energy 'loudness' is for audio as mel frames"):
            ENERGIES.build({"name": "loudness", "target": -30.0}, modality=modality)
    with pytest.raises(ValueError, match="target must be positive"):
        Brightness(0.0, audio())


@pytest.mark.parametrize(("name", "target"), [("loudness", -45.0), ("brightness", 1500.0)])
def test_guidance_makes_the_energy_of_bundled_samples_fall(
    name: str, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = noiseloom.load("audio-digits", device="cpu")
    spec = {"name": name, "target": target}
    energy, decode, seen = ENERGIES.build(spec, modality=pipeline.modality), pipeline.modality.decode, []
    monkeypatch.setattr(
        pipeline.modality, "decode", lambda x0, layout: seen.append(energy(x0, layout.cond)) or decode(x0, layout)
    )
    for guidance in (None, {"name": "energy", "energy": spec, "scale": 20.0}):
        pipeline.sample(2, steps=5, guidance=guidance, seed=1, duration=0.4, progress=False)
    before, after = (float(values.mean()) for values in seen)
    assert after < 0.5 * before
