"""A classifier of sounds: it judges what generated clips say, and sets of clips are compared by its embeddings.

A small residual network over log-mel spectrograms as images, then the mean and deviation over the real frames. Layers
normalise each position over its channels only and padding is zeroed after each, so nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from noiseloom.core.objectives import OBJECTIVES, Losses, Objective
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.registry import unknown

from ..component import COMPONENTS, Component
from ..report import Report
from .augment import augmented_mel, augmented_wave
from .mel import PRESETS
from .prepare import TARGETS, peak, without_dc
from .segments import Clips
from .spectral import mono
from .waveform import Waveform, resample

MEAN, STD = -5.0, 3.0  # of log-mel spectrograms, roughly
UNKNOWN = -1  # the class of a clip without this label: it counts for nothing
_BATCH = 64  # clips embedded at a time
_EPSILON = 1e-5  # of a variance
_QUIET = 1e-4  # the peak below which a clip is left quiet


@dataclass(frozen=True)
class LabelledMels:
    """Log-mel spectrograms (batch, frames, bands), their frames (batch,), and the classes by label (batch, labels)."""

    mels: Tensor
    lengths: Tensor
    classes: Tensor


class Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input passes; the first may halve frames and bands."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(inner), nn.LayerNorm(outer)
        self.enter, self.leave = nn.Conv2d(inner, outer, 3, stride, 1), nn.Conv2d(outer, outer, 3, 1, 1)
        self.skip = nn.Conv2d(inner, outer, 1, stride) if (inner, stride) != (outer, 1) else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, channels, frames, bands), zero where ``mask`` (batch, 1, frames, 1) is, and the mask."""
        stride = self.enter.stride[0]
        outer = mask[:, :, ::stride]
        inside = self.enter(_active(x, self.first) * mask) * outer
        return (self.skip(x) + self.leave(_active(inside, self.second) * outer)) * outer, outer


