"""Which times a sampler visits.

A grid is data: a float64 tensor of times from noise to data, ``(steps + 1,)`` falling from 1 (or less) to 0, or
``(steps + 1, *time)`` where each sample, frame or atom walks its own times; such an element may wait (equal times).
A rule ``rule(steps, schedule) -> grid`` makes one; the registry ``GRIDS`` names the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .registry import Registry
from .schedules import Schedule, Table

Rule = Callable[[int, Schedule], Tensor]
GRIDS: Registry[Rule | Tensor] = Registry("grid")

Spacing = Literal["leading", "trailing", "linspace", "original"]
Counting = Literal["points", "sigmas", "intervals"]
Sigmas = Literal["karras", "exponential", "beta"]
_CHOICES = {
    "spacing": ("leading", "trailing", "linspace", "original"),
    "counting": ("points", "sigmas", "intervals"),
    "sigmas": (None, "karras", "exponential", "beta"),
    "final": ("zero", "sigma_min"),
}


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


@GRIDS.register("shifted")
def shifted(shift: float = 3.0, first: float = 1.0, last: float | None = None, end: float = 0.0) -> Rule:
    """Equally spaced times with the noise scaled by ``shift``, on a flow schedule ``shift t / (1 + (shift - 1) t)``
    (Esser et al. 2024, eq. 23): the schedule, and what the network is told, stay what they are.

    Args:
        first: where it starts, before the shift.
        last: the last time before 0, before the shift; None for ``steps + 1`` times from ``first`` to ``end``.
        end: before the shift; 0 takes its place.
    """
    if shift <= 0 or not 0 <= end < (last or first) <= first <= 1:
        raise ValueError(f"shifted needs shift > 0, 0 <= end < last <= first <= 1: {shift}, {end}, {last}, {first}")

    def rule(steps: int, schedule: Schedule) -> Tensor:
        ends = (first, end, steps + 1) if last is None else (first, last, steps)
        times = torch.linspace(*ends, dtype=torch.float64)[:steps]
        moved = schedule.time_of_log_snr(schedule.log_snr(times) - 2 * math.log(shift))
        # No signal stays no signal, also where the schedule has some at t = 1.
        return torch.cat((torch.where(times == 1, times, moved), torch.zeros(1, dtype=torch.float64)))

    return rule


@GRIDS.register("diffusers")
def diffusers(
    spacing: Spacing = "trailing",
    counting: Counting = "points",
    offset: int = 0,
    sigmas: Sigmas | None = None,
    final: Literal["zero", "sigma_min"] = "zero",
    original_steps: int = 50,
) -> Rule:
    """The times of a scheduler of diffusers, for a schedule that is a table of T levels, numbered from 0. Its classes
    count n steps in three ways:

        points      DDIM, DDPM, PNDM: n levels, rounded
        sigmas      Euler, Heun, LMS, KDPM2: n levels; ``linspace`` is not rounded, sigma / alpha is linear in between
        intervals   DPM-Solver, DEIS, UniPC, SA-Solver: ``linspace`` and ``leading`` have n + 1 points, without the last

    Args:
        spacing: its ``timestep_spacing``; ``original`` is that of LCM and TCD.
        counting: how its class counts.
        offset: its ``steps_offset``, added to the levels of ``leading``.
        sigmas: spread sigma / alpha anew between the ends: ``karras`` (rho = 7), ``exponential`` (equal steps of its
            logarithm) or ``beta`` (quantiles of Beta(0.6, 0.6)).
        final: where it ends: at t = 0, or at the lowest level.
        original_steps: of ``original``: how many levels the student was distilled on.
    """
    given = {"spacing": spacing, "counting": counting, "sigmas": sigmas, "final": final}
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}, got {value!r}")

    def rule(steps: int, schedule: Schedule) -> Tensor:
        if not isinstance(schedule, Table):
            raise ValueError("the grid 'diffusers' is for a schedule that is a table of levels")
        count = schedule.levels
        if steps > (most := original_steps if spacing == "original" else count - (counting == "intervals")):
            raise ValueError(f"{steps} steps do not fit in {most} noise levels")
        levels = torch.from_numpy(_timesteps(spacing, counting, offset, steps, count, original_steps))
        all_sigmas = torch.exp(-schedule.log_snr(torch.arange(1, count + 1).double() / count) / 2).numpy()
        visited = np.interp(levels.numpy(), np.arange(count), all_sigmas)
        if sigmas is not None:
            ends = visited if counting == "sigmas" else all_sigmas[::-1]
            visited = _spread(sigmas, ends[0], ends[-1], steps)
        times = schedule.time_of_log_snr(torch.from_numpy(-2 * np.log(visited)))
        if sigmas is None:
            times = torch.where(levels == levels.round(), (levels + 1) / count, times)
        end = 0.0 if final == "zero" else 1 / count
        kept = times[times > end + 1e-9]
        return torch.cat((kept, kept.new_tensor([end])))

    return rule


def _timesteps(spacing: str, counting: str, offset: int, steps: int, count: int, original_steps: int) -> np.ndarray:
    """Levels from 0 to ``count - 1``, falling; float64."""
    if spacing == "trailing":
        return np.round(count - np.arange(steps) * (count / steps)) - 1
    if spacing == "original":
        places = np.floor(np.linspace(0, original_steps, steps, endpoint=False))
        return (original_steps - places) * (count // original_steps) - 1
    points = steps + (counting == "intervals")
    if spacing == "leading":
        levels = np.arange(points)[::-1][:steps] * float(count // points) + offset
        if levels[0] > count - 1:
            raise ValueError(f"an offset of {offset} leads beyond the last of {count} noise levels")
        return levels
    levels = np.linspace(0, count - 1, points)[::-1][:steps]
    return levels.copy() if counting == "sigmas" else levels.round()


def _spread(kind: str, high: float, low: float, steps: int) -> np.ndarray:
    """``steps`` values of sigma / alpha from ``high`` to ``low``."""
    if not math.isfinite(high):
        raise ValueError(f"{kind} sigmas need a largest sigma: the schedule ends without signal")
    if kind == "karras":
        return np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7
    if kind == "exponential":
        return np.exp(np.linspace(math.log(high), math.log(low), steps))
    from scipy.stats import beta

    return low + (high - low) * beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)


@GRIDS.register("explicit")
def explicit(times: Sequence[float]) -> Tensor:
    """The times themselves, falling to 0."""
    return check_grid(torch.tensor(list(times), dtype=torch.float64))
