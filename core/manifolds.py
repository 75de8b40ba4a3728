r"""Curved spaces: angles and directions (Riemannian flow matching, Chen and Lipman 2024).

The path from a clean point to a noisy one is the geodesic, walked at even speed. Where it is at fraction sigma, with
its velocity v there, is said as the straight line that touches it:

    clean = x - sigma v        noise = x + (1 - sigma) v        x = (1 - sigma) clean + sigma noise

so every linear prediction means what it always does, an Euler step follows v, and the projection at its end brings x
back. The schedule is one of alpha + sigma = 1. Samplers may keep nothing from step to step: what was straight at one
point is not at the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from .predictions import scale_like
from .samples import align_left
from .schedules import Schedule
from .spaces import Euclidean, Space


@dataclass(frozen=True)
class Curved(Space):
    """What curved spaces share.

    Attributes:
        mask, known: as of ``Euclidean``.
    """

    mask: Tensor | None = None
    known: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        return Euclidean(self.mask, self.known).mean(values)

    def check(self, sampler: Any) -> None:
        if sampler.stochastic or getattr(sampler, "memory", 0):
            raise ValueError(
                f"{type(self).__name__.lower()} needs a deterministic sampler without memory: euler, midpoint, heun"
            )

    def tempered(self, noise: Tensor, temperature: float) -> Tensor:
        if temperature != 1:
            raise ValueError(f"noise on a {type(self).__name__.lower()} has no temperature")
        return noise

    def _real(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x * align_left(self.mask.to(x), x)


@dataclass(frozen=True)
class Torus(Curved):
    """Angles in [-pi, pi), each element one: torsions. Noise is uniform."""

    def noise(self, like: Tensor, generators: Sequence[Generator]) -> Tensor:
        normal = Euclidean(self.mask).noise(like.double(), generators)
        return self._real((2 * math.pi * torch.special.ndtr(normal) - math.pi).to(like))

    def project(self, x: Tensor) -> Tensor:
        return self._real(wrapped(x))

    def noised(self, x0: Tensor, noise: Tensor, t: Any, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        sigma = straight_sigma(t, schedule)
        way = wrapped(noise - x0)
        x = wrapped(x0 + scale_like(sigma, x0) * way)
        clean = x - scale_like(sigma, x0) * way
        return x, clean, clean + way


@dataclass(frozen=True)
class Sphere(Curved):
    """Unit vectors along the last dimension: directions, or rotations as quaternions. Noise is uniform. Projection
    onto the sphere is a retraction of second order, so solvers of order two keep it."""

    def noise(self, like: Tensor, generators: Sequence[Generator]) -> Tensor:
        return self.project(Euclidean(self.mask).noise(like, generators))

    def project(self, x: Tensor) -> Tensor:
        return self._real(torch.nn.functional.normalize(x, dim=-1))

    def noised(self, x0: Tensor, noise: Tensor, t: Any, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        sigma = straight_sigma(t, schedule)
        angle = 2 * torch.atan2((x0 - noise).norm(dim=-1, keepdim=True), (x0 + noise).norm(dim=-1, keepdim=True))
        part: Any = scale_like(sigma, x0)
        sine = torch.sin(angle).clamp(min=1e-6)
        x = (torch.sin((1 - part) * angle) * x0 + torch.sin(part * angle) * noise) / sine
        velocity = angle * (torch.cos(part * angle) * noise - torch.cos((1 - part) * angle) * x0) / sine
        same = angle < 1e-6
        x, velocity = torch.where(same, x0, x), torch.where(same, 0, velocity)
        return x, x - part * velocity, x + (1 - part) * velocity


def wrapped(angle: Tensor) -> Tensor:
    """An angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def straight_sigma(t: Any, schedule: Schedule) -> Tensor:
    """The fraction of the way at times ``t``.

    Raises:
        ValueError: a schedule that is not of the flow's scaling.
    """
    if schedule.scaling != "flow":
        raise ValueError("a curved space needs a schedule with alpha + sigma = 1, such as flow")
    return schedule.sigma(t)
