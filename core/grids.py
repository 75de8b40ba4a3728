"""Which times a sampler visits.

A grid is data: a float64 tensor of times from noise to data, ``(steps + 1,)`` falling from 1 (or less) to 0, or
``(steps + 1, *time)`` where each sample, frame or atom walks its own times; such an element may wait (equal times).
A rule ``rule(steps, schedule) -> grid`` makes one; the registry ``GRIDS`` names the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .registry import Registry
from .schedules import Schedule, Table

Rule = Callable[[int, Schedule], Tensor]
GRIDS: Registry[Rule | Tensor] = Registry("grid")


def check_grid(grid: Tensor) -> Tensor:
    """``grid`` in float64.

    Raises:
        ValueError: times outside [0, 1], or rising; equal neighbours are allowed per element only.
    """
    grid = torch.as_tensor(grid, dtype=torch.float64)
    if grid.ndim == 0 or len(grid) == 0:
        raise ValueError("a grid needs at least one time")
    if not bool(((grid >= 0) & (grid <= 1)).all()):
        raise ValueError("the times of a grid lie in [0, 1]")
    falls = grid[:-1] > grid[1:] if grid.ndim == 1 else grid[:-1] >= grid[1:]
    if not bool(falls.all()):
        raise ValueError("the times of a grid fall, from noise (1) to data (0)")
    return grid


def make_grid(grid: Any, steps: int | None, schedule: Schedule) -> Tensor:
    """A checked grid from a tensor of times, or from a rule or its name (50 steps where ``steps`` is None).

    Raises:
        ValueError: ``steps`` disagrees with a grid that is given, or is less than 1.
    """
    rule = GRIDS.build(grid)
    given = len(rule) - 1 if isinstance(rule, Tensor) else None
    if given is not None and steps not in (None, given):
        raise ValueError(f"the grid that was given has {given} steps, not {steps}")
    steps = given if given is not None else 50 if steps is None else steps
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    return check_grid(rule if isinstance(rule, Tensor) else rule(steps, schedule))


def shorten(grid: Tensor, strength: float) -> Tensor:
    """The part of a grid at times up to ``strength``, starting there exactly (SDEdit, Meng et al. 2022).

    A ``strength`` of 1 leaves the grid as it is; 0 leaves no step.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    lower = grid.clamp(max=strength)
    moves = (lower[:-1] != lower[1:]).flatten(1).any(1) if grid.ndim > 1 else lower[:-1] != lower[1:]
    return torch.cat([lower[:-1][moves], lower[-1:]])


@GRIDS.register("uniform")
def uniform() -> Rule:
    """Equally spaced times, 1 to 0."""
    return lambda steps, schedule: torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _levels(levels: int | None, schedule: Schedule, steps: int) -> int:
    count = levels or (schedule.levels if isinstance(schedule, Table) else 1000)
    if steps > count:
        raise ValueError(f"{steps} steps do not fit in {count} noise levels")
    return count


def _from_levels(indices: Tensor, levels: int) -> Tensor:
    """Level i of a discrete schedule is at t = (i + 1) / levels; t = 0 follows."""
    return torch.cat([(indices.double() + 1) / levels, torch.zeros(1, dtype=torch.float64)])


@GRIDS.register("trailing")
def trailing(levels: int | None = None) -> Rule:
    """Every (T / steps)-th noise level counted from the last (Lin et al. 2024, table 2).

    Args:
        levels: T; by default the schedule's own, or 1000 for a continuous schedule.
    """

    def rule(steps: int, schedule: Schedule) -> Tensor:
        count = _levels(levels, schedule, steps)
        return _from_levels(torch.round(count - torch.arange(steps).double() * (count / steps)) - 1, count)

    return rule


