"""Sounds longer than the network has learned: window by window, each going on from what the ones before it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noiseloom.core.samples import Cond
from noiseloom.core.spaces import Euclidean

from ..modality import Layout, Run


def windows(layout: Layout, run: Run, most: int, told: Callable[[Tensor], Cond]) -> Iterator[tuple[Tensor, int]]:
    """Sample a layout of more than ``most`` frames. A window begins with a third that is known from the one before;
    the last window of each sample ends where the sample does, and is a whole one.

    Args:
        layout: its start holds the frames that are known.
        run: samples a window.
        most: frames of a window.
        told: conditions of windows of so many real frames, (rows,).

    Yields:
        After each window all samples, (batch, frames, width), and how many frames of the longest are made.
    """
    mask, x = layout.cond["mask"], layout.start.clone()
    assert isinstance(x, Tensor)
    known = torch.zeros_like(x, dtype=torch.bool)
    if isinstance(layout.known, Tensor):
        known |= layout.known
    ends, stride = (mask.sum(1) - most).clamp(min=0), most - most // 3
    for index in range(1 - int(-ends.max() // stride)):
        starts = torch.minimum(torch.tensor(index * stride), ends)
        places = starts[:, None] + torch.arange(most)
        here = torch.arange(len(x))[:, None], places
        unmade = mask[here] & known[here].logical_not().any(-1)
        rows = torch.nonzero(unmade.any(1)).flatten()
        if len(rows):
            own = here[0][rows], here[1][rows]
            x[own] = run(_window(layout, x[own], known[own], own, told), index, rows.tolist()).to(x)
        known[here] = True
        yield x, int(starts.max()) + most


def _window(
    layout: Layout, x: Tensor, known: Tensor, own: tuple[Tensor, Tensor], told: Callable[[Tensor], Cond]
) -> Layout:
    """One window of some of the samples, those at ``own``; what was made before is known."""
    mask, given = layout.cond["mask"][own], known if known.any() else None
    cond = {name: value[own[0][:, 0]] for name, value in layout.cond.items()}
    return Layout(x, Euclidean(mask, given), {**cond, **told(mask.sum(1)), "mask": mask}, given, layout.strength)
