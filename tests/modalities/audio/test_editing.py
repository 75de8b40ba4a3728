"""Edits: what is kept comes back bit by bit, what is made does not look at what was there, and borders do not click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noiseloom.core.pipeline import Pipeline
from noiseloom.modalities.audio.data import Preparation
from noiseloom.modalities.audio.editing import Edit, closed, gaps
from noiseloom.modalities.audio.inputs import Inputs
from noiseloom.modalities.audio.representation import REPRESENTATIONS
from noiseloom.modalities.audio.waveform import read

from .conftest import RATE, SPECS, clip, write

pytestmark = pytest.mark.usefixtures("own_cache")
EVERY = pytest.mark.parametrize("representation", list(SPECS))


def edited(pipe: Pipeline, path: str, **options: Any) -> np.ndarray:
    """(n,)"""
    wave = pipe.sample(1, input=path, progress=False, **options)[0]
    assert wave.samples.dtype == np.float32
    assert np.isfinite(wave.samples).all()
    return wave.samples[0]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path / "in.wav", clip(0.4, 170))


@EVERY
def test_a_variation_of_strength_0_is_the_input_and_of_1_ignores_it(
    model: Callable[..., Pipeline], path: str, tmp_path: Path, representation: str
) -> None:
    pipe, own = model(representation), read(path).samples[0]
    other = write(tmp_path / "other.wav", clip(0.4, 300, seed=5, level=0.03))
    np.testing.assert_array_equal(edited(pipe, path, strength=0), own)
    np.testing.assert_array_equal(edited(pipe, path, strength=1), edited(pipe, other, strength=1))
    half = edited(pipe, path, strength=0.5)
    assert half.shape == own.shape
    assert np.abs(half - own).max() > 1e-3
    assert np.abs(half - edited(pipe, other, strength=0.5)).max() > 1e-3


@EVERY
def test_a_span_is_made_anew_without_looking_at_what_was_there(
    model: Callable[..., Pipeline], path: str, tmp_path: Path, representation: str
) -> None:
    pipe, own = model(representation), read(path).samples[0]
    spans = ["0.1-0.17", [0.25, 0.3333]]
    made = edited(pipe, path, inpaint=spans)
    kept = np.ones(3200, bool)
    for start, stop in ((800, 1360), (2000, 2666)):
        kept[start:stop] = False
    np.testing.assert_array_equal(made[kept], own[kept])
    assert np.abs(made - own)[~kept].mean() > 1e-3
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 3200)
    other = write(tmp_path / "other.wav", np.where(kept, own, noise).astype(np.float32))
    np.testing.assert_array_equal(edited(pipe, other, inpaint=spans), made)
    assert np.abs(made - edited(pipe, path, inpaint=spans, seed=1))[~kept].mean() > 1e-3


@EVERY
def test_a_sound_is_continued_and_led_up_to(model: Callable[..., Pipeline], path: str, representation: str) -> None:
    pipe, own = model(representation), read(path).samples[0]
    for options, before, after in (
        ({"extend": 0.1301}, 0, 1041),
        ({"prepend": 0.05}, 400, 0),
        ({"extend": 0.3, "prepend": 0.2}, 1600, 2400),  # 0.9 s: two windows
    ):
        made = edited(pipe, path, **options)
        assert made.shape == (before + 3200 + after,)
        np.testing.assert_array_equal(made[before : before + 3200], own)
        steps, inside = np.abs(np.diff(made)), np.abs(np.diff(own)).max()
        for border in {before, before + 3200} - {0, len(made)}:
            assert steps[border - 1] < inside
        for new in (made[:before], made[before + 3200 :]):
            assert not len(new) or np.abs(new).max() > 1e-3


@pytest.mark.parametrize("representation", ["mel", "vocoder"])
def test_what_lies_above_a_cutoff_is_made_and_below_kept(
    model: Callable[..., Pipeline], path: str, representation: str
) -> None:
    pipe, own, cutoff = model(representation), read(path).samples[0], 1500
    made = edited(pipe, path, bandwidth=cutoff)
    frequencies = np.fft.rfftfreq(3200, 1 / RATE)
    before, after = np.fft.rfft(own), np.fft.rfft(made)
    low, high = frequencies < 0.9 * cutoff, frequencies > 1.1 * cutoff
    np.testing.assert_allclose(after[low], before[low], atol=1e-3)
    assert np.abs(after - before)[high].mean() > 0.05
    modality: Any = pipe.modality
    known = modality._edit(pipe.request(input=path, bandwidth=cutoff)).known[0, 0]
    centres = modality.representation.preset.filters().argmax(1) * RATE / 256
    assert known[centres < 1350].all()
    assert not known[centres > 1500].any()


@pytest.mark.parametrize("representation", ["mel", "vocoder"])
def test_what_a_bandwidth_extension_makes_does_not_depend_on_the_highs(
    model: Callable[..., Pipeline], path: str, tmp_path: Path, representation: str
) -> None:
    pipe, own = model(representation, preparation={"level": "none"}), read(path).samples[0]
    hiss = 0.1 * np.sin(2 * np.pi * 3000 * np.arange(3200) / RATE).astype(np.float32)
    other = write(tmp_path / "other.wav", own + hiss)
    a, b = (np.fft.rfft(edited(pipe, p, bandwidth=2000)) for p in (path, other))
    highs = slice(900, 1500)  # 2250 to 3750 Hz
    assert np.abs(np.fft.rfft(hiss))[highs].max() > 100
    assert np.abs(a - b)[highs].max() < 1


@EVERY
def test_a_loop_goes_on_where_it_began(model: Callable[..., Pipeline], representation: str) -> None:
    pipe = model(representation)
    wave = pipe.sample(1, loop=True, duration=0.371, progress=False, voice="ann")[0]
    assert wave.samples.shape[1] == 47 * 64  # whole frames
    assert wave.values["duration"] == 47 * 64 / RATE
    twice = np.concatenate([wave.samples[0], wave.samples[0]])
    steps = np.abs(np.diff(twice))
    if representation != "wave":  # patches of an untrained network do not meet anywhere
        seam = len(wave.samples[0])
        assert steps[seam - 1] <= np.quantile(steps, 0.99)
    lengths = [w.samples.shape[1] for w in pipe.sample(3, loop=True, duration=[0.1, 0.3, 0.6], progress=False)]
    assert lengths == [13 * 64, 38 * 64, 75 * 64]


@pytest.mark.parametrize("representation", [*SPECS, "centred"])
def test_frames_of_a_loop_are_decoded_circularly(representation: str) -> None:
    """Turned frames decode to the turned sound, but for the moments after the seam."""
    torch.manual_seed(0)
    centred = {**SPECS["vocoder"], "preset": "vocos-24k"}
    built = REPRESENTATIONS.build({**SPECS, "centred": centred}[representation])
    count, turn = 64, 32
    tone = torch.from_numpy(clip(0.512 * built.rate / RATE * built.hop / 64, 125)[: count * built.hop])
    frames = built.encode(tone[None, None])[0, :count]
    sound, turned = (closed(built, f, count * built.hop)[0] for f in (frames, frames.roll(turn, 0)))
    n = count * built.hop
    assert sound.shape == (n,)
    if representation != "mel":
        np.testing.assert_allclose(turned, np.roll(sound, turn * built.hop), atol=1e-4)
    else:  # its phases are not those of a turned sound, but 32 frames are their period
        after = slice(round(0.02 * RATE), n // 2)
        np.testing.assert_allclose(np.roll(turned, -turn * built.hop)[after], sound[after], atol=1e-4)


def test_a_loop_has_no_frame_beyond_its_end(source: str) -> None:
    """A framing with one more frame than hops: the loop is of hops."""
    from noiseloom.modalities.audio.modality import Audio

    spec = {"name": "mel", "preset": "vocos-24k", "vocoder": {"name": "griffin_lim", "iterations": 1}}
    modality = Audio.fitted(source, representation=spec)
    request = modality.Request(loop=True, duration=[0.1, 0.2])
    plans = modality.plans(request, [0, 1])
    assert [plan.size for plan in plans] == [10, 19]  # of 256 / 24,000 s
    layout = modality.layout(request, plans)
    assert layout.wrap is not None
    waves = modality.decode(torch.randn_like(layout.start), layout)
    assert [wave.samples.shape for wave in waves] == [(1, 2560), (1, 4864)]


def test_a_tone_goes_on_over_the_seam_of_a_loop() -> None:
    """Also where phases are found anew, and no whole number of their periods is the loop."""
    built = REPRESENTATIONS.build(SPECS["mel"])
    for count in (40, 45, 50, 55):
        tone = 0.3 * torch.sin(2 * torch.pi * 250 * torch.arange(count * 64) / RATE)
        sound = closed(built, built.encode(tone[None, None])[0], count * 64)[0]
        bends = np.abs(np.diff(np.concatenate([sound, sound]), 2))
        n = len(sound)
        assert bends[n - 2 : n].max() < 4 * bends[40 : n - 40].max()


def test_a_tone_is_joined_without_a_click() -> None:
    """A tone continued by another of any phase: no step is larger than those of the tones."""
    t = np.arange(1600) / RATE
    tone = np.sin(2 * np.pi * 440 * t)[None].astype(np.float32)
    kept = np.ones(1600, bool)
    kept[500:900] = False
    for phase in np.linspace(0, 6, 7):
        made = np.sin(2 * np.pi * 440 * t + phase)[None].astype(np.float32)
        out = Edit(tone, kept, torch.zeros(0), RATE).splice(made)
        np.testing.assert_array_equal(out[:, kept], tone[:, kept])
        assert np.abs(np.diff(out, 2)).max() < 3 * np.abs(np.diff(tone, 2)).max()
        np.testing.assert_allclose(out[:, 500:800], tone[:, 500:800], atol=0.1)  # moved into phase at its beginning
    edge = np.zeros(1600, bool)
    edge[900:] = True
    out = Edit(tone, edge, torch.zeros(0), RATE).splice(made)
    np.testing.assert_allclose(out[:, 600:900], tone[:, 600:900], atol=0.1)  # and at its end, where only that is kept


def test_the_level_is_the_inputs_where_some_of_it_is_kept() -> None:
    audio, made = np.full((1, 100), 0.01, np.float32), np.full((1, 100), 0.5, np.float32)
    half = np.arange(100) < 50
    none = np.zeros(100, bool)
    out = Edit(audio, half, torch.zeros(0), 100, gain=50.0).splice(made)
    np.testing.assert_allclose(out, 0.01, rtol=1e-5)
    for strength, level in ((1.0, 0.5), (0.5, 0.5 / 50**0.5)):
        out = Edit(audio, none, torch.zeros(0), 100, 50.0, strength).splice(made)
        np.testing.assert_allclose(out, level, rtol=1e-5)


def test_inputs_are_read_at_the_models_rate_and_again_when_they_change(tmp_path: Path) -> None:
    import os

    inputs = Inputs(Preparation(RATE, level="rms", max_seconds=0.2))
    path = tmp_path / "in.wav"
    write(path, np.stack([clip(0.5)] * 2), 16000)  # stereo, twice the rate
    first = inputs.edited(str(path))
    assert first.shape == (1, 2000)
    assert np.sqrt((inputs.heard(str(path)) ** 2).mean()) == pytest.approx(0.1, rel=1e-2)
    assert np.sqrt(((first * inputs.gain(first)) ** 2).mean()) == pytest.approx(0.1, rel=1e-2)
    assert inputs.gain(np.zeros((1, 100), np.float32)) == 1
    write(path, clip(0.1))
    os.utime(path, ns=(0, 10**9))
    assert inputs.edited(str(path)).shape == (1, 800)


def test_gaps() -> None:
    assert gaps(np.array([True, False, False, True, False])) == [(1, 3), (4, 5)]
    assert gaps(np.array([False])) == [(0, 1)]
    assert gaps(np.ones(3, bool)) == []


@EVERY
def test_only_what_hears_nothing_but_kept_samples_is_known(
    model: Callable[..., Pipeline], path: str, representation: str
) -> None:
    pipe: Any = model(representation)
    (known,) = pipe.modality._edit(pipe.request(input=path, inpaint=["0.08-0.16"])).known.any(-1)
    unknown = torch.nonzero(~known).flatten().tolist()  # samples 640 to 1279: frames 10 to 19
    assert unknown == list(range(10, 20) if representation == "wave" else range(8, 22))


def test_what_is_not_said_of_an_input_is_left_open(model: Callable[..., Pipeline], path: str) -> None:
    pipe = model("wave")
    for asked in ({}, {"label": 7}, {"voice": "ann", "pitch": 200}):
        values = pipe.sample(1, input=path, strength=0.5, progress=False, **asked)[0].values
        plain = {"label": "7"} if "label" in asked else asked
        assert values == {**plain, "duration": 0.4}


def test_stereo_is_edited_in_both_channels(source: str, model: Callable[..., Pipeline], tmp_path: Path) -> None:
    from noiseloom.modalities.audio.modality import Audio

    modality = Audio.fitted(source, representation={**SPECS["wave"], "channels": 2})
    path = write(tmp_path / "in.wav", np.stack([clip(0.2), clip(0.2, 300)]))
    request = modality.Request(input=path, extend=0.1)
    layout = modality.layout(request, modality.plans(request, [0]))
    (wave,) = modality.decode(torch.randn_like(layout.start), layout)
    assert wave.samples.shape == (2, 2400)
    np.testing.assert_array_equal(wave.samples[:, :1600], read(path).samples)
