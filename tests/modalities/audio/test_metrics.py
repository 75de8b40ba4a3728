"""The report: figures that are known, real clips beside them, and clips that failed."""

import json
import warnings

import numpy as np
import pytest

from noiseloom.modalities import extras
from noiseloom.modalities.audio import waveform
from noiseloom.modalities.audio.clips import score
from noiseloom.modalities.audio.embedders import Embedder
from noiseloom.modalities.audio.files import save
from noiseloom.modalities.audio.metrics import evaluate, load
from noiseloom.modalities.audio.pitch import hz_of_midi
from noiseloom.modalities.audio.waveform import Waveform

RATE = 8000
needs_fsdd = pytest.mark.skipif(
    not (extras.data_folder() / "fsdd.tar").is_file(),
    reason=f"no fsdd.tar in {extras.data_folder()}: set NOISELOOM_DATA",
)


def tone(hz, seconds=0.3, amplitude=0.5, name="", **values):
    return Waveform(
        amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)[None], RATE, name, values
    )


def noise(seed, seconds=0.3, level=0.1, name="", **values):
    return Waveform(np.random.default_rng(seed).normal(0, level, (1, round(seconds * RATE))), RATE, name, values)


class Ear(Embedder):
    """Hears "loud" or "quiet", and "tone" or "noise"; embeds a clip as its first two samples."""

    name = "ear"
    labels = {"label": ["quiet", "loud"], "kind": ["tone", "noise", "speech"]}

    def __call__(self, waveforms):
        return np.array([wave.samples[0, :2] for wave in waveforms], np.float64).reshape(-1, 2)

    def probabilities(self, waveforms):
        loud = np.array([np.square(w.samples).mean() > 0.02 for w in waveforms])
        pure = np.array([score([w])[0].timbre.flatness < 0.1 for w in waveforms])
        return {"label": np.eye(2)[loud.astype(int)], "kind": np.eye(3)[(~pure).astype(int)]}


def test_what_clips_measure_by_themselves():
    broken = Waveform(np.array([[0.0, np.nan]]), RATE)
    empty = Waveform(np.zeros((1, 0)), RATE)
    clipped = Waveform(np.clip(tone(200, 0.5, 2.0).samples, -1, 1), RATE, values={"duration": 0.7})
    report = evaluate([tone(200, 0.1), tone(200, 0.3), clipped, tone(200, 0.5, 1e-4), None, broken, empty])
    assert report["readable"].value == pytest.approx(500 / 7)
    assert report["finite"].value == pytest.approx(400 / 7)
    assert (report["clipped"].value, report["silent"].value) == (25, 25)
    assert report["duration"].value == pytest.approx(0.35)
    assert report["duration_error"].value == pytest.approx(0.2)
    assert report["duration_error"].n == 1
    assert report["level"].unit == "dBFS"
    assert report["level"].n == 3
    assert "loudness" not in report.values()
    assert report.failed == {"unreadable": 1, "not finite": 1, "no samples": 1}
    assert [s.failure for s in report.items] == ["", "", "", "", "unreadable", "not finite", "no samples"]
    json.loads(report.to_json())
    long = evaluate([tone(997, 1.0), tone(997, 1.0)])
    assert long["loudness"].unit == "LUFS"
    assert long["loudness"].value == pytest.approx(-9.03, abs=0.2)
    assert long["loudness_spread"].value == pytest.approx(0, abs=1e-9)


