"""From what is asked to what is given: an input becomes the frames of the result that are known, and which pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import tasks
from .clip import Clip
from .data import prepared
from .prepare import Preparation
from .request import VideoRequest

_STRENGTH = 0.6  # of "vary"


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


def given(request: VideoRequest, clip: Clip, usual: int) -> Given:
    """What an input of the result's size gives.

    Args:
        request: its task, and what belongs to it.
        clip: the input, of the result's size and colours.
        usual: frames of a result, where neither the request nor the input says how many.

    Raises:
        ValueError: the input is too short for the task, there is nothing to make, or the box lies outside the frames.
    """
    if request.task in ("image", "first_last", "predict"):
        return _ends(request, clip, usual)
    frames, fps, (height, width) = clip.frames, clip.fps, clip.size
    if request.task == "interpolate":
        if len(frames) < 2:
            raise ValueError(f"there is nothing between the frames of {clip.name}: it has one")
        stride = request.every or 2
        frames, fps = np.repeat(frames, stride, axis=0)[: (len(frames) - 1) * stride + 1], fps * stride
    total = request.frames or len(frames)
    if total > len(frames):
        raise ValueError(f"{clip.name} gives {len(frames)} frames for task={request.task}, but {total} are asked for")
    shape = (total, height, width)
    if request.task == "vary":
        strength = _STRENGTH if request.strength is None else request.strength
        return Given(frames[:total], torch.full(shape, strength == 0), fps, strength)
    if request.task == "interpolate":
        known = tasks.everywhere(tasks.every(total, stride), height, width)
    else:
        top, left, rows, columns = request.box or (0, 0, 0, 0)
        if not (rows and columns and top + rows <= height and left + columns <= width):
            raise ValueError(f"the box {request.box} does not lie within frames of {height} x {width} pixels")
        known = tasks.box(shape, top, left, rows, columns, inside=request.task == "outpaint")
    if known.all() or not known.any():
        what = f"{total} frame{'s' * (total > 1)}" if request.task == "interpolate" else f"the box {request.box}"
        raise ValueError(f"task={request.task} with {what} leaves nothing to {'make' if known.all() else 'go by'}")
    return Given(frames[:total], known, fps)


def _ends(request: VideoRequest, clip: Clip, usual: int) -> Given:
    """The frames at the beginning, and for "first_last" the last. Where all of an input is kept, frames are added: up
    to the usual number, and half as many at least."""
    kept = {"image": 1, "first_last": 1}.get(str(request.task), request.known or len(clip))
    if request.task == "first_last" and len(clip) < 2:
        raise ValueError(f"{clip.name} has one frame: give a video, or two images as input=[first.png,last.png]")
    if kept > len(clip):
        raise ValueError(f"{clip.name} has {len(clip)} frames, fewer than known={kept}")
    least = kept + 2 if request.task == "first_last" else kept + 1
    total = request.frames or (len(clip) if len(clip) >= least else max(usual, kept + usual // 2, least))
    if total < least:
        fix = "known=N keeps fewer, frames=N makes more" if request.task == "predict" else f"frames={least} or more"
        raise ValueError(f"{kept} frames of {clip.name} are kept, and {total} asked for: nothing to make. {fix}")
    frames = np.zeros((total, *clip.frames.shape[1:]), np.uint8)
    frames[:kept] = clip.frames[:kept]
    times = tasks.beginning(total, kept)
    if request.task == "first_last":
        frames[-1] = clip.frames[-1]
        times = tasks.first_last(total)
    return Given(frames, tasks.everywhere(times, *clip.size), clip.fps)


def taken(request: VideoRequest, place: int, size: tuple[int, int], colours: int, fps: float) -> Clip:
    """The input of one result, resized to cover its size and cut about its middle; where a rate is asked for, resampled
    to it. Two images for "first_last" are one input.

    Args:
        place: of the result; inputs are walked through in turn.
        fps: of what has no rate of its own, a picture.

    Raises:
        FileNotFoundError: there is none.
        VideoError: it is no video, or a broken one.
    """
    rate = None if request.fps is None else request.fps / (request.every or 1)
    preparation = Preparation(sizes=(size,), channels=colours, fps=rate)
    paths = request.inputs
    if request.task == "first_last" and len(paths) == 2:
        first, last = (_opened(path, preparation) for path in paths)
        if len(first) == len(last) == 1:
            return Clip(np.concatenate([first.frames, last.frames]), rate or fps, first.name)
    clip = _opened(paths[place % len(paths)], preparation)
    return clip if len(clip) > 1 else Clip(clip.frames, rate or fps, clip.name)


def _opened(path: str, preparation: Preparation) -> Clip:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path!r} to go by")
    return _read(file, file.stat().st_mtime_ns, preparation)


@lru_cache(maxsize=32)
def _read(path: Path, modified: int, preparation: Preparation) -> Clip:
    """A file once read; ``modified`` tells a changed one from the one before."""
    info, frames = prepared(path, path.name, preparation)
    return Clip(frames, preparation.rate(info.fps), path.name)
