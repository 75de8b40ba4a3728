"""Moving digits: handwritten digits that fly straight and bounce off the walls (Srivastava et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SPEED = 0.1  # of the free way, in a frame: 3.6 pixels where digits of 28 move on 64
_WALL = 1.0  # the free way is as long as that


@dataclass(frozen=True)
class Scene:
    """A clip to be drawn.

    Attributes:
        frames: (frames, size, size) uint8, light on black; digits that overlap show the lighter.
        digits: which they are, sorted.
        images: their indices among the images.
    """

    frames: np.ndarray
    digits: list[int]
    images: list[int]


def moving_digits(
    images: np.ndarray,
    labels: np.ndarray,
    random: np.random.Generator,
    count: int = 2,
    frames: int = 20,
    size: int = 64,
    speed: tuple[float, float] = (_SPEED, _SPEED),
    chosen: Sequence[int] | None = None,
) -> Scene:
    """A scene of so many digits, each with a place and a direction of its own.

    Args:
        images: (n, height, width) uint8.
        labels: (n,) which digit each shows.
        count: digits in the scene.
        speed: the least and the most, as a share of the free way in a frame; (0.1, 0.1) is the benchmark's.
        chosen: indices of the images; by default drawn.
    """
    picks = [int(random.integers(len(images))) for _ in range(count)] if chosen is None else list(chosen)
    canvas = np.zeros((frames, size, size), np.uint8)
    height, width = images.shape[1:]
    for pick in picks:
        way = _bouncing(random, frames, random.uniform(*speed))
        for canvas_frame, (top, left) in zip(canvas, np.round(way * (size - height, size - width)), strict=True):
            place = canvas_frame[int(top) : int(top) + height, int(left) : int(left) + width]
            np.maximum(place, images[pick], out=place)
    return Scene(canvas, sorted(int(labels[pick]) for pick in picks), picks)


def _bouncing(random: np.random.Generator, frames: int, speed: float) -> np.ndarray:
    """(frames, 2) places in [0, 1]: straight on, mirrored at the walls."""
    angle = random.uniform(0, 2 * np.pi)
    straight = random.uniform(0, _WALL, 2) + speed * np.arange(frames)[:, None] * (np.sin(angle), np.cos(angle))
    return _WALL - np.abs(straight % (2 * _WALL) - _WALL)
