"""Pitch of synthetic tones to within cents, and of real notes."""

import csv
import io
import tarfile

import numpy as np
import pytest

from noiseloom.modalities import extras
from noiseloom.modalities.audio.pitch import TRACKERS, cents, crepe, hz_of_midi, pitch, yin

NOTES = extras.data_folder() / "notes.tar"


def sine(hz, rate, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def sawtooth(hz, rate, seconds=0.5):
    """Of the harmonics below the Nyquist frequency only."""
    t = np.arange(round(seconds * rate)) / rate
    return 0.3 * sum(np.sin(2 * np.pi * k * hz * t) / k for k in range(1, int(0.5 * rate / hz) + 1))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("shape", [sine, sawtooth])
def test_synthetic_tones_are_within_five_cents(shape, rate):
    for hz in (60.0, 97.3, 220.0, 440.0, 523.25, 761.9, 1000.0):
        assert abs(cents(pitch(shape(hz, rate), rate), hz)) < 5, hz


def test_a_missing_fundamental_is_heard():
    rate = 16000
    audio = sum(sine(k * 200.0, rate) for k in (3, 4, 5)) / 3
    assert abs(cents(pitch(audio, rate), 200.0)) < 5


def test_noise_below_the_tone_and_silence_around_it_do_not_matter():
    rate, rng = 16000, np.random.default_rng(0)
    audio = np.concatenate([np.zeros(4000), sawtooth(330, rate), np.zeros(6000)])
    audio += rng.normal(0, 0.01, len(audio))
    assert abs(cents(pitch(audio, rate), 330)) < 5


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(8000),
        np.random.default_rng(1).normal(0, 0.1, 8000),
        sine(440, 16000) * 1e-4,
        sine(440, 16000)[:100],
        np.zeros(0),
        np.full(8000, 0.3),
    ],
    ids=["silence", "noise", "inaudible", "too short", "empty", "constant"],
)
def test_no_pitch_is_none(audio):
    assert pitch(audio, 16000) is None


def test_channels_are_averaged_and_a_glide_is_followed():
    rate = 16000
    assert abs(cents(pitch(np.stack([sine(440, rate)] * 2), rate), 440)) < 5
    hz = np.linspace(200, 400, rate)
    track = yin(0.5 * np.sin(2 * np.pi * np.cumsum(hz) / rate), rate)
    middle = np.interp(np.arange(len(track.hz)) * 0.01 + 0.02, np.arange(rate) / rate, hz)
    assert np.nanmax(np.abs(1200 * np.log2(track.hz / middle))) < 40
    assert np.isfinite(track.hz).mean() > 0.95


def test_midi_and_cents():
    assert hz_of_midi(69) == 440
    assert hz_of_midi(57) == pytest.approx(220)
    assert cents(880, 440) == 1200
    assert cents(hz_of_midi(60), hz_of_midi(61)) == pytest.approx(-100)


@pytest.mark.skipif(not NOTES.is_file(), reason=f"no notes.tar in {extras.data_folder()}: set NOISELOOM_DATA")
def test_real_notes_are_within_fifty_cents_but_for_the_organs_sub_octave():
    soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    with tarfile.open(NOTES) as tar:
        table = csv.DictReader(io.TextIOWrapper(tar.extractfile("notes/metadata.csv"), "utf-8"))
        rows = [row for row in table if row["kind"] == "note" and row["label"] != "organ"][::4]
        right = 0
        for row in rows:
            audio, rate = soundfile.read(io.BytesIO(tar.extractfile(f"notes/{row['file']}").read()))
            found = pitch(audio, rate)
            right += found is not None and abs(cents(found, float(row["f0_hz"]))) <= 50
    assert len(rows) > 100
    assert right >= 0.95 * len(rows)


def test_crepe_where_it_is_installed():
    pytest.importorskip("torchcrepe", reason="needs the extra 'audio-eval'")
    assert abs(cents(pitch(sawtooth(330, 16000), 16000, "crepe"), 330)) < 30
    assert pitch(np.zeros(8000), 16000, "crepe") is None
    assert len(crepe(np.zeros(10), 16000).hz) == 0
    assert set(TRACKERS) == {"yin", "crepe"}
