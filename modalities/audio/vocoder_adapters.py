"""Vocoders that are not trained here: Griffin-Lim, and adapters for those of other packages.

An adapter is built from plain values: with ``source`` it takes the architecture and the weights of a folder or of a
repository of the hub; with ``architecture`` it has that shape and waits for a state dict, as when a checkpoint of ours
that contains it is loaded. Weights are safetensors, or a state dict that cannot execute code; the class paths that a
configuration may hold are compared, never imported.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noiseloom.core.registry import Registry

from ..extras import require
from .griffin_lim import GriffinLim
from .mel import PRESETS

VOCODERS: Registry[nn.Module] = Registry("vocoder")
VOCODERS.register("griffin_lim")(GriffinLim)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Adapter(nn.Module, ABC):
    """Somebody else's vocoder: ``vocoder(log_mel (batch, frames, bands)) -> (batch, samples)``.

    Args:
        source: a folder, or a repository of the hub, with its configuration and weights.
        subfolder: where in it.
        architecture: options of the model instead, for weights that come later.

    Attributes:
        preset: of the mels it was trained on.
        context: frames to each side that a sample depends on; None: all of them.

    Raises:
        MissingExtra: its package is not installed.
        FileNotFoundError: the source lacks a file.
        ValueError: the source is another kind of model, or one for other mels.
    """

    name: str
    preset: str
    config_file = "config.json"
    context: int | None = None

    def __init__(
        self, source: str | None = None, subfolder: str = "", architecture: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if (source is None) == (architecture is None):
            raise ValueError(f"vocoder {self.name!r} needs a source or an architecture")
        if source is not None:
            architecture = self.read(_find(source, subfolder, self.config_file).read_text(encoding="utf-8"))
        self.architecture = dict(architecture or {})
        self.model: Any = self.build()
        if source is not None:
            self.load(_weights(_find(source, subfolder, *WEIGHTS)))
        self.eval()

    def spec(self) -> dict[str, Any]:
        """What ``VOCODERS.build`` makes it from again, but for its weights."""
        return {"name": self.name, "architecture": self.architecture}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the weights that the model has; all of them must be there."""
        own = self.model.state_dict()
        missing = sorted(own.keys() - tensors.keys())
        if missing:
            raise ValueError(f"vocoder {self.name!r}: the weights lack {', '.join(missing[:3])}")
        self.model.load_state_dict({key: tensors[key] for key in own})

    def check(self, **found: object) -> None:
        """Refuse a model for other mels than the preset's."""
        preset = PRESETS[self.preset]
        wrong = [f"{key} {value}" for key, value in found.items() if value != getattr(preset, key)]
        if wrong:
            raise ValueError(
                f"vocoder {self.name!r} is for mels of preset {self.preset!r}, but this model has {', '.join(wrong)}"
            )

    @abstractmethod
    def read(self, text: str) -> dict[str, Any]:
        """The architecture that a configuration file states."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model of ``self.architecture``, with any weights."""

    @abstractmethod
    def forward(self, log_mel: Tensor) -> Tensor: ...


