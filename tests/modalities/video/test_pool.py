"""Clips of several sources, for components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")

from noiseloom.modalities.video.autoencoder import VideoAutoencoder
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.pool import Clips
from noiseloom.modalities.video.writing import write_mp4

OPTIONS = {"sizes": [[16, 16], [16, 32]], "frames": 5}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, (frames, width) in {"a": (5, 16), "b": (5, 32), "c": (9, 16)}.items():
        (tmp_path / name).mkdir()
        write_mp4(tmp_path / name / "clip.mp4", Clip(np.full((frames, 16, width, 1), 9 * frames, np.uint8), 10))
    return [str(tmp_path / name) for name in "abc"]


def test_clips_of_several_sources_follow_each_other(sources: list[str]) -> None:
    clips = Clips(1, sources, "train", factor=4, **OPTIONS)
    assert [clips[index].frames.shape[:3] for index in range(len(clips))] == [(5, 16, 16), (5, 16, 32)] + 2 * [
        (5, 16, 16)
    ]
    assert clips.sizes == [1280, 2560, 1280, 1280]
    assert clips.shapes is None


def test_an_autoencoder_trains_on_clips_of_one_shape_at_a_time(sources: list[str]) -> None:
    clips = VideoAutoencoder(colours=1, widths=(8, 8, 8)).dataset(sources, "train", **OPTIONS)
    assert clips.shapes is not None
    assert clips.shapes.tolist() == [[5, 16, 16], [5, 16, 32], [5, 16, 16], [5, 16, 16]]
