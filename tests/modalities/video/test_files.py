"""What a person opens: every clip whole and playable, sheets that show it, a page that plays it, and the way back."""

import csv
import json
import os
import re
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
pytest.importorskip("PIL", reason="needs the extra 'video'")
from PIL import Image

from noiseloom.modalities.atomic import CannotWrite
from noiseloom.modalities.report import Report, Row, share
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.files import COLUMNS, load, save
from noiseloom.modalities.video.reading import read
from noiseloom.modalities.video.writing import write_mp4


def moving(frames=5, size=(32, 32), channels=1, fps=10.0, **values):
    clip = np.zeros((frames, *size, channels), np.uint8)
    for index in range(frames):
        clip[index, 4:20, 3 * index % size[1] : 3 * index % size[1] + 8] = 220
    return Clip(clip, fps, values=values)


def report():
    rows = [share("digits_found", 1, 2, "own judge", real=96.0), Row("kernel", 1.5, 2, "of <embeddings>", real=0.4)]
    return Report("Clips", rows, failed={"not decoded": 1}, notes=["<b>a note"], real="clips of the test split")


@pytest.fixture
def mixed():
    """Two clips, one that was not decoded, one of no frames, one of another kind."""
    empty = Clip(np.zeros((0, 32, 32, 1), np.uint8), 10.0, values={"label": "9"})
    other = moving(1, (33, 51), 3, 12.5, text="A dog, far away: \u00abwuff\u00bb!", guidance=np.float32(2))
    return [moving(label="3,8", task="class"), moving(7, label="zehn \u00fc/ber"), None, empty, other]


