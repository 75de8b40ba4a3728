"""Spectral measures against closed forms."""

import numpy as np
import pytest

from noiseloom.modalities.audio.spectral import (
    is_clipped,
    is_silent,
    log_spectral_distance,
    mel_distance,
    mono,
    multi_resolution_stft,
    spectrum,
    timbre,
)

RATE = 16000
NOISE = np.random.default_rng(0).normal(0, 0.1, RATE)


def tone(hz, seconds=1.0, rate=RATE, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def test_spectrum_of_a_sinusoid_on_a_bin_peaks_there_at_half_its_amplitude():
    magnitude = spectrum(tone(1000), 512)
    middle = magnitude[len(magnitude) // 2]
    assert middle.argmax() == 32
    assert middle[32] == pytest.approx(0.25, rel=1e-6)
    assert middle[31] == pytest.approx(0.125, rel=1e-6)  # the Hann window's neighbours
    assert middle[40] < 1e-9


def test_mono_is_the_mean_of_the_channels():
    assert np.array_equal(mono(np.array([[1.0, 0.0], [0.0, 0.5]])), [0.5, 0.25])
    assert np.array_equal(mono(np.ones(3)), np.ones(3))


@pytest.mark.parametrize("gain", [-6.0, 3.0])
def test_a_gain_of_g_decibels_is_a_log_spectral_distance_of_g(gain):
    factor = 10 ** (gain / 20)
    assert log_spectral_distance(NOISE * factor, NOISE) == pytest.approx(abs(gain), rel=1e-3)
    assert mel_distance(NOISE * factor, NOISE, "speech-16k") == pytest.approx(abs(np.log(factor)), rel=1e-3)
    assert multi_resolution_stft(NOISE * factor, NOISE) == pytest.approx(
        abs(1 - factor) + abs(np.log(factor)), rel=1e-3
    )


def test_distances_of_a_sound_from_itself_are_zero_and_from_silence_are_finite():
    for distance in (log_spectral_distance, multi_resolution_stft):
        assert distance(NOISE, NOISE) == 0
        assert np.isfinite(distance(np.zeros(RATE), NOISE))
        assert np.isfinite(distance(NOISE, np.zeros(RATE)))
        assert np.isfinite(distance(NOISE[:1], NOISE[:1]))
    # what neither can be heard beside the reference's loudest does not count
    loud = tone(1000)
    assert log_spectral_distance(loud + 1e-9 * NOISE, loud) < 0.01


def test_sounds_of_different_lengths_are_refused():
    for distance in (log_spectral_distance, multi_resolution_stft, lambda a, b: mel_distance(a, b, "speech-16k")):
        with pytest.raises(ValueError, match="16000 and 15999 samples"):
            distance(NOISE, NOISE[1:])


def test_clipping_is_a_run_at_full_scale_not_a_peak():
    assert not is_clipped(tone(440, amplitude=0.99))
    peak = np.zeros(100)
    peak[50:52] = 1.0
    assert not is_clipped(peak)
    peak[52] = 1.0
    assert is_clipped(peak)
    assert is_clipped(np.clip(tone(440, amplitude=1.5), -1, 1))
    assert is_clipped(np.stack([np.zeros(100), peak]))
    assert is_clipped(np.array([0.0, 1.2]))
    assert not is_clipped(np.array([1.0]))


def test_silence_is_judged_by_the_loudest_moment():
    assert is_silent(np.zeros(RATE), RATE)
    assert is_silent(tone(440, amplitude=1e-3), RATE)  # -63 dBFS
    assert not is_silent(tone(440, amplitude=2e-3), RATE)  # -57 dBFS
    click = np.zeros(RATE)
    click[8000:8800] = tone(440, 0.05)
    assert not is_silent(click, RATE)
    assert not is_silent(np.ones(5), RATE)
    opposite = np.stack([tone(440), -tone(440)])  # cancels in the mean
    assert not is_silent(opposite, RATE)


def test_timbre_of_a_tone_and_of_white_noise():
    pure, white = timbre(tone(1000), RATE), timbre(NOISE, RATE)
    assert pure.centroid == pytest.approx(1000, rel=0.02)
    assert pure.flatness < 1e-3
    assert white.centroid == pytest.approx(RATE / 4, rel=0.02)
    assert white.bandwidth == pytest.approx(RATE / 2 / 12**0.5, rel=0.02)  # uniform over 0 to 8 kHz
    assert white.flatness == pytest.approx(np.exp(-np.euler_gamma), rel=0.02)  # of exponentially distributed power
    two = timbre(tone(1000) + tone(3000), RATE)
    assert (two.centroid, two.bandwidth) == pytest.approx((2000, 1000), rel=0.03)
    assert timbre(np.zeros(100), RATE) is None
