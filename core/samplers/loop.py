"""The one loop that all sampling goes through, and ``generate``, which runs it to its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Generator, Tensor, nn

from ..denoiser import Denoise, FunctionDenoiser, UnderSchedule
from ..grids import Rule, check_grid, make_grid, shorten
from ..orders import Order, arrange
from ..predictions import Estimate, scale_like
from ..randomness import generator, sample_generators
from ..samples import Cond, Sample, Time, align_left, batch_size, known_at_zero, map_parts, parts, pick
from ..schedules import SCHEDULES, Schedule
from ..spaces import Euclidean, Product, Space
from .brownian import BrownianNoise, NoiseKind
from .sampler import SAMPLERS, BoundDenoise, LinearSampler, Sampler, State


@dataclass(slots=True)
class Step:
    """What one step of sampling gave.

    Attributes:
        index: which step, from 0.
        steps: of how many.
        t: its time of departure; 0-d, or per element.
        s: its time of arrival.
        x: the sample at time s.
        x0: the estimate of the clean sample that led there.
        calls: of the denoiser, in this step.
    """

    index: int
    steps: int
    t: Tensor
    s: Tensor
    x: Sample
    x0: Sample
    calls: int


def sample(
    sampler: Sampler,
    denoise: Denoise,
    x: Sample,
    grid: Tensor,
    *,
    schedule: Schedule,
    space: Space | None = None,
    cond: Cond | None = None,
    generators: Sequence[Generator] | None = None,
    known: Sample | None = None,
    known_x0: Sample | None = None,
    noise: NoiseKind = "independent",
) -> Iterator[Step]:
    """Sampling, step by step.

    Args:
        sampler: the solver.
        denoise: the denoiser.
        x: the sample at time ``grid[0]`` (``noised`` makes one).
        grid: times, float64, ``(steps + 1, *time)``; ``*time`` is left-aligned with the sample.
        schedule: the schedule of ``grid`` and of ``denoise``.
        space: where the sample lives; every step ends with a projection onto it.
        cond: conditions, batch-first tensors by name.
        generators: one for each sample; needed where the sampler is stochastic.
        known: boolean, left-aligned with the sample, part by part: elements that are given. The denoiser sees them
            clean, at t = 0, and every step returns them bit by bit.
        known_x0: the sample that holds the known values; they must lie in the space.
        noise: ``independent`` from step to step, or ``brownian``, the increments of one path for each sample, the same
            at any number of steps (what a sampler draws beyond once a step is independent).

    Yields:
        A ``Step`` for each step, the last at time ``grid[-1]``.

    Raises:
        ValueError: a grid that rises, no generators where noise is drawn, known values outside the space.
    """
    grid = check_grid(grid)
    if sampler.stochastic and generators is None:
        raise ValueError("a stochastic sampler needs one generator for each sample")
    if noise not in get_args(NoiseKind):
        raise ValueError(f"noise must be one of {', '.join(get_args(NoiseKind))}, got {noise!r}")
    if (known is None) != (known_x0 is None):
        raise ValueError("known and known_x0 go together")
    if grid.ndim > 1 and (device := next(iter(parts(x).values())).device).type != "mps":  # mps has no float64
        grid = grid.to(device)  # once, so that no step waits for a copy
    space = default_space(x) if space is None else space
    space.check(sampler)
    settle: Callable[[Sample], Sample] = space.project
    if known is not None and known_x0 is not None:
        impose = _imposing(space, known, known_x0)
        x, denoise, settle = impose(x), _seeing(denoise, known, impose), _settling(space, impose)
    moves = sampler.plan(schedule, grid) if len(grid) > 1 else []

    def bound(x: Sample, t: Tensor, previous: Sample | None, target: Tensor | None = None) -> Estimate:
        told = cond if target is None else {**(cond or {}), "target": target.expand(batch_size(x), *target.shape[1:])}
        estimate = denoise(x, t, told, previous)
        if estimate.shift is not None and not isinstance(sampler, LinearSampler):
            raise ValueError(f"sampler {type(sampler).__name__} cannot move where a step starts, as cfg_pp has it do")
        return estimate

    def independent() -> Sample:
        return space.noise(x, generators or ())

    draws: Callable[[int], Callable[[], Sample]] = lambda index: independent  # noqa: E731
    if noise == "brownian" and sampler.stochastic:
        draws = BrownianNoise(space, x, generators or (), schedule, grid).step
    return _walk(sampler, bound, x, sampler.begin(space), grid.unbind(0), moves, draws, settle)


def _walk(
    sampler: Sampler,
    denoise: BoundDenoise,
    x: Sample,
    state: State,
    times: Sequence[Tensor],
    moves: Sequence[Any],
    draws: Callable[[int], Callable[[], Sample]],
    settle: Callable[[Sample], Sample],
) -> Iterator[Step]:
    calls = 0

    def counted(x: Sample, t: Tensor, previous: Sample | None, target: Tensor | None = None) -> Estimate:
        nonlocal calls
        calls += 1
        return denoise(x, t, previous, target)

    for index, move in enumerate(moves):
        calls = 0
        x, state = sampler.step(counted, x, move, state, draws(index))
        x = settle(x)
        yield Step(index, len(moves), times[index], times[index + 1], x, state.x0, calls)


def _imposing(space: Space, known: Sample, known_x0: Sample) -> Callable[[Sample], Sample]:
    """A function that puts the known elements back, bit by bit."""
    for name, projected in parts(space.project(known_x0)).items():
        clean, own = pick(known_x0, name), pick(known, name)
        moved = torch.where(align_left(own, clean), (projected - clean).abs(), 0.0).amax()
        if bool(moved > 1e-3 * clean.abs().amax().clamp(min=1)):
            raise ValueError(f"known values{name and f' of {name}'} do not lie in the space: a projection moves them")

    def impose(part: Tensor, clean: Tensor, own: Tensor) -> Tensor:
        return torch.where(align_left(own, part), clean, part)

    return lambda x: map_parts(impose, x, known_x0, known)


def _seeing(denoise: Denoise, known: Sample, impose: Callable[[Sample], Sample]) -> Denoise:
    """A denoiser that sees known elements clean, at t = 0."""

    def given(x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        return denoise(impose(x), known_at_zero(t, known, x), cond, previous)

    return given


def _settling(space: Space, impose: Callable[[Sample], Sample]) -> Callable[[Sample], Sample]:
    """The projection; known elements are put back before it too, for it may be anchored by them."""
    return lambda x: impose(space.project(impose(x)))


def default_space(x: Sample) -> Space:
    """All of R^n, part by part."""
    return Euclidean() if isinstance(x, Tensor) else Product({name: Euclidean() for name in parts(x)})


def noised(x0: Sample, noise: Sample, t: Time, schedule: Schedule) -> Sample:
    """``alpha(t) x0 + sigma(t) noise``."""

    def one(clean: Tensor, eps: Tensor, time: Any) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time)
        return scale_like(alpha, clean) * clean + scale_like(sigma, clean) * eps

    return map_parts(one, x0, noise, t)


def trajectory(
    denoise: Denoise | Callable[..., Sample],
    x: Sample,
    *,
    schedule: Schedule | str | Mapping[str, Any] | None = None,
    sampler: Sampler | str | Mapping[str, Any] = "dpmpp_2m",
    grid: Tensor | Rule | str | Mapping[str, Any] = "uniform",
    steps: int | None = None,
    order: Order | str | Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] | None = None,
    space: Space | None = None,
    cond: Cond | None = None,
    known: Sample | None = None,
    strength: float = 1.0,
    temperature: float | Mapping[str, float] = 1.0,
    noise: NoiseKind = "independent",
    start: Sample | None = None,
) -> Iterator[Step]:
    """Sampling from noise, step by step, with everything by name or as an object.

    Args:
        denoise: a denoiser, or any ``f(x, t) -> x0``.
        x: gives shape, dtype and device; holds the known values, and the start where ``strength`` is less than 1.
        schedule: by default the denoiser's own, else ``flow``. A denoiser trained under another schedule is seen
            through ``UnderSchedule``.
        sampler: the solver.
        grid: a rule, or the times themselves.
        steps: how many, 50 by default; left out where ``grid`` holds the times.
        order: in which order the frames of sequences ``(batch, frames, ...)`` walk the grid; all together by default.
        seeds: one for each sample, or one for the batch (sample i is then the i-th of that seed's); None draws one
            from torch's global generator.
        space: where the sample lives; all of R^n by default.
        cond: conditions, batch-first tensors by name.
        known: boolean, left-aligned with the sample, part by part: elements of ``x`` that are given.
        strength: where in time to start: 1 is noise alone, less starts from ``x`` with that much noise (SDEdit), 0
            has no steps.
        temperature: a factor on the noise to start from, for all parts or by part. Below 1 samples are more typical
            and less varied; 1 is the distribution that was learned.
        noise: of the steps, as for ``sample``.
        start: the sample at the first time of the grid, such as ``editing.invert`` finds; by default made of drawn
            noise.

    Raises:
        ValueError: unknown names or options, and what ``sample`` raises.
    """
    denoiser, schedule = under(denoise, schedule)
    grid = arrange(order, shorten(make_grid(grid, steps, schedule), strength), x, known)
    generators = _generators(seeds, batch_size(x))
    home = default_space(x) if space is None else space
    if start is None:
        drawn = home.tempered(home.noise(x, generators), _temperatures(temperature, x))
        # From noise alone alpha(t) x is left out, also where the schedule's alpha(1) is not quite 0. Times per element
        # may hold clean elements, which are theirs to keep.
        clean = x if strength < 1 or grid.ndim > 1 else map_parts(torch.zeros_like, x)
        start = home.noised(clean, drawn, grid[0], schedule)[0]
    return sample(
        SAMPLERS.build(sampler),
        denoiser,
        start,
        grid,
        schedule=schedule,
        space=home,
        cond=cond,
        generators=generators,
        known=known,
        known_x0=None if known is None else x,
        noise=noise,
    )


def under(denoise: Denoise | Callable[..., Sample], schedule: Any = None) -> tuple[Denoise, Schedule]:
    """A denoiser, or any ``f(x, t) -> x0``, seen under a schedule, and that schedule: by default its own, else flow."""
    own = getattr(denoise, "schedule", None)
    schedule = SCHEDULES.build(schedule if schedule is not None else own if own is not None else "flow")
    denoiser = _as_denoiser(denoise, schedule)
    if own is not None and not _same(own, schedule):
        denoiser = UnderSchedule(denoiser, own, schedule)
    return denoiser, schedule


def generate(denoise: Denoise | Callable[..., Sample], x: Sample, **options: Any) -> Sample:
    """The sample at the end of ``trajectory(denoise, x, **options)``, without gradients.

    ``generate(denoise, torch.zeros(16, 3, 32, 32), sampler="dpmpp_2m", steps=20, seeds=0)``
    """
    with torch.no_grad():
        for step in trajectory(denoise, x, **options):
            x = step.x
    return x


def _generators(seeds: int | Sequence[int] | None, count: int) -> list[Generator]:
    if seeds is None:
        seeds = int(torch.randint(1 << 62, ()))
    if isinstance(seeds, int):
        return sample_generators(seeds, range(count))
    if len(seeds) != count:
        raise ValueError(f"{count} samples need as many seeds, got {len(seeds)}")
    return [generator(int(seed)) for seed in seeds]


def _temperatures(temperature: float | Mapping[str, float], x: Sample) -> Any:
    if not isinstance(temperature, Mapping):
        return temperature
    if unknown := [name for name in temperature if name not in parts(x)]:
        raise ValueError(f"no part {', '.join(unknown)} to give a temperature. Parts: {', '.join(parts(x))}")
    return {name: temperature.get(name, 1.0) for name in parts(x)}


def _same(one: Schedule, other: Schedule) -> bool:
    t = torch.linspace(0, 1, 17, dtype=torch.float64)
    return one is other or (one.scaling == other.scaling and torch.equal(one.log_snr(t), other.log_snr(t)))


def _as_denoiser(denoise: Any, schedule: Schedule) -> Denoise:
    """What can be called as ``denoise(x, t, cond, previous)``; anything else is an ``f(x, t) -> x0``."""
    try:
        inspect.signature(denoise.forward if isinstance(denoise, nn.Module) else denoise).bind(None, None, None, None)
    except TypeError:
        return FunctionDenoiser(denoise, schedule)
    return denoise
