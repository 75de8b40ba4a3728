"""What is done to a clip before training: size, channels and rate of its frames, and how it is cut into windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_EPS = 1e-6  # of a frame: what rounding may do to its time


@dataclass(frozen=True)
class Preparation:
    """How clips are prepared. All values are plain. Windows are cut from what is stored.

    Attributes:
        sizes: (height, width) of the buckets. A clip goes to the one nearest in aspect ratio, among equals to the
            largest that does not enlarge it, is resized with antialiasing to cover it, and cut about its centre.
        channels: 1 (grey) or 3 (RGB).
        fps: clips are resampled to so many frames a second: at each time the frame that is shown then. None: as it is.
        frames: the most frames of a window.
        stride: frames from one window to the next; None: as many as a window has.
        factor: windows have ``factor * k + 1`` frames: what an autoencoder makes k + 1 latent frames of.
        min_frames: clips of fewer frames, after resampling, are left out.

    Raises:
        ValueError: a value out of range.
    """

    sizes: Sequence[Sequence[int]] = ((64, 64),)
    channels: int = 3
    fps: float | None = None
    frames: int = 17
    stride: int | None = None
    factor: int = 1
    min_frames: int = 1

    def __post_init__(self) -> None:
        sizes = tuple(dict.fromkeys(tuple(size) for size in self.sizes))
        if not sizes or any(len(size) != 2 or min(size) < 1 or size != tuple(map(int, size)) for size in sizes):
            raise ValueError(f"sizes={list(map(list, sizes))}: at least one [height, width] in pixels")
        object.__setattr__(self, "sizes", tuple((int(height), int(width)) for height, width in sizes))
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}. Choices: 1, 3")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps={self.fps}: a positive number of frames a second")
        for name in ("frames", "stride", "factor", "min_frames"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"{name}={value}: a whole number of at least 1")

    @property
    def stored(self) -> dict[str, Any]:
        """The settings that clips are stored with, as plain values: others only say how they are cut into windows."""
        return {name: value for name, value in asdict(self).items() if name not in ("frames", "stride", "factor")}

    def bucket(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a clip of this size is made."""

        def order(size: tuple[int, int]) -> tuple[float, bool, int]:
            area = size[0] * size[1]
            enlarges = _scale((height, width), size) > 1
            return round(abs(math.log(height / width * size[1] / size[0])), 6), enlarges, area if enlarges else -area

        return min(((height, width) for height, width in self.sizes), key=order)

    def moments(self, frames: int, fps: float) -> np.ndarray:
        """``(n,)``: which frames of a clip are kept; each is the one shown at its time. An image stays one."""
        if self.fps is None or frames == 1:
            return np.arange(frames)
        ratio = fps / self.fps
        count = max(math.ceil(frames / ratio - _EPS), 1)
        return np.minimum(np.floor(np.arange(count) * ratio + _EPS).astype(np.int64), frames - 1)

    def rate(self, fps: float) -> float:
        """The rate of a clip after that."""
        return fps if self.fps is None else float(self.fps)

    def fit(self, frames: np.ndarray) -> np.ndarray:
        """The frames as they are trained on: ``(T, h, w, 1 or 3)`` uint8 to ``(T, height, width, channels)``."""
        frames = _with_channels(frames, self.channels)
        size = self.bucket(*frames.shape[1:3])
        scale = _scale(frames.shape[1:3], size)
        cut = [min(max(round(side / scale), 1), have) for side, have in zip(size, frames.shape[1:3], strict=True)]
        top, left = ((have - side) // 2 for side, have in zip(cut, frames.shape[1:3], strict=True))
        frames = frames[:, top : top + cut[0], left : left + cut[1]]
        if tuple(cut) == size:
            return np.ascontiguousarray(frames)
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)
        resized = interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        return np.ascontiguousarray(resized.movedim(1, -1).numpy())

    def windows(self, frames: int) -> tuple[list[int], int]:
        """Where windows of a clip start, and how many frames each has. The last ends with the clip."""
        length = (min(frames, self.frames) - 1) // self.factor * self.factor + 1
        starts = list(range(0, frames - length + 1, self.stride or length))
        return starts if starts[-1] == frames - length else [*starts, frames - length], length


def _scale(size: Sequence[int], bucket: Sequence[int]) -> float:
    """By how much a picture is enlarged to cover a bucket."""
    return max(wanted / have for wanted, have in zip(bucket, size, strict=True))


def _with_channels(frames: np.ndarray, channels: int) -> np.ndarray:
    if frames.shape[3] == channels:
        return frames
    if channels == 3:
        return np.repeat(frames, 3, 3)
    return np.rint(frames @ np.array(LUMA, np.float32))[..., None].astype(np.uint8)
