"""What a judge learns from: clips at one size, padded to one length, and how often each shows every class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .changes import SHORTEST
from .clip import Clip
from .prepare import LUMA

UNKNOWN = -1  # how often a class is in a clip without a label: it counts for nothing
_TURN, _SCALE, _SHEAR, _SHIFT = 0.12, 0.08, 0.1, 0.06  # deviations: rad, share, share, share of half the side


@dataclass(frozen=True)
class LabelledVideos:
    """Frames (batch, t, size, size, colours) in [0, 1], how many of them are real (batch,), and how often each class is
    shown (batch, classes) int64, or UNKNOWN."""

    frames: Tensor
    lengths: Tensor
    shown: Tensor


def resized(clip: Clip, size: int, colours: int) -> Tensor:
    """A clip's frames (t, colours, size, size) in [0, 1]; the sides are scaled each by itself."""
    frames = torch.tensor(clip.frames).movedim(-1, 1).float() / 255
    if clip.channels > colours:
        frames = (frames * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    if clip.size != (size, size):
        frames = F.interpolate(frames, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return frames.expand(-1, colours, -1, -1)


def cut(clips: Sequence[Tensor], generators: Sequence[Generator]) -> list[Tensor]:
    """A part of each clip, from a random place; all of one random length, log-uniform from 4 to the longest's, where
    they have as many frames: short ones teach what is seen, long ones how it moves, for less work than the whole."""
    longest = max(map(len, clips))
    share = torch.rand((), generator=generators[0]).item()
    length = round(min(SHORTEST, longest) ** (1 - share) * longest**share)
    starts = [
        int(torch.randint(max(len(c) - length, 0) + 1, (), generator=g)) for c, g in zip(clips, generators, strict=True)
    ]
    return [clip[start : start + length] for clip, start in zip(clips, starts, strict=True)]


def moved(frames: Tensor, random: Generator) -> Tensor:
    """A clip (t, colours, size, size), a little turned, sheared, scaled and shifted as a whole."""
    turn, grow, shear, right, down = torch.randn(5, generator=random).tolist()
    cos, sin, scale = math.cos(_TURN * turn), math.sin(_TURN * turn), math.exp(_SCALE * grow)
    rows = [[scale * cos, _SHEAR * shear - sin, _SHIFT * right], [sin, scale * cos, _SHIFT * down]]
    flat = frames.flatten(0, 1)[None]
    grid = F.affine_grid(torch.tensor([rows]), [1, 1, *flat.shape[2:]], align_corners=False)
    sampled = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return sampled[0].unflatten(0, frames.shape[:2])


def stacked(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Clips (t, colours, h, w) as (batch, t, h, w, colours), zero where one has ended, and their lengths."""
    lengths = torch.tensor([len(clip) for clip in clips])
    return torch.nn.utils.rnn.pad_sequence([clip.movedim(1, -1) for clip in clips], batch_first=True), lengths


def counted(label: object, classes: Sequence[str], most: int) -> list[int]:
    """How often each class is in a label such as "3,8", at most ``most`` times; UNKNOWN for all where there is no label
    or one of a class that is not known."""
    parts = split_label(label)
    if not parts or not set(parts) <= set(classes):
        return [UNKNOWN] * len(classes)
    return [min(parts.count(one), most) for one in classes]


def split_label(label: object) -> list[str]:
    """The classes in a label, sorted; a number is its word."""
    if label is None:
        return []
    text = f"{label:g}" if isinstance(label, float) else str(label)
    return sorted(part.strip() for part in text.split(",") if part.strip())
