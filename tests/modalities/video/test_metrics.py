"""Metrics of clips: closed forms, controls that a video distance must see and frame metrics cannot, and the report."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from noiseloom.modalities.distances import frechet, kernel_distance
from noiseloom.modalities.video.changes import CONTROLS, control
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.extractors import Extractor, Statistics, VideoMAE, build_extractor
from noiseloom.modalities.video.frame_metrics import (
    critical_success,
    events,
    mse,
    psnr,
    squared_error,
    ssim,
    temporal_error,
)
from noiseloom.modalities.video.judge import VideoJudge
from noiseloom.modalities.video.metrics import evaluate
from noiseloom.modalities.video.motion import centres, motion
from noiseloom.modalities.video.prediction import copy_last, linear, prediction_rows


def noise(seed: int, shape: tuple[int, ...] = (3, 16, 18, 1)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def square(frames: int = 12, seed: int = 0, size: int = 32, name: str = "", **values: Any) -> Clip:
    """A bright square of its own size and grey that moves straight on, from one wall to the other and back."""
    random, canvas = np.random.default_rng(seed), np.zeros((frames, size, size, 1), np.uint8)
    side, grey = int(random.integers(5, 11)), int(random.integers(100, 256))
    free, start, speed = size - side, random.uniform(0, size, 2), random.uniform(-2, 2, 2) + (1, 1)
    for time, frame in enumerate(canvas):
        place = free - np.abs((start + speed * time) % (2 * free) - free)
        top, left = place.round().astype(int)
        frame[top : top + side, left : left + side] = grey
    return Clip(canvas, 10.0, name, values)


# Frames


def test_errors_in_closed_form() -> None:
    a, b = np.zeros((2, 4, 5, 1), np.uint8), np.zeros((2, 4, 5, 1), np.uint8)
    b[0, 0, 0] = 255
    b[1] = 51
    assert squared_error(a, b).tolist() == pytest.approx([1, 20 * 0.04])
    assert mse(a, b).tolist() == pytest.approx([1 / 20, 0.04])
    assert psnr(a, b).tolist() == pytest.approx([10 * math.log10(20), 10 * math.log10(25)])
    assert psnr(a, a).tolist() == [100, 100]
    with pytest.raises(ValueError, match="frame by frame"):
        mse(a, b[:1])


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_by_hand(window: Any) -> None:
    """One place of the window at a time, from the definition."""
    a, b = noise(0), noise(1)
    b[0] = a[0] // 2 + 40
    side = 11 if window == "gaussian" else 7
    places = np.arange(side) - side // 2
    line = np.exp(-(places**2) / (2 * 1.5**2)) if window == "gaussian" else np.ones(side)
    weights = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2, bessel = 2.55**2, 7.65**2, 1.0 if window == "gaussian" else 49 / 48
    expected = []
    for x, y in zip(a[..., 0].astype(float), b[..., 0].astype(float), strict=True):
        values = []
        for i in range(x.shape[0] - side + 1):
            for j in range(x.shape[1] - side + 1):
                p, q = x[i : i + side, j : j + side], y[i : i + side, j : j + side]
                m, n = (weights * p).sum(), (weights * q).sum()
                sp, sq = bessel * (weights * (p - m) ** 2).sum(), bessel * (weights * (q - n) ** 2).sum()
                cross = bessel * (weights * (p - m) * (q - n)).sum()
                values.append((2 * m * n + c1) * (2 * cross + c2) / ((m * m + n * n + c1) * (sp + sq + c2)))
        expected.append(np.mean(values))
    np.testing.assert_allclose(ssim(a, b, window), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(a, a, window), 1)


def test_ssim_of_flat_frames_and_small_ones() -> None:
    a, b = np.full((1, 12, 12, 3), 100, np.uint8), np.full((1, 12, 12, 3), 50, np.uint8)
    assert ssim(a, b)[0] == pytest.approx((2 * 100 * 50 + 2.55**2) / (100**2 + 50**2 + 2.55**2))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(a[:, :9], b[:, :9])


def test_temporal_error_sees_flicker_not_an_offset() -> None:
    clip = square().frames
    assert temporal_error(clip, np.minimum(clip, 245)) < 0.01
    flickering = clip // 2
    flickering[::2] += 51
    assert temporal_error(clip // 2, flickering) == pytest.approx(0.2)
    assert temporal_error(clip[:1], clip[:1]) == 0


def test_critical_success() -> None:
    truth = np.array([0, 0, 10, 20, 30, 40], np.uint8).reshape(1, 2, 3, 1)
    prediction = np.array([15, 0, 0, 20, 25, 0], np.uint8).reshape(1, 2, 3, 1)
    counts = events(prediction, truth, 10)
    assert counts.tolist() == [2, 2, 1]
    assert critical_success(counts) == pytest.approx(2 / 5)
    assert critical_success(events(prediction, truth, 200)) is None


# Motion


def test_the_centre_follows_and_its_jerk_tells_order() -> None:
    canvas = np.zeros((9, 20, 30, 1), np.uint8)
    for time in range(9):
        canvas[time, 5:8, 2 + 3 * time : 5 + 3 * time] = 200
    np.testing.assert_allclose(centres(canvas / 255.0), [(6, 3 + 3 * t) for t in range(9)])
    straight = motion(canvas)
    assert straight.speed == pytest.approx(3 / math.hypot(20, 30))
    assert straight.jerk == pytest.approx(0, abs=1e-9)
    assert straight.flicker == pytest.approx(0)
    assert straight.change == pytest.approx(2 * 9 * 200 / 255 / 600)
    to_and_fro = motion(canvas[[0, 3, 0, 3, 0, 3, 0, 3, 0]])
    assert to_and_fro.jerk == pytest.approx(2)
    assert to_and_fro.roughness == pytest.approx(2)
    assert motion(canvas[[0] * 9]).still
    assert motion(canvas[:1]).change is None
    assert not motion(canvas).still


def test_flicker_is_of_the_whole_frame() -> None:
    frames = np.full((4, 5, 5, 1), 100, np.uint8)
    frames[1::2] += 51
    assert motion(frames).flicker == pytest.approx(0.2)


# Predictions


def test_baselines() -> None:
    given = np.array([10, 40, 60], np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    assert copy_last(given, 3)[:, 0, 0, 0].tolist() == [60, 60, 60]
    assert linear(given, 3)[:, 0, 0, 0].tolist() == [80, 100, 120]
    assert linear(given, 20)[-1, 0, 0, 0] == 255
    assert linear(given[:1], 2)[:, 0, 0, 0].tolist() == [10, 10]


def test_predictions_are_scored_on_the_end_alone() -> None:
    truth = [square(10, seed) for seed in range(4)]
    perfect = {row.name: row for row in prediction_rows([[clip] for clip in truth], truth, 4, [90])}
    assert perfect["mse"].value == 0
    assert perfect["ssim"].value == pytest.approx(1)
    assert perfect["csi_90"].value == 1
    assert "4 frames given, 6 predicted" in perfect["mse"].protocol
    copied = [[Clip(np.concatenate([c.frames[:4], copy_last(c.frames[:4], 6)]), 10.0)] for c in truth]
    rows = {row.name: row.value or 0.0 for row in prediction_rows(copied, truth, 4)}
    for metric in ("mse", "psnr", "ssim", "ssim_uniform"):
        assert rows[metric] == rows[f"{metric}_copy_last"]
    assert rows["mse_linear"] != rows["mse_copy_last"]
    assert "mse_best" not in rows
    both = [[a, b[0]] for a, b in zip(truth, copied, strict=True)]
    several = {row.name: row.value for row in prediction_rows(both, truth, 4)}
    assert several["mse_best"] == 0
    assert several["mse"] == pytest.approx(rows["mse"] / 2)
    assert several["mse_mean"] == pytest.approx(rows["mse"] / 4)  # half the error, squared
    for wrong, given in (([], 4), ([[clip] for clip in truth], 10), ([[]] * 4, 4)):
        with pytest.raises(ValueError, match="at least"):
            prediction_rows(wrong, truth, given)


# Sets


def test_video_distances_see_broken_motion_and_frame_metrics_do_not() -> None:
    """A static, a shuffled and a swapped clip have the frames of real ones. Distances of single frames stay at the
    floor; of clips they do not. ("statistics" sees motion; whether a square is the same one takes differences.)"""
    clips, real, others = ([square(12, 1000 * k + i) for i in range(60)] for k in range(3))
    embed = Statistics()

    def frames(clips: list[Clip]) -> np.ndarray:
        return embed([Clip(clip.frames[9:10], clip.fps) for clip in clips])

    floor, frame_floor = frechet(embed(real), embed(others)), frechet(frames(real), frames(others))
    spread = kernel_distance(embed(real), embed(others))
    for change in CONTROLS:
        broken = control(clips, change)
        assert frechet(frames(broken), frames(others)) < 1.5 * frame_floor
        if change != "swapped":
            value, _ = kernel_distance(embed(broken), embed(others))
            assert value > spread[0] + 5 * spread[1]
            assert frechet(embed(broken), embed(others)) > 2 * floor


class Eye(Extractor):
    """Sees brightness."""

    name, sees = "eye", "the first frame"

    def __call__(self, clips: Any) -> np.ndarray:
        means = [[clip.frames.mean(), clip.frames.std()] for clip in clips]
        return np.array(means, np.float64).reshape(-1, 2)


def test_the_report_has_a_protocol_a_count_and_real_clips_beside_each_number() -> None:
    clips, real = [square(seed=k) for k in range(30)], [square(seed=100 + k) for k in range(40)]
    report = evaluate([*clips, None], real, extractor=Eye(), controls=True)
    for row in report.rows:
        assert row.protocol
        assert row.n
        assert row.real is not None
    assert report["frechet_distance"].n == 20
    assert "eye: the first frame, of clips of 12 frames" in report["frechet_distance"].protocol
    assert {f"kernel_distance_{change}" for change in CONTROLS} <= set(report.values())
    assert report["readable"].value == pytest.approx(100 * 30 / 31)
    assert report.failed == {"unreadable": 1}
    assert report.items[-1].failure == "unreadable"
    assert report["still"].value == 0
    static = evaluate(control(clips, "static"), real)
    assert static["still"].value == 100
    assert static.values()["frechet_distance"] > 1.5 * (static["frechet_distance"].real or 0)
    json.loads(report.to_json())


def test_copies_of_training_clips_are_found_out() -> None:
    training, real = [square(seed=k) for k in range(80)], [square(seed=100 + k) for k in range(30)]
    report = evaluate(training[:20], real, training=training)
    assert report["nearest_training_ratio"].value == pytest.approx(0, abs=1e-6)
    assert report.items[0].nearest == pytest.approx(0, abs=1e-6)
    assert evaluate([square(seed=300 + k) for k in range(20)], real, training=training)[
        "nearest_training_ratio"
    ].value == pytest.approx(1, abs=0.3)


def test_clips_of_the_same_name_are_compared_and_predictions_with_baselines() -> None:
    real = [square(seed=k, name=f"{k}.mp4") for k in range(3)]
    same = [Clip(clip.frames, 10.0, f"{k}.gif") for k, clip in enumerate(real)]
    report = evaluate(same, real)
    assert report["psnr"].value == 100
    assert report["ssim"].value == pytest.approx(1)
    assert report["temporal_error"].value == 0
    predicted = evaluate([*same, *same], real, given=6, thresholds=[50])
    assert predicted["mse_best"].value == 0
    assert predicted.values()["mse_copy_last"] > 0
    assert predicted["csi_50"].value == 1
    assert "psnr_linear" in predicted.values()
    with pytest.raises(ValueError, match="same names and shapes: there are none"):
        evaluate([square()], real, given=6)


class Seer(VideoJudge):
    """Sees "bright" and "dark" clips for what they are, and that static ones are static."""

    def __init__(self) -> None:
        super().__init__(["bright", "dark"], size=16, widths=(8,), depths=(1,), embedding=4)

    def embed(self, clips: Any) -> torch.Tensor:
        still = [[1.0, float(np.ptp(c.frames, axis=0).max() == 0)] for c in clips]
        bright = [[float(c.frames.max() > 200), float(c.frames.max() <= 200)] for c in clips]
        return torch.tensor([a + b for a, b in zip(still, bright, strict=True)]).reshape(-1, 4)

    def told(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shown = torch.nn.functional.one_hot(embeddings[:, 2:].long(), 3).float()
        return shown, torch.nn.functional.one_hot(embeddings[:, 1].long(), 7).float()


def test_a_judge_tells_sets_identity_and_motion() -> None:
    def clip(grey: int, second: int, label: str, still: bool = False) -> Clip:
        frames = np.full((10, 16, 16, 1), grey, np.uint8)
        frames[5:] = second
        frames[1::2] -= 0 if still else 1
        return Clip(frames, 10.0, values={"label": label})

    clips = [clip(250, 250, "bright"), clip(90, 90, "dark"), clip(250, 90, "dark"), clip(90, 90, "dark,dark", True)]
    report = evaluate([*clips, None], judge=Seer().eval())
    assert report["label_accuracy"].value == pytest.approx(40)  # two of five: one is another, one has one too few
    assert report["label_accuracy_of_1"].value == pytest.approx(200 / 3)
    assert report["label_accuracy_of_2"].value == 0
    assert report["identity_stability"].value == 75
    assert report["natural_motion"].value == 75
    assert [item.seen for item in report.items] == [["bright"], ["dark"], ["bright"], ["dark"], None]
    assert report.items[3].change == "static"


def test_nothing_and_too_little() -> None:
    assert evaluate([]).notes
    assert evaluate([None])["readable"].value == 0
    report = evaluate([square(1), square(2)])
    assert any("distances between sets need" in note for note in report.notes)
    assert report["duration"].value == pytest.approx(0.15)
    images = evaluate([square(1, seed) for seed in range(12)], [square(1, seed) for seed in range(20, 60)])
    assert images["frechet_distance"].value is not None
    assert "motion_change" not in images.values()


# Extractors


def test_statistics_of_a_known_clip() -> None:
    frames = np.zeros((3, 8, 8, 1), np.uint8)
    frames[1] = 255
    mean, deviation, first, second = Statistics()([Clip(frames, 1.0)])[0].reshape(4, 64)
    np.testing.assert_allclose(mean, 1 / 3)
    np.testing.assert_allclose(deviation, math.sqrt(2) / 3)
    np.testing.assert_allclose(first, 1)
    np.testing.assert_allclose(second, 2)
    assert Statistics()([Clip(frames[:1], 1.0)]).shape == (1, 256)
    assert Statistics()([]).shape == (0, 256)


def test_videomae_from_a_folder_of_safetensors(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'video-eval'")
    torch.manual_seed(0)
    small = {"image_size": 16, "patch_size": 8, "num_frames": 4, "hidden_size": 16, "intermediate_size": 16}
    config = transformers.VideoMAEConfig(**small, num_hidden_layers=1, num_attention_heads=2)
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "mae")
    embed = build_extractor({"name": "videomae", "model": str(tmp_path / "mae")})
    assert isinstance(embed, VideoMAE)
    clips = [square(frames, seed=frames) for frames in (1, 3, 9)]
    found = embed(clips)
    assert found.shape == (3, 16)
    np.testing.assert_allclose(embed(clips[2:]), found[2:], rtol=1e-5)
    assert embed([]).shape == (0, 16)
    assert "4 frames evenly spaced at 16 x 16" in embed.sees
    (tmp_path / "mae" / "model.safetensors").rename(tmp_path / "mae" / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"safetensors"):
        build_extractor({"name": "videomae", "model": str(tmp_path / "mae")})


def test_unknown_extractors_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown extractor 'statistic'.*statistics.*videomae"):
        build_extractor("statistic")
