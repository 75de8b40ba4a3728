"""On Gaussian data every linear sampler is a linear map of its start and its noises: each of these independent draws is
one axis, so that a single run gives the exact distribution of the result, without Monte Carlo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from noiseloom.core.samplers import Sampler, sample
from noiseloom.core.schedules import Schedule
from noiseloom.core.spaces import Euclidean

from .data import Gaussian, exact_denoiser


class OneHotNoise(Euclidean):
    """The n-th noise is the n-th axis; axis 0 is the start's."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "drawn", 0)

    def noise(self, like: Any, generators: Sequence[Generator]) -> Tensor:
        object.__setattr__(self, "drawn", self.drawn + 1)
        return torch.nn.functional.one_hot(torch.tensor([self.drawn]), like.shape[1]).to(like)


def final_std(sampler: Sampler, schedule: Schedule, grid: Tensor, start: float, std: float = 0.5) -> float:
    """The exact standard deviation of what a sampler makes of N(0, start^2) when the data is N(0, std^2)."""
    x = torch.zeros(1, 2 * len(grid) + 1, dtype=torch.float64)
    x[0, 0] = start
    denoise = exact_denoiser(Gaussian(std), schedule)
    for step in sample(
        sampler, denoise, x, grid, schedule=schedule, space=OneHotNoise(), generators=[torch.Generator()]
    ):
        x = step.x
    return float(x.norm())
