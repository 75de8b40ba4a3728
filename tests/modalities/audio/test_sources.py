"""Finding clips: folders, tars, metadata, sidecars, splits, and what is wrong with any of them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noiseloom.modalities.audio.sources import NAMED, find_clips
from noiseloom.modalities.extras import data_folder
from noiseloom.modalities.listing import Found, Listing

soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")


def sound(path: Path, hz: float = 300, seconds: float = 0.2, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate), rate)
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def pack(folder: Path, tar: Path, top: str = "") -> Path:
    with tarfile.open(tar, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.add(file, top + file.relative_to(folder).as_posix())
    return tar


def by_name(listing: Listing) -> dict[str, Found]:
    return {clip.name: clip for clip in listing.clips}


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("cat/a.wav", "cat/deep/b.flac", "dog/c.ogg", "dog/.hidden.wav", ".git/d.wav"):
        sound(tmp_path / "in" / name)
    (tmp_path / "in" / "README.txt").write_text("hello")
    return tmp_path / "in"


def test_a_folder_for_each_class(classes: Path) -> None:
    clips = by_name(find_clips(classes))
    labels = {name: clip.values for name, clip in clips.items()}
    assert labels == {n: {"label": n[:3]} for n in ("cat/a.wav", "cat/deep/b.flac", "dog/c.ogg")}
    assert {clip.split for clip in clips.values()} == {""}
    assert clips["cat/a.wav"].place.read() == (classes / "cat/a.wav").read_bytes()


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    sound(tmp_path / "b.WAV".lower())
    sound(tmp_path / "a.wav").rename(tmp_path / "A.WAV")
    assert {name: clip.values for name, clip in by_name(find_clips(tmp_path)).items()} == {"A.WAV": {}, "b.wav": {}}


def test_a_level_of_splits_above_the_classes(tmp_path: Path) -> None:
    for name in ("train/cat/a.wav", "Validation/cat/b.wav", "test/dog/c.wav"):
        sound(tmp_path / name)
    clips = {clip.split: (clip.name, clip.values["label"]) for clip in find_clips(tmp_path).clips}
    assert clips == {
        "train": ("train/cat/a.wav", "cat"),
        "valid": ("Validation/cat/b.wav", "cat"),
        "test": ("test/dog/c.wav", "dog"),
    }


def test_a_tar_is_as_its_folder(classes: Path, tmp_path: Path) -> None:
    for top in ("", "./", "sounds/"):
        listing = by_name(find_clips(pack(classes, tmp_path / "x.tar", top)))
        folder = by_name(find_clips(classes))
        assert listing.keys() == folder.keys()
        for name, clip in listing.items():
            assert clip.values == folder[name].values
            assert clip.place.read() == folder[name].place.read()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_metadata_gives_values_with_types(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b", "c"):
        sound(tmp_path / "clips" / f"{name}.wav")
    rows = [
        {"file_name": "clips/a.wav", "label": "7", "text": "one, two", "pitch": "60", "who": "x", "split": "val"},
        {"file_name": "clips/b.wav", "label": "8", "text": "", "pitch": "", "who": "3", "split": "train"},
        {"file_name": "./clips/c", "label": "9", "text": "ü", "pitch": "61.5", "who": "4", "split": ""},
    ]
    table(tmp_path / f"metadata{suffix}", rows)
    clips = by_name(find_clips(tmp_path))
    assert clips["clips/a.wav"].values == {"label": "7", "text": "one, two", "pitch": 60.0, "who": "x"}
    assert clips["clips/b.wav"].values == {"label": "8", "who": "3"}
    assert clips["clips/c.wav"].values == {"label": "9", "text": "ü", "pitch": 61.5, "who": "4"}
    assert [clip.split for clip in clips.values()] == ["valid", "train", ""]
    assert by_name(find_clips(pack(tmp_path, tmp_path.parent / f"m{suffix}.tar"))).keys() == clips.keys()


def test_columns_are_renamed_and_selected(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    table(tmp_path / "metadata.csv", [{"name": "a", "digit": 3, "speaker": 12, "midi": 60, "more": 1, "part": "test"}])
    columns = {"label": "digit", "voice": "speaker", "pitch": "midi", "split": "part"}
    (clip,) = find_clips(tmp_path, columns).clips
    assert clip.values == {"label": "3", "voice": "12", "pitch": 60.0}
    assert clip.split == "test"
    with pytest.raises(ValueError, match=r"no column 'colour'\. Columns: digit, speaker, midi, more, part"):
        find_clips(tmp_path, {"label": "colour"})
    with pytest.raises(ValueError, match=r"no column for the file .*Columns: name, digit"):
        find_clips(tmp_path, {"file": "wav"})


def test_odd_rows_are_told_and_never_replaced(tmp_path: Path) -> None:
    for name in ("a", "b", "extra"):
        sound(tmp_path / f"{name}.wav")
    sound(tmp_path.parent / "outside.wav")
    (tmp_path / "metadata.csv").write_text(
        "file,label\na.wav,x\na.wav,x\nb.wav,y\nb.wav,z\ngone.wav,x\n../outside.wav,x\n,x\na.wav,x,too,many\n"
    )
    listing = find_clips(tmp_path)
    assert [(clip.name, clip.values["label"]) for clip in listing.clips] == [
        ("a.wav", "x"),
        ("b.wav", "y"),
        ("b.wav", "z"),
    ]
    assert listing.dropped == [
        ("a row without one value for each column", "metadata.csv line 9"),
        ("listed twice", "a.wav"),
        ("file is missing", "gone.wav"),
        ("file is missing", "../outside.wav"),
        ("file is missing", "metadata.csv line 8"),
        ("not in the metadata", "extra.wav"),
    ]
    assert listing.notes == [("listed again with other values", "b.wav")]


def test_metadata_that_cannot_be_read(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    for name, content, reason in (
        ("metadata.csv", b"file,text\na.wav,\xff\xfe", r"metadata\.csv: not UTF-8"),
        ("metadata.csv", b"wav;label\na;b\n", r"no column for the file .*Columns: wav;label"),
        ("metadata.csv", b"file,split\na.wav,holdout\n", r"unknown split 'holdout' of a\.wav\. Choices: train"),
        ("metadata.jsonl", b'{"file": "a.wav"}\n{broken\n', r"metadata\.jsonl line 2: not JSON"),
        ("metadata.jsonl", b"[1]\n", r"metadata\.jsonl line 1: not an object"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            find_clips(tmp_path)
        (tmp_path / name).unlink()


def test_a_metadata_file_as_the_source(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sound(tmp_path / f"{name}.wav")
    table(tmp_path / "mine.csv", [{"file": "b.wav", "label": "x"}])
    listing = find_clips(tmp_path / "mine.csv")
    assert [clip.name for clip in listing.clips] == ["b.wav"]
    assert listing.dropped == []


def webdataset(folder: Path) -> Path:
    for key in range(2):
        sound(folder / f"{key:04}.flac", hz=200 + key)
        (folder / f"{key:04}.json").write_text(json.dumps({"bpm": 90 + key, "tags": ["x"], "none": None}))
        (folder / f"{key:04}.txt").write_text(f"sound number {key}\n")
        (folder / f"{key:04}.cls").write_text(str(key % 2))
    return folder


def test_shards_in_the_layout_of_webdataset(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for shard in range(2):
        pack(webdataset(tmp_path / f"in{shard}"), tmp_path / "out" / f"{shard}.tar")
    for source in (tmp_path / "out", f"{tmp_path}/out/*.tar"):
        clips = by_name(find_clips(source))
        assert list(clips) == ["0/0000.flac", "0/0001.flac", "1/0000.flac", "1/0001.flac"]
        expected = {"label": "1", "text": "sound number 1", "bpm": 91.0, "tags": '["x"]'}
        assert clips["1/0001.flac"].values == expected
    (one,) = [clip for clip in find_clips(tmp_path / "out" / "0.tar").clips if clip.name == "0001.flac"]
    assert one.values == expected


def test_damaged_and_compressed_tars_are_refused(classes: Path, tmp_path: Path) -> None:
    whole = pack(classes, tmp_path / "x.tar").read_bytes()
    second = whole.index(b"cat/deep/b.flac")
    for name, content in (
        ("cut", whole[: second + 700]),
        ("header", whole[: second + 150] + b"garbage!" + whole[second + 158 :]),
        ("words", b"not a tar at all" * 100),
    ):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.tar.*(cut short|damaged)"):
            find_clips(tmp_path / f"{name}.tar")


def test_members_that_are_not_files_are_never_followed(tmp_path: Path) -> None:
    secret = sound(tmp_path / "secret.wav")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (
            ("link.wav", tarfile.SYMTYPE),
            ("hard.wav", tarfile.LNKTYPE),
            ("pipe.wav", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        member = tarfile.TarInfo("../up.wav")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"abcd"))
        archive.add(secret, "real.wav")
    assert [clip.name for clip in find_clips(tmp_path / "x.tar").clips] == ["real.wav"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    sound(tmp_path / "data" / "a.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert [clip.name for clip in find_clips(tmp_path / "in").clips] == ["cat/a.wav"]


def test_a_single_sound_and_a_pattern(classes: Path) -> None:
    assert [clip.name for clip in find_clips(classes / "cat" / "a.wav").clips] == ["a.wav"]
    assert [clip.name for clip in find_clips(f"{classes}/c*/*.wav").clips] == ["a.wav"]
    assert [clip.name for clip in find_clips(f"{classes}/**/*.[fo]*").clips] == ["cat/deep/b.flac", "dog/c.ogg"]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_clips(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no sounds \(looked for \.wav, \.flac, .*metadata\.csv"):
        find_clips(tmp_path)
    (tmp_path / "song.m4a").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no sounds .*\.m4a cannot be decoded: convert it .*song\.m4a"):
        find_clips(tmp_path)


def test_a_named_source_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISELOOM_DATA", str(tmp_path))
    for name in (name for name, named in NAMED.items() if named.archive is None):
        with pytest.raises(FileNotFoundError, match=rf"{name} was not found: .*Put {name}\.tar.*NOISELOOM_DATA"):
            find_clips(name)


def test_an_archive_of_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISELOOM_DATA", str(tmp_path))
    sound(tmp_path / "esc10" / "dog" / "a.wav")
    sound(tmp_path / "fsdd" / "7" / "a.wav")
    with pytest.raises(ValueError, match="is not esc10: its metadata has no column 'fold'"):
        find_clips("esc10")
    with pytest.raises(ValueError, match=r"fsdd has no column 'digit'\. Columns: label"):
        find_clips("fsdd")


def named(name: str, **options: Any) -> list[Found]:
    if not (data_folder() / f"{name}.tar").is_file():
        pytest.skip(f"{name}.tar is not in {data_folder()}")
    return find_clips(name, **options).clips


def test_fsdd() -> None:
    clips = named("fsdd")
    assert Counter(clip.split for clip in clips) == {"train": 2700, "test": 300}
    assert Counter(clip.values["label"] for clip in clips) == {str(digit): 300 for digit in range(10)}
    assert Counter(clip.values["voice"] for clip in clips).keys() == {
        "george", "jackson", "lucas", "nicolas", "theo", "yweweler",
    }  # fmt: skip
    assert all(clip.split == "test" for clip in clips if int(clip.name.split("_")[2][:-5]) < 5)


def test_esc10() -> None:
    clips = named("esc10")
    assert len(clips) == 398
    assert {clip.split for clip in clips if "/5-" in clip.name} == {"test"}
    assert {clip.split for clip in clips if "/5-" not in clip.name} == {"train"}
    takes = [clip for clip in clips if "/1-19898-" in clip.name]
    assert len(takes) == 3
    assert len({clip.group for clip in takes}) == 1
    captions = {clip.values["text"] for clip in clips if clip.values["label"] == "sea_waves"}
    assert captions == {"sea waves", "waves of the sea", "waves breaking on a beach"}


def test_notes_and_their_kinds() -> None:
    clips = named("notes")
    assert len(clips) == 592
    assert by_name(Listing(clips))["piano/piano_048_060.flac"].values == {
        "label": "piano", "pitch": 48.0, "velocity": 60.0,
    }  # fmt: skip
    assert len(named("notes", kinds=["drum"])) == 144
    assert len(named("notes", kinds=["drum", "note"])) == 736
    with pytest.raises(ValueError, match=r"no clips of kind 'bell'\. Kinds: drum, note"):
        find_clips("notes", kinds=["bell"])
