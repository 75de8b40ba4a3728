"""Reading, writing, resampling and levels of sounds, against closed forms."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from noiseloom.modalities.audio.levels import decibels, k_weighting, loudness, peak, rms
from noiseloom.modalities.audio.prepare import Preparation, trimmed
from noiseloom.modalities.audio.waveform import AudioError, Waveform, read, resample, with_channels, write

soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
RATE = 8000


def sine(hz: float, rate: int = RATE, n: int = RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(n) / rate)).astype(np.float32)[None]


def encoded(samples: np.ndarray, kind: str, rate: int = RATE, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sixteen_bits_are_written_and_read_bit_for_bit(tmp_path: Path, suffix: str, channels: int) -> None:
    steps = np.random.default_rng(0).integers(-32768, 32768, (channels, 999))
    steps[0, :2] = 32767, -32768
    path = tmp_path / f"a{suffix}"
    assert write(Waveform(steps / 32768, 22050), path) == 0
    wave = read(path)
    assert (wave.rate, wave.channels, wave.name, wave.seconds) == (22050, channels, path.name, 999 / 22050)
    np.testing.assert_array_equal(wave.samples * 32768, steps)
    write(wave, path)
    np.testing.assert_array_equal(read(path).samples, wave.samples)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_samples_beyond_full_scale_are_limited_and_counted(tmp_path: Path) -> None:
    assert write(Waveform([[1.5, -2.0, 1.0, 0.25]], RATE), tmp_path / "a.wav") == 2
    np.testing.assert_allclose(read(tmp_path / "a.wav").samples, [[1, -1, 1, 0.25]], atol=1 / 32768)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.wav or \.flac, not \.xyz"):
        write(Waveform(sine(100), RATE), tmp_path / "a.xyz")
    with pytest.raises(AudioError, match=r"a\.wav: .*not finite"):
        write(Waveform([[0.0, np.nan]], RATE), tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav: no samples"):
        write(Waveform(np.zeros((1, 0)), RATE), tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.flac: cannot be written"):
        write(Waveform(np.zeros((9, 5)), RATE), tmp_path / "a.flac")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "error"), [("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05), ("AIFF", 1e-4)])
def test_other_formats_are_read(kind: str, error: float) -> None:
    wave = read(encoded(sine(440, 16000, 16000), kind, 16000), "x")
    assert (wave.rate, wave.channels, wave.samples.dtype) == (16000, 1, np.float32)
    assert wave.samples.shape[1] == 16000
    assert np.abs(wave.samples - sine(440, 16000, 16000))[:, 2000:-2000].max() < error


def test_a_float_file_keeps_what_passes_full_scale() -> None:
    assert read(encoded(np.full((1, 9), 1.5), "WAV", subtype="FLOAT")).samples.max() == 1.5


FLAC, WAV = encoded(sine(99) + sine(1234), "FLAC"), encoded(sine(99), "WAV")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"these are words, not sound\n" * 9, "not a sound that can be read"),
        (FLAC[: len(FLAC) // 2], "damaged or cut short"),
        (FLAC[:-1], "damaged or cut short"),
        (WAV[: len(WAV) // 2], "cut short: 3,989 of 8,000 samples"),
        (WAV[:20], "not a sound that can be read"),
        (encoded(np.zeros((1, 0)), "WAV"), "no samples"),
        (encoded(np.array([[0, np.nan, 0]]), "WAV", subtype="FLOAT"), "samples that are not finite"),
        (encoded(np.array([[0, np.inf, 0]]), "WAV", subtype="FLOAT"), "samples that are not finite"),
    ],
    ids=["empty", "text", "half", "end", "half-wav", "head", "none", "nan", "inf"],  # a WAV holds the time of day
)
def test_a_bad_file_is_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    for file in (tmp_path / "bad.wav", content):
        with pytest.raises(AudioError) as caught:
            read(file, "bad.wav")
        assert str(caught.value).startswith(f"bad.wav: {reason}")
        assert caught.value.reason.startswith(reason)


def test_a_missing_file_is_not_a_corrupt_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.wav")


def test_a_waveform_says_what_it_is() -> None:
    wave = Waveform(np.zeros((2, 400), np.float64), RATE, "a", {"label": "7"})
    assert (wave.samples.dtype, wave.seconds, wave.channels) == (np.float32, 0.05, 2)
    with pytest.raises(ValueError, match="shape"):
        Waveform(np.zeros(5), RATE)
    with pytest.raises(ValueError, match="rate"):
        Waveform(np.zeros((1, 5)), 0)


@pytest.mark.parametrize(
    ("source", "target"), [(44100, 8000), (8000, 22050), (48000, 44100), (999, 800), (11025, 16000)]
)
def test_resampling_keeps_tones_and_removes_what_cannot_be_kept(source: int, target: int) -> None:
    n = max(source // 2, 3000)
    length, lower = round(n * target / source), min(source, target)
    inside = slice(length // 8, -length // 8)
    for hz in (0.02 * lower, 0.45 * lower):
        out = resample(sine(hz, source, n), source, target)
        assert out.shape == (1, length)
        assert np.abs(out - sine(hz, target, length))[:, inside].max() < 1e-4
    if source > target:
        above = resample(sine(min(0.51 * target, 0.499 * source), source, n), source, target)
        assert rms(above[:, inside]) < 1e-4


@pytest.mark.parametrize("n", [0, 1, 2, 3, 100, 101, 102, 103])
def test_the_length_after_resampling_is_exact(n: int) -> None:
    for source, target in ((8000, 8000), (22050, 8000), (8000, 44100), (4411, 800)):
        assert resample(np.ones((2, n)), source, target).shape == (2, round(n * target / source))


def test_resampling_agrees_with_torchaudio() -> None:
    functional = pytest.importorskip("torchaudio.functional", reason="needs the extra 'audio'")
    noise = np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32)
    smooth = resample(resample(noise, 16000, 4000), 4000, 16000)  # only what both filters leave alone
    other = functional.resample(torch.tensor(smooth), 16000, 8000, lowpass_filter_width=64).numpy()
    assert np.abs(resample(smooth, 16000, 8000) - other).max() < 2e-3


def test_channels() -> None:
    stereo = np.array([[1.0, 0.0], [0.0, 0.5]], np.float32)
    np.testing.assert_array_equal(with_channels(stereo, 1), [[0.5, 0.25]])
    np.testing.assert_array_equal(with_channels(stereo[:1], 2), [[1, 0], [1, 0]])
    assert with_channels(stereo, 2) is stereo
    for samples, channels in ((np.zeros((3, 4)), 1), (stereo, 3)):
        with pytest.raises(ValueError, match="one or two channels"):
            with_channels(samples, channels)


def test_levels_of_a_sine() -> None:
    tone = sine(1000, amplitude=0.5)
    assert peak(tone) == pytest.approx(0.5)
    assert rms(tone) == pytest.approx(0.5 / np.sqrt(2))
    assert decibels(0.5) == pytest.approx(-6.0206, abs=1e-4)


def test_the_weighting_is_the_standards_at_48_khz() -> None:
    """ITU-R BS.1770-4, tables 1 and 2."""
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585]
    high_pass = [1, -2, 1, 1, -1.99004745483398, 0.99007225036621]
    np.testing.assert_allclose(k_weighting(48000), [shelf, high_pass], atol=1e-12)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_loudness_of_the_standards_own_tone(rate: int) -> None:
    """BS.1770: a full-scale sine of 997 Hz in one channel is -3.01 LUFS, in both 0 LUFS."""
    tone = sine(997, rate, rate, amplitude=1)
    assert loudness(tone, rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness(np.repeat(tone, 2, 0) / 10, rate) == pytest.approx(-20, abs=0.05)
    short = loudness(tone[:, : rate // 10], rate)  # too short for a block: without weighting
    assert short == pytest.approx(-3.01 - 0.691, abs=0.05)


def test_silence_between_sounds_does_not_lower_the_loudness() -> None:
    tone = sine(997, 16000, 48000, amplitude=0.1)
    gap = np.zeros((1, 48000))
    assert loudness(np.concatenate([tone, gap, tone], 1), 16000) == pytest.approx(loudness(tone, 16000), abs=0.4)
    assert loudness(gap, 16000) < -200


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("level", "target"), [("peak", -6.0), ("rms", -20.0), ("loudness", -23.0)])
def test_the_level_asked_for_is_reached(level: str, target: float, channels: int) -> None:
    prepared = Preparation(16000, channels, level, target)(Waveform(sine(500, 22050, 22050, 0.01) + 0.3, 22050))
    samples = prepared.samples
    assert samples.shape == (channels, 16000)
    assert abs(samples.mean()) < 1e-5
    assert prepared.peak == pytest.approx(-40, abs=0.01)
    assert not prepared.limited
    reached = {"peak": decibels(peak(samples)), "rms": decibels(rms(samples)), "loudness": loudness(samples, 16000)}
    assert reached[level] == pytest.approx(target, abs=0.05)


def test_a_level_that_would_clip_is_limited() -> None:
    click = np.zeros((1, RATE), np.float32)
    click[0, 100] = 0.1
    prepared = Preparation(RATE, level="rms", target=-20, remove_dc=False)(Waveform(click, RATE))
    assert prepared.limited
    assert peak(prepared.samples) == pytest.approx(1)
    plain = Preparation(RATE, level="none", remove_dc=False)(Waveform(click, RATE))
    np.testing.assert_array_equal(plain.samples, click)


def test_trimming_takes_the_quiet_ends_only() -> None:
    samples = np.full((2, 1000), 1e-4, np.float32)
    samples[0, 300], samples[1, 600], samples[0, 450] = 1, 0.5, 0
    out = trimmed(samples, 40, 10)
    np.testing.assert_array_equal(out, samples[:, 290:611])
    assert trimmed(samples, 40, 5000).shape == (2, 1000)


@pytest.mark.parametrize(
    ("samples", "options", "reason"),
    [
        (np.zeros((1, 4000)), {}, "silent"),
        (np.full((1, 4000), 0.3), {}, "silent"),  # nothing but DC
        (sine(100, n=399), {}, "too short"),
        (np.pad(sine(100, n=100), ((0, 0), (2000, 2000))), {"trim": 40.0, "min_seconds": 0.1}, "too short"),
        (sine(100), {"max_seconds": 0.9}, "too long"),
        (np.repeat(sine(100), 3, 0), {}, "wrong channels: 3"),
        (sine(100) * np.nan, {}, "samples that are not finite"),
    ],
)
def test_what_is_not_prepared_and_why(samples: np.ndarray, options: dict, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        Preparation(RATE, **options)(Waveform(samples, RATE, "x.wav"))
    assert caught.value.reason.startswith(reason)


def test_a_clip_of_a_twentieth_of_a_second_is_kept() -> None:
    for source in (8000, 44100, 11025):
        n = -(-source // 20)
        out = Preparation(RATE)(Waveform(sine(300, source, n), source)).samples
        assert out.shape == (1, round(n * RATE / source))
        assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "options",
    [{"rate": 0}, {"channels": 3}, {"level": "lufs"}, {"target": 3.0}, {"trim": -1.0}, {"min_seconds": -1.0},
     {"max_seconds": 0.01}],
)  # fmt: skip
def test_a_preparation_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Preparation(**{"rate": RATE, **options})
