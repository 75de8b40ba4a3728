"""Mel spectrograms as the field makes them: torchaudio, librosa, and HiFi-GAN's formula in plain numpy."""

import numpy as np
import pytest
import torch

from noiseloom.modalities.audio.mel import PRESETS

TOLERANCE = 1e-4
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def sound(preset, hops=24, seed=0):
    """A chord and noise, whole hops of it."""
    n = np.arange(hops * preset.hop)
    tones = sum(np.sin(2 * np.pi * f * n / preset.rate) for f in (220.0, 1234.5, 0.4 * preset.rate))
    noise = np.random.default_rng(seed).standard_normal(len(n))
    return (0.2 * tones + 0.05 * noise).astype(np.float32)


def numpy_filters(preset):
    """Triangles between points equally spaced in mels, written from the definitions of the two scales."""

    def to_mel(hz):
        if preset.scale == "htk":
            return 2595 * np.log10(1 + hz / 700)
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    def to_hz(mel):
        if preset.scale == "htk":
            return 700 * (10 ** (mel / 2595) - 1)
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    points = [to_hz(m) for m in np.linspace(to_mel(preset.fmin), to_mel(preset.fmax), preset.bands + 2)]
    bins = np.arange(preset.n_fft // 2 + 1) * preset.rate / preset.n_fft
    rows = []
    for low, centre, high in zip(points, points[1:], points[2:]):
        triangle = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)
        rows.append(triangle * (2 / (high - low) if preset.norm == "slaney" else 1))
    return np.stack(rows)


def numpy_log_mel(preset, audio):
    """float64, one frame at a time: HiFi-GAN's (or torchaudio's centred) framing, reflected."""
    before = preset.n_fft // 2 if preset.centred else (preset.n_fft - preset.hop) // 2
    after = before if preset.centred else preset.n_fft - preset.hop - before
    padded = np.pad(audio.astype(np.float64), (before, after), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(preset.n_fft) / preset.n_fft)
    starts = range(0, len(padded) - preset.n_fft + 1, preset.hop)
    power = np.stack([np.abs(np.fft.rfft(padded[i : i + preset.n_fft] * window)) ** 2 for i in starts])
    mel = np.sqrt(power + preset.epsilon) @ numpy_filters(preset).T
    return np.log(np.maximum(mel, preset.floor))


@presets
def test_the_formula_in_numpy(preset):
    audio = sound(preset)
    ours = preset.log_mel(torch.from_numpy(audio)).numpy()
    assert ours.shape == (preset.frames(len(audio)), preset.bands)
    assert np.abs(ours - numpy_log_mel(preset, audio)).max() < TOLERANCE


@presets
def test_torchaudio_agrees(preset):
    transforms = pytest.importorskip("torchaudio.transforms", reason="needs the extra 'audio'")
    audio = 10 * torch.from_numpy(sound(preset))
    spectrogram = transforms.MelSpectrogram(
        preset.rate, preset.n_fft, hop_length=preset.hop, f_min=preset.fmin, f_max=preset.fmax, n_mels=preset.bands,
        power=1, norm=preset.norm, mel_scale=preset.scale, center=preset.centred,
    )  # fmt: skip
    margin = 0 if preset.centred else (preset.n_fft - preset.hop) // 2
    padded = torch.nn.functional.pad(audio[None], (margin, margin), mode="reflect")[0] if margin else audio
    theirs = spectrogram(padded).mT.clamp(min=preset.floor).log()
    ours = preset.log_mel(audio)
    assert ours.shape == theirs.shape
    # torchaudio has no epsilon under the root, which counts only where the spectrogram is low: hence so loud a sound
    audible = theirs > (np.log(0.02) if preset.epsilon else -np.inf)
    assert audible.float().mean() > 0.9
    assert (ours - theirs)[audible].abs().max() < TOLERANCE


@presets
def test_librosa_agrees(preset):
    librosa = pytest.importorskip("librosa", reason="needs librosa, which no extra installs")
    bank = librosa.filters.mel(
        sr=preset.rate, n_fft=preset.n_fft, n_mels=preset.bands, fmin=preset.fmin, fmax=preset.fmax,
        htk=preset.scale == "htk", norm=preset.norm,
    )  # fmt: skip
    ours = preset.filters().numpy()
    assert np.abs(ours - bank).max() < TOLERANCE * bank.max()
    audio = sound(preset)
    margin = 0 if preset.centred else (preset.n_fft - preset.hop) // 2
    padded = np.pad(audio, margin, mode="reflect")
    spectrum = librosa.stft(
        padded, n_fft=preset.n_fft, hop_length=preset.hop, center=preset.centred, pad_mode="reflect"
    )
    theirs = np.log(np.maximum(bank @ np.sqrt(np.abs(spectrum) ** 2 + preset.epsilon), preset.floor)).T
    assert np.abs(preset.log_mel(torch.from_numpy(audio)).numpy() - theirs).max() < TOLERANCE


@presets
def test_no_filter_is_empty_and_no_bin_inside_is_lost(preset):
    filters = preset.filters()
    assert filters.shape == (preset.bands, preset.n_fft // 2 + 1)
    assert (filters.sum(1) > 0).all()
    peaks = filters.argmax(1) * preset.rate / preset.n_fft
    assert (peaks.diff() >= 0).all()
    assert preset.fmin <= peaks[0] < peaks[-1] <= preset.fmax


@presets
def test_every_length_has_its_frames(preset):
    for samples in (1, 2, preset.hop - 1, preset.hop, preset.hop + 1, preset.n_fft, 3 * preset.n_fft + 1):
        mel = preset.log_mel(0.1 * torch.ones(2, samples))
        assert mel.shape == (2, preset.frames(samples), preset.bands)
        assert torch.isfinite(mel).all()
    with pytest.raises(ValueError, match="without samples"):
        preset.log_mel(torch.zeros(1, 0))


@presets
def test_silence_is_the_floor(preset):
    mel = preset.log_mel(torch.zeros(1, 4 * preset.n_fft))
    silent = preset.filters().sum(1) * preset.epsilon**0.5  # the epsilon alone, where the filters are tall
    assert torch.allclose(mel, silent.clamp(min=preset.floor).log().expand_as(mel), atol=TOLERANCE)


@presets
def test_batches_and_gradients(preset):
    audio = torch.from_numpy(np.stack([sound(preset, seed=s) for s in (1, 2)])).requires_grad_()
    mel = preset.log_mel(audio)
    assert torch.allclose(mel[1], preset.log_mel(audio[1]), atol=TOLERANCE)
    mel.sum().backward()
    assert torch.isfinite(audio.grad).all()


def test_two_presets_of_equal_shape_are_not_the_same_thing():
    """Why a preset has a name: BigVGAN's and Vocos' spectrograms of 100 bands at 24 kHz."""
    ours, other = PRESETS["bigvgan-24k"], PRESETS["vocos-24k"]
    audio = torch.from_numpy(sound(ours))
    frames = ours.log_mel(audio)
    assert (frames - other.log_mel(audio)[: len(frames)]).abs().mean() > 1
