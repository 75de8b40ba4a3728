"""Embedders: shapes, what they are blind to, and the adapters where their packages are installed."""

import numpy as np
import pytest
import torch

from noiseloom.core.registry import UnknownName
from noiseloom.modalities.audio.embedders import EMBEDDERS, Statistics, Trained, build_embedder, preset_for
from noiseloom.modalities.audio.waveform import Waveform, resample
from noiseloom.modalities.component import COMPONENTS, Component, save_component
from noiseloom.modalities.distances import frechet


def noise(seconds=0.5, rate=16000, seed=0, channels=1, level=0.1):
    samples = np.random.default_rng(seed).normal(0, level, (channels, round(seconds * rate)))
    return Waveform(samples, rate, f"noise {seed}")


def tone(hz, seconds=0.5, rate=16000):
    return Waveform(0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)[None], rate)


class Judge(Component):
    """Embeds a clip as its mean power and its length; hears "loud" or "quiet"."""

    name = "test-judge"
    labels = {"label": ["quiet", "loud"]}

    def __init__(self, clips: int = 0):
        super().__init__()
        self.clips = clips
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("gallery", torch.zeros(clips, 2))

    config = property(lambda self: {"clips": self.clips})

    def embed(self, waveforms):
        rows = [[float(np.square(w.samples).mean()), w.seconds] for w in waveforms]
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2) * self.weight

    def probabilities(self, waveforms):
        loud = (self.embed(waveforms)[:, 0] > 0.01).float()
        return {"label": torch.stack([1 - loud, loud], 1)}


Judge.__abstractmethods__ = frozenset()  # nothing here trains it
if "test-judge" not in COMPONENTS:
    COMPONENTS.register("test-judge")(Judge)


def test_statistics_do_not_depend_on_level_and_take_any_clip():
    embed = Statistics("speech-16k")
    clips = [
        noise(),
        noise(level=0.001),
        noise(channels=2),
        noise(0.001),
        tone(440, rate=44100),
        Waveform([[0.0]], 16000),
    ]
    found = embed(clips)
    assert found.shape == (6, 240)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert np.allclose(found[0], found[1], atol=1e-3)
    assert embed([]).shape == (0, 240)
    assert embed.name == "statistics of speech-16k"


def test_statistics_of_a_resampled_clip_are_those_of_the_clip():
    clip = Waveform(noise(rate=8000).samples, 8000)
    embed = Statistics("speech-8k")
    upwards = Waveform(resample(clip.samples, 8000, 44100), 44100)
    off = np.abs(embed([clip]) - embed([upwards])).reshape(3, 64)
    assert off[:, :60].max() < 0.06  # the last bands lie where resampling filters


def test_statistics_tell_tones_from_noise_and_steady_from_changing():
    embed = Statistics("speech-16k")
    noises, others = embed([noise(seed=k) for k in range(20)]), embed([noise(seed=k) for k in range(20, 40)])
    tones = embed([tone(200 + 40 * k) for k in range(20)])
    assert frechet(noises, tones) > 20 * frechet(noises, others)
    gated = noise()
    pulses = Waveform(gated.samples * (np.arange(8000) // 1000 % 2), 16000)
    bands = embed.preset.bands
    deviation, change = (embed([pulses])[0, k * bands : (k + 1) * bands].mean() for k in (1, 2))
    assert deviation > 3 * embed([gated])[0, bands : 2 * bands].mean()
    assert change > embed([gated])[0, 2 * bands :].mean()


@pytest.mark.parametrize(
    ("rate", "preset"),
    [(4000, "speech-8k"), (8000, "speech-8k"), (16000, "speech-16k"), (22050, "hifigan-22k"), (48000, "bigvgan-44k")],
)
def test_the_preset_suits_the_rate(rate, preset):
    assert preset_for(rate) == preset
    assert build_embedder("statistics", rate).name == f"statistics of {preset}"


def test_a_trained_component_embeds_classifies_and_brings_its_gallery(tmp_path):
    judge = Judge(3)
    judge.gallery += 2
    save_component(tmp_path / "judge", judge, {"metrics": {"label_accuracy": 98.0, "note": "words"}})
    embed = build_embedder(str(tmp_path / "judge"))
    clips = [noise(level=0.3), noise(level=0.01), noise(1.0, level=0.01)]
    assert isinstance(embed, Trained)
    assert embed.name == "judge"
    assert embed(clips)[:, 1] == pytest.approx([0.5, 0.5, 1.0])
    assert embed.gallery.tolist() == [[2, 2]] * 3
    assert embed.figures == {"label_accuracy": 98.0}
    assert embed.probabilities(clips)["label"].argmax(1).tolist() == [1, 0, 0]
    assert embed.labels == {"label": ["quiet", "loud"]}
    assert build_embedder(Judge()).gallery is None
    assert build_embedder(embed) is embed


def test_what_cannot_embed_is_refused():
    with pytest.raises(UnknownName, match="statistics"):
        build_embedder("statistic")
    with pytest.raises(ValueError, match="no option"):
        build_embedder({"name": "statistics", "bands": 3})
    with pytest.raises(ValueError, match="unknown mel preset 'speech'"):
        build_embedder({"name": "statistics", "preset": "speech"})
    mute = type("Mute", (Component,), {"name": "mute"})
    mute.__abstractmethods__ = frozenset()
    with pytest.raises(ValueError, match=r"'mute' .* does not embed"):
        build_embedder(mute())
    assert {"statistics", "resemblyzer", "clap", "vggish"} <= set(EMBEDDERS)


def test_resemblyzer_where_it_is_installed():
    pytest.importorskip("resemblyzer", reason="needs the extra 'audio-eval'")
    embed = build_embedder("resemblyzer")
    found = embed([tone(150), tone(150, rate=8000), noise(2.0), Waveform([[0.1]], 16000)])
    assert found.shape == (4, 256)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), rel=1e-5)
    assert np.linalg.norm(found[0] - found[1]) < 0.5 * np.linalg.norm(found[0] - found[2])
    assert embed([]).shape == (0, 256)


def test_clap_where_transformers_is_installed(tmp_path):
    """With random weights of a tiny model: there are none to be had offline."""
    transformers = pytest.importorskip("transformers", reason="needs the extra 'audio-eval'")
    audio = {"hidden_size": 8, "patch_embeds_hidden_size": 4, "depths": [1, 1], "num_attention_heads": [1, 1]}
    audio |= {"num_hidden_layers": 2, "projection_dim": 12, "spec_size": 64, "num_mel_bins": 16, "window_size": 4}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ClapConfig(text_config={**text, "vocab_size": 10}, audio_config=audio, projection_dim=12)
    transformers.ClapModel(config).save_pretrained(tmp_path / "tiny")
    transformers.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc").save_pretrained(
        tmp_path / "tiny"
    )
    embed = build_embedder({"name": "clap", "model": str(tmp_path / "tiny")})
    found = embed([tone(440), noise(0.2, rate=8000)])
    assert found.shape == (2, 12)
    assert np.isfinite(found).all()
    assert embed.name == "CLAP tiny"


def test_vggish_where_its_package_is_installed(monkeypatch):
    """With random weights: the package downloads its own."""
    package = pytest.importorskip("torch_vggish_yamnet.vggish", reason="needs the extra 'audio-eval'")
    model = package.get_vggish(pretrained=False)
    monkeypatch.setattr(package, "get_vggish", lambda with_classifier: model)
    embed = build_embedder("vggish")
    found = embed([tone(440), noise(2.5, rate=44100, channels=2), Waveform([[0.1]], 16000)])
    assert found.shape == (3, 128)
    assert np.isfinite(found).all()
