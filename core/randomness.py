"""One random generator per sample.

Sample ``i`` with seed ``s`` is the same whatever the batch size, the padding, the number of processes or the device:
every generator lives on the CPU and draws the shape of its own sample only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_MASK = (1 << 64) - 1


def mix(*keys: int) -> int:
    """A 63-bit seed from any integers (SplitMix64 finaliser over the sequence): nearby keys give unrelated seeds."""
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = (state ^ (key & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by the keys, e.g. ``generator(seed, step, index)``."""
    return torch.Generator().manual_seed(mix(*keys))


def sample_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator for each sample index of a run."""
    return [generator(seed, index) for index in indices]


class StepRandomness:
    """The random numbers of one training step: they depend on (seed, step, place in the global batch) only.

    Args:
        seed: the run's seed.
        step: the step.
        places: the places of this process's samples in the global batch.
        total: the size of the global batch.
    """

    def __init__(self, seed: int, step: int, places: Sequence[int], total: int) -> None:
        self.step = step
        self.generators = [generator(seed, step, place) for place in places]
        self._shared = generator(seed, step, -1)
        self._places, self._total = torch.as_tensor(list(places)), total

    def uniform(self, stratified: bool = True) -> torch.Tensor:
        """``(batch,)`` float64 in (0, 1); stratified: one in each of ``total`` equal bins over the global batch, whose
        order is random, so that a sample's place says nothing of its time."""
        own = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self.generators])
        if stratified:
            order = torch.randperm(self._total, generator=self._shared)
            own = (order[self._places] + own) / self._total
        return own.clamp(1e-9, 1 - 1e-9)

    def coin(self, probability: float) -> bool:
        """One coin for the whole step, the same in every process."""
        return bool(torch.rand((), generator=self._shared) < probability)