def test_the_asked_class_is_heard_and_classes_that_were_not_asked_are_counted():
    clips = [
        noise(0, level=0.3, label="loud"),
        noise(1, label="quiet"),
        noise(2, label="loud"),
        tone(200, label="loud"),
    ]
    real = [noise(k, level=0.3, label="loud") for k in range(3)] + [noise(3, label="loud")]
    report = evaluate([*clips, None], real, embedder=Ear())
    assert report["label_accuracy"].value == pytest.approx(60)  # three of five: the one that failed is wrong
    assert report["label_accuracy"].n == 5
    assert report["label_accuracy"].real == 75
    assert "ear" in report["label_accuracy"].protocol
    assert (report["kind_variety"].value, report["kind_variety"].real) == (2, 1)
    counts = np.array([2, 2]) / 4
    assert report["label_entropy"].value == pytest.approx(-(counts * np.log(counts)).sum())
    assert report["label_inception_score"].value == pytest.approx(2)
    assert report.items[1].heard == {"label": "quiet", "kind": "noise"}
    with pytest.raises(KeyError):
        report["label_variety"]
    with pytest.raises(KeyError):
        report["kind_accuracy"]


def test_a_class_that_is_a_number_is_its_word():
    class Digits(Ear):
        labels = {"label": ["0", "7"]}

        def probabilities(self, waveforms):
            return {"label": np.eye(2)[[1] * len(waveforms)]}

    report = evaluate([tone(200, label=value) for value in (7, 7.0, "7", 0)], embedder=Digits())
    assert report["label_accuracy"].value == 75


def test_pitch_is_compared_with_what_was_asked():
    asked = [tone(440.0, pitch=69), tone(hz_of_midi(60.4), pitch=60.0), tone(440, pitch_hz=445), tone(440, pitch=57)]
    asked += [tone(466.16, pitch=69), noise(0, pitch=69)]
    report = evaluate(asked, [tone(440.0, pitch=69), tone(300, velocity=3.0)])
    assert report["pitch_accuracy"].value == pytest.approx(50)
    assert report["pitch_accuracy"].n == 6
    assert (report["pitch_accuracy"].real, report["pitch_octave_errors"].real) == (100, 0)
    assert report["pitch_octave_errors"].value == pytest.approx(100 / 6)
    assert report["pitch_found"].value == pytest.approx(500 / 6)
    assert report["pitch_error"].value == pytest.approx(40, abs=3)
    assert "pitch_accuracy" not in evaluate([tone(440)]).values()


def test_copies_of_training_clips_are_found_out():
    training = [noise(k) for k in range(200)]
    real = [noise(k) for k in range(200, 240)]
    new = evaluate([noise(k) for k in range(300, 340)], real, training=training)
    assert new["nearest_training_ratio"].value == pytest.approx(1, abs=0.05)
    assert new["nearer_than_5_percent"].value < 25
    assert new["frechet_distance"].value == pytest.approx(new["frechet_distance"].real, rel=0.2)
    assert abs(new["kernel_distance"].value) < 3 * new["kernel_distance"].error
    copies = evaluate(training[:40], real, training=training)
    assert copies["nearest_training_ratio"].value == 0
    assert copies["nearer_than_1_percent"].value == 100
    assert copies.items[0].nearest == 0
    same = evaluate(real, training[:40], training=training)
    with pytest.raises(KeyError):
        same["nearest_training_ratio"]
    assert any("among the training clips" in note for note in same.notes)


def test_distances_know_other_sounds_and_compare_at_one_n():
    real = [noise(k) for k in range(80)]
    report = evaluate([tone(100 + 10 * k) for k in range(60)], real)
    frechet, kernel = report["frechet_distance"], report["kernel_distance"]
    assert frechet.n == kernel.n == 40
    assert frechet.value > 20 * frechet.real
    assert kernel.value > 20 * abs(kernel.real)
    assert report["coverage"].value == 0
    assert report["coverage"].real > 80
    for row in (frechet, kernel, report["density"]):
        assert "statistics of speech-8k" in row.protocol
    assert "half of the reference (40)" in frechet.protocol


def test_too_few_clips_have_no_distance_and_a_note_says_so():
    report = evaluate([tone(200)] * 3, [noise(k) for k in range(30)])
    assert "frechet_distance" not in report.values()
    assert any("need 10 clips" in note for note in report.notes)
    assert evaluate([]).notes
    assert "frechet_distance" not in evaluate([None] * 12, [noise(k) for k in range(30)]).values()
    assert evaluate([None])["readable"].value == 0
    with pytest.raises(ValueError, match=r"unknown tracker 'yan'.*'yin'"):
        evaluate([tone(200)], tracker="yan")