def page_cards(directory):
    text = (directory / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def rows_of(directory):
    with (directory / "samples.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- files


def test_everything_is_written_the_sheet_of_all_is_the_first_picture_and_the_page_is_last(mixed, tmp_path):
    paths = save(mixed, tmp_path / "new" / "folder", seeds=range(5), report=report())
    names = [path.name for path in paths]
    clips = ["000-3-8.mp4", "001-zehn-u-ber.mp4", "004-a-dog-far-away-wuff.mp4"]
    pictures = [name.replace("mp4", kind) for name in clips for kind in ("png", "webp")]
    assert names == [*clips, "samples.png", "samples.csv", "metrics.json", *pictures, "index.html"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(names)  # and nothing half-written
    assert json.loads(paths[5].read_text())["metrics"]["digits_found"]["real"] == 96
    for path in paths:
        if path.suffix in (".png", ".webp"):
            with Image.open(path) as image:
                image.load()


def test_csv_has_a_row_for_every_sample(mixed, tmp_path):
    mixed[1] = moving(label="2", seed=5)  # a value that is called like a column
    save(mixed, tmp_path, seeds=[11, 12, 13, 14, 15], report=None)
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == (*COLUMNS, "label", "task", "asked_seed", "text", "guidance")
    assert [row["file"] for row in rows] == ["000-3-8.mp4", "001-2.mp4", "", "", "004-a-dog-far-away-wuff.mp4"]
    assert [row["seed"] for row in rows] == ["11", "12", "13", "14", "15"]
    assert [row["failure"] for row in rows] == ["", "", "not decoded", "no frames to write", ""]
    assert [rows[4][key] for key in ("frames", "fps", "height", "width", "seconds")] == [
        "1",
        "12.5",
        "33",
        "51",
        "0.08",
    ]
    assert rows[1]["asked_seed"] == "5"


def test_an_earlier_runs_clips_are_gone_and_nothing_else(tmp_path):
    save([moving(label=str(k)) for k in range(4)], tmp_path, seeds=range(4), report=report())
    (tmp_path / "002-mine.mp4").write_bytes(b"somebody's own")
    with (tmp_path / "samples.csv").open("a") as file:
        file.write("9,../outside.mp4\n10,notes.txt\n")
    (tmp_path / "notes.txt").write_text("kept")
    (tmp_path.parent / "outside.mp4").write_bytes(b"")
    save([moving(label="0")], tmp_path, seeds=[0], report=None)
    own = ["000-0.mp4", "000-0.png", "000-0.webp"]
    assert sorted(os.listdir(tmp_path)) == [
        *own,
        "002-mine.mp4",
        "index.html",
        "notes.txt",
        "samples.csv",
        "samples.png",
    ]
    assert (tmp_path.parent / "outside.mp4").exists()


def test_no_clips(tmp_path):
    paths = save([], tmp_path, seeds=[], report=report())
    assert [path.name for path in paths] == ["samples.csv", "metrics.json", "index.html"]
    assert "no clips" in paths[-1].read_text(encoding="utf-8")


def test_all_failed(tmp_path):
    paths = save([None, None], tmp_path, seeds=[0, 1], report=None)
    assert [path.name for path in paths] == ["samples.png", "samples.csv", "index.html"]
    assert "0 clips · 2 failed" in paths[-1].read_text(encoding="utf-8")


def test_lossless(tmp_path):
    clip = moving()
    path = save([clip], tmp_path, seeds=[0], report=None, quality=0)[0]
    assert np.array_equal(read(path).frames, clip.frames.repeat(3, 3))


def test_bad_requests(mixed, tmp_path):
    with pytest.raises(ValueError, match="2 seeds for 5 clips"):
        save(mixed, tmp_path, seeds=[1, 2], report=None)
    with pytest.raises(ValueError, match="quality is 0"):
        save(mixed, tmp_path, seeds=range(5), report=None, quality=-1)
    assert os.listdir(tmp_path) == []
    (tmp_path / "taken").write_text("")
    with pytest.raises(CannotWrite, match="cannot make the folder"):
        save(mixed, tmp_path / "taken", seeds=range(5), report=None)


# ---- the page


def test_the_page_shows_every_sample_and_loads_nothing_from_elsewhere(mixed, tmp_path):
    save(mixed, tmp_path, seeds=range(5), report=report(), title="Five <b>clips</b> & {{data}}")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<title>Five &lt;b&gt;clips&lt;/b&gt; &amp; {{data}}</title>" in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(|@import|import\(|fetch\(""", text)
    assert "3 clips · 1 to 7 frames · 2 sizes · 10 to 12.5 fps · 2 failed" in text
    assert "Failed: 1 not decoded" in text
    assert "&lt;b&gt;a note" in text
    assert "real data 96.00" in text
    cards = page_cards(tmp_path)
    assert [card["title"] for card in cards] == ["3,8", "zehn ü/ber", "failed", "9", "A dog, far away: «wuff»!"]
    assert [card.get("failure", "") for card in cards] == [row["failure"] for row in rows_of(tmp_path)]
    shown = [card for card in cards if "file" in card]
    assert all((tmp_path / card[key]).is_file() for card in shown for key in ("file", "sheet", "preview"))
    assert cards[0]["values"] == {"label": "3,8", "task": "class"}
    HTMLParser().feed(text)


def test_what_was_asked_cannot_become_markup(tmp_path):
    bad = "</script><script>alert(1)</script>\"'&<!--"
    save([moving(label=bad, **{bad: bad})], tmp_path, seeds=[0], report=None)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<!--" not in text
    card = page_cards(tmp_path)[0]
    assert card["title"] == card["values"][bad] == bad
    assert re.fullmatch(r"000-[a-z0-9-]+\.mp4", card["file"])


# ---- the way back


def test_own_samples_are_loaded_with_what_was_asked_and_the_failed_ones(mixed, tmp_path):
    save(mixed, tmp_path, seeds=range(5), report=None)
    for source in (tmp_path, tmp_path / "samples.csv"):
        clips = load(source)
        assert [None if clip is None else len(clip) for clip in clips] == [5, 7, None, None, 1]
        assert clips[0].values == {"label": "3,8", "task": "class"}
        assert clips[4].values["guidance"] == "2.0"
        assert clips[0].fps == 10


def test_an_own_clip_that_was_lost_or_damaged_is_none(tmp_path):
    paths = save([moving(label=str(k)) for k in range(3)], tmp_path, seeds=range(3), report=None)
    paths[0].unlink()
    paths[1].write_bytes(b"text")
    with pytest.warns(UserWarning, match="not a clip: 00"):
        clips = load(tmp_path)
    assert [clip is None for clip in clips] == [True, True, False]


@pytest.fixture
def anyones(tmp_path):
    """A folder for each class, with a GIF, an image, a text that is called .mp4, and a clip that is cut."""
    folder = tmp_path / "data"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
    whole = write_mp4(folder / "cats" / "a.mp4", moving(5), quality=0).read_bytes()
    (folder / "cats" / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    (folder / "dogs" / "text.mp4").write_text("no video")
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    frames[0].save(folder / "dogs" / "b.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(folder / "dogs" / "c.png")
    return folder


def loaded(source):
    with pytest.warns(UserWarning, match="not a clip"):
        clips = load(source)
    return sorted((clip.name, len(clip), clip.values.get("label")) for clip in clips if clip), clips.count(None)


def test_a_folder_a_tar_and_a_file_of_anyone(anyones, tmp_path):
    expected = [("cats/a.mp4", 5, "cats"), ("dogs/b.gif", 3, "dogs"), ("dogs/c.png", 1, "dogs")]
    assert loaded(anyones) == (expected, 2)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(anyones, "data")
    assert loaded(tmp_path / "data.tar") == (expected, 2)
    (clip,) = load(anyones / "cats" / "a.mp4")
    assert clip.frames.shape == (5, 32, 32, 3)


def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no videos or images"):
        load(tmp_path)
