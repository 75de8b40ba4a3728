"""Finding videos and images: folders, tars, metadata, and the named data sets."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
from noiseloom.modalities.extras import data_folder
from noiseloom.modalities.listing import Found, Listing
from noiseloom.modalities.splits import in_split
from noiseloom.modalities.video.sources import NAMED, find_clips


def put(folder: Path, *names: str) -> Path:
    """Files that are found by their names: finding opens none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def values(listing: Listing) -> dict[str, dict[str, str | float]]:
    return {clip.name: dict(clip.values) for clip in listing.clips}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    put(tmp_path, "run/a.mp4", "run/b.WEBM", "walk/c.gif", "walk/d.png", "walk/notes.md", ".git/e.mp4")
    assert values(find_clips(tmp_path)) == {
        "run/a.mp4": {"label": "run"},
        "run/b.WEBM": {"label": "run"},
        "walk/c.gif": {"label": "walk"},
        "walk/d.png": {"label": "walk"},
    }


def test_a_level_of_splits_above_the_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/run/a.mp4", "val/run/b.mp4", "test/walk/c.mp4")
    found = {clip.split: clip.values["label"] for clip in find_clips(tmp_path).clips}
    assert found == {"train": "run", "valid": "run", "test": "walk"}


def test_metadata_with_labels_texts_and_numbers(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4", "clips/b.mp4", "c.mp4")
    rows = [
        {"file": "clips/a.mp4", "label": "3,8", "text": "three, eight", "count": 2, "split": "test"},
        {"file": "clips/b", "label": "3", "text": "three", "count": 1},
        {"file": "gone.mp4", "label": "4"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listing = find_clips(tmp_path)
    assert values(listing) == {
        "clips/a.mp4": {"label": "3,8", "text": "three, eight", "count": 2.0},
        "clips/b.mp4": {"label": "3", "text": "three", "count": 1.0},
    }
    assert [clip.split for clip in listing.clips] == ["test", ""]
    assert listing.dropped == [("file is missing", "gone.mp4"), ("not in the metadata", "c.mp4")]


def test_shards_with_texts_beside_the_clips(tmp_path: Path) -> None:
    for shard in "xy":
        folder = put(tmp_path / shard, "0.mp4", "1.mp4")
        (folder / "0.txt").write_text(f"a {shard}\n")
        (folder / "1.json").write_text('{"label": "z", "speed": 2.5}')
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, file.name)
    listing = find_clips(f"{tmp_path}/*.tar")
    assert values(listing) == {
        f"{shard}/{name}": known
        for shard in "xy"
        for name, known in (("0.mp4", {"text": f"a {shard}"}), ("1.mp4", {"label": "z", "speed": 2.5}))
    }
    assert [clip.place.read() for clip in listing.clips] == [b"0.mp4", b"1.mp4"] * 2


def test_a_picture_beside_its_video_is_no_clip(tmp_path: Path) -> None:
    put(tmp_path, "0001.mp4", "0001.png", "0001.webp", "other.png", "sub/0001.png")
    listing = find_clips(tmp_path)
    assert [clip.name for clip in listing.clips] == ["0001.mp4", "other.png", "sub/0001.png"]
    assert sorted(listing.dropped) == [
        ("a picture beside a video of its name", "0001.png"),
        ("a picture beside a video of its name", "0001.webp"),
    ]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_clips(tmp_path / "none")
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds no videos or images \(looked for \.mp4, .*metadata"):
        find_clips(put(tmp_path, "song.wav"))


def test_a_named_source_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISELOOM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, stem in (("emoji", "fluent_emoji_anim"), ("radar", "mrms_radar"), ("faces", "grid_s1_av")):
        with pytest.raises(FileNotFoundError, match=rf"{name} was not found: .*Put {stem}\.tar, .*NOISELOOM_DATA"):
            find_clips(name)
    with pytest.raises(FileNotFoundError, match=r"mnist\.npz"):
        find_clips("moving-digits")
    put(tmp_path, "fluent_emoji_anim/x/a.mp4")
    with pytest.raises(ValueError, match="is not emoji: its metadata has no column 'group'"):
        find_clips("emoji")


def named(name: str) -> Listing:
    if not (data_folder() / f"{NAMED[name].stem}.tar").is_file():
        pytest.skip(f"{NAMED[name].stem}.tar is not in {data_folder()}")
    return find_clips(name)


def marked(listing: Listing) -> Counter[str]:
    return Counter(clip.split for clip in listing.clips)


def test_emoji_keep_their_names_in_one_split() -> None:
    listing = named("emoji")
    assert marked(listing) == {"train": 1401, "test": 150}
    assert len({clip.values["label"] for clip in listing.clips}) == 8
    assert set(listing.clips[0].values) == {"label", "text"}
    groups = [{clip.group for clip in in_split(listing, split)[0]} for split in ("train", "valid", "test")]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 729
    assert 0.03 < len(in_split(listing, "valid")[0]) / 1401 < 0.1


def test_radar_tiles_of_one_split_overlap_none_of_another() -> None:
    listing = named("radar")
    assert marked(listing) == {"train": 99, "valid": 15, "test": 62}

    def corner(clip: Found) -> tuple[int, int]:
        row, column = clip.name.removesuffix(".mp4").rpartition("/")[2].split("_")
        return int(row[1:]), int(column[1:])

    for clip in listing.clips:
        for other in listing.clips:
            if clip.split != other.split:
                assert np.abs(np.subtract(corner(clip), corner(other))).max() >= 128


def test_faces() -> None:
    listing = named("faces")
    assert marked(listing) == {"train": 900, "test": 100}
    clip = next(clip for clip in listing.clips if clip.name == "clips/bbaf2n.mp4")
    words = {"command": "bin", "color": "blue", "preposition": "at", "letter": "f", "digit": "two", "adverb": "now"}
    assert clip.values == {"text": "bin blue at f two now", **words}
