"""Audio passes every modality's tests, trains on what it says, and makes what is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noiseloom.core.objectives import Denoising
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.modalities.audio.modality import Audio
from noiseloom.modalities.audio.request import AudioRequest
from noiseloom.modalities.contract_tests import *  # noqa: F403
from noiseloom.modalities.contract_tests import Case
from noiseloom.modalities.modality import MODALITIES, Layout

from .conftest import SPECS, clip, write

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module", params=["wave", "mel"])
def case(request: pytest.FixtureRequest, model: Callable[..., Pipeline], source: str) -> Case:
    return Case(model(request.param, reference=True).modality, source, {"label": 7})  # type: ignore[arg-type]


def items(modality: Any, source: str, count: int = 4) -> list[Any]:
    dataset = modality.dataset(source, "train")
    return [dataset[i] for i in range(count)]


def quiet(pipe: Pipeline, count: int = 1, **options: Any) -> list[Any]:
    return list(pipe.sample(count, progress=False, **options))


def test_frames_have_unit_variance_and_come_back(model: Callable[..., Pipeline], source: str) -> None:
    modality: Any = model("wave").modality
    example = modality.encode(items(modality, source, 20))
    assert example.x0[example.cond["mask"]].std(0).mean().item() == pytest.approx(1, abs=0.1)
    assert not example.x0[~example.cond["mask"]].any()
    check_sounds(modality, source, example)


def check_sounds(modality: Any, source: str, example: Any) -> None:
    """That frames of a wave decode to the clips they are of, and the rest of the last frame to silence."""
    clips = modality.dataset(source, "train").clips
    waves = modality.decode(example.x0, Layout(example.x0, example.space, example.cond))
    for clip_, wave in zip(clips, waves, strict=False):
        n = clip_.samples.shape[1]
        assert wave.samples.shape == (modality.representation.channels, -(-n // 64) * 64)
        np.testing.assert_allclose(wave.samples[:, :n], clip_.samples, atol=1e-5)
        assert np.abs(wave.samples[:, n:]).max(initial=0) < 1e-5


def test_known_parts_are_drawn_for_a_share_of_the_batches(model: Callable[..., Pipeline], source: str) -> None:
    for name, bands in (("wave", 0), ("mel", 64)):
        modality: Any = model(name).modality
        assert modality.bands == bands
        few = items(modality, source)
        examples = [modality.encode(few, sample_generators(step, range(4))) for step in range(60)]
        known = [example.known for example in examples if example.known is not None]
        assert 5 < len(known) < 28  # a quarter of 60, give or take four standard errors
        for example in examples:
            if example.known is not None:
                assert not example.known[~example.cond["mask"]].any()
                wrong = example.known.float()
                assert not example.space.mean(wrong).any()  # what is known is left out of the loss
        by_frame = [bool((k == k[..., :1]).all()) for k in known]
        assert all(by_frame) is (bands == 0)


def test_training_varies_the_clip_and_evaluation_does_not(model: Callable[..., Pipeline], source: str) -> None:
    modality: Any = model("mel", stretch=0.2, window=0.15).modality
    few = items(modality, source)
    lengths = [modality.encode(few[:1], sample_generators(s, [0])).x0.shape[1] for s in range(20)]
    assert set(lengths) == {modality.most}
    a, b = (modality.encode(few, sample_generators(s, range(4))).x0 for s in (0, 1))
    assert not torch.equal(a, b)
    long = model("mel", stretch=0.2).modality
    lengths = [long.encode(few[:1], sample_generators(s, [0])).x0.shape[1] for s in range(40)]  # type: ignore[attr-defined]
    own = len(few[0].frames)
    assert 0.8 * own - 1 <= min(lengths) < 0.9 * own
    assert 1.1 * own < max(lengths) <= 1.2 * own + 1
    with pytest.raises(ValueError, match="mel or latent, not wave"):
        model("wave", stretch=0.1)


def test_a_step_of_training_moves_every_weight(model: Callable[..., Pipeline], source: str) -> None:
    pipe = model("mel", reference=True, text="characters", known_rate=1.0)
    modality: Any = pipe.modality
    random = StepRandomness(0, 0, range(8), 8)
    example = modality.encode(items(modality, source, 8), random.generators)
    assert example.known is not None
    losses = Denoising()(pipe.denoiser, example, random)
    losses.total.mean().backward()
    still = [name for name, p in pipe.denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    pipe.denoiser.zero_grad()
    assert not still


def test_a_duration_is_to_the_sample_and_told_as_in_training(model: Callable[..., Pipeline], source: str) -> None:
    for name in SPECS:
        pipe = model(name)
        waves = quiet(pipe, 4, duration=[0.05, 0.30001, 0.123, 0.6])
        assert [wave.samples.shape for wave in waves] == [(1, 400), (1, 2400), (1, 984), (1, 4800)]
        assert [wave.values["duration"] for wave in waves] == [0.05, 0.3, 0.123, 0.6]
    modality: Any = model("wave").modality
    few = items(modality, source)
    seconds = modality.dataset(source, "train").clips.samples[:4] / 8000  # three of them no whole frames
    request = AudioRequest(duration=seconds.tolist())
    asked = modality.layout(request, modality.plans(request, [0, 1, 2, 3])).cond["duration"]
    assert torch.equal(asked, modality.encode(few).cond["duration"])


def test_several_labels_in_turn_and_the_rest_from_one_training_clip(model: Callable[..., Pipeline]) -> None:
    pipe = model("wave")
    waves = quiet(pipe, 6, label=[0, "7"], voice=["theo", "theo", "ann"])
    assert [wave.values["label"] for wave in waves] == ["0", "7"] * 3
    assert [wave.values["voice"] for wave in waves] == ["theo", "theo", "ann"] * 2
    for wave in quiet(pipe, 20):
        clip_number = round((wave.values["pitch"] - 150) / 10)
        assert wave.values["label"] == ["0", "7"][clip_number % 2]
        assert wave.samples.shape[1] == pytest.approx((0.2 + clip_number / 100) * 8000, abs=1)


def test_what_is_told_is_heard(model: Callable[..., Pipeline], source: str, tmp_path: Path) -> None:
    pipe = model("wave", reference=True, text="characters")
    same = {"duration": 0.2, "seed": 1, "label": 0, "voice": "ann", "pitch": 200, "type": "tone"}
    plain = quiet(pipe, **same)[0].samples
    reference = write(tmp_path / "reference.wav", clip(0.3))
    for change in ({"label": 7}, {"voice": "theo"}, {"pitch": 300}, {"text": "a tone"}, {"reference": reference}):
        assert np.abs(quiet(pipe, **{**same, **change})[0].samples - plain).max() > 1e-5, change
    again = quiet(pipe, 3, **same, batch_size=1)[0].samples
    np.testing.assert_array_equal(again, plain)
    with pytest.raises(ValueError, match="not trained with references"):
        quiet(model("wave"), reference=reference)


def test_a_sample_does_not_depend_on_its_batch(model: Callable[..., Pipeline]) -> None:
    pipe = model("vocoder")
    together = pipe.sample(5, seed=4, progress=False)
    for index in (0, 3):
        (alone,) = quiet(pipe, 1, seed=[together.seeds[index]])
        np.testing.assert_allclose(together[index].samples, alone.samples, atol=1e-4)


def test_stereo(source: str) -> None:
    spec = {**SPECS["wave"], "channels": 2}
    modality = Audio.fitted(source, representation=spec)
    example = modality.encode(items(modality, source))
    check_sounds(modality, source, example)
    assert modality.network_options()["channels"] == 128


def test_weights_of_the_decoder_travel_with_the_checkpoint(model: Callable[..., Pipeline], tmp_path: Path) -> None:
    pipe = model("vocoder")
    folder = pipe.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(folder, MODALITIES.build, device="cpu")  # type: ignore[arg-type]
    a, b = (quiet(p, 1, seed=2, duration=0.3)[0].samples for p in (pipe, again))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preparation": {"rate": 16000}}, "unknown option of preparation 'rate'.*Choices: level"),
        ({"drop": {"labl": 0.2}}, "unknown condition to drop 'labl'. Did you mean 'label'"),
        ({"drop": {"label": 2}}, "drop.label is a probability"),
        ({"window": 0}, "window must be positive"),
        ({"text": "charcters"}, "unknown text encoder"),
        ({"data": {"columns": {"mask": "voice"}}}, "no condition can be called 'mask'"),
        ({"data": {"columns": {"label": "label"}}, "text": "characters"}, "no column 'text'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Audio.fitted(source, representation=SPECS["wave"], **options)
    assert "\n" not in str(error.value)
