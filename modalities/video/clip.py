"""The artifact of the video modality: a :class:`Clip`. An image is a clip of one frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


class VideoError(ValueError):
    """A video that cannot be used; the message names the file and the reason, which is also in ``reason``."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and what is known of it.

    Attributes:
        frames: ``(T, H, W, C)`` uint8, C = 1 (grey) or 3 (RGB).
        fps: frames a second.
        name: of the file, or "".
        values: what is known or was asked of it: "label" ("3,8" where it shows several), "text", numbers.

    Raises:
        ValueError: frames of another shape or type, or a rate that is not positive.
    """

    frames: np.ndarray
    fps: float
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, dtype = self.frames.shape, self.frames.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
            raise ValueError(f"a clip's frames are (T, H, W, 1 or 3) of uint8, not {shape} of {dtype}")
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"a clip has a positive number of frames a second, not {self.fps}")

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.frames.shape))
        return f"Clip({self.name!r}, {size}, {self.fps:g} fps)"

    @property
    def seconds(self) -> float:
        """The length."""
        return len(self.frames) / self.fps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.frames.shape[3]


def signed(frames: np.ndarray) -> Tensor:
    """uint8 as float32 numbers in [-1, 1], of the same shape."""
    return torch.tensor(frames).float() / 127.5 - 1


def unsigned(frames: Tensor) -> np.ndarray:
    """The inverse of ``signed``, exact for what it gave; other numbers are rounded and clipped."""
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
