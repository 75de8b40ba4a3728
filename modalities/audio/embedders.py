"""What turns clips into vectors, so that sets of clips can be compared.

A distance between sets is a statement about one embedder: its name belongs beside the number. ``statistics`` needs no
weights; a classifier trained by a recipe hears what was said; the adapters need a package, and their weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noiseloom.core.registry import Registry, unknown

from ..component import BUNDLED, Component, load_component
from ..distances import Array
from ..extras import require
from .levels import rms
from .mel import PRESETS
from .spectral import mono
from .waveform import Waveform, resample

EMBEDDERS: Registry[Embedder] = Registry("embedder")

_EXTRA = "audio-eval"
_BY_RATE = ("speech-8k", "speech-16k", "hifigan-22k", "bigvgan-24k", "bigvgan-44k")
_LEVEL = 0.1  # root mean square that clips are brought to
_HEARD = 80 * np.log(10) / 20  # nats of amplitude: 80 dB below a clip's loudest band nothing is heard


class Embedder(ABC):
    """Clips to vectors. Third parties register theirs with ``@EMBEDDERS.register("name")``.

    Attributes:
        name: what is printed beside each number.
        labels: the classes by label name, where it classifies.
        gallery: embeddings of the clips it was trained on, (n, d), where it carries them.
        figures: published figures of real data by the name of a row, where it carries them.
    """

    name: str
    labels: Mapping[str, Sequence[str]] = {}
    gallery: Array | None = None
    figures: Mapping[str, float] = {}

    @abstractmethod
    def __call__(self, waveforms: Sequence[Waveform]) -> Array:
        """(n, d), float64. Every clip has samples, all finite."""

    def probabilities(self, waveforms: Sequence[Waveform]) -> dict[str, Array]:
        """(n, k) by label name, in the order of ``labels``."""
        return {}


@EMBEDDERS.register("statistics")
class Statistics(Embedder):
    """Mean and deviation over time of log-mel bands, and the deviation of their change by frame: (n, 3 bands).

    Level is no part of it: clips are brought to one root mean square first, and what is 80 dB below a clip's loudest
    band is held there. It tells timbre, liveliness and noise, not what is said.

    Args:
        preset: of the spectrogram; by default the one that suits ``rate``.
        rate: of the clips.
    """

    def __init__(self, preset: str | None = None, rate: int = 16000) -> None:
        preset = preset or preset_for(rate)
        if preset not in PRESETS:
            raise ValueError(unknown("mel preset", preset, PRESETS))
        self.preset, self.name = PRESETS[preset], f"statistics of {preset}"

    def __call__(self, waveforms: Sequence[Waveform]) -> Array:
        return np.stack([self._one(wave) for wave in waveforms]) if waveforms else np.zeros((0, 3 * self.preset.bands))

    def _one(self, wave: Waveform) -> Array:
        audio = _at(wave, self.preset.rate)
        mel = self.preset.log_mel(torch.from_numpy(audio * (_LEVEL / max(rms(audio), 1e-9)))).double().numpy()
        mel = np.maximum(mel, mel.max() - _HEARD)
        change = np.diff(mel, axis=0) if len(mel) > 1 else np.zeros_like(mel)
        return np.concatenate([mel.mean(0), mel.std(0), change.std(0)])


class Trained(Embedder):
    """A trained component: one with ``embed(waveforms)``, and as a classifier ``probabilities`` and ``labels``.

    Raises:
        ValueError: the component does not embed.
    """

    def __init__(self, component: Component, name: str) -> None:
        if not hasattr(component, "embed"):
            raise ValueError(f"the component {name!r} ({component.name}) does not embed clips: a classifier does")
        self.component: Any = component
        self.name, self.figures = name, component.figures
        self.labels = {
            label: [str(value) for value in values] for label, values in getattr(component, "labels", {}).items()
        }
        gallery = getattr(component, "gallery", None)
        self.gallery = _array(gallery) if gallery is not None and len(gallery) else None

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Waveform]) -> Array:
        return _array(self.component.embed(waveforms))

    @torch.no_grad()
    def probabilities(self, waveforms: Sequence[Waveform]) -> dict[str, Array]:
        return {label: _array(values) for label, values in self.component.probabilities(waveforms).items()}


@EMBEDDERS.register("resemblyzer")
class Resemblyzer(Embedder):
    """Resemblyzer's voice encoder (GE2E): (n, 256), who speaks rather than what; its weights come with the package.

    Clips under 1.6 s, its window, are repeated to fill it.
    """

    name = "resemblyzer"

    def __init__(self) -> None:
        package = require("resemblyzer", _EXTRA)
        self.package, self.encoder = package, package.VoiceEncoder("cpu", verbose=False)

    def __call__(self, waveforms: Sequence[Waveform]) -> Array:
        return np.stack([self._one(wave) for wave in waveforms]) if waveforms else np.zeros((0, 256))

    def _one(self, wave: Waveform) -> Array:
        audio = _at(wave, 16000)
        filled = _repeated(audio * (10 ** (-30 / 20) / max(rms(audio), 1e-9)), 25600)
        return np.asarray(self.encoder.embed_utterance(filled), np.float64)


@EMBEDDERS.register("clap")
class Clap(Embedder):
    """CLAP's audio tower by transformers: (n, width), sounds in general, at 48 kHz.

    Args:
        model: a folder, or a name on the hub (which is then downloaded); safetensors only.
    """

    def __init__(self, model: str = "laion/clap-htsat-unfused") -> None:
        transformers = require("transformers", _EXTRA)
        self.name = f"CLAP {Path(model).name}"
        self.model = transformers.ClapModel.from_pretrained(model, use_safetensors=True).eval()
        self.extract = transformers.ClapFeatureExtractor.from_pretrained(model)

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Waveform]) -> Array:
        width, rate = self.model.config.projection_dim, self.extract.sampling_rate
        rows = [np.zeros((0, width))]
        for wave in waveforms:
            features = self.extract(_at(wave, rate), sampling_rate=rate, return_tensors="pt")
            found = self.model.get_audio_features(**features)
            rows.append(_array(getattr(found, "pooler_output", found)))
        return np.concatenate(rows)


@EMBEDDERS.register("vggish")
class VGGish(Embedder):
    """VGGish by torch-vggish-yamnet: (n, 128), sounds in general, at 16 kHz; the mean over windows of 0.96 s, which
    clips that are shorter are repeated to fill. The package downloads its weights."""

    name = "VGGish"

    def __init__(self) -> None:
        self.model = require("torch_vggish_yamnet.vggish", _EXTRA).get_vggish(with_classifier=False).eval()
        self.patches = require("torch_vggish_yamnet.input_proc", _EXTRA).WaveformToInput()

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Waveform]) -> Array:
        rows = [np.zeros((0, 128))]
        for wave in waveforms:
            audio = torch.from_numpy(_repeated(_at(wave, 16000), 15600))
            rows.append(_array(self.model(self.patches(audio[None], 16000)).mean(0, keepdim=True)))
        return np.concatenate(rows)


def build_embedder(spec: str | Path | Mapping[str, Any] | Component | Embedder, rate: int = 16000) -> Embedder:
    """An embedder from a name, ``{"name": ..., options}``, a trained component (bundled, or its folder), or itself.

    The module that registers the component must be imported: ``components``.

    Args:
        rate: of the clips, for those that suit themselves to it.

    Raises:
        UnknownName: no such name, and no such folder.
        MissingExtra: its package is not installed.
        ValueError: the component does not embed.
    """
    if isinstance(spec, Component):
        return Trained(spec, spec.name)
    if isinstance(spec, str) and spec not in EMBEDDERS and (spec in BUNDLED or Path(spec).expanduser().exists()):
        spec = Path(spec)
    if isinstance(spec, Path):
        path = BUNDLED.get(str(spec), spec.expanduser())
        return Trained(load_component(path), path.resolve().name)
    return EMBEDDERS.build(spec, rate=rate)


def preset_for(rate: int) -> str:
    """The mel preset of the highest rate that sound of this rate fills; the lowest where it fills none."""
    return max((name for name in _BY_RATE if PRESETS[name].rate <= rate), key=_BY_RATE.index, default=_BY_RATE[0])


def _at(wave: Waveform, rate: int) -> NDArray[np.float32]:
    """One channel at a rate, at least one sample."""
    audio = mono(wave.samples).astype(np.float32)
    resampled: NDArray[np.float32] = resample(audio, wave.rate, rate)
    return resampled if len(resampled) else np.zeros(1, np.float32)


def _repeated(audio: NDArray[np.float32], least: int) -> NDArray[np.float32]:
    return audio if len(audio) >= least else np.resize(audio, least)


def _array(values: Any) -> Array:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)
