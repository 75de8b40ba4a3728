"""What a person opens: every sound whole and playable, pictures that say what is there, a page that shows it all."""

import csv
import io
import json
import os
import re
import resource
import signal
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="needs the extra 'audio'")
pytest.importorskip("PIL", reason="needs the extra 'audio'")
from PIL import Image

from noiseloom.modalities.atomic import CannotWrite
from noiseloom.modalities.audio.files import COLUMNS, save
from noiseloom.modalities.audio.spectrogram import CEILING, FLOOR, HEIGHT, WIDTH, levels, picture, sheet
from noiseloom.modalities.audio.waveform import Waveform, read
from noiseloom.modalities.report import Report, Row, share


def tone(hertz, seconds=0.3, rate=8000, channels=1, peak=0.5, **values):
    phase = 2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate
    return Waveform(np.tile(peak * np.sin(phase), (channels, 1)), rate, values=values)


def report():
    rows = [share("judged_right", 1, 2, "own judge", real=98.0), Row("frechet", 1.5, 2, "of <embeddings>", real=0.4)]
    return Report("Sounds", rows, failed={"not decoded": 1}, notes=["<b>a note"], real="clips of the test split")


@pytest.fixture
def mixed():
    """Two sounds, one that was not decoded, one that no file can hold, one of another kind beyond full scale."""
    broken = Waveform(np.array([[0.1, np.nan]]), 8000, values={"label": "9"})
    loud = tone(440, 0.2, 16000, channels=2, peak=2.0, text="A dog, far away: \u00abwuff\u00bb!", pitch=np.float32(440))
    return [tone(200, label="7", voice="theo"), tone(300, label="zehn \u00fc/ber", duration=0.3), None, broken, loud]


