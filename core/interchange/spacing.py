"""The times that diffusers' schedulers visit, as grids.

Its classes space their timesteps in three ways. On T = 1000 levels, numbered from 0, and n steps:

    points      DDIM, DDPM, PNDM: n levels, rounded
    sigmas      Euler, Heun, LMS, KDPM2: n levels; ``linspace`` is not rounded, sigma / alpha is linear in between
    intervals   DPM-Solver, DEIS, UniPC, SA-Solver: ``linspace`` and ``leading`` have n + 1 points, without the last
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..grids import GRIDS, Rule
from ..schedules import Schedule, Table

Spacing = Literal["leading", "trailing", "linspace", "original"]
Counting = Literal["points", "sigmas", "intervals"]
Sigmas = Literal["karras", "exponential", "beta"]
_CHOICES = {
    "spacing": ("leading", "trailing", "linspace", "original"),
    "counting": ("points", "sigmas", "intervals"),
    "sigmas": (None, "karras", "exponential", "beta"),
    "final": ("zero", "sigma_min"),
}


@GRIDS.register("diffusers")
def diffusers(
    spacing: Spacing = "trailing",
    counting: Counting = "points",
    offset: int = 0,
    sigmas: Sigmas | None = None,
    final: Literal["zero", "sigma_min"] = "zero",
    original_steps: int = 50,
) -> Rule:
    """The times of a scheduler of diffusers, for a schedule that is a table of levels.

    Args:
        spacing: its ``timestep_spacing``; ``original`` is that of LCM and TCD.
        counting: how its class counts, as above.
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
        levels = torch.from_numpy(_levels(spacing, counting, offset, steps, count, original_steps))
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


def _levels(spacing: str, counting: str, offset: int, steps: int, count: int, original_steps: int) -> np.ndarray:
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
