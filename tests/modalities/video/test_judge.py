"""The judge: padding and size change nothing; changes are what they say; it learns, with labels and without."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noiseloom.core.randomness import StepRandomness, generator, sample_generators
from noiseloom.modalities.component import load_component, save_component
from noiseloom.modalities.video.changes import CHANGES, CONTROLS, control, order
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.data import open_video
from noiseloom.modalities.video.judge import MOST, VideoJudge
from noiseloom.modalities.video.judgement import Judgement, changed
from noiseloom.modalities.video.labelled import UNKNOWN, LabelledVideos, counted, resized, stacked
from noiseloom.modalities.video.metrics import evaluate
from noiseloom.modalities.video.prepare import Preparation
from noiseloom.modalities.video.writing import write_mp4
from noiseloom.recipes.catalogue import components

CLASSES = ["bar", "dot"]


def tiny(**options: Any) -> VideoJudge:
    torch.manual_seed(0)
    small = {"classes": CLASSES, "size": 16, "widths": (8, 16), "depths": (1, 1), "embedding": 12}
    return VideoJudge(**{**small, **options}).eval()


def moving(label: str, frames: int = 8, seed: int = 0, size: int = 16, colours: int = 1) -> Clip:
    """A bar, a dot, or both, that go down a pixel a frame."""
    random, canvas = np.random.default_rng(seed), np.zeros((frames, size, size, colours), np.uint8)
    for shape in label.split(","):
        top, left = random.integers(0, size, 2)
        for time, frame in enumerate(canvas):
            down = (top + time) % (size - 2)
            frame[down : down + (1 if shape == "bar" else 3), left % (size - 6) :][:, : 6 if shape == "bar" else 3] = (
                255
            )
    return Clip(canvas, 10.0, values={"label": label})


class Clips(list):  # what VideoJudge.measure and evaluate take
    sizes = None
    report = ""


# Changes


def test_each_change_is_the_order_it_says() -> None:
    random = generator(0)
    assert order("none", 6, random).tolist() == list(range(6))
    assert order("swapped", 6, random).tolist() == list(range(6))
    assert len(set(order("static", 6, random).tolist())) == 1
    assert sorted(order("shuffled", 40, random).tolist()) == list(range(40))
    assert order("shuffled", 40, random).tolist() != list(range(40))
    assert order("fast", 6, random).tolist() == [0, 2, 4, 4, 2, 0]
    for length in (4, 5, 20):
        slow, jump = order("slow", length, random), order("jump", length, random)
        assert slow.diff().tolist() == [(k % 2) for k in range(length - 1)]
        assert sorted(jump.tolist()) == list(range(length))
        assert (jump.diff() != 1).sum() == 1
    for change in CHANGES:
        for length in range(1, 9):
            chosen = order(change, length, random)
            assert len(chosen) == length
            assert set(chosen.tolist()) <= set(range(length))


def test_controls_keep_the_frames_and_break_the_motion() -> None:
    clips = [moving(label, seed=k) for k, label in enumerate(["bar", "dot", "bar,dot"])]
    static, shuffled, swapped = (control(clips, change) for change in CONTROLS)
    for index, clip in enumerate(clips):
        assert (static[index].frames == static[index].frames[0]).all()
        assert static[index].frames[0].tobytes() in {frame.tobytes() for frame in clip.frames}
        assert sorted(f.tobytes() for f in shuffled[index].frames) == sorted(f.tobytes() for f in clip.frames)
        assert (swapped[index].frames[:4] == clip.frames[:4]).all()
        assert (swapped[index].frames[4:] == clips[(index + 1) % 3].frames[4:]).all()
        assert not static[index].values
    assert all((a.frames == b.frames).all() for a, b in zip(shuffled, control(clips, "shuffled"), strict=True))
    with pytest.raises(ValueError, match="unknown change 'backwards'"):
        control(clips, "backwards")


def test_changed_batches_follow_their_lengths() -> None:
    clips = [torch.arange(1.0, n + 1)[:, None, None, None].expand(-1, 1, 1, 1) * 10**k for k, n in enumerate((8, 5, 2))]
    example = LabelledVideos(*stacked(clips), torch.zeros(3, 0, dtype=torch.long))
    swap, static = CHANGES.index("swapped"), CHANGES.index("static")
    frames, told = changed(example, [swap, static, swap], sample_generators(0, range(3)))
    assert frames[0].flatten().tolist() == [1, 2, 3, 4, 50, 50, 50, 50]  # the next clip has five
    assert len(set(frames[1, :5].flatten().tolist())) == 1
    assert told.tolist() == [swap, static, UNKNOWN]  # two frames are too few
    alone = LabelledVideos(example.frames[:1], example.lengths[:1], example.shown[:1])
    assert changed(alone, [swap], sample_generators(0, [0]))[1].tolist() == [UNKNOWN]


# Labels


def test_labels_are_counted() -> None:
    assert counted("3", ["3", "8"], 2) == [1, 0]
    assert counted("8, 3", ["3", "8"], 2) == [1, 1]
    assert counted("3,3,3", ["3", "8"], 2) == [2, 0]
    assert counted(3.0, ["3", "8"], 2) == [1, 0]
    assert counted(None, ["3", "8"], 2) == counted("3,9", ["3", "8"], 2) == counted("", ["3", "8"], 2) == [-1, -1]


def test_what_is_seen_is_a_label_again() -> None:
    judge = tiny()
    torch.nn.init.zeros_(judge.shown.weight)
    judge.shown.bias.data = torch.tensor([0.0, 1, 2, 2, 1, 0])
    assert judge.labels_seen(judge.embed([moving("dot")])) == ["bar,bar"]


def test_of_no_clips_nothing_is_seen() -> None:
    for judge in (VideoJudge(["3", "8"], size=16), VideoJudge(size=16)):
        assert judge.labels_seen(judge.embed([])) == []
        assert judge.changes_seen(judge.embed([])).shape == (0, len(CHANGES))


# The network


def test_padding_changes_nothing() -> None:
    """Neither what a clip is padded with, nor how long the others in its batch are; a single frame is a clip."""
    judge = tiny()
    for frames in (1, 2, 3, 5, 8):
        alone = torch.rand(1, frames, 16, 16, 1)
        padded = torch.cat([alone, 100 * torch.ones(1, 7, 16, 16, 1)], 1)
        lengths = torch.tensor([frames])
        torch.testing.assert_close(judge(padded, lengths), judge(alone, lengths), atol=1e-5, rtol=1e-4)
    clips = [moving("bar", n, seed=n) for n in (1, 2, 7, 12)]
    apart = torch.cat([judge.embed([clip]) for clip in clips])
    torch.testing.assert_close(judge.embed(clips), apart, atol=1e-5, rtol=1e-4)
    assert judge.embed([]).shape == (0, 12)


def test_any_size_and_colours_are_taken() -> None:
    grey, rgb = tiny(), tiny(colours=3)
    clip = moving("bar,dot", size=16)
    colour = Clip(np.repeat(clip.frames, 3, 3), 10.0)
    torch.testing.assert_close(grey.embed([colour]), grey.embed([clip]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(rgb.embed([colour]), rgb.embed([clip]))
    large = Clip(clip.frames.repeat(3, 1).repeat(3, 2), 10.0)
    far = (grey.embed([moving("dot", seed=5)]) - grey.embed([clip])).norm()
    assert (grey.embed([large]) - grey.embed([clip])).norm() < 0.5 * far
    assert resized(Clip(np.full((2, 9, 30, 3), 128, np.uint8), 1.0), 16, 1).shape == (2, 1, 16, 16)
    torch.testing.assert_close(resized(colour, 16, 1), resized(clip, 16, 1), atol=1e-5, rtol=0)


def test_order_matters_to_an_embedding() -> None:
    judge, clip = tiny(), moving("bar,dot", 8)
    own = judge.embed([clip])
    for change in ("static", "shuffled"):
        assert (judge.embed(control([clip], change)) - own).norm() > 1e-3 * own.norm()


# Learning


def test_the_losses_in_closed_form() -> None:
    """Logits of zero: ln 3 for each class, ln 7 for the change; nothing for what is not known."""
    judge = tiny()
    for head in (judge.shown, judge.change):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    items = [moving("bar", 4), moving("dot,bar", 6), Clip(np.zeros((2, 8, 8, 1), np.uint8), 1.0)]
    example, objective = judge.example(items), Judgement(judge, change=0.5)
    assert example.lengths.tolist() == [4, 6, 2]
    assert example.shown.tolist() == [[1, 0], [1, 1], [UNKNOWN, UNKNOWN]]
    ((_, losses),) = objective.held_out(judge, example, [0, 1, 2], 0)
    label, change = 2 * math.log(MOST + 1), math.log(len(CHANGES))
    torch.testing.assert_close(losses.parts["label"], torch.tensor([label, label, 0.0]))
    torch.testing.assert_close(losses.parts["change"], torch.tensor([change, change, 0.0]))
    torch.testing.assert_close(losses.total, losses.parts["label"] + 0.5 * losses.parts["change"])
    assert losses.parts["label_wrong"].tolist() == [1, 1, 0]
    torch.testing.assert_close(losses.parts["change_wrong"], torch.tensor([6 / 7, 6 / 7, 0.0]))


def test_held_out_examples_are_deterministic_and_training_ones_follow_their_generators() -> None:
    judge, clips = tiny(), [moving("bar", 8), moving("dot", 5)]
    assert torch.equal(judge.example(clips).frames, judge.example(clips).frames)

    def drawn(seed: int) -> tuple[list[int], Sequence[float]]:
        example = judge.example(clips, sample_generators(seed, [0, 1]))
        assert example.frames.isfinite().all()
        return example.lengths.tolist(), example.frames.flatten().tolist()

    assert drawn(3) == drawn(3) != drawn(4)


def fit(judge: VideoJudge, clips: Clips, steps: int, lr: float = 1e-2) -> Judgement:
    objective, optimizer = Judgement(judge), torch.optim.AdamW(judge.parameters(), lr)
    for step in range(steps):
        example = judge.example(clips, sample_generators(step, range(len(clips))) if step % 2 else None)
        loss = objective(judge, example, StepRandomness(0, step, range(len(clips)), len(clips))).total.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
    judge.eval()
    return objective


def test_it_learns_sets_and_carries_what_it_learned_from(tmp_path: Path) -> None:
    judge = tiny(widths=(16,), depths=(1,), gallery=10).train()
    clips = Clips(moving(label, seed=k) for k in range(4) for label in ("bar", "dot", "bar,dot"))
    fit(judge, clips, 50)
    judge.measure(clips)  # type: ignore[arg-type]
    assert judge.config["gallery"] == 10
    torch.testing.assert_close(judge.gallery[0].float(), judge.embed([clips[0]])[0], atol=1e-2, rtol=1e-2)
    report = judge.evaluate(clips)  # type: ignore[arg-type]
    assert (report["label_accuracy"].value or 0) > 75
    again = load_component(save_component(tmp_path / "judge", judge))
    assert isinstance(again, VideoJudge)
    torch.testing.assert_close(again.embed(clips[:2]), judge.embed(clips[:2]))


def test_it_learns_motion_without_labels() -> None:
    judge = tiny(classes=(), widths=(16,), depths=(1,)).train()
    clips = Clips(moving(("bar", "dot")[k % 2], 8, seed=k) for k in range(12))
    objective = fit(judge, clips, 80)
    example = judge.example(clips)
    assert example.shown.shape == (12, 0)
    ((_, losses),) = objective.held_out(judge, example, range(12), 0)
    assert float(losses.parts["change_wrong"].mean()) < 0.75  # 6 of 7 by guessing
    assert losses.parts["label"].tolist() == [0] * 12
    assert judge.labels_seen(judge.embed([clips[0]])) == [""]


def test_sources_are_read_together_and_give_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = {"one": ["bar", "dot"], "two": ["bar,dot", "ring"]}
    for source, labels in sources.items():
        (tmp_path / source).mkdir()
        rows = [{"file": f"{k}.mp4", "label": label} for k, label in enumerate(labels)]
        (tmp_path / source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for k, row in enumerate(rows):
            frames = moving("bar", 6 + k, size=32).frames
            write_mp4(tmp_path / source / row["file"], Clip(frames, 10.0))
    folders, data = [str(tmp_path / source) for source in sources], {"sizes": [[32, 32]], "frames": 20}
    judge = VideoJudge.fitted(folders, data, size=16, widths=(8,), depths=(1,))
    assert judge.classes == ["bar", "dot", "ring"]
    clips = judge.dataset(folders, "train", **data)
    assert [clip.values["label"] for clip in (clips[k] for k in range(len(clips)))] == ["bar", "dot", "bar,dot", "ring"]
    assert clips[3].channels == 1
    assert clips.sizes == [1024 * n for n in (6, 7, 6, 7)]
    assert judge.example([clips[2], clips[3]]).shown.tolist() == [[1, 1, 0], [0, 0, 1]]
    (tmp_path / "two" / "metadata.jsonl").unlink()
    assert VideoJudge.fitted(folders, data, size=16, widths=(8,), depths=(1,)).classes == []


def test_wrong_options_are_refused() -> None:
    for options, match in (({"colours": 2}, "colours=2"), ({"size": 18}, "size=18"), ({"depths": (1,)}, "a depth for")):
        with pytest.raises(ValueError, match=match):
            tiny(**options)


def test_the_bundled_judge_sees_clips_whose_digits_change_halfway() -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    preparation = Preparation(channels=1, factor=4, sizes=[[64, 64]], frames=17)
    windows = open_video("moving-digits-tiny", "train", preparation=preparation)
    real = [windows[i] for i in range(48)]
    swapped = control(real, "swapped")
    judge = load_component(components()["video-digits-judge"])
    seen = [evaluate(clips, real, judge=judge).values() for clips in (real, swapped)]
    assert seen[1]["frechet_distance"] > 3 * seen[0]["frechet_distance"]
    assert seen[1]["kernel_distance"] > 10 * max(seen[0]["kernel_distance"], 1.0)
    assert seen[0]["identity_stability"] > 80 > 60 > seen[1]["identity_stability"]
