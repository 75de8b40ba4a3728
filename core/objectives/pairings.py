"""Which noise goes with which sample of a batch: paths that cross less are straighter, and fewer steps follow them.

A pairing changes which noise a sample is seen with, so that the two are no longer independent. What is learned is then
the probability-flow ODE of straighter paths: sample it with a deterministic sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ..registry import Registry
from ..samples import Sample, map_parts, parts

if TYPE_CHECKING:
    from .denoising import Example

# pairing(example, noise, generators) -> noise; each generator is its sample's own
Pairing = Callable[["Example", Sample, Sequence[Generator]], Sample]
PAIRINGS: Registry[Pairing] = Registry("pairing")


@PAIRINGS.register("optimal_transport")
def optimal_transport() -> Pairing:
    """The noises of a batch permuted so that the squared distance to the data is least (Tong et al. 2024).

    Only among samples of equal conditions and masks: exchanged between conditions, the noise that goes with a condition
    would no longer be normal, and samples of it would be drawn from the wrong start. Samples whose conditions nobody
    shares, such as texts, keep their own noise. The batch is that of one process.
    """

    def pair(example: Example, noise: Sample, generators: Sequence[Generator]) -> Sample:
        from scipy.optimize import linear_sum_assignment

        clean, eps = (_flat(sample) for sample in (example.x0, noise))
        order = torch.arange(len(clean))
        for group in _alike(example):
            cost = torch.cdist(clean[group], eps[group]).square()
            order[group] = group[torch.from_numpy(linear_sum_assignment(cost.numpy())[1])]
        return map_parts(lambda part: part[order.to(part.device)], noise)

    return pair


@PAIRINGS.register("nearest")
def nearest(candidates: int = 4) -> Pairing:
    """Of a few noises drawn for a sample, the one nearest to it (immiscible diffusion, Li et al. 2024). Its noise
    depends on no other sample, whatever the batch and the conditions. It is pulled towards the data by the mean of the
    greatest of so many normal numbers (about 1 of 4) along one direction of all: little in many dimensions, and a bias
    of a few dimensions."""
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")

    def pair(example: Example, noise: Sample, generators: Sequence[Generator]) -> Sample:
        clean, best = _flat(example.x0), noise
        distance = (_flat(best) - clean).square().sum(1)
        for _ in range(candidates - 1):
            other = example.space.noise(example.x0, generators)
            far = (_flat(other) - clean).square().sum(1)
            nearer = far < distance

            def choose(mine: Tensor, its: Tensor, nearer: Tensor = nearer) -> Tensor:
                return torch.where(nearer.to(mine.device).reshape(-1, *[1] * (mine.ndim - 1)), its, mine)

            best, distance = map_parts(choose, best, other), torch.minimum(far, distance)
        return best

    return pair


def _flat(sample: Sample) -> Tensor:
    """(batch, all numbers of a sample), float32 on the CPU."""
    return torch.cat([part.detach().float().cpu().flatten(1) for part in parts(sample).values()], 1)


def _alike(example: Example) -> list[Tensor]:
    """The places of the samples whose conditions, masks among them, are all equal, for each kind."""
    count = len(next(iter(parts(example.x0).values())))
    told = list(example.cond.values()) + ([] if example.known is None else list(parts(example.known).values()))
    columns = [
        torch.nan_to_num(value.detach().cpu().double(), nan=torch.inf).reshape(count, -1)
        for value in told
        if isinstance(value, Tensor) and value.ndim and len(value) == count
    ]
    if not columns:
        return [torch.arange(count)]
    kinds = torch.unique(torch.cat(columns, 1), dim=0, return_inverse=True)[1]
    return [torch.nonzero(kinds == kind)[:, 0] for kind in range(int(kinds.max()) + 1)]
