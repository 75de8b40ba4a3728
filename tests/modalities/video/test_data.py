"""Videos from sources to windows in the cache: what is kept, what is dropped, and what is told of it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
from noiseloom.modalities.video import data
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.data import Preparation, VideoSet, open_video
from noiseloom.modalities.video.writing import write_mp4

GREY = Preparation(sizes=[[16, 16]], channels=1, frames=5, factor=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


def frames(count: int, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    """Each frame of one grey, told by its number and the seed, so that it is known again."""
    levels = (40 + 10 * np.arange(count) + 3 * seed) % 256
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (count, height, width, 1)).copy()


def video(path: Path, count: int, seed: int = 0, fps: float = 10.0, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_mp4(path, Clip(frames(count, *size, seed), fps), quality=0)


def levels(clip: Clip) -> list[int]:
    return clip.frames[:, 0, 0, 0].tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 clips of 6 to 9 frames with metadata; a fourth of them marked as test."""
    rows = []
    for i in range(24):
        video(tmp_path / "in" / f"{i}.mp4", 6 + i % 4, i)
        split = "test" if i % 4 == 3 else "train"
        rows.append({"file": f"{i}.mp4", "label": ["3", "3,8"][i % 2], "speed": i / 2 if i else None, "split": split})
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in"


def opened(source: Path | str, split: str = "all", preparation: Preparation = GREY, **options: Any) -> VideoSet:
    return open_video(source, split, preparation=preparation, **options)


def test_windows_of_clips(folder: Path) -> None:
    videos = opened(folder)
    assert len(videos) == 24 * 2
    assert (videos.shapes == (5, 16, 16)).all()
    assert videos.sizes is None
    first, second = videos[0], videos[1]
    assert (first.name, second.name) == ("0.mp4@0", "0.mp4@1")
    assert levels(first) == frames(6)[:5, 0, 0, 0].tolist()
    assert levels(second) == frames(6)[1:, 0, 0, 0].tolist()
    assert first.fps == 10
    assert first.values == {"label": "3"}  # its speed is not known
    assert videos[-1].values == {"label": "3,8", "speed": 11.5}
    assert levels(videos[-1]) == frames(9, seed=23)[4:, 0, 0, 0].tolist()
    assert not first.frames.flags.writeable
    assert videos.labels() == ["3", "8"]
    assert len(videos.values["speed"]) == len(videos.values["label"]) == len(videos.names) == 48
    with pytest.raises(ValueError, match=r"no column of words 'speed'\. Columns: label"):
        videos.labels("speed")


def test_sizes_tell_pixels_where_shapes_differ(tmp_path: Path) -> None:
    video(tmp_path / "in/a.mp4", 9, size=(16, 16))
    video(tmp_path / "in/b.mp4", 5, size=(16, 32))
    videos = opened(tmp_path / "in", preparation=Preparation(sizes=[[16, 16], [16, 32]], frames=9, factor=4))
    assert videos.shapes.tolist() == [[9, 16, 16], [5, 16, 32]]
    assert videos.sizes == [9 * 256, 5 * 512]
    assert [clip.frames.shape for clip in videos] == [(9, 16, 16, 3), (5, 16, 32, 3)]
    assert videos.names == ["a.mp4", "b.mp4"]


def test_clips_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened(folder)
    monkeypatch.setattr(data, "read", lambda *args, **options: pytest.fail("decoded again"))
    again = opened(folder)
    assert again.fingerprint == before.fingerprint
    assert str(again.report) == str(before.report)
    np.testing.assert_array_equal(again[7].frames, before[7].frames)
    longer = opened(folder, preparation=Preparation(sizes=[[16, 16]], channels=1, frames=9, factor=4))
    assert longer.shapes[:, 0].tolist() == [n for i in range(24) for n in ([9] if i % 4 == 3 else [5, 5])]
    assert longer.fingerprint != before.fingerprint
    monkeypatch.undo()


def test_splits_and_limit_are_the_same_each_time(folder: Path) -> None:
    def clips(split: str, **options: Any) -> list[str]:
        return list(dict.fromkeys(name.split("@")[0] for name in opened(folder, split, **options).names))

    assert clips("test") == [f"{i}.mp4" for i in range(3, 24, 4)]
    train, valid = clips("train", valid_fraction=0.3), clips("valid", valid_fraction=0.3)
    assert valid
    assert sorted(train + valid) == sorted(f"{i}.mp4" for i in range(24) if i % 4 != 3)
    few = clips("train", valid_fraction=0.3, limit=5)
    assert len(few) == 5
    assert [name for name in train if name in few] == few
    assert set(clips("train", valid_fraction=0.3, limit=3)) < set(few)
    for options, reason in (({"split": "dev"}, "split 'dev'"), ({"limit": 0}, "limit"), ({"valid_fraction": 1}, "0.5")):
        with pytest.raises(ValueError, match=reason):
            opened(folder, **options)


def test_a_tar_is_as_its_folder(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder, "x")
    packed, loose = opened(tmp_path / "x.tar"), opened(folder)
    assert sorted(packed.names) == sorted(loose.names)
    for name in ("0.mp4@1", "17.mp4@0"):
        ours, theirs = (videos[videos.names.index(name)] for videos in (packed, loose))
        np.testing.assert_array_equal(ours.frames, theirs.frames)
        assert ours.values == theirs.values