def page_data(directory):
    text = (directory / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def rows_of(directory):
    with (directory / "samples.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- files


def test_everything_is_written_the_sheet_is_the_first_picture_and_the_page_is_last(mixed, tmp_path):
    paths = save(mixed, tmp_path / "new" / "folder", seeds=range(5), report=report())
    names = [path.name for path in paths]
    sounds = ["000-7.wav", "001-zehn-u-ber.wav", "004-a-dog-far-away-wuff.wav"]
    pictures = [name.replace(".wav", ".png") for name in sounds]
    assert names == [*sounds, "samples.png", "samples.csv", "metrics.json", *pictures, "index.html"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(names)  # and nothing half-written
    assert json.loads(paths[5].read_text())["metrics"]["judged_right"]["real"] == 98


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_sounds_are_read_back_as_they_were(mixed, tmp_path, kind):
    paths = save(mixed, tmp_path, seeds=range(5), report=None, format=kind)
    again = [read(path) for path in paths if path.suffix == f".{kind}"]
    for before, after in zip([mixed[0], mixed[1], mixed[4]], again, strict=True):
        assert (after.rate, after.samples.shape) == (before.rate, before.samples.shape)
        assert np.abs(after.samples - before.samples.clip(-1, 1)).max() <= 1 / 32768


def test_csv_has_a_row_for_every_sample(mixed, tmp_path):
    mixed[1] = tone(300, label="2", seed=5)  # a value that is called like a column
    save(mixed, tmp_path, seeds=[11, 12, 13, 14, 15], report=None)
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == (*COLUMNS, "label", "voice", "asked_seed", "text", "pitch")
    assert [row["file"] for row in rows] == ["000-7.wav", "001-2.wav", "", "", "004-a-dog-far-away-wuff.wav"]
    assert [row["seed"] for row in rows] == ["11", "12", "13", "14", "15"]
    assert rows[1]["asked_seed"] == "5"
    assert [row["failure"] for row in rows] == ["", "", "not decoded", "samples to write that are not finite", ""]
    assert [rows[4][key] for key in ("seconds", "rate", "channels", "pitch")] == ["0.2", "16000", "2", "440.0"]
    assert int(rows[4]["clipped"]) == (np.abs(mixed[4].samples) > 1).sum() > 0
    assert rows[0]["clipped"] == "0"


def test_an_earlier_runs_sounds_are_gone_and_nothing_else(mixed, tmp_path):
    save([tone(200, label=str(k)) for k in range(4)], tmp_path, seeds=range(4), report=report())
    (tmp_path / "002-mine.wav").write_bytes(b"somebody's own")
    (tmp_path / "notes.txt").write_text("kept")
    with (tmp_path / "samples.csv").open("a") as file:
        file.write("9,../outside.wav\n10,notes.txt\n")
    (tmp_path.parent / "outside.wav").write_bytes(b"")
    save([tone(200, label="0")], tmp_path, seeds=[0], report=None)
    left = ["000-0.png", "000-0.wav", "002-mine.wav", "index.html", "notes.txt", "samples.csv", "samples.png"]
    assert sorted(os.listdir(tmp_path)) == left
    assert (tmp_path.parent / "outside.wav").exists()


def test_names_have_as_many_digits_as_there_are_samples(tmp_path):
    waves = [tone(500, 0.01, label="x" * 200)] + [None] * 1000
    paths = save(waves, tmp_path, seeds=range(1001), report=None)
    assert paths[0].name == f"0000-{'x' * 40}.wav"


def test_no_sounds(tmp_path):
    paths = save([], tmp_path, seeds=[], report=report())
    assert [path.name for path in paths] == ["samples.csv", "metrics.json", "index.html"]
    assert "no sounds" in paths[-1].read_text(encoding="utf-8")


def test_bad_requests(mixed, tmp_path):
    with pytest.raises(ValueError, match="2 seeds for 5 sounds"):
        save(mixed, tmp_path, seeds=[1, 2], report=None)
    with pytest.raises(ValueError, match="as wav or flac, not 'mp3'"):
        save(mixed, tmp_path, seeds=range(5), report=None, format="mp3")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_clear_line(mixed, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond 1 kB
        with pytest.raises(CannotWrite, match=r"^cannot write .*000-7\.wav: File too large$"):
            save(mixed, tmp_path, seeds=range(5), report=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []
    (tmp_path / "taken").write_text("")
    with pytest.raises(CannotWrite, match="cannot make the folder"):
        save(mixed, tmp_path / "taken", seeds=range(5), report=None)


# ---- the page


def test_the_page_shows_every_sample_and_loads_nothing_from_elsewhere(mixed, tmp_path):
    save(mixed, tmp_path, seeds=range(5), report=report(), title="Five <b>sounds</b> & {{data}}")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<title>Five &lt;b&gt;sounds&lt;/b&gt; &amp; {{data}}</title>" in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(|@import|import\(|fetch\(""", text)
    assert "3 sounds · 0.8 s · 8 and 16 kHz · 2 failed" in text
    assert "Failed: 1 not decoded" in text
    assert "&lt;b&gt;a note" in text
    assert "of &lt;embeddings&gt;" in text
    assert "real data 98.00" in text
    cards = page_data(tmp_path)["cards"]
    assert [card["title"] for card in cards] == ["7", "zehn ü/ber", "failed", "9", "A dog, far away: «wuff»!"]
    assert [card.get("failure", "") for card in cards] == [row["failure"] for row in rows_of(tmp_path)]
    assert [(tmp_path / card["file"]).is_file() for card in cards if "file" in card] == [True] * 3
    assert [(tmp_path / card["picture"]).is_file() for card in cards if "file" in card] == [True] * 3
    assert cards[0]["values"] == {"label": "7", "voice": "theo"}
    HTMLParser().feed(text)


def test_what_was_asked_cannot_become_markup(tmp_path):
    bad = "</script><script>alert(1)</script>\"'&<!--"
    save([tone(200, label=bad, **{bad: bad})], tmp_path, seeds=[0], report=None)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<!--" not in text
    card = page_data(tmp_path)["cards"][0]
    assert card["title"] == card["values"][bad] == bad
    assert re.fullmatch(r"000-[a-z0-9-]+\.wav", card["file"])


def test_values_that_json_has_not(tmp_path):
    odd = {
        "a": np.int64(3),
        "b": np.float32("nan"),
        "c": None,
        "d": "",
        "e": [1, 2],
        "f": float("inf"),
        "g": np.bool_(True),
    }
    save([tone(200, **odd)], tmp_path, seeds=[np.int64(0)], report=None)
    assert page_data(tmp_path)["cards"][0]["values"] == {"a": 3, "e": "[1, 2]", "g": True}


# ---- pictures


@pytest.mark.parametrize("rate, hertz, spread", [(8000, 440, 3), (16000, 3000, 3), (44100, 10000, 10)])
def test_a_sine_of_full_scale_is_0_db_at_its_place(rate, hertz, spread):
    rows = 230
    shown = levels(tone(hertz, 1.0, rate, peak=1.0).samples, rate, 40, rows)
    assert shown.shape == (rows, 40)
    middle = shown[:, 20]
    highest = rows - 1 - np.argmax(middle)  # rows count from the top
    expected = rows * np.log1p(hertz / 700) / np.log1p(rate / 2 / 700)
    assert abs(highest + 0.5 - expected) <= 1.5
    assert -spread < middle.max() <= 0.1  # below 0 by what else its band holds
    assert np.median(middle) < -60


def test_scale_is_the_same_for_every_sound():
    one, half = (levels(tone(440, peak=peak).samples, 8000, 20, 50).max() for peak in (0.8, 0.4))
    assert one - half == pytest.approx(20 * np.log10(2), abs=0.01)
    two = levels(tone(440, peak=0.8, channels=2).samples, 8000, 20, 50).max()
    assert two == pytest.approx(one, abs=1e-3)


def test_no_click_of_a_long_sound_is_passed_over():
    samples = np.zeros((1, 60 * 8000))
    samples[0, 123_456] = 1
    shown = levels(samples, 8000, 100, 20)
    assert np.flatnonzero(shown.max(0) > FLOOR).tolist() == [25]  # 123,456 of 480,000 in hundredths


@pytest.mark.parametrize("samples", [1, 2, 17, 399, 8000])
def test_every_length_has_a_picture(samples):
    image = Image.open(io.BytesIO(picture(Waveform(np.full((1, samples), 0.3), 8000))))
    assert image.size == (WIDTH, HEIGHT)


def test_silence_is_dark_and_noise_is_not():
    noise = np.random.default_rng(0).normal(0, 0.2, (2, 4000))
    dark, bright = (
        np.asarray(Image.open(io.BytesIO(picture(Waveform(s, 8000)))).convert("L"))[110:330, 80:600]
        for s in (np.zeros((2, 4000)), noise)
    )
    assert dark.max() < 25
    assert bright.mean() > 80
    assert FLOOR < CEILING < 0


def test_the_sheet_has_room_for_everything():
    waves = [tone(100 * k, 0.1) for k in range(1, 8)] + [None]
    image = Image.open(io.BytesIO(sheet(waves, ["a long caption that cannot fit in its place"] * 8)))
    one = Image.open(io.BytesIO(sheet(waves[:1], ["\u4e03"])))
    assert image.width > 5 * one.width
    assert 1.9 < image.height / one.height < 2.1