@VOCODERS.register("vocos")
class Vocos(Adapter):
    """charactr/vocos-mel-24khz and models like it (package ``vocos``)."""

    name, preset, config_file = "vocos", "vocos-24k", "config.yaml"

    def read(self, text: str) -> dict[str, Any]:
        import yaml

        known = {
            "feature_extractor": "vocos.feature_extractors.MelSpectrogramFeatures",
            "backbone": "vocos.models.VocosBackbone",
            "head": "vocos.heads.ISTFTHead",
        }
        try:
            content = yaml.safe_load(text)
            for part, path in known.items():
                if content[part]["class_path"] != path:
                    raise ValueError(f"vocoder 'vocos': its {part} is {content[part]['class_path']!r}, not {path!r}")
            mels, backbone, head = (content[part]["init_args"] for part in known)
            self.check(rate=mels["sample_rate"], centred=head["padding"] == mels["padding"] == "center")
        except (KeyError, TypeError, yaml.YAMLError) as error:
            raise ValueError(f"vocoder 'vocos': its {self.config_file} is none of a Vocos model: {error!r}") from None
        return {"backbone": backbone, "head": head}

    def build(self) -> nn.Module:
        models, heads = require("vocos.models", "audio-vocoders"), require("vocos.heads", "audio-vocoders")
        backbone, head = self.architecture["backbone"], self.architecture["head"]
        self.check(bands=backbone["input_channels"], n_fft=head["n_fft"], hop=head["hop_length"])
        overlap = -(-head["n_fft"] // head["hop_length"])
        self.context = 3 * (backbone["num_layers"] + 1) + overlap  # kernels of 7, then the inverse STFT
        return nn.ModuleDict({"backbone": models.VocosBackbone(**backbone), "head": heads.ISTFTHead(**head)})

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.model["head"](self.model["backbone"](log_mel.mT))


@VOCODERS.register("hifigan")
class HifiGan(Adapter):
    """transformers' SpeechT5HifiGan, by default of AudioLDM (cvssp/audioldm, subfolder vocoder).

    SpeechT5's own takes base-10 mels of 80 to 7600 Hz, which no preset is: it is refused.
    """

    name, preset = "hifigan", "audioldm-16k"

    def read(self, text: str) -> dict[str, Any]:
        return _options(text, "SpeechT5HifiGanConfig")

    def build(self) -> nn.Module:
        transformers = require("transformers", "audio-vocoders")
        config = transformers.SpeechT5HifiGanConfig(**self.architecture)
        rates = config.upsample_rates
        self.check(rate=config.sampling_rate, bands=config.model_in_dim, hop=prod(rates))
        reach, rate = 3.0, 1  # frames
        dilated = [
            (kernel - 1) / 2 * sum(dilation + 1 for dilation in dilations)
            for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        ]
        for stride, kernel in zip(rates, config.upsample_kernel_sizes, strict=True):
            reach += kernel / stride / rate
            rate *= stride
            reach += max(dilated) / rate
        self.context = int(reach + 3 / rate) + 1
        return transformers.SpeechT5HifiGan(config)

    def forward(self, log_mel: Tensor) -> Tensor:
        # Odd differences of kernel and stride make some samples too many.
        return self.model(log_mel)[:, : log_mel.shape[1] * PRESETS[self.preset].hop]


@VOCODERS.register("univnet")
class UnivNet(Adapter):
    """transformers' UnivNetModel (dg845/univnet-dev). Its noise is always the same."""

    name, preset = "univnet", "bigvgan-24k"

    def read(self, text: str) -> dict[str, Any]:
        return _options(text, "UnivNetConfig")

    def build(self) -> nn.Module:
        transformers = require("transformers", "audio-vocoders")
        config = transformers.UnivNetConfig(**self.architecture)
        self.check(bands=config.num_mel_bins, hop=prod(config.resblock_stride_sizes))
        return transformers.UnivNetModel(config)

    def forward(self, log_mel: Tensor) -> Tensor:
        channels = int(self.model.config.model_in_channels)
        noise = torch.randn(1, log_mel.shape[1], channels, generator=torch.Generator().manual_seed(0)).to(log_mel)
        return self.model(log_mel, noise.expand(len(log_mel), -1, -1)).waveforms


def _options(text: str, name: str) -> dict[str, Any]:
    """The options that make an architecture, of a configuration that transformers wrote."""
    transformers = require("transformers", "audio-vocoders")
    options = getattr(transformers, name)().to_dict().keys() - transformers.PretrainedConfig().to_dict().keys()
    return {key: value for key, value in json.loads(text).items() if key in options}


def _find(source: str, subfolder: str, *names: str) -> Path:
    """The first of these files that a folder or a repository of the hub has."""
    if Path(source).is_dir():
        for name in names:
            path = Path(source, subfolder, name)
            if path.is_file():
                return path
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        for name in names:
            try:
                return Path(hf_hub_download(source, name, subfolder=subfolder or None))
            except EntryNotFoundError:
                continue
    raise FileNotFoundError(f"{source}{'/' + subfolder if subfolder else ''} has no {' or '.join(names)}")


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name; what could execute code is not read."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