def test_a_gallery_and_published_figures_stand_in_for_a_reference():
    class Carrying(Ear):
        gallery = np.random.default_rng(0).normal(size=(100, 2))
        figures = {"label_accuracy": 98.5}

    report = evaluate([noise(k, level=1.0, label="loud") for k in range(30)], embedder=Carrying())
    assert report["label_accuracy"].real == 98.5
    assert report["frechet_distance"].real > 0
    assert report["frechet_distance"].value < 10 * report["frechet_distance"].real
    assert 0.5 < report["nearest_training_ratio"].value < 2
    assert report.real == "published with the embedder"


def test_round_trips_are_compared_one_by_one():
    real = [noise(k, name=f"dir/{k}.flac") for k in range(12)]
    louder = [Waveform(w.samples * 2, RATE, w.name.replace("flac", "wav")) for w in real]
    report = evaluate(louder, real)
    assert report["log_spectral_distance"].value == pytest.approx(20 * np.log10(2), rel=1e-3)
    assert report["stft_distance"].value == pytest.approx(1 + np.log(2), rel=1e-3)
    assert report["mel_distance"].value == pytest.approx(np.log(2), rel=1e-3)
    assert report["stft_distance"].n == 12
    assert "stft_distance" not in evaluate([noise(k, name=f"{k}") for k in range(12)], real).values()
    assert "stft_distance" not in evaluate([noise(k, 0.2, name=w.name) for k, w in enumerate(real)], real).values()


def test_what_save_wrote_is_loaded_with_what_was_asked(tmp_path):
    made = [tone(440, label="7", pitch=69, duration=0.3), None, noise(0, label="3", seconds_asked=1)]
    save(made, tmp_path, seeds=[1, 2, 3], report=None)
    for source in (tmp_path, tmp_path / "samples.csv"):
        found = load(source)
        assert [wave is None for wave in found] == [False, True, False]
        assert found[0].values["label"] == "7"
        assert np.abs(found[0].samples - made[0].samples).max() < 1e-4
    report = evaluate(found)
    assert report["pitch_accuracy"].n == 2
    assert report["pitch_accuracy"].value == 50
    assert report["duration_error"].value < 1e-3


def test_a_folder_per_class_is_loaded_and_damaged_files_are_named(tmp_path):
    for label in ("dog", "cat"):
        (tmp_path / label).mkdir()
        waveform.write(noise(1), tmp_path / label / "a.wav")
    (tmp_path / "dog" / "b.wav").write_bytes(b"RIFF")
    (tmp_path / "cat" / "c.flac").write_bytes(b"")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = load(tmp_path)
    assert sum(wave is None for wave in found) == 2
    assert sorted(wave.values["label"] for wave in found if wave) == ["cat", "dog"]
    assert any("b.wav" in str(warning.message) for warning in told)
    assert any("c.flac" in str(warning.message) for warning in told)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sounds"):
        load(tmp_path / "empty")


@needs_fsdd
def test_real_digits_have_a_small_floor_and_their_noisy_copies_do_not():
    test, train = load("fsdd", "test")[::5], load("fsdd", "train")[::20]
    report = evaluate(test, training="fsdd")
    assert report["nearest_training_ratio"].value > 0.8
    assert 0.3 < report["frechet_distance"].value / report["frechet_distance"].real < 3
    rng = np.random.default_rng(0)
    noisy = [Waveform(w.samples + 0.02 * rng.normal(size=w.samples.shape), w.rate) for w in test]
    spoilt = evaluate(noisy, test, training=train)
    assert spoilt["frechet_distance"].value > 2 * spoilt["frechet_distance"].real
    assert spoilt["spectral_flatness"].value > 1.5 * spoilt["spectral_flatness"].real
