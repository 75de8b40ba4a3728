"""In which order the frames of a sequence are made: sampling as a matrix of (steps x frames) times.

A denoiser that takes a time per frame (diffusion forcing, Chen et al. 2024) lets each frame walk the grid when it
likes. With ``b_f`` the step at which frame f begins, it waits at the first time before it and at the last one after:

    grid[m, f] = times[clamp(m - b_f, 0, steps)]

All frames together have ``b_f = 0``; one after another ``b_f = f steps``; a staircase between them ``b_f = f lag``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .registry import Registry
from .samples import Sample

Order = Callable[[Tensor, int], Tensor]  # order(times (steps + 1,), frames) -> times (steps' + 1, frames)
ORDERS: Registry[Order] = Registry("order")


def staggered(times: Tensor, begins: Tensor) -> Tensor:
    """The module's equation.

    Args:
        times: ``(steps + 1,)``.
        begins: the step at which each frame begins, ``(frames,)``, integers.

    Returns:
        ``(steps' + 1, frames)``; the last frame to begin ends with the last row.
    """
    steps = len(times) - 1
    rows = torch.arange(steps + int(begins.max()) + 1)
    return times[(rows[:, None] - begins).clamp(0, steps)]


@ORDERS.register("full_sequence")
def full_sequence() -> Order:
    """All frames together."""
    return lambda times, frames: staggered(times, torch.zeros(frames, dtype=torch.long))


@ORDERS.register("autoregressive")
def autoregressive(chunk: int = 1) -> Order:
    """Frame after frame, each made from those before it. ``chunk``: frames that are made together."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    return lambda times, frames: staggered(times, torch.arange(frames) // chunk * (len(times) - 1))


@ORDERS.register("pyramid")
def pyramid(lag: int = 1) -> Order:
    """Each frame some steps behind the one before it. ``lag``: how many, at most all (then frame after frame)."""
    if lag < 1:
        raise ValueError(f"lag must be at least 1, got {lag}")
    return lambda times, frames: staggered(times, torch.arange(frames) * min(lag, len(times) - 1))


def arrange(order: Any, times: Tensor, x: Sample, known: Sample | None = None) -> Tensor:
    """The grid of a batch of sequences. Known frames take no steps: the others follow each other as if known ones were
    not there, so that a sample's order does not depend on its batch. Padding comes last.

    Args:
        order: a name, ``{"name": ..., options}`` or a rule; None leaves the grid as it is.
        times: a grid of numbers, ``(steps + 1,)``.
        x: ``(batch, frames, ...)``: one tensor.
        known: boolean, left-aligned with ``x``; a frame is known where all of it is.

    Returns:
        ``(steps' + 1, batch or 1, frames)``; ``times`` itself where all frames walk together.

    Raises:
        ValueError: a sample that is no sequence, times that are per element already, or an unknown name.
    """
    if order is None:
        return times
    rule = ORDERS.build(order)
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise ValueError("an order is for sequences, tensors (batch, frames, ...); these samples have none")
    if times.ndim > 1:
        raise ValueError("the grid that was given has times per element, which are an order already")
    free = torch.ones(1, x.shape[1], dtype=torch.bool)
    if isinstance(known, Tensor):
        flags = known.flatten(2).all(2) if known.ndim > 2 else known.reshape(len(known), -1)
        free = ~flags.cpu().expand(-1, x.shape[1])
    table = rule(times, max(int(free.sum(1).max()), 1))
    if bool((table == table[:, :1]).all()):
        return times
    place = (free.cumsum(1) - 1).clamp(min=0)
    return torch.where(free, table[:, place], times[-1])
