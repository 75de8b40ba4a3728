"""Windows of videos as latents, with what is known of each window. Latents that take long to make are made once and
kept in the cache; others, such as pixels, are made of a window's frames whenever it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..cache import Arrays, Writer, cached_arrays
from ..scale import moments, oddities, weight_sums
from .clip import Clip, signed
from .data import VideoSet
from .representation import Representation

_PIXELS = 1 << 20  # of the windows whose latents are made at a time: few enough to stay in the processor
_BLOCK = 64  # windows whose latents are in memory at a time
_MEASURED, _NUMBERS = 256, 1 << 25  # windows that are measured, and the most numbers that they may have


@dataclass(frozen=True)
class Item:
    """A window to train on: its latents (t, h, w, channels), and the clip with its pixels and conditions."""

    latents: np.ndarray
    clip: Clip


@dataclass(frozen=True)
class Latents:
    """Windows of videos as items of training.

    Attributes:
        representation: what makes the latents.
        stored: those of each window, as ``latents_of`` made them; None: they are made when they are asked for.
    """

    videos: VideoSet
    representation: Representation
    stored: Arrays | None

    @classmethod
    def of(cls, videos: VideoSet, representation: Representation) -> Latents:
        """The latents of the windows, from the cache where they are worth it."""
        return cls(videos, representation, latents_of(videos, representation) if representation.cached else None)

    @property
    def shapes(self) -> np.ndarray:
        """``(windows, 3)``: latent frames, height and width of each window."""
        shapes = [self.representation.latent_shape(*shape) for shape in self.videos.shapes.tolist()]
        return np.array(shapes, np.int64).reshape(-1, 3)

    @property
    def sizes(self) -> Sequence[int] | None:
        return self.videos.sizes

    @property
    def report(self) -> Any:
        return self.videos.report

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Item:
        clip = self.videos[index]
        if self.stored is None:
            return Item(self.representation.encode(signed(clip.frames[None]))[0].numpy(), clip)
        shape = self.representation.latent_shape(*clip.frames.shape[:3])
        return Item(self.stored[index].reshape(*shape, -1), clip)

    def positions(self) -> np.ndarray:
        """The latent positions of some windows, spread evenly over all: (n, channels)."""
        most = max(_NUMBERS // int(self[0].latents.size), 1)
        chosen = np.unique(np.linspace(0, len(self) - 1, min(len(self), _MEASURED, most)).astype(int))
        return np.concatenate([self[int(i)].latents.reshape(-1, self.representation.channels) for i in chosen])


def statistics(items: Latents) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each number of a latent position over some windows. Numbers of one kind (pixels of
    a colour, wherever in a position they lie) share theirs."""
    channels, kinds = items.representation.channels, items.representation.kinds
    mean, std = moments(items.positions().reshape(-1, kinds))
    return mean * (channels // kinds), std * (channels // kinds)


def latents_of(videos: VideoSet, representation: Representation, *, half: bool = False) -> Arrays:
    """The latents of each window, (t h w, channels), from the cache: keyed by the windows, the representation and its
    weights.

    Args:
        half: store float16 numbers.
    """
    shapes = videos.shapes

    @torch.inference_mode()
    def build(writer: Writer) -> None:
        for first in range(0, len(videos), _BLOCK):
            block = np.arange(first, min(first + _BLOCK, len(videos)))
            made: dict[int, np.ndarray] = {}
            for shape in np.unique(shapes[block], axis=0):
                same = block[(shapes[block] == shape).all(1)]
                most = max(_PIXELS // int(shape.prod()), 1)
                for few in np.array_split(same, -(-len(same) // most)):
                    latents = representation.encode(signed(np.stack([videos[int(i)].frames for i in few])))
                    made |= dict(zip(few.tolist(), latents.flatten(1, 3).numpy(), strict=True))
            for index in block.tolist():
                writer.add(made[index])

    told = {
        "videos": videos.fingerprint,
        "representation": representation.config,
        "weights": weight_sums(representation),
    }
    dtype: Literal["float16", "float32"] = "float16" if half else "float32"
    return cached_arrays("latents", told, build, shape=(representation.channels,), dtype=dtype, total=len(videos))


def scale_warnings(items: Latents, mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """What is wrong with the scale of a training set, a line each, measured on some of its windows.

    Args:
        mean, std: by which latents are normalised.
    """
    own = getattr(items.representation.decoder, "latent_std", None)
    return oddities(items.positions(), mean, std, own, "latent position", "videos")
