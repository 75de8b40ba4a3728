"""How a clip moves, from its frames alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STILL = 0.5 / 255  # mean |frame difference| below which a clip stands still: half a grey level


@dataclass(frozen=True)
class Motion:
    """What a clip's motion measures; None where it has too few frames, or nothing in it moves.

    Attributes:
        change: mean |difference of a frame and the next| of pixels in [0, 1].
        flicker: mean |difference of the mean brightness of a frame and the next|, in [0, 1].
        roughness: mean |second difference of frames| over that of first differences: 2 where each frame undoes what
            the last one did, near sqrt(3) for unrelated frames of noise, small for slow change.
        speed: mean distance that the centre of what moves goes in a frame, in shares of the frame's diagonal.
        jerk: mean change of that velocity from frame to frame, over the mean speed: 0 straight on, 2 to and fro.
    """

    change: float | None = None
    flicker: float | None = None
    roughness: float | None = None
    speed: float | None = None
    jerk: float | None = None

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return self.change is not None and self.change < STILL


def motion(frames: np.ndarray) -> Motion:
    """The motion of a clip (T, H, W, C) uint8."""
    pixels = frames.astype(np.float64) / 255
    if len(pixels) < 2:
        return Motion()
    first = np.diff(pixels, axis=0)
    change = float(np.abs(first).mean())
    flicker = float(np.abs(first.mean((1, 2, 3))).mean())
    if len(pixels) < 3 or change < STILL:
        return Motion(change, flicker)
    roughness = float(np.abs(np.diff(first, axis=0)).mean()) / change
    velocity = np.diff(centres(pixels), axis=0)
    speed = float(np.linalg.norm(velocity, axis=1).mean())
    jerk = float(np.linalg.norm(np.diff(velocity, axis=0), axis=1).mean()) / speed if speed > 0 else None
    return Motion(change, flicker, roughness, speed / float(np.hypot(*frames.shape[1:3])), jerk)


def centres(pixels: Array) -> Array:
    """(T, 2): the centre of mass, in pixels, of what differs from the clip's background (the median over time); that of
    the frame where nothing does."""
    mass = np.abs(pixels - np.median(pixels, axis=0)).sum(3)
    total = mass.sum((1, 2))
    grid = np.indices(mass.shape[1:])
    middle = (np.array(mass.shape[1:]) - 1) / 2
    moments = np.einsum("thw,khw->tk", mass, grid)
    return np.where(total[:, None] > 0, moments / np.maximum(total, 1e-12)[:, None], middle)
