"""Moving digits: where they are at each frame, and the data sets of files made of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from noiseloom.modalities.video.moving_digits import moving_digits

DOT = np.full((1, 1, 1), 255, np.uint8)


def scene(seed: int, speed: float, frames: int = 40, size: int = 101, count: int = 1) -> np.ndarray:
    """(frames, 2) places of one bright pixel that moves on a square."""
    random = np.random.default_rng(seed)
    drawn = moving_digits(DOT, np.zeros(1, int), random, count, frames, size, (speed, speed)).frames
    return np.array([np.argwhere(frame)[0] for frame in drawn])


def unfolded(seed: int, speed: float, frames: int = 40, size: int = 101) -> np.ndarray:
    """The straight line of the same draws, without walls."""
    random = np.random.default_rng(seed)
    random.integers(1)
    drawn = random.uniform(speed, speed)
    angle, start = random.uniform(0, 2 * np.pi), random.uniform(0, 1, 2)
    return (start + drawn * np.arange(frames)[:, None] * (np.sin(angle), np.cos(angle))) * (size - 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_digit_flies_straight_and_is_mirrored_at_the_walls(seed: int) -> None:
    places, line = scene(seed, 0.1), unfolded(seed, 0.1)
    inside = ((line >= 0) & (line <= 100)).all(1)
    first = inside.argmin() if not inside.all() else len(line)
    assert 0 < first < len(line)  # 4 ways long: it meets a wall
    np.testing.assert_allclose(places[:first], line[:first], atol=0.5 + 1e-9)
    mirrored = line.copy()
    for _ in range(6):
        mirrored = np.where(mirrored < 0, -mirrored, mirrored)
        mirrored = np.where(mirrored > 100, 200 - mirrored, mirrored)
    np.testing.assert_allclose(places, mirrored, atol=0.5 + 1e-9)


def test_the_benchmarks_digits_move_3_6_pixels_in_a_frame() -> None:
    places = unfolded(0, 0.1, 2, 64 - 28 + 1)
    assert np.hypot(*(places[1] - places[0])) == pytest.approx(3.6)
    still = moving_digits(DOT, np.zeros(1, int), np.random.default_rng(0), 1, 5, 9, (0.0, 0.0)).frames
    assert (still == still[0]).all()


def test_digits_that_overlap_show_the_lighter() -> None:
    images, labels = np.array([[[100]], [[200]]], np.uint8), np.array([7, 3])
    drawn = moving_digits(images, labels, np.random.default_rng(0), 2, 3, 1, chosen=[0, 1])
    assert drawn.digits == [3, 7]
    assert drawn.images == [0, 1]
    assert (drawn.frames == 200).all()


def test_a_set_is_made_once_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    from dataclasses import replace

    from noiseloom.modalities.video.digit_set import TINY, made
    from noiseloom.modalities.video.reading import read

    small = replace(TINY, train=6, test=4)
    for cache in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        folder = made(small)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert made(small) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    other = tmp_path / "a" / folder.relative_to(tmp_path / "b")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.mp4"))
    assert len(files) == 10
    for name in (*files, "metadata.jsonl"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert Counter((row["split"], row["count"]) for row in rows) == {
        ("train", 1): 3, ("train", 2): 3, ("test", 1): 2, ("test", 2): 2,
    }  # fmt: skip
    assert all(row["label"] == ",".join(sorted(row["label"].split(","))) for row in rows)
    assert all(len(row["label"].split(",")) == row["count"] for row in rows)
    assert len({(folder / name).read_bytes() for name in files}) == 10
    assert made(replace(small, seed=1)) != folder
    clip = read(folder / files[0])
    assert (clip.frames.shape[:3], clip.fps) == ((20, 64, 64), 10)


def test_train_and_test_show_digits_of_their_own_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    from noiseloom.modalities.video.digit_set import DigitSet, made
    from noiseloom.modalities.video.reading import read

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dark, light = np.full((5, 8, 8), 60, np.uint8), np.full((2, 8, 8), 240, np.uint8)
    np.savez(tmp_path / "x.npz", x_train=dark, y_train=np.arange(5), x_test=light, y_test=np.array([8, 9]))
    folder = made(DigitSet("x", tmp_path / "x.npz", train=3, test=3, frames=2, size=16, quality=0))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        assert read(folder / row["file"]).frames.max() == (60 if row["split"] == "train" else 240)
        assert set(row["label"].split(",")) <= set("01234" if row["split"] == "train" else "89")


def test_digits_that_are_not_there_or_not_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    from noiseloom.modalities.video.digit_set import DigitSet, made

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NOISELOOM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"made from mnist\.npz, which was not found: .*moving-digits-tiny"):
        made(DigitSet("x"))
    (tmp_path / "mnist.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"mnist\.npz holds no x_train"):
        made(DigitSet("x"))
    digits = {"x_train": np.zeros((2, 8, 8)), "y_train": np.zeros(2), "x_test": np.zeros((2, 8, 8))}
    np.savez(tmp_path / "mnist.npz", **digits)
    with pytest.raises(ValueError, match=r"mnist\.npz holds no x_train"):
        made(DigitSet("x"))
    np.savez(tmp_path / "mnist.npz", **digits, y_test=np.zeros(2))
    with pytest.raises(ValueError, match=r"\(n, height, width\) of uint8"):
        made(DigitSet("x"))
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.mp4"))


def test_the_bundled_digits() -> None:
    from noiseloom.modalities.video.digit_set import DIGITS_TINY

    assert DIGITS_TINY.stat().st_size < 100_000
    with np.load(DIGITS_TINY, allow_pickle=False) as file:
        assert (file["x_train"].shape, file["x_test"].shape) == ((300, 28, 28), (60, 28, 28))
        assert Counter(file["y_train"].tolist()) == dict.fromkeys(range(10), 30)
        assert Counter(file["y_test"].tolist()) == dict.fromkeys(range(10), 6)
