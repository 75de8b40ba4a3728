"""What is done to frames: buckets, cutting and resizing, channels, rates, windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from noiseloom.modalities.video.prepare import Preparation


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sizes": []}, "sizes"),
        ({"sizes": [[64]]}, "sizes"),
        ({"sizes": [[64, 0]]}, "sizes"),
        ({"sizes": [[64, 1.5]]}, "sizes"),
        ({"channels": 2}, "channels=2"),
        ({"fps": 0}, "fps=0"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"frames": 0}, "frames=0"),
        ({"stride": 0}, "stride=0"),
        ({"factor": 0}, "factor=0"),
        ({"min_frames": 0}, "min_frames=0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Preparation(**options)


def test_plain_values_are_equal_however_they_are_given() -> None:
    assert Preparation(sizes=[[32, 64], [32, 64]]) == Preparation(sizes=((32, 64),))
    assert Preparation(frames=5, stride=2, factor=4).stored == Preparation(frames=9).stored
    assert Preparation(fps=5).stored != Preparation().stored


def test_a_clip_goes_to_the_bucket_nearest_in_aspect() -> None:
    p = Preparation(sizes=[[64, 64], [48, 80], [80, 48], [128, 128]])
    assert p.bucket(720, 1280) == (48, 80)
    assert p.bucket(1280, 720) == (80, 48)
    assert p.bucket(500, 510) == (128, 128)
    assert p.bucket(100, 100) == (64, 64)  # 128 would enlarge it
    assert p.bucket(20, 20) == (64, 64)  # all enlarge it: the least


def test_frames_of_the_size_stay_bit_by_bit() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Preparation(sizes=[[8, 12]]).fit(frames), frames)


def test_the_centre_is_cut_out() -> None:
    wide = np.zeros((2, 8, 20, 1), np.uint8)
    wide[:, :, 6:14] = 200
    np.testing.assert_array_equal(Preparation(sizes=[[8, 8]], channels=1).fit(wide), np.full((2, 8, 8, 1), 200))
    high = np.zeros((2, 40, 16, 1), np.uint8)
    high[:, 12:28] = 90
    np.testing.assert_array_equal(Preparation(sizes=[[8, 8]], channels=1).fit(high), np.full((2, 8, 8, 1), 90))


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255  # finer than the grid to come: the mean, not a pattern
    made = Preparation(sizes=[[16, 16]]).fit(stripes)
    assert made.shape == (1, 16, 16, 3)
    assert np.abs(made[:, 2:-2, 2:-2].astype(int) - 127.5).max() < 4
    even = np.full((2, 10, 14, 3), 77, np.uint8)
    assert (Preparation(sizes=[[16, 16]]).fit(even) == 77).all()


def test_each_odd_size_is_covered() -> None:
    p = Preparation(sizes=[[16, 24], [24, 16]], channels=1)
    for height, width in ((1, 1), (1, 50), (50, 1), (17, 23), (333, 217), (5, 5)):
        assert p.fit(np.full((2, height, width, 3), 9, np.uint8)).shape == (2, *p.bucket(height, width), 1)


def test_channels() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    colour = Preparation(sizes=[[16, 16]]).fit(grey)
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, 3))
    np.testing.assert_array_equal(Preparation(sizes=[[16, 16]], channels=1).fit(colour), grey)
    primary = 255 * np.eye(3, dtype=np.uint8).reshape(1, 1, 3, 3)
    luma = Preparation(sizes=[[1, 3]], channels=1).fit(primary)
    np.testing.assert_array_equal(luma.ravel(), [76, 150, 29])  # ITU-R BT.601


def test_each_time_shows_the_frame_of_then() -> None:
    assert Preparation().moments(5, 30).tolist() == [0, 1, 2, 3, 4]
    assert Preparation(fps=15).moments(7, 30).tolist() == [0, 2, 4, 6]
    assert Preparation(fps=10).moments(6, 30).tolist() == [0, 3]
    assert Preparation(fps=12).moments(5, 6).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert Preparation(fps=20).moments(6, 30).tolist() == [0, 1, 3, 4]
    assert Preparation(fps=29.97).moments(100, 30000 / 1001).tolist() == list(range(100))
    assert Preparation(fps=1).moments(3, 30).tolist() == [0]
    assert Preparation(fps=12).moments(1, 1.0).tolist() == [0]  # an image
    for frames in range(1, 40):  # as long as before, to a frame
        kept = Preparation(fps=10).moments(frames, 24)
        assert kept[-1] < frames
        assert abs(len(kept) / 10 - frames / 24) <= 1 / 10


@pytest.mark.parametrize("factor", [1, 2, 4, 6, 8])
def test_any_length_is_cut_into_windows_that_use_each_frame(factor: int) -> None:
    p = Preparation(frames=17, factor=factor)
    for frames in range(1, 80):
        starts, length = p.windows(frames)
        assert (length - 1) % factor == 0
        assert length <= min(frames, 17) < length + factor
        used = np.zeros(frames, bool)
        for start in starts:
            assert 0 <= start <= frames - length
            used[start : start + length] = True
        assert used.all()
        assert starts[-1] + length == frames
        assert len(starts) == -(-frames // length)  # no more than are needed


def test_windows_by_hand() -> None:
    assert Preparation(frames=17, factor=4).windows(20) == ([0, 3], 17)
    assert Preparation(frames=20, factor=1).windows(20) == ([0], 20)
    assert Preparation(frames=17, factor=4).windows(3) == ([0, 1, 2], 1)
    assert Preparation(frames=17, factor=4).windows(8) == ([0, 3], 5)
    assert Preparation(frames=4, stride=3, factor=1).windows(11) == ([0, 3, 6, 7], 4)
    assert Preparation(frames=4, stride=8, factor=1).windows(20) == ([0, 8, 16], 4)
