"""Opening sounds: what is kept, split, cached and told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from noiseloom.modalities.account import histogram
from noiseloom.modalities.audio.data import AudioSet, Preparation, open_audio
from noiseloom.modalities.audio.levels import rms
from noiseloom.modalities.extras import data_folder

soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
RATE = 8000
PLAIN = Preparation(RATE)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sound(path: Path, seconds: float = 0.2, rate: int = RATE, channels: int = 1, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.2 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(samples[:, None], channels, 1), rate, **options)
    return path


def many(folder: Path, count: int = 60) -> Path:
    for index in range(count):
        sound(folder / ("cat" if index % 3 else "dog") / f"{index}.wav", 0.1 + index / 1000)
    return folder


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four good clips and one of each kind of bad one."""
    folder = tmp_path / "in"
    sound(folder / "a.wav", 0.5)
    sound(folder / "b.flac", 0.05)
    sound(folder / "c.ogg", 1.0, 44100, 2)
    sound(folder / "d.wav", 0.3, 11025)
    sound(folder / "three.wav", channels=3)
    sound(folder / "short.wav", 0.049)
    (folder / "zero.wav").touch()
    (folder / "words.wav").write_text("not a sound")
    cut = sound(folder / "cut.flac", 1.0)
    cut.write_bytes(cut.read_bytes()[:-200])
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan] * 4000), RATE, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(4000), RATE)
    soundfile.write(folder / "click.wav", np.eye(1, 4000)[0], RATE)
    return folder


def test_what_is_wrong_is_dropped_by_name_and_the_rest_is_right(mixed: Path) -> None:
    audio = open_audio(mixed, preparation=Preparation(RATE, trim=60, min_seconds=0.05))
    assert list(audio.names) == ["a.wav", "b.flac", "c.ogg", "d.wav"]
    assert [wave.name for wave in audio] == list(audio.names)
    np.testing.assert_allclose(audio.samples, [4000, 400, 8000, 2400], atol=30)
    for wave in audio:
        assert (wave.rate, wave.channels, wave.samples.dtype) == (RATE, 1, np.float32)
        assert rms(wave.samples) == pytest.approx(0.1, rel=1e-3)
    assert audio.report.reasons() == {
        "too short": ["click.wav", "short.wav"],
        "damaged or cut short": ["cut.flac"],
        "samples that are not finite": ["nan.wav"],
        "silent": ["silent.wav"],
        "wrong channels": ["three.wav"],
        "not a sound that can be read": ["words.wav"],
        "the file is empty": ["zero.wav"],
    }
    text = str(audio.report)
    for part in ("clips kept", "44,100 Hz", "stereo", "three.wav (3, not 1 or 2)", "short.wav (0.049 s, of at least"):
        assert part in text
    assert max(map(len, text.splitlines())) < 160


