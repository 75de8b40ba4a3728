"""What can be done to the time of a clip: what a judge learns to tell without labels, and what a metric must see.

Every change keeps the frames what they are, so that no metric of single frames can see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from noiseloom.core.randomness import generator

from .clip import Clip

CHANGES = ("none", "static", "shuffled", "jump", "slow", "fast", "swapped")
CONTROLS = ("static", "shuffled", "swapped")
SHORTEST = 4  # frames of a clip in which a change can be seen


def order(change: str, length: int, random: Generator) -> Tensor:
    """Which frame of a clip is shown at each time, (length,) int64.

        none      as they are                     slow    at half the speed: each frame twice
        static    one of them all the time        fast    every second frame, there and back
        shuffled  in random order                 jump    the second part before the first

    "swapped" keeps the order: its second half is that of another clip.
    """
    times = torch.arange(length)
    if change == "static":
        return torch.full((length,), int(torch.randint(length, (), generator=random)))
    if change == "shuffled":
        return torch.randperm(length, generator=random)
    if change == "jump":
        return times.roll(int(torch.randint(length // 4, length - length // 4 + 1, (), generator=random)))
    if change == "slow":
        return times // 2 + int(torch.randint(length // 2 + 1, (), generator=random))
    if change == "fast":
        return length - 1 - ((2 * times) % max(2 * length - 2, 1) - (length - 1)).abs()
    return times


def control(clips: Sequence[Clip], change: str, seed: int = 0) -> list[Clip]:
    """Clips of which each has gone through a change; "swapped" goes on with the next clip of the same shape.

    Labels and names are left out of what is known of a clip: they may no longer hold.

    Raises:
        ValueError: there is no such change.
    """
    if change not in CHANGES:
        raise ValueError(f"unknown change {change!r}. Choices: {', '.join(CHANGES)}")
    changed = []
    for index, clip in enumerate(clips):
        frames = clip.frames[order(change, len(clip), generator(seed, index)).numpy()]
        if change == "swapped":
            following = (clips[(index + k) % len(clips)] for k in range(1, len(clips)))
            other = next((one for one in following if one.frames.shape == clip.frames.shape), clip)
            half = len(clip) // 2
            frames = np.concatenate([frames[:half], other.frames[half:]])
        changed.append(Clip(frames, clip.fps))
    return changed