@GRIDS.register("leading")
def leading(levels: int | None = None) -> Rule:
    """Every (T // steps)-th noise level counted from the first (DDIM); it never visits pure noise.

    Args:
        levels: T; by default the schedule's own, or 1000 for a continuous schedule.
    """

    def rule(steps: int, schedule: Schedule) -> Tensor:
        count = _levels(levels, schedule, steps)
        return _from_levels(torch.arange(steps).flip(0) * (count // steps), count)

    return rule


@GRIDS.register("linspace")
def linspace(levels: int | None = None) -> Rule:
    """Noise levels equally spaced from the last to the first, both visited (improved DDPM).

    Args:
        levels: T; by default the schedule's own, or 1000 for a continuous schedule.
    """

    def rule(steps: int, schedule: Schedule) -> Tensor:
        count = _levels(levels, schedule, steps)
        return _from_levels(torch.linspace(count - 1, 0, steps, dtype=torch.float64).round(), count)

    return rule


def _from_log_snr(log_snr: Tensor, schedule: Schedule) -> Tensor:
    lowest = float(schedule.log_snr(1.0))
    if float(log_snr[0]) < lowest - 1e-9:
        raise ValueError(f"the grid starts at log-SNR {float(log_snr[0]):.4g}, the schedule ends at {lowest:.4g}")
    return torch.cat([schedule.time_of_log_snr(log_snr), torch.zeros(1, dtype=torch.float64)])


def _sigmas(name: str, low: float, high: float | None, schedule: Schedule) -> tuple[float, float]:
    """The ends of sigma / alpha; the upper one by default the schedule's, or 80 where that is infinite."""
    largest = math.exp(-float(schedule.log_snr(1.0)) / 2)
    high = high if high is not None else 80.0 if math.isinf(largest) else largest
    if not 0 < low < high:
        raise ValueError(f"{name} needs 0 < sigma_min < sigma_max, got {low} and {high}")
    return low, high


@GRIDS.register("karras")
def karras(sigma_min: float = 0.002, sigma_max: float | None = None, rho: float = 7.0) -> Rule:
    """``steps`` values of sigma / alpha equally spaced after the rho-th root, then 0 (Karras et al. 2022, eq. 5).

    Args:
        sigma_min: the last value before 0.
        sigma_max: the first; by default the schedule's largest, 80 where that is infinite.
        rho: larger values spend more steps near the data.
    """

    def rule(steps: int, schedule: Schedule) -> Tensor:
        low, high = _sigmas("karras", sigma_min, sigma_max, schedule)
        roots = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64)
        return _from_log_snr(-2 * rho * torch.log(roots), schedule)

    return rule


@GRIDS.register("exponential")
def exponential(sigma_min: float = 0.002, sigma_max: float | None = None, rho: float = 1.0) -> Rule:
    """``steps`` values of sigma / alpha equally spaced in their logarithm, then 0; with ``rho`` in its rho-th root
    ("polyexponential"; Crowson, k-diffusion).

    Args:
        sigma_min: the last value before 0.
        sigma_max: the first; by default the schedule's largest, 80 where that is infinite.
        rho: larger values spend more steps near the data.
    """
    if rho <= 0:
        raise ValueError(f"rho must be positive, got {rho}")

    def rule(steps: int, schedule: Schedule) -> Tensor:
        low, high = _sigmas("exponential", sigma_min, sigma_max, schedule)
        ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
        return _from_log_snr(-2 * (math.log(low) + ramp * math.log(high / low)), schedule)

    return rule


@GRIDS.register("beta")
def beta(a: float = 0.6, b: float = 0.6) -> Rule:
    """The times at equally spaced quantiles of Beta(a, b), 1 and 0 among them: below 1, more at both ends (Lee et al.
    2024)."""
    if min(a, b) <= 0:
        raise ValueError(f"beta needs a > 0 and b > 0, got {a} and {b}")

    def rule(steps: int, schedule: Schedule) -> Tensor:
        from scipy.special import betaincinv

        return torch.as_tensor(betaincinv(a, b, torch.linspace(1, 0, steps + 1, dtype=torch.float64).numpy()))

    return rule


@GRIDS.register("log_snr")
def log_snr(low: float | None = None, high: float = 10.0) -> Rule:
    """``steps`` values of log-SNR equally spaced from ``low`` to ``high``, then t = 0.

    Args:
        low: the log-SNR of the start; by default the schedule's lowest, -10 where that is infinite.
        high: the last log-SNR before t = 0.
    """

    def rule(steps: int, schedule: Schedule) -> Tensor:
        lowest = float(schedule.log_snr(1.0))
        start = low if low is not None else -10.0 if math.isinf(lowest) else lowest
        if not start < high or math.isinf(high):
            raise ValueError(f"log_snr needs low < high, both finite, got {start} and {high}")
        return _from_log_snr(torch.linspace(start, high, steps, dtype=torch.float64), schedule)

    return rule


@GRIDS.register("logistic")
def logistic(centre: float = 0.5, width: float = 1.15) -> Rule:
    """Quantiles of a logistic law of log(sigma / alpha): ``sigma / alpha = centre (u / (1 - u))^width``, u falling in
    equal steps from the schedule's end to 0. Steps are densest about ``centre``, where samples take shape, on any
    schedule.

    Args:
        centre: of sigma / alpha, for data of unit standard deviation.
        width: larger ones spread the steps more; with 1 the steps are equal on a flow schedule shifted by ``centre``.
    """
    if min(centre, width) <= 0:
        raise ValueError(f"logistic needs centre > 0 and width > 0, got {centre} and {width}")

    def rule(steps: int, schedule: Schedule) -> Tensor:
        end = torch.sigmoid((-schedule.log_snr(1.0) / 2 - math.log(centre)) / width)
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1] * end
        inside = schedule.time_of_log_snr(-2 * (math.log(centre) + width * torch.logit(u)))
        return torch.cat([inside.new_ones(1), inside, inside.new_zeros(1)])

    return rule


@GRIDS.register("explicit")
def explicit(times: Sequence[float]) -> Tensor:
    """The times themselves, falling to 0."""
    return check_grid(torch.tensor(list(times), dtype=torch.float64))
