"""What turns clips into vectors, so that sets of clips can be compared.

A distance between sets is a statement about one extractor and what it was shown: both belong beside the number.
``statistics`` needs no weights; a judge trained by a recipe sees what is shown and how it moves; VideoMAE needs a
package, and its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from noiseloom.core.registry import Registry, unknown

from ..component import BUNDLED, Component, find_component
from ..distances import Array
from ..extras import require
from .clip import Clip
from .labelled import resized

EXTRACTORS: Registry[Extractor] = Registry("extractor")

_EXTRA = "video-eval"
_GRID = 8  # places along a side that ``statistics`` looks at
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours: what VideoMAE was trained with


class Extractor(ABC):
    """Clips to vectors. Third parties register theirs with ``@EXTRACTORS.register("name")``.

    Attributes:
        name: what is printed beside each number.
        sees: what of a clip it is shown: frames, stride, size.
        gallery: vectors of the clips it was trained on, (n, d), where it carries them.
    """

    name: str
    sees: str
    gallery: Array | None = None

    @abstractmethod
    def __call__(self, clips: Sequence[Clip]) -> Array:
        """(n, d), float64. Every clip has a frame."""


@EXTRACTORS.register("statistics")
class Statistics(Extractor):
    """Of a grey clip at 8 x 8: mean and deviation over time of each place, and the means of its first and second
    differences' sizes: (n, 256). It tells layout, brightness and how lively a place is, not what is shown."""

    name, sees = "statistics", f"all frames at {_GRID} x {_GRID}, grey"

    def __call__(self, clips: Sequence[Clip]) -> Array:
        return np.stack([self._one(clip) for clip in clips]) if clips else np.zeros((0, 4 * _GRID**2))

    def _one(self, clip: Clip) -> Array:
        places = resized(clip, _GRID, 1).flatten(1).double().numpy()
        steps = [np.abs(np.diff(places, n, axis=0)) if len(places) > n else np.zeros((1, _GRID**2)) for n in (1, 2)]
        return np.concatenate([places.mean(0), places.std(0), *(step.mean(0) for step in steps)])


@runtime_checkable
class Judge(Protocol):
    """A component that says what it sees in a clip; ``VideoJudge`` is one."""

    name: Any
    figures: Any
    gallery: torch.Tensor
    label: str
    classes: list[str]
    size: int
    colours: int

    def embed(self, clips: Sequence[Clip]) -> torch.Tensor:
        """(n, numbers of an embedding), float32, on the CPU."""
        ...

    def labels_seen(self, embeddings: torch.Tensor) -> list[str]:
        """The classes of each clip, sorted: "3,8"."""
        ...

    def changes_seen(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(n, changes): how likely each of ``changes.CHANGES`` was done to a clip's time."""
        ...


class Judged(Extractor):
    """The embeddings of a judge."""

    def __init__(self, judge: Judge, name: str) -> None:
        self.judge, self.name = judge, name
        self.sees = f"all frames at {judge.size} x {judge.size}, {'grey' if judge.colours == 1 else 'RGB'}"
        self.gallery = _array(judge.gallery) if len(judge.gallery) else None

    def __call__(self, clips: Sequence[Clip]) -> Array:
        return _array(self.judge.embed(clips))


@EXTRACTORS.register("videomae")
class VideoMAE(Extractor):
    """VideoMAE's encoder by transformers: (n, width), the mean over its tokens; what moves and how, in general.

    Args:
        model: a folder, or a name on the hub (which is then downloaded); safetensors only.
    """

    def __init__(self, model: str = "MCG-NJU/videomae-base") -> None:
        transformers = require("transformers", _EXTRA)
        self.model = transformers.VideoMAEModel.from_pretrained(model, use_safetensors=True).eval()
        self.frames, self.size = self.model.config.num_frames, self.model.config.image_size
        self.name = f"VideoMAE {Path(model).name}"
        self.sees = f"{self.frames} frames evenly spaced at {self.size} x {self.size}, RGB"

    @torch.no_grad()
    def __call__(self, clips: Sequence[Clip]) -> Array:
        rows = [np.zeros((0, self.model.config.hidden_size))]
        for clip in clips:
            chosen = np.linspace(0, len(clip) - 1, self.frames).round().astype(int)
            frames = resized(Clip(clip.frames[chosen], clip.fps), self.size, 3)
            mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
            tokens = self.model(pixel_values=((frames - mean) / std)[None]).last_hidden_state
            rows.append(_array(tokens.mean(1)))
        return np.concatenate(rows)


def build_extractor(spec: str | Path | Mapping[str, Any] | Component | Extractor) -> Extractor:
    """An extractor from a name, ``{"name": ..., options}``, a judge (bundled, its folder, or the hub's), or itself.

    The module that registers the judge must be imported: ``components``.

    Raises:
        UnknownName: no such name, and no such folder.
        MissingExtra: its package is not installed.
        ValueError: the component does not embed.
    """
    if isinstance(spec, Extractor):
        return spec
    if isinstance(spec, Component):
        return Judged(_a_judge(spec), spec.name)
    if isinstance(spec, str | Path) and str(spec) not in EXTRACTORS:
        if "/" not in str(spec) and str(spec) not in BUNDLED and not Path(spec).expanduser().is_dir():
            raise ValueError(unknown("extractor", str(spec), [*EXTRACTORS, *BUNDLED, "a judge's folder"]))
        return Judged(find_judge(spec), Path(spec).name)
    return EXTRACTORS.build(spec if not isinstance(spec, Path) else str(spec))


def find_judge(spec: str | Path | Component) -> Judge:
    """A judge from its name, its folder, or itself.

    Raises:
        UnknownName, CheckpointError: see :func:`..component.find_component`.
        ValueError: the component is no judge of videos.
    """
    if isinstance(spec, str | Path):
        spec = find_component(str(Path(spec).expanduser()) if str(spec) not in BUNDLED else spec)
    return _a_judge(spec)


def _a_judge(component: Component) -> Judge:
    if not isinstance(component, Judge):
        raise ValueError(f"the component {component.name!r} is no judge of videos: one made by video_judge is")
    return component


def _array(values: torch.Tensor) -> Array:
    return np.asarray(values.detach().cpu(), np.float64)
