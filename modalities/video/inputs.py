"""From what is asked to what is given: an input becomes the frames of the result that are known, and which pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import tasks
from .clip import Clip, VideoError
from .prepare import Preparation
from .reading import read
from .request import VideoRequest


@dataclass(frozen=True)
class Given:
    """What is known of one result.

    Attributes:
        frames: (frames, height, width, colours) uint8: the known pixels; what the others hold is not looked at, unless
            ``strength`` is below 1.
        known: (frames, height, width) boolean.
        fps: frames a second of the result.
        strength: 1; less starts from ``frames``.
    """

    frames: np.ndarray
    known: Tensor
    fps: float
    strength: float = 1.0


def given(request: VideoRequest, clip: Clip) -> Given:
    """What an input of the result's size gives.

    Args:
        request: its task, and what belongs to it.
        clip: the input, of the result's size and colours.

    Raises:
        ValueError: the input is too short for the task, or the box lies outside the frames.
    """
    frames, (height, width), n = clip.frames, clip.size, len(clip)
    if request.task in ("image", "first_last", "predict"):
        return _ends(request, clip)
    if request.task == "interpolate":
        stride = request.every or 2
        if n < 2:
            raise ValueError(f"there is nothing between the frames of an input of one: {clip.name}")
        spread = np.repeat(frames, stride, axis=0)[: (n - 1) * stride + 1]
        known = tasks.everywhere(tasks.every(len(spread), stride), height, width)
        return Given(spread, known, clip.fps * stride)
    total = min(request.frames or n, n)
    if request.frames is not None and request.frames > n:
        raise ValueError(f"{clip.name} has {n} frames, {request.frames} are asked for: task={request.task} adds none")
    shape = (total, height, width)
    if request.task == "vary":
        strength = 0.6 if request.strength is None else request.strength
        known = torch.full(shape, strength == 0)
        return Given(frames[:total], known, clip.fps, strength)
    top, left, rows, columns = request.box or (0, 0, 0, 0)
    if not (rows and columns and top + rows <= height and left + columns <= width):
        raise ValueError(f"the box {request.box} does not lie within frames of {height} x {width} pixels")
    known = tasks.box(shape, top, left, rows, columns, inside=request.task == "outpaint")
    if not known.any() or known.all():
        raise ValueError(f"the box {request.box} leaves nothing to {'go by' if not known.any() else 'make'}")
    return Given(frames[:total], known, clip.fps)


def _ends(request: VideoRequest, clip: Clip) -> Given:
    """The frames at the beginning, and for "first_last" the last."""
    kept = {"image": 1, "first_last": 1}.get(str(request.task), request.known or len(clip))
    if kept > len(clip):
        raise ValueError(f"{clip.name} has {len(clip)} frames, fewer than known={kept}")
    total = request.frames or max(len(clip), kept + 1)
    least = kept + 2 if request.task == "first_last" else kept + 1
    if total < least:
        fix = "known=N keeps fewer, frames=N makes more" if request.task == "predict" else f"frames={least} or more"
        raise ValueError(f"{kept} frames of {clip.name} are kept, and {total} asked for: nothing to make. {fix}")
    frames = np.zeros((total, *clip.frames.shape[1:]), np.uint8)
    frames[:kept] = clip.frames[:kept]
    times = tasks.beginning(total, kept)
    if request.task == "first_last":
        if len(clip) < 2:
            raise ValueError(f"{clip.name} has one frame: give a video, or two images as input=[first.png,last.png]")
        frames[-1] = clip.frames[-1]
        times = tasks.first_last(total)
    return Given(frames, tasks.everywhere(times, *clip.size), clip.fps)


def opened(path: str, colours: int, size: tuple[int, int]) -> Clip:
    """A file as a clip of this size and these colours: resized to cover it, and its middle taken.

    Raises:
        FileNotFoundError: there is none.
        VideoError: it is no video, or a broken one.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path!r} to go by")
    return _read(file, file.stat().st_mtime_ns, colours, size)


@lru_cache(maxsize=32)
def _read(path: Path, modified: int, colours: int, size: tuple[int, int]) -> Clip:
    """A file once read; ``modified`` tells a changed one from the one before."""
    clip = read(path, path.name)
    return Clip(Preparation(sizes=(size,), channels=colours).fit(clip.frames), clip.fps, path.name)


def joined(clips: list[Clip]) -> Clip:
    """Images or clips one after another: the two ends of "first_last".

    Raises:
        VideoError: they have different sizes.
    """
    if len({clip.frames.shape[1:] for clip in clips}) > 1:
        raise VideoError(clips[0].name, "its size is not that of the others")
    return Clip(np.concatenate([clip.frames for clip in clips]), clips[0].fps, clips[0].name)
