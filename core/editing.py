"""Changing a given sample: keep parts of it, start from it or from the noise behind it, or close it to a loop. All are
ordinary sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoise, implied_noise
from .grids import make_grid, shorten
from .predictions import Estimate
from .randomness import generator, mix
from .registry import Registry
from .samplers import SAMPLERS, LinearSampler, Step, combine, default_space, generate, noised, trajectory
from .samplers.exponential import Interval
from .samplers.loop import under
from .samplers.sampler import BoundDenoise, Sampler
from .samples import Cond, Sample, Time, align_left, batch_size, map_parts, parts, pick
from .schedules import Schedule
from .spaces import Space

INPAINTING: Registry[Callable[..., Iterator[Step]]] = Registry("inpainting")  # each is called as ``trajectory`` is


def inpaint(denoise: Denoise, clean: Sample, known: Sample, **options: Any) -> Sample:
    """Generate what is not known: continuation, interpolation, a scaffold grown.

    Args:
        denoise: a denoiser that has learned with known parts at t = 0; others see them too, with less coherence.
        clean: the sample; its known elements are returned bit by bit, the others are not looked at.
        known: boolean, left-aligned with the sample, part by part.
        options: as for ``generate``.
    """
    return generate(denoise, clean, known=known, **options)


def vary(denoise: Denoise, clean: Sample, strength: float, **options: Any) -> Sample:
    """A variation of ``clean``: noise added up to time ``strength``, then removed (SDEdit, Meng et al. 2022).

    Args:
        denoise: a denoiser.
        clean: where to start.
        strength: 0 returns ``clean`` as it is, 1 forgets it.
        options: as for ``generate``.
    """
    return generate(denoise, clean, strength=strength, **options)


@INPAINTING.register("known")
def known_parts() -> Callable[..., Iterator[Step]]:
    """What is known stays clean, at t = 0: for denoisers that have learned with known parts."""
    return trajectory


@INPAINTING.register("repaint")
@dataclass(frozen=True)
class Repaint:
    """RePaint (Lugmayr et al. 2022), for denoisers that have not learned with known parts: these are shown with as much
    noise as the others. So that the two agree, every ``jump`` steps are taken ``resamples`` times: noise is added back
    to the sample that they gave, and they are taken anew; but those from noise alone.

    Called as ``trajectory`` is; an ancestral sampler, by default ``ddpm``, is the published one.

    Args:
        jump: steps to go back.
        resamples: how often they are taken; 1 never goes back.
    """

    jump: int = 10
    resamples: int = 10

    def __post_init__(self) -> None:
        if self.jump < 1 or self.resamples < 1:
            raise ValueError(f"jump and resamples must be at least 1, got {self.jump} and {self.resamples}")

    def __call__(
        self,
        denoise: Denoise | Callable[..., Sample],
        x: Sample,
        *,
        known: Sample | None = None,
        schedule: Any = None,
        sampler: Any = "ddpm",
        grid: Any = "uniform",
        steps: int | None = None,
        order: Any = None,
        seeds: int | Sequence[int] | None = None,
        space: Space | None = None,
        strength: float = 1.0,
        **options: Any,
    ) -> Iterator[Step]:
        if known is None or order is not None:
            raise ValueError(
                "repaint needs known parts: there are none" if known is None else "repaint makes all frames together"
            )
        denoiser, schedule = under(denoise, schedule)
        home = default_space(x) if space is None else space
        grid = shorten(make_grid(grid, steps, schedule), strength)
        seeds = int(torch.randint(1 << 62, ())) if seeds is None else seeds
        own = [mix(seeds, index) for index in range(batch_size(x))] if isinstance(seeds, int) else list(seeds)
        generators = [generator(seed, _REPAINT) for seed in own]
        seen = _Noised(denoiser, schedule, x, known, lambda: home.noise(x, generators))
        told = {"schedule": schedule, "sampler": sampler, "space": home, "known": known, "strength": strength} | options
        runs, index, start, at = self.runs(len(grid) - 1), 0, None, 0
        for number, (first, last) in enumerate(runs):
            if start is not None and first < at:
                (alpha, alpha_up), (sigma, sigma_up) = schedule.alpha_sigma(grid[[at, first]])
                keep = float(alpha_up / alpha)
                spread = math.sqrt(max(float(sigma_up) ** 2 - (keep * float(sigma)) ** 2, 0.0))
                start = combine((keep, spread), (start, home.noise(x, generators)))
            fresh = [mix(seed, number) for seed in own]
            for step in trajectory(seen, x, grid=grid[first : last + 1], seeds=fresh, start=start, **told):
                yield replace(step, index=index, steps=sum(b - a for a, b in runs))
                index, start, at = index + 1, step.x, last

    def runs(self, steps: int) -> list[tuple[int, int]]:
        """The places in the grid from and to which steps are taken, one run after another."""
        cuts = sorted(range(steps, 0, -self.jump))
        again = [run for run in pairwise(cuts) for _ in range(self.resamples)]
        return [(0, cuts[0]), *again] if cuts else []


class _Noised:
    """A denoiser that sees known parts with as much noise as the rest of their sample.

    Args:
        clean: holds the known values.
        noise: draws standard normal noise.
    """

    def __init__(
        self, denoise: Denoise, schedule: Schedule, clean: Sample, known: Sample, noise: Callable[[], Sample]
    ) -> None:
        self.denoise, self.schedule = denoise, schedule
        self.clean, self.known, self.noise = clean, known, noise

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        times = [torch.as_tensor(pick(t, name), dtype=torch.float64) for name in parts(x)]
        highest = torch.stack([time.flatten(1).amax(1) for time in times]).amax(0)  # known elements are at t = 0
        level = highest.expand(batch_size(x))
        theirs = noised(self.clean, self.noise(), level, self.schedule)
        return self.denoise(_chosen(self.known, theirs, x), level, cond, previous)


def _chosen(flags: Sample, new: Sample, old: Sample) -> Sample:
    """``new`` where ``flags`` are set, left-aligned, and ``old`` elsewhere."""
    return map_parts(lambda a, b, own: torch.where(align_left(own, a), a, b), new, old, flags)


_REPAINT = -9  # a key of the noise of known parts, and of going back


def invert(
    denoise: Denoise | Callable[..., Sample],
    x0: Sample,
    *,
    iterations: int = 10,
    schedule: Any = None,
    sampler: Any = "ddim",
    grid: Any = "uniform",
    steps: int | None = None,
    strength: float = 1.0,
    space: Space | None = None,
    cond: Cond | None = None,
) -> Sample:
    """The noise that a sampler makes ``x0`` of: ``generate(denoise, x0, start=noise)`` with the same options gives x0
    back, and with another condition an edit of it.

    Each step, x_s = Phi(x_t), is taken upwards. DDIM's with the noise that is estimated at s (Song et al. 2021, sec.
    5.4) is the first guess, whose error falls with the number of steps. Then x_t is improved by a fixed point (after
    Pan et al. 2023), to rounding: ``x_t <- x_t + (x_s - Phi(x_t)) / slope``, the slope being Phi's on standard normal
    data, and twice as large for a sample that was not improved. It is found where Phi is one to one: not where steps
    are so long that Phi overshoots. A denoiser is called without a previous estimate of x0; one that makes use of it
    does not retrace its steps exactly.

    Args:
        denoise: a denoiser.
        x0: the sample.
        iterations: of the fixed point in each step, a step of the sampler each; 0 is DDIM inversion.
        sampler: one without noise and without a history of earlier steps: ddim, heun, midpoint, dpmpp_2s, ...
        schedule, grid, steps, space, cond: as for ``trajectory``.
        strength: the time to go up to; pass it to ``generate`` too.

    Returns:
        The sample at the first time of the grid.

    Raises:
        ValueError: a sampler that has noise or history; and as ``trajectory``.
    """
    denoiser, schedule = under(denoise, schedule)
    solver = SAMPLERS.build(sampler)
    if solver.stochastic or not isinstance(solver, LinearSampler) or solver.memory:
        raise ValueError("inversion needs a sampler without noise or history: ddim, heun, midpoint, dpmpp_2s, dpmpp_3s")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    home, grid = default_space(x0) if space is None else space, shorten(make_grid(grid, steps, schedule), strength)
    if grid.ndim > 1:
        raise ValueError("inversion takes all elements along the same times")

    def bound(x: Sample, t: Tensor, previous: Sample | None, target: Tensor | None = None) -> Estimate:
        told = cond if target is None else {**(cond or {}), "target": target.expand(batch_size(x))}
        return denoiser(x, t, told, None)

    step = Interval(schedule, grid[:-1], grid[1:])
    a, b = step.first_order()
    slope = a + b * step.alpha / (step.alpha**2 + step.sigma**2)
    ratio = step.alpha / step.alpha_s
    ups = zip(ratio.tolist(), (step.sigma - ratio * step.sigma_s).tolist(), (1 / slope).tolist())
    moves = solver.plan(schedule, grid) if len(grid) > 1 else []
    x = x0
    with torch.no_grad():
        for (keep, more, gain), move, s in reversed(list(zip(ups, moves, grid[1:]))):
            guess = home.project(combine((keep, more), (x, bound(x, s, None).noise)))
            x = _solved(partial(_reached, solver, bound, move, home), guess, x, gain, iterations)
    return x


def _reached(solver: Sampler, denoise: BoundDenoise, move: Any, space: Space, x: Sample) -> Sample:
    return space.project(solver.step(denoise, x, move, solver.begin(space), lambda: x)[0])


def _solved(function: Callable[[Sample], Sample], x: Sample, value: Sample, gain: float, iterations: int) -> Sample:
    """Where ``function`` has a value, from a guess: each sample by itself, and never worse than its guess."""
    if iterations == 0:
        return x

    def missing(x: Sample) -> tuple[Sample, Tensor]:
        apart = combine((1.0, -1.0), (value, function(x)))
        return apart, sum(part.flatten(1).square().sum(1) for part in parts(apart).values())  # type: ignore[return-value]

    apart, error = missing(x)
    gains = torch.full_like(error, gain)
    for _ in range(iterations):
        trial = map_parts(lambda part, more, by: part + align_left(by, more) * more, x, apart, gains)
        trial_apart, trial_error = missing(trial)
        better = trial_error < error
        x, apart = _chosen(better, trial, x), _chosen(better, trial_apart, apart)
        error, gains = torch.where(better, trial_error, error), torch.where(better, gains, gains / 2)
    return x


class Looped:
    """A denoiser of sequences that lead back into themselves: at each noise level the network sees the sequence turned
    by another amount, so that no place is its end for long.

    Args:
        denoise: a denoiser of ``(batch, length, ...)`` with a schedule of its own.
        lengths: real elements of each sample, ``(batch,)``; padding stays where it is.
    """

    def __init__(self, denoise: Denoise, lengths: Tensor) -> None:
        self.denoise, self.lengths = denoise, lengths
        self.schedule: Schedule = denoise.schedule  # type: ignore[attr-defined]

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        assert isinstance(x, Tensor)
        level = float(torch.as_tensor(t).amax())
        there = self._places(x, level * _TURNS)
        back = torch.argsort(there, dim=1)
        before = None if previous is None else _taken(previous, there)  # type: ignore[arg-type]
        time = _taken(t, there) if isinstance(t, Tensor) and t.ndim > 1 and t.shape[1] == x.shape[1] else t
        turned = self.denoise(_taken(x, there), time, cond, before)
        x0: Any = _taken(turned.x0, back)  # type: ignore[arg-type]
        if turned.shift is not None:
            return Estimate(x0, lambda: _taken(turned.noise, back), _taken(turned.shift, back))  # type: ignore[arg-type]
        return Estimate(x0, lambda: implied_noise(x, x0, t, self.schedule))

    def _places(self, x: Tensor, turns: float) -> Tensor:
        """Where each element of the turned sequences comes from, ``(batch, length)``."""
        places, lengths = torch.arange(x.shape[1], device=x.device), self.lengths.to(x.device)[:, None]
        turned = (places + (turns % 1 * lengths).long()) % lengths
        return torch.where(places < lengths, turned, places)


_TURNS = 1000 * (5**0.5 - 1) / 2  # turns between t = 0 and 1: the golden ratio spreads neighbouring levels evenly


def _taken(values: Tensor, places: Tensor) -> Tensor:
    index = places.reshape(*places.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index.expand(len(values), *index.shape[1:]))
