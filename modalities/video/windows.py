"""Videos longer than the network has learned: window by window, each going on from the frames before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noiseloom.core.spaces import Euclidean

from ..modality import Layout, Run


@dataclass(frozen=True, kw_only=True)
class VideoLayout(Layout):
    """What to generate, and what its videos will be.

    Attributes:
        frames: (batch, frames, height, width, colours) in [-1, 1]: what is known of each result.
        seen: (batch, frames, height, width) boolean: which of its pixels are known.
        fps: frames a second.
        values: what each was asked to be.
        history: frames that a window takes over from those before it.
        resembled: whether the latents of ``frames`` are the start, whatever the strength.
    """

    frames: Tensor
    seen: Tensor
    fps: float
    values: Sequence[Mapping[str, Any]]
    history: int
    resembled: bool = False


def starts(frames: int, window: int, history: int) -> list[int]:
    """Where windows begin: each ``window - history`` frames after the one before; the last ends with the video."""
    if frames <= window:
        return [0]
    return [*range(0, frames - window, window - history), frames - window]


def windows(
    layout: VideoLayout,
    run: Run,
    window: int,
    told: Callable[[Tensor, Tensor], dict[str, Tensor]],
    coded: Callable[[Tensor], Tensor],
    decoded: Callable[[Tensor, int], Tensor],
) -> Iterator[tuple[Tensor, int]]:
    """Sample a layout, and decode each of its windows.

    Args:
        run: samples a window's latents.
        window: the most frames of one.
        told: conditions from known frames and which pixels of them are known.
        coded: frames to latents, where sampling starts from them.
        decoded: latents, and how many frames they are, to frames in [-1, 1].

    Yields:
        After each window all frames, (batch, frames, height, width, colours), and how many of them are made. Known
        pixels are those of the layout, bit by bit.
    """
    frames, seen, total = layout.frames.clone(), layout.seen.clone(), layout.frames.shape[1]
    for index, start in enumerate(starts(total, window, layout.history)):
        here = slice(start, start + min(window, total))
        own, known = frames[:, here], seen[:, here]
        rows = torch.nonzero(~known.flatten(1).all(1)).flatten()  # a window that is known already needs no sampling
        if len(rows):
            cond = {name: value[rows] for name, value in {**layout.cond, **told(own, known)}.items()}
            first = coded(own[rows]) if layout.resembled or layout.strength < 1 else layout.start[rows]
            part = Layout(first, Euclidean(), cond, strength=layout.strength)
            made = decoded(run(part, index, rows.tolist()), own.shape[1])  # type: ignore[arg-type]
            own[rows] = torch.where(known[rows, ..., None], own[rows], made)
        seen[:, here] = True
        yield frames, here.stop
