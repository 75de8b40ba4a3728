"""What is known of a video: one mask of pixels makes every task. In training one is drawn for each clip, so that a
single model learns them all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from noiseloom.core.registry import unknown

#: how often each is drawn in training, beside nothing known
SHARES = {"image": 0.15, "first_last": 0.15, "predict": 0.3, "interpolate": 0.15, "inpaint": 0.15, "outpaint": 0.1}


def first(frames: int) -> Tensor:
    """The first frame: image to video."""
    return torch.arange(frames) == 0


def first_last(frames: int) -> Tensor:
    """The two ends."""
    places = torch.arange(frames)
    return (places == 0) | (places == frames - 1)


def beginning(frames: int, known: int) -> Tensor:
    """The first ``known`` frames: prediction, extension."""
    return torch.arange(frames) < known


def every(frames: int, stride: int) -> Tensor:
    """Each ``stride``-th frame from the first: interpolation."""
    return torch.arange(frames) % stride == 0


def everywhere(times: Tensor, height: int, width: int) -> Tensor:
    """Frames that are known, (frames,), as pixels (frames, height, width)."""
    return times[:, None, None].expand(-1, height, width).clone()


def box(shape: tuple[int, int, int], top: int, left: int, height: int, width: int, inside: bool) -> Tensor:
    """Pixels (frames, height, width) inside a box of every frame, or outside it."""
    known = torch.full(shape, not inside)
    known[:, top : top + height, left : left + width] = inside
    return known


def checked_shares(shares: Mapping[str, float] | None) -> dict[str, float]:
    """How often each task is drawn; ``SHARES`` where nothing is said.

    Raises:
        ValueError: an unknown task, or shares that are none.
    """
    shares = dict(SHARES if shares is None else shares)
    if wrong := [name for name in shares if name not in SHARES]:
        raise ValueError(unknown("task to train", wrong[0], list(SHARES)))
    if min(shares.values(), default=0) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"shares of tasks are not negative, and not all 0: {shares}")
    return shares


def random_known(
    shape: tuple[int, int, int], generator: Generator, rate: float, shares: Mapping[str, float] = SHARES
) -> Tensor:
    """What is known of a training clip, boolean (frames, height, width): with probability ``rate`` one of ``shares``,
    else nothing. It is never all. A clip of one frame has spatial tasks only."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    frames, height, width = shape
    draw = uniform(0, 1)
    if draw >= rate:
        return torch.zeros(shape, dtype=torch.bool)
    draw *= sum(shares.values()) / rate
    names, ends = list(shares), torch.tensor(list(shares.values())).cumsum(0)
    task = names[min(int((draw >= ends).sum()), len(names) - 1)]
    if frames == 1 and task != "outpaint":
        task = "inpaint"
    if task in ("inpaint", "outpaint"):
        rows, columns = (max(round(side * uniform(0.25, 0.75)), 1) for side in (height, width))
        top, left = round(uniform(0, height - rows)), round(uniform(0, width - columns))
        return box(shape, top, left, rows, columns, inside=task == "outpaint")
    if task == "image" or (task == "first_last" and frames == 2):
        times = first(frames)
    elif task == "first_last":
        times = first_last(frames)
    elif task == "predict":
        times = beginning(frames, round(uniform(1, frames - 1)))
    else:
        times = every(frames, round(uniform(2, max(frames // 3, 2))))
    return everywhere(times, height, width)