def test_the_cache_gives_the_same_without_decoding(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_audio(mixed, preparation=PLAIN)
    monkeypatch.setattr("noiseloom.modalities.audio.data.read", lambda *args: pytest.fail("decoded again"))
    again = open_audio(mixed, preparation=PLAIN)
    assert again.fingerprint == first.fingerprint
    assert str(again.report) == str(first.report)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
    assert isinstance(again.arrays.data, np.memmap)
    assert np.shares_memory(again[0].samples, again.arrays.data)


def test_a_changed_setting_or_file_is_another_set(tmp_path: Path) -> None:
    sound(tmp_path / "in" / "a.wav"), sound(tmp_path / "in" / "b.wav")
    first = open_audio(tmp_path / "in", preparation=PLAIN)
    louder = open_audio(tmp_path / "in", preparation=Preparation(RATE, target=-10))
    assert rms(louder[0].samples) > 2 * rms(first[0].samples)
    sound(tmp_path / "in" / "a.wav", 0.4)
    changed = open_audio(tmp_path / "in", preparation=PLAIN)
    assert changed.samples.tolist() == [3200, 1600]
    assert first.samples.tolist() == [1600, 1600]
    assert len({first.fingerprint, louder.fingerprint, changed.fingerprint}) == 3


def test_stereo_is_channels_first(tmp_path: Path) -> None:
    samples = np.stack([np.linspace(-0.5, 0.5, 4000), np.sin(np.arange(4000))], 1)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", samples, RATE, subtype="FLOAT")
    preparation = Preparation(RATE, 2, level="none", remove_dc=False)
    (wave,) = open_audio(tmp_path / "in", preparation=preparation)
    np.testing.assert_allclose(wave.samples, samples.T, atol=1e-6)


def test_values_are_columns_and_belong_to_their_clips(tmp_path: Path) -> None:
    rows = []
    for index in range(6):
        sound(tmp_path / "in" / f"{index}.wav", 0.01 if index == 2 else 0.2)  # the third is dropped
        rows.append({"file": f"{index}.wav", "label": index % 2, "text": f"text {index}", "pitch": index * 1.5})
    rows[4] |= {"text": None, "pitch": None}
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    audio = open_audio(tmp_path / "in", preparation=PLAIN)
    assert audio.values["label"] == ["0", "1", "1", "0", "1"]
    assert audio.values["text"] == ["text 0", "text 1", "text 3", "", "text 5"]
    np.testing.assert_array_equal(audio.values["pitch"], [0, 1.5, 4.5, np.nan, 7.5])
    assert audio[2].values == {"label": "1", "text": "text 3", "pitch": 4.5}
    assert audio[3].values == {"label": "0"}
    assert audio.labels() == ["0", "1"]
    with pytest.raises(ValueError, match=r"no column of words 'pitch'\. Columns: label, text"):
        audio.labels("pitch")


def names(folder: Path, split: str, **options: float) -> set[str]:
    return set(open_audio(folder, split, preparation=PLAIN, **options).names)


def test_splits_are_disjoint_complete_and_stable(tmp_path: Path) -> None:
    folder = many(tmp_path / "in", 200)
    parts = [names(folder, split) for split in ("train", "valid", "test")]
    assert set.union(*parts) == names(folder, "all")
    assert sum(map(len, parts)) == 200
    assert all(2 <= len(part) <= 25 for part in parts[1:])
    assert names(folder, "valid", valid_fraction=0) == set()
    for index in range(150):  # what is left stays where it was
        next(folder.rglob(f"*/{index}.wav")).unlink()
    for split, part in zip(("train", "valid", "test"), parts, strict=True):
        assert names(folder, split) == part & names(folder, "all")


def test_marked_splits_are_kept_and_only_valid_is_carved(tmp_path: Path) -> None:
    for index in range(100):
        sound(tmp_path / "in" / ("test" if index < 30 else "train") / f"{index}.wav")
    assert len(names(tmp_path / "in", "test")) == 30
    train, valid = names(tmp_path / "in", "train"), names(tmp_path / "in", "valid", valid_fraction=0.2)
    assert 7 <= len(valid) <= 25
    assert all(name.startswith("train/") for name in train | valid)


def test_a_few_clips_are_all_trained_on(tmp_path: Path) -> None:
    folder = many(tmp_path / "in", 8)
    assert len(names(folder, "train")) == 8
    empty = open_audio(folder, "valid", preparation=PLAIN)
    assert (len(empty), list(empty)) == (0, [])
    assert "clips kept  0" in str(empty.report)


def test_a_group_stays_in_one_split(tmp_path: Path) -> None:
    rows = [{"file": f"{index}.wav", "group": f"recording {index // 4}"} for index in range(120)]
    for row in rows:
        sound(tmp_path / "in" / row["file"], 0.06)
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split in ("train", "valid", "test"):
        indices = {int(name[:-4]) for name in names(tmp_path / "in", split)}
        assert indices == {4 * (index // 4) + take for index in indices for take in range(4)}


def test_a_limit_takes_clips_of_several_classes(tmp_path: Path) -> None:
    folder = many(tmp_path / "in", 100)
    few = open_audio(folder, preparation=PLAIN, limit=12)
    assert len(few) == 12
    assert few.labels() == ["cat", "dog"]
    assert set(few.names) <= names(folder, "train")
    assert names(folder, "train", limit=5) < set(few.names)


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="holds no sounds"):
        open_audio(tmp_path / "in", preparation=PLAIN)
    (tmp_path / "in" / "a.wav").write_text("words")
    with pytest.raises(ValueError, match=r"no usable clip for 'train'(?s:.*)not a sound that can be read +1 +a\.wav"):
        open_audio(tmp_path / "in", preparation=PLAIN)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"split": "dev"}, "Choices: train, valid, test, all"),
        ({"limit": 0}, "limit"),
        ({"valid_fraction": 2}, "valid_fr"),
    ],
)
def test_options_that_do_not_exist(tmp_path: Path, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_audio(many(tmp_path / "in", 2), **options, preparation=PLAIN)


def test_the_table_counts_classes_and_lengths(tmp_path: Path) -> None:
    report = open_audio(many(tmp_path / "in", 15), preparation=PLAIN).report
    lines = {line.split("  ")[0]: line.split() for line in str(report).splitlines()}
    assert lines["label cat"][-1] == "10"
    assert lines["label dog"][-1] == "5"
    assert report.kept == 15
    assert report.hours == pytest.approx(sum(0.1 + i / 1000 for i in range(15)) / 3600, rel=1e-3)


def test_every_clip_is_in_one_bin_of_the_histogram() -> None:
    draw = np.random.default_rng(0)
    for seconds in (draw.exponential(1, 1000) + 0.05, np.full(7, 5.0), np.array([0.1, 600.0]), draw.uniform(0, 1, 30)):
        rows = histogram(seconds)
        assert sum(int(count.replace(",", "")) for _, count, _ in rows) == len(seconds)
        assert len(rows) <= 14
    assert [(title.strip(), count) for title, count, _ in histogram(np.array([0.1, 0.19, 0.2, 0.95]))] == [
        ("0.1 - 0.2 s", "2"), ("0.2 - 0.3 s", "1"), *((f"0.{d} - 0.{d + 1} s", "0") for d in range(3, 9)),
        ("0.9 - 1.0 s", "1"),
    ]  # fmt: skip


def test_fsdd() -> None:
    if not (data_folder() / "fsdd.tar").is_file():
        pytest.skip(f"fsdd.tar is not in {data_folder()}")
    sets: dict[str, AudioSet] = {
        split: open_audio("fsdd", split, preparation=PLAIN, limit=300) for split in ("valid", "test")
    }
    assert len(sets["test"]) == 300
    assert 60 < len(sets["valid"]) < 160
    assert sets["valid"].labels() == [str(digit) for digit in range(10)]
    assert len(sets["valid"].labels("voice")) == 6
    assert not set(sets["valid"].names) & set(sets["test"].names)
    levels = [rms(wave.samples) for wave in sets["test"]]
    assert np.median(levels) == pytest.approx(0.1, rel=1e-3)
    assert max(np.abs(wave.samples).max() for wave in sets["test"]) <= 1


def test_an_option_that_does_not_exist_is_refused_by_name(mixed: Path) -> None:
    with pytest.raises(ValueError, match="unknown option of data 'kind'"):
        open_audio(mixed, preparation=PLAIN, kind=["wav"])
