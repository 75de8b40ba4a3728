"""The classifier: padding, rates and levels change nothing; it learns, and it carries its training clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.modalities.audio.augment import augmented_mel, augmented_wave
from noiseloom.modalities.audio.classifier import UNKNOWN, Classification, Classifier, LabelledMels
from noiseloom.modalities.audio.waveform import Waveform, resample

LABELS = {"label": ["low", "high"], "voice": ["a", "b", "c"]}


def tiny(**options: object) -> Classifier:
    torch.manual_seed(0)
    small = {"labels": LABELS, "widths": (8, 8, 8), "embedding": 6}
    return Classifier(**{**small, **options}).eval()  # type: ignore[arg-type]


def tone(label: str = "low", seconds: float = 0.3, rate: int = 8000, level: float = 0.5, seed: int = 0) -> Waveform:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    pitch = {"low": 300, "high": 1500}[label]
    samples = level * (np.sin(2 * np.pi * pitch * time) + 0.05 * noise)
    return Waveform(samples[None].astype(np.float32), rate, values={"label": label})


class Clips(list):  # what Classifier.measure and evaluate take
    sizes = None
    report = ""


def test_padding_changes_nothing() -> None:
    """Neither what a clip is padded with, nor how long the others in its batch are."""
    classifier = tiny()
    for frames in (1, 2, 3, 4, 5, 8, 13, 30):
        mel = torch.randn(1, frames, 64)
        alone = classifier(mel, torch.tensor([frames]))
        padded = torch.cat([mel, 100 * torch.ones(1, 37, 64)], 1)
        torch.testing.assert_close(classifier(padded, torch.tensor([frames])), alone, atol=1e-5, rtol=1e-4)
    waves = [tone(seconds=s) for s in (0.01, 0.3, 1.1)]
    together = classifier.embed(waves)
    apart = torch.cat([classifier.embed([wave]) for wave in waves])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_level_and_offset_change_nothing_and_the_rate_little() -> None:
    classifier, wave = tiny(), tone()
    same = [Waveform(wave.samples * 0.02, 8000), Waveform(wave.samples * 0.5 + 0.3, 8000)]
    stereo = Waveform(np.repeat(wave.samples, 2, 0), 8000)
    faster = Waveform(resample(wave.samples, 8000, 16000), 16000)
    own, *others, resampled = classifier.embed([wave, *same, stereo, faster])
    for other in others:
        torch.testing.assert_close(other, own, atol=2e-3, rtol=0)
    far = (classifier.embed([tone("high")])[0] - own).norm()
    assert (resampled - own).norm() < 0.2 * far


def test_silence_and_next_to_nothing_are_embedded() -> None:
    clips = [Waveform(np.zeros((1, n), np.float32), 8000) for n in (0, 1, 500)]
    classifier = tiny()
    assert classifier.embed(clips).isfinite().all()
    assert classifier.embed([]).shape == (0, 6)
    probabilities = classifier.probabilities(clips)
    assert {name: tuple(values.shape) for name, values in probabilities.items()} == {"label": (3, 2), "voice": (3, 3)}
    torch.testing.assert_close(probabilities["voice"].sum(1), torch.ones(3))


def test_a_clip_without_a_label_counts_for_nothing() -> None:
    classifier = tiny()
    objective = Classification(classifier)
    example = classifier.example([tone("low"), tone("high")])
    assert example.classes.tolist() == [[0, UNKNOWN], [1, UNKNOWN]]
    losses = objective(classifier, example, StepRandomness(0, 0, range(2), 2))
    assert losses.parts["voice"].tolist() == [0, 0]
    torch.testing.assert_close(losses.total, losses.parts["label"])
    ((_, held_out),) = objective.held_out(classifier, example, [0, 1], 0)
    assert set(held_out.parts) == {"label", "voice", "label_wrong", "voice_wrong"}
    assert held_out.parts["voice_wrong"].tolist() == [0, 0]


def test_the_losses_in_closed_form() -> None:
    """Logits of zero: ln k, smoothed or not; a weight counts in the total."""
    classifier = tiny()
    for head in classifier.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    example = LabelledMels(torch.randn(2, 9, 64), torch.tensor([9, 4]), torch.tensor([[0, 1], [1, UNKNOWN]]))
    losses = Classification(classifier, weights={"voice": 0.5})(classifier, example, StepRandomness(0, 0, [0, 1], 2))
    expected = torch.tensor([np.log(2) + 0.5 * np.log(3), np.log(2)], dtype=torch.float32)
    torch.testing.assert_close(losses.total, expected)
    with pytest.raises(ValueError, match="unknown label 'pitch'"):
        Classification(classifier, weights={"pitch": 1.0})


def test_it_learns_with_augmentation_and_carries_what_it_learned_from() -> None:
    classifier = tiny(labels={"label": LABELS["label"]}).train()
    objective = Classification(classifier)
    clips = Clips(tone(label, seed=seed) for seed in range(12) for label in ("low", "high"))
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-2)
    for step in range(25):
        example = classifier.example(clips, sample_generators(step, range(len(clips))))
        loss = objective(classifier, example, StepRandomness(0, step, range(24), 24)).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier.eval().measure(clips)  # type: ignore[arg-type]
    assert classifier.config["gallery"] == 24
    assert classifier.gallery_classes[:, 0].tolist() == [0, 1] * 12
    torch.testing.assert_close(classifier.gallery.float(), classifier.embed(clips), atol=1e-2, rtol=1e-2)
    held_out = Clips(tone(label, 0.4, seed=seed) for seed in range(20, 26) for label in ("low", "high"))
    report = classifier.evaluate(held_out)  # type: ignore[arg-type]
    assert report["label_accuracy"].value == 100
    assert report["frechet_distance"].value is not None


def test_held_out_examples_are_deterministic_and_training_ones_follow_their_generators() -> None:
    classifier, clips = tiny(), [tone("low"), tone("high", 0.5)]
    same = [classifier.example(clips) for _ in range(2)]
    assert torch.equal(same[0].mels, same[1].mels)

    def drawn(seed: int) -> Sequence[float]:
        return classifier.example(clips, sample_generators(seed, [0, 1])).mels.flatten().tolist()

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_augmentation_keeps_what_matters() -> None:
    """Clips stay finite and about as long; the shortest survive too."""
    for n in (1, 50, 4000):
        for generator in sample_generators(0, range(30)):
            audio = augmented_wave(torch.randn(n), 8000, generator)
            assert 1 <= len(audio) <= 1.11 * n + 2 * 0.05 * 8000 + 1
            assert len(audio) >= 0.9 * n - 2 * 0.05 * 8000 - 1
            assert audio.isfinite().all()
            mel = augmented_mel(torch.randn(max(n // 64, 1), 64), generator)
            assert mel.shape == (max(n // 64, 1), 64)
            assert mel.isfinite().all()


def test_wrong_options_are_refused() -> None:
    for labels in ({}, {"label": []}):
        with pytest.raises(ValueError, match="needs labels"):
            tiny(labels=labels)