@COMPONENTS.register("classifier")
class Classifier(Component):
    """What is heard in a clip, by one or several labels, and an embedding of it.

    Args:
        labels: the classes of each label; ``fitted`` takes the names of the labels and finds the classes.
        preset: of the spectrograms, a name of ``mel.PRESETS``.
        widths: channels of each stage; from one to the next frames and bands are halved.
        embedding: numbers of an embedding.
        gallery: how many clips it carries embeddings of.

    Attributes:
        gallery: embeddings (n, embedding) of the clips it was trained on, float16, and ``gallery_classes`` (n, labels).
    """

    name = "classifier"
    gallery: Tensor
    gallery_classes: Tensor

    def __init__(
        self,
        labels: Mapping[str, Sequence[str]],
        preset: str = "speech-8k",
        widths: Sequence[int] = (24, 48, 72, 96),
        embedding: int = 64,
        gallery: int = 0,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(unknown("mel preset", preset, PRESETS))
        if not labels or not all(labels.values()):
            raise ValueError("a classifier needs labels, each with its classes")
        self.labels = {str(name): [str(one) for one in classes] for name, classes in labels.items()}
        self.preset, self.widths, self.embedding = preset, list(widths), embedding
        self.mel, self.rate, self.channels = PRESETS[preset], PRESETS[preset].rate, 1
        self.enter = nn.Conv2d(1, self.widths[0], 5, 2, 2)
        pairs = zip([self.widths[0], *self.widths[:-1]], self.widths, strict=True)
        self.blocks = nn.ModuleList(Residual(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs))
        bands = -(-self.mel.bands // 2 ** len(self.widths))
        self.last = nn.LayerNorm(self.widths[-1])
        self.project = nn.Linear(2 * self.widths[-1] * bands, embedding)
        self.heads = nn.ModuleDict({name: nn.Linear(embedding, len(one)) for name, one in self.labels.items()})
        self.register_buffer("gallery", torch.zeros(gallery, embedding, dtype=torch.float16))
        self.register_buffer("gallery_classes", torch.zeros(gallery, len(self.labels), dtype=torch.int16))

    @property
    def config(self) -> dict[str, Any]:
        plain = {"labels": self.labels, "preset": self.preset, "widths": self.widths, "embedding": self.embedding}
        return {**plain, "gallery": len(self.gallery)}

    @classmethod
    def fitted(cls, sources: Sequence[str], data: Mapping[str, Any], **options: Any) -> Classifier:
        """``labels``: the names of the labels, by default "label"; their classes are those of the training clips."""
        names, preset = options.pop("labels", ["label"]), PRESETS[options.get("preset", "speech-8k")]
        clips = Clips(preset.rate, 1, sources, "train", **data)
        return cls({name: clips.labels(name) for name in names}, **options)

    def forward(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel spectrograms (batch, frames, bands) with so many real frames to embeddings, float32."""
        mask = (torch.arange(mels.shape[1], device=mels.device) < lengths[:, None])[:, None, :, None].to(mels.dtype)
        x = self.enter((mels[:, None] - MEAN) / STD * mask)
        mask = mask[:, :, ::2]
        x = x * mask
        for block in self.blocks:
            x, mask = block(x, mask)
        x = (_active(x, self.last) * mask).float().transpose(1, 2).flatten(2)
        mask = mask[:, 0].float()
        count = mask.sum(1)
        mean = x.sum(1) / count
        variance = ((x - mean[:, None]) ** 2 * mask).sum(1) / count
        return self.project(torch.cat([mean, torch.sqrt(variance + _EPSILON)], 1)).float()

    def logits(self, embeddings: Tensor) -> dict[str, Tensor]:
        """(n, classes) of each label."""
        return {name: head(F.gelu(embeddings)).float() for name, head in self.heads.items()}

    @torch.no_grad()
    def embed(self, waveforms: Sequence[Waveform]) -> Tensor:
        """Clips of any rate, length and level to (n, embedding), float32, on the CPU."""
        device = self.project.weight.device
        rows = [torch.zeros(0, self.embedding)]
        for start in range(0, len(waveforms), _BATCH):
            mels = [self.mel.log_mel(self._heard(wave)) for wave in waveforms[start : start + _BATCH]]
            padded, lengths = _padded(mels)
            rows.append(self(padded.to(device), lengths.to(device)).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def probabilities(self, waveforms: Sequence[Waveform]) -> dict[str, Tensor]:
        """(n, classes) of each label, in the order of ``labels``."""
        logits = self.logits(self.embed(waveforms).to(self.project.weight.device))
        return {name: values.softmax(1).cpu() for name, values in logits.items()}

    def _heard(self, wave: Waveform) -> Tensor:
        """(n,), at the level and rate that it was trained on; silence stays what it is."""
        audio = resample(mono(wave.samples)[None], wave.rate, self.rate)
        if not audio.size:
            return torch.zeros(1)
        audio = without_dc(audio)
        return torch.from_numpy(audio[0] * (10 ** (TARGETS["peak"] / 20) / max(peak(audio), _QUIET)))

    def dataset(self, sources: Sequence[str], split: str, **data: Any) -> Clips:
        return Clips(self.rate, 1, sources, split, **data)

    def example(self, items: Sequence[Waveform], generators: Sequence[Generator] | None = None) -> LabelledMels:
        mels = []
        for item, generator in zip(items, generators or repeat(None, len(items)), strict=True):
            audio = torch.tensor(item.samples[0])
            if generator is None:
                mels.append(self.mel.log_mel(audio))
            else:
                mels.append(augmented_mel(self.mel.log_mel(augmented_wave(audio, self.rate, generator)), generator))
        padded, lengths = _padded(mels)
        return LabelledMels(padded, lengths, self._classes(items))

    def _classes(self, items: Sequence[Waveform]) -> Tensor:
        """(n, labels) int64, UNKNOWN where a clip has no such label."""
        rows = []
        for item in items:
            told = [(classes, str(item.values.get(name))) for name, classes in self.labels.items()]
            rows.append([classes.index(value) if value in classes else UNKNOWN for classes, value in told])
        return torch.tensor(rows)

    def measure(self, train: Clips) -> None:
        """Take the embeddings of the training clips into the gallery."""
        clips = [train[index] for index in range(len(train))]
        self.gallery = self.embed(clips).half().to(self.gallery.device)
        self.gallery_classes = self._classes(clips).short().to(self.gallery.device)

    def evaluate(self, held_out: Clips) -> Report:
        """The scores that generated clips get, here of real ones."""
        from .metrics import evaluate

        clips = [held_out[index] for index in range(len(held_out))]
        return evaluate(clips, embedder=self, title="classifier on held-out clips")


@OBJECTIVES.register("classification")
class Classification(Objective):
    """Cross-entropy of each label, with smoothing.

    Args:
        component: what is trained (given by the run).
        smoothing: the share of the target that is spread over all classes.
        weights: of labels whose loss does not count once.
    """

    def __init__(
        self, component: Classifier, smoothing: float = 0.1, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        unnamed = [name for name in weights or {} if name not in component.labels]
        if unnamed:
            raise ValueError(unknown("label", unnamed[0], component.labels))
        self.smoothing = smoothing
        self.weights = dict.fromkeys(component.labels, 1.0) | dict(weights or {})

    def forward(self, model: Classifier, example: LabelledMels, random: StepRandomness) -> Losses:
        parts = self._losses(model.logits(model(example.mels, example.lengths)), example, self.smoothing)
        return Losses(self._total(parts), parts)

    def held_out(
        self, model: Classifier, example: LabelledMels, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """Without smoothing; beside the losses, the share of wrong answers by label."""
        logits = model.logits(model(example.mels, example.lengths))
        parts = self._losses(logits, example, 0.0)
        wrong = {
            f"{name}_wrong": ((values.argmax(1) != own) & (own != UNKNOWN)).float()
            for (name, values), own in zip(logits.items(), example.classes.unbind(1), strict=True)
        }
        yield "", Losses(self._total(parts), parts | wrong)

    def _losses(self, logits: Mapping[str, Tensor], example: LabelledMels, smoothing: float) -> dict[str, Tensor]:
        return {
            name: F.cross_entropy(values, own, reduction="none", label_smoothing=smoothing, ignore_index=UNKNOWN)
            for (name, values), own in zip(logits.items(), example.classes.unbind(1), strict=True)
        }

    def _total(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(0)


def _active(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalised over the channels (batch, channels, ...) of each position, and rectified."""
    return F.gelu(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _padded(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return nn.utils.rnn.pad_sequence(list(mels), batch_first=True), torch.tensor([len(mel) for mel in mels])
