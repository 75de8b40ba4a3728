"""Clips as frames of a representation: made once, kept in the cache, and what is measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache import Arrays, Writer, cached_arrays
from ..scale import oddities, weight_sums
from .data import AudioSet
from .representation import Mel, Representation

_BATCH = 64  # clips whose frames are made at a time
_BLOCK = 1024  # clips whose frames are in memory at a time
_CHECKED = 256  # clips whose scale is checked


@dataclass(frozen=True)
class Item:
    """A clip to train on: its frames (frames, width) and its conditions by name."""

    frames: np.ndarray
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Frames:
    """A set of clips as items of training: frames from the cache."""

    clips: AudioSet
    frames: Arrays

    @property
    def sizes(self) -> Sequence[int]:
        return self.frames.lengths.tolist()

    @property
    def report(self) -> Any:
        return self.clips.report

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Item:
        return Item(self.frames[index], self.clips[index].values)


def statistics(frames: Tensor) -> Tensor:
    """Mean and standard deviation over time of normalised frames (frames, width): (2 width,)."""
    return torch.cat([frames.mean(0), frames.std(0, correction=0)])


def frames_of(clips: AudioSet, representation: Representation) -> Arrays:
    """The frames of prepared clips, (frames, width) each, from the cache: keyed by the clips, the representation and
    its weights."""

    def build(writer: Writer) -> None:
        for first in range(0, len(clips), _BLOCK):
            block = np.arange(first, min(first + _BLOCK, len(clips)))
            made: dict[int, np.ndarray] = {}
            # Batches of equal length: what a frame holds must not depend on its neighbours' length.
            for length in np.unique(clips.samples[block]):
                same = block[clips.samples[block] == length]
                for few in np.array_split(same, -(-len(same) // _BATCH)):
                    audio = torch.from_numpy(np.stack([clips[int(i)].samples for i in few]))
                    made |= dict(zip(few.tolist(), representation.encode(audio).numpy(), strict=True))
            for index in block.tolist():
                writer.add(made[index])

    told = {"clips": clips.fingerprint, "representation": representation.config, "weights": weight_sums(representation)}
    return cached_arrays("frames", told, build, shape=(representation.width,), total=len(clips))


def scale_warnings(
    dataset: Frames, representation: Representation, mean: Sequence[float], std: Sequence[float]
) -> list[str]:
    """What is wrong with the scale of a training set, a line each, measured on some of its clips.

    Args:
        mean, std: by which frames are normalised.
    """
    frames, rates = dataset.frames, np.asarray(dataset.clips.report.before["rate"])
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _CHECKED)).astype(int))
    data = np.concatenate([frames[int(i)] for i in chosen])
    needed, lines = 2 * representation.preset.fmax if isinstance(representation, Mel) else representation.rate, []
    if count := int((rates < 0.95 * needed).sum()):
        lines.append(
            f"{count:,} of {len(rates):,} clips are of a lower rate, from {rates.min():,} Hz, and hold nothing above "
            f"half of it, but frames go up to {needed / 2:,.0f} Hz: the network is to learn noise there"
        )
    own = getattr(representation.decoder, "latent_std", None)
    return [*lines, *oddities(data, mean, std, own, "frame", "sounds")]