def test_the_rate_is_resampled(tmp_path: Path) -> None:
    video(tmp_path / "in/fast.mp4", 12, fps=20)
    video(tmp_path / "in/slow.mp4", 3, fps=5)
    videos = opened(tmp_path / "in", preparation=Preparation(sizes=[[16, 16]], channels=1, fps=10, frames=6))
    assert [levels(clip) for clip in videos] == [
        frames(12)[::2, 0, 0, 0].tolist(),
        frames(3)[:, 0, 0, 0].repeat(2).tolist(),
    ]
    assert [clip.fps for clip in videos] == [10, 10]
    assert videos.report.notes == [("frames repeated: from 5 to 10 fps", "slow.mp4")]


def test_a_long_clip_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video(tmp_path / "in/a.mp4", 20)
    whole = opened(tmp_path / "in", preparation=Preparation(sizes=[[16, 16]], channels=1, fps=7, frames=20))
    spans = []

    def read(*args: Any, start: int, stop: int) -> Clip:
        spans.append(stop - start)
        return real(*args, start=start, stop=stop)

    real = data.read
    monkeypatch.setattr(data, "read", read)
    monkeypatch.setattr(data, "_RAW", 3 * 16 * 16 * 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    parts = opened(tmp_path / "in", preparation=Preparation(sizes=[[16, 16]], channels=1, fps=7, frames=20))
    assert len(spans) == 5
    assert max(spans) <= 4
    np.testing.assert_array_equal(parts[0].frames, whole[0].frames)


def test_images_are_clips_of_one_frame(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'video'")
    (tmp_path / "in/cat").mkdir(parents=True)
    image.fromarray(np.full((16, 16, 3), (255, 0, 0), np.uint8)).save(tmp_path / "in/cat/a.png")
    image.fromarray(np.full((32, 48), 90, np.uint8)).save(tmp_path / "in/cat/b.png")
    videos = opened(tmp_path / "in", preparation=Preparation(sizes=[[16, 16]], frames=17, factor=4, fps=8))
    assert videos.shapes.tolist() == [[1, 16, 16]] * 2
    assert (videos[0].frames == (255, 0, 0)).all()
    assert (videos[1].frames == 90).all()
    assert videos[0].values == {"label": "cat"}
    assert "images among them" in str(videos.report)


def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path: Path) -> None:
    good = video(tmp_path / "in/good.mp4", 9).read_bytes()
    video(tmp_path / "in/short.mp4", 2)
    video(tmp_path / "in/gone.mp4", 9).unlink()
    files = {"words": b"not a video at all\n" * 20, "empty": b"", "cut": good[: len(good) // 2]}
    for name, content in files.items():
        (tmp_path / f"in/{name}.mp4").write_bytes(content)
    (tmp_path / "in/song.txt").write_text("no clip")
    preparation = Preparation(sizes=[[16, 16]], frames=5, factor=4, min_frames=3)
    videos = opened(tmp_path / "in", preparation=preparation)
    assert {name.split("@")[0] for name in videos.names} == {"good.mp4"}
    reasons = {name: reason for reason, name in videos.report.dropped}
    assert set(reasons) == {"short.mp4", "words.mp4", "empty.mp4", "cut.mp4"}
    assert reasons["short.mp4"] == "too few frames: 2, of at least 3"
    assert all(reasons.values())
    told = str(videos.report)
    assert "clips kept" in told
    for name in reasons:
        assert name in told
    for name in ("good", "short"):
        (tmp_path / f"in/{name}.mp4").unlink()
    with pytest.raises(ValueError, match=r"no usable clip for 'train' \(clips found: train 3.*\n(.*\n)*.*words\.mp4"):
        opened(tmp_path / "in", "train", preparation)
    assert len(opened(tmp_path / "in", "test", preparation)) == 0


def test_the_table_tells_what_clips_were(tmp_path: Path) -> None:
    video(tmp_path / "in/run/a.mp4", 20, size=(24, 32), fps=25)
    video(tmp_path / "in/walk/b.mp4", 9, size=(8, 8), fps=12.5)
    rows = [line.split() for line in str(opened(tmp_path / "in", preparation=GREY).report).splitlines()]
    told = [" ".join(row) for row in rows]
    assert any(line.startswith("clips kept 2 1.5 s, 29 frames; grey") for line in told)
    assert "windows of 5 x 16 x 16 6 4k + 1 frames, 1,280 pixels each" in told
    assert "frames in two windows 1" in told
    for line in ("height x width before 1 24 x 32", "rate before 1 12.5 fps", "file 2 mp4", "label run 1"):
        assert line in told
    assert "note: enlarged 1 walk/b.mp4 (8 x 8 to 16 x 16)" in told


def test_an_animation_without_a_suffix_of_video(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'video'")
    pictures = [image.fromarray(np.full((16, 16), level, np.uint8)) for level in (0, 90, 180)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    (tmp_path / "a.gif").write_bytes(buffer.getvalue())
    (clip,) = opened(tmp_path / "a.gif", preparation=Preparation(sizes=[[16, 16]], channels=1, frames=9))
    assert levels(clip) == [0, 90, 180]
    assert clip.fps == pytest.approx(10)


def test_moving_digits_tiny() -> None:
    preparation = Preparation(sizes=[[32, 32]], channels=1, frames=17, factor=4)
    splits = {split: opened("moving-digits-tiny", split, preparation) for split in ("train", "valid", "test")}
    assert {split: videos.report.kept for split, videos in splits.items()} == {"train": 147, "valid": 13, "test": 40}
    train = splits["train"]
    assert len(train) == 2 * 147
    assert (train.shapes == (17, 32, 32)).all()
    assert train.labels() == list("0123456789")
    assert set(train[0].values) == {"label", "count"}
    assert not train.report.dropped


def test_an_option_that_does_not_exist_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown option of data 'column'"):
        open_video(folder, preparation=Preparation(), column={"label": "label"})
