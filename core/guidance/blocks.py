"""Guidance by a network that is weakened for one of its estimates: the condition ``perturbed`` says in which blocks.

Nothing of the network is changed. The weak estimate is a row of the same call as the main one, so any number of
trajectories may share the network, and a cache sees rows as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..backbones.blocks import IDENTITY, SKIPPED
from ..denoiser import Denoise
from ..predictions import Estimate
from ..samples import Cond, Sample, Time, map_parts
from ..schedules import Schedule
from .conditions import ByConditions
from .guidance import GUIDANCE


class ByBlocks(ByConditions):
    """Guidance away from a network with some blocks perturbed. Around guidance by conditions the differences add up,

        x0 = guided + (scale - 1) (main - weak)

    with ``main`` the estimate that is told everything, and all estimates come from one call.

    Args:
        denoise: a denoiser of the network dit, or guidance of one.
        scale: 1 is no guidance; the papers' scale is one less.
        blocks: which, counted from 0; by default the one in the middle.
        interval, rescale, schedule: see ``Ladder``.

    Raises:
        ValueError: a network without blocks, a block that it does not have.
    """

    change: int
    first = 0  # the first block that can be chosen

    def __init__(
        self,
        denoise: Denoise,
        scale: float = 2.0,
        blocks: Sequence[int] | None = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, rescale, schedule)
        self.around = denoise if isinstance(denoise, ByConditions) else None
        self.asked = denoise if self.around is None else self.around.asked
        self.depth = _depth(denoise)
        self.blocks = (self.depth // 2,) if blocks is None else tuple(int(block) for block in blocks)
        if not self.blocks or not all(self.first <= block < self.depth for block in self.blocks):
            raise ValueError(f"blocks are some of {self.first} to {self.depth - 1}, got {list(self.blocks)}")

    def told(self, cond: Cond | None, count: int) -> Sequence[Cond]:
        inner = self.around
        rest = [cond or {}] if inner is None or inner._idle(cond) else inner.told(cond, count)
        untouched = torch.zeros(count, self.depth, dtype=torch.long)
        full = [{**told, "perturbed": told.get("perturbed", untouched)} for told in rest]
        weak = full[-1]["perturbed"].clone()
        weak[:, list(self.blocks)] = self.change
        return [{**full[-1], "perturbed": weak}, *full]

    def climb(
        self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None, estimates: Sequence[Sample]
    ) -> Estimate:
        weak, *rest = estimates
        main, shift, start = rest[-1], None, rest[-1]
        if self.around is not None and len(rest) > 1:
            guided = self.around.climb(x, t, cond, previous, rest)
            start, shift = guided.x0, guided.shift
        directions = [map_parts(torch.sub, main, weak)]
        return self.estimate(x, self.extrapolated(start, main, directions, t, cond), t, shift)

    def _of_main(self, cond: Cond | None, count: int) -> Cond | None:
        past = (cond or {}).get("past")
        rest = len(past) - count if past is not None else 0  # the first rows are the weak estimate's
        return cond if cond is None or not rest else {**cond, "past": past[-rest:]}


def _depth(denoise: Any) -> int:
    """How many blocks the network has that a denoiser, or what is around it, asks."""
    while denoise is not None and not hasattr(denoise, "network"):
        denoise = getattr(denoise, "denoise", None) or getattr(denoise, "denoiser", None)
    network = getattr(denoise, "network", None)
    if not hasattr(network, "run_blocks"):
        raise ValueError("this guidance perturbs the blocks of a network: it is for the network dit")
    return len(network.blocks)


@GUIDANCE.register("perturbed_attention")
class PerturbedAttention(ByBlocks):
    """Perturbed-attention guidance (Ahn et al. 2024): in some blocks of the weak estimate's network every token attends
    to itself alone. It needs no conditions.

    Args:
        scale: 1 is no guidance; the paper's scale is one less.
        blocks: which, counted from 0; by default the one in the middle.
    """

    change = IDENTITY


@GUIDANCE.register("skip_layers")
class SkipLayers(ByBlocks):
    """Skip-layer guidance (Hyung et al. 2024, spatiotemporal skip): the weak estimate's network lacks some blocks.

    Args:
        scale: 1 is no guidance; the papers' scale is one less.
        blocks: which, counted from 0, but not the first, by which caching compares; by default the one in the middle.
    """

    change = SKIPPED
    first = 1
