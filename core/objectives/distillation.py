"""Learning from the paths of a teacher's solver: jumps that land where its many steps do, and straighter paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from ..denoiser import Denoise, Denoiser, implied_noise
from ..grids import make_grid
from ..randomness import StepRandomness
from ..samples import Sample, batch_size, known_at_zero, map_parts, parts
from ..schedules import Schedule
from .denoising import (
    OBJECTIVES,
    QUANTILES,
    Denoising,
    Example,
    build_weighting,
    held_out_generators,
    prediction_errors,
)
from .flow_maps import FlowMapObjective, check_flat, deterministic, fine, implied, impose, landing, solve, start, told
from .objective import Losses


@dataclass(frozen=True)
class Taught(Example):
    """An example with the path of a teacher that was made beforehand.

    Attributes:
        states: of the path at the ``places`` of the objective.
    """

    states: tuple[Sample, ...] = ()


class Paths:
    """The paths of a teacher from noise to data, in the space of an example and under its conditions.

    Args:
        steps: of the solver.
        sampler: the solver, deterministic.
        grid: the times, by rule.
        temperature: a factor on the noise to start from, for all parts or by part, as in sampling.

    Attributes:
        config: these options, which decide the paths.
    """

    def __init__(self, teacher: Denoise, steps: int, sampler: Any, grid: Any, temperature: Any) -> None:
        self.teacher, self.steps, self.grid = teacher, steps, grid
        self.config = {"steps": steps, "sampler": sampler, "grid": grid, "temperature": temperature}
        self.sampler = deterministic(sampler)
        self.temperature = dict(temperature) if isinstance(temperature, Mapping) else temperature

    def start(self, example: Example, noise: Sample, schedule: Schedule) -> Sample:
        """Where a path begins."""
        check_flat(example.space)
        heat = self.temperature
        if isinstance(heat, dict):
            heat = {name: heat.get(name, 1.0) for name in parts(noise)}
        return start(example, noise, make_grid(self.grid, self.steps, schedule)[0], heat, schedule)

    @torch.no_grad()
    def states(self, example: Example, noise: Sample, schedule: Schedule, places: Sequence[int]) -> list[Sample]:
        """The states of the path after so many steps, each of the rising ``places``."""
        x, grid = self.start(example, noise, schedule), make_grid(self.grid, self.steps, schedule)
        kept = [x] if places[0] == 0 else []
        steps = solve(self.teacher, example, x, grid, schedule, self.sampler)
        return kept + [step.x for step in steps if step.index + 1 in places]


@OBJECTIVES.register("trajectory")
class Trajectory(FlowMapObjective):
    """A student's jump x_t -> x_s is regressed on the state that the teacher's solver reaches at s, along the teacher's
    own paths from noise: what the student will meet when it samples, and no data but its shapes and conditions. It
    learns to sample in any of the numbers of ``calls``, on the teacher's grid; a regression on the teacher's path as
    progressive distillation is (Salimans and Ho 2022), in one stage.

    Linear predictions are regressed in their own output, weighted; categorical ones by cross-entropy on the classes
    that the jump implies.

    Args:
        calls: how many calls a sample is to take.
        steps: of the teacher's solver; its grid must pass through the times of all ``calls``.
        sampler, grid, temperature: as the teacher samples.
        jumps: how many of each path's jumps a training step learns; drawn without replacement, each number of calls
            as probable as any other.
        own_states: the share of jumps that leave from where the student itself lands, instead of from the path: it
            learns to come back to it.
        self_condition: the student is told its own last estimate of x0, as when it samples.
        power, floor: of the ``robust`` loss.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        calls: Sequence[int] = (1, 2, 4),
        steps: int = 16,
        sampler: Any = "dpmpp_2m",
        grid: Any = "uniform",
        temperature: Any = 1.0,
        jumps: int = 4,
        own_states: float = 0.0,
        self_condition: bool = False,
        weighting: Any = "output",
        power: float = 0.0,
        floor: float = 1e-3,
        part_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(teacher, "uniform", part_weights, power, floor, None, None, 0.0)
        if not calls or min(calls) < 1 or max(calls) > steps:
            raise ValueError(f"calls lie from 1 to steps = {steps}, got {list(calls)}")
        if not 0 <= own_states <= 1:
            raise ValueError(f"own_states lies in [0, 1], got {own_states}")
        self.paths = Paths(self.required_teacher(), steps, sampler, grid, temperature)
        self.calls, self.weighting = tuple(sorted(set(calls))), build_weighting(weighting)
        if not 1 <= jumps <= sum(self.calls):
            raise ValueError(f"there are {sum(self.calls)} jumps of {list(calls)} calls, not {jumps}")
        self.jumps, self.own_states, self.self_condition = jumps, own_states, self_condition

    def stops(self, schedule: Schedule) -> dict[int, list[int]]:
        """For each number of calls, after how many of the teacher's steps its jumps begin and end.

        Raises:
            ValueError: the teacher's grid does not pass there.
        """
        fine_grid, out = make_grid(self.paths.grid, self.paths.steps, schedule), dict[int, list[int]]()
        for calls in self.calls:
            coarse = make_grid(self.paths.grid, calls, schedule)
            gaps, places = (coarse[:, None] - fine_grid).abs().min(1)
            if bool((gaps > 1e-9).any()):
                raise ValueError(
                    f"a teacher of {self.paths.steps} steps does not pass through the times of {calls} calls: "
                    "choose steps that are a multiple of them, and a grid that nests, such as uniform"
                )
            out[calls] = places.tolist()
        return out

    def places(self, schedule: Schedule) -> list[int]:
        """After how many of the teacher's steps a jump begins or ends."""
        return sorted({place for stops in self.stops(schedule).values() for place in stops})

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        stops = self.stops(model.schedule)
        table = [(*stop, calls) for calls, places in stops.items() for stop in zip([0, *places], places, places[1:])]
        places = self.places(model.schedule)
        if isinstance(example, Taught):
            states = list(example.states)
        else:
            noise = example.space.noise(example.x0, random.generators)
            states = self.paths.states(example, noise, model.schedule, places)
        weights = torch.tensor([1 / calls for *_, calls in table], dtype=torch.float64)
        drawn = torch.stack([torch.multinomial(weights, self.jumps, generator=g) for g in random.generators])
        own = torch.stack([torch.rand(self.jumps, generator=g) for g in random.generators]) < self.own_states
        where = {place: k for k, place in enumerate(places)}
        ends = torch.tensor([[where[place] for place in stop[:3]] for stop in table])  # before, t, s of each jump
        times = make_grid(self.paths.grid, self.paths.steps, model.schedule)[places]
        each = [self._jump(model, example, states, times, ends[drawn[:, k]], own[:, k]) for k in range(self.jumps)]
        total = torch.stack([losses.total for losses in each]).mean(0)
        return Losses(total, {name: torch.stack([one.parts[name] for one in each]).mean(0) for name in each[0].parts})

    def _jump(
        self, model: Denoiser, example: Example, states: list[Sample], times: Tensor, ends: Tensor, own: Tensor
    ) -> Losses:
        """The losses of one jump of each sample. ``ends``: (batch, 3), the states before its own, at its start and at
        its end; the first jump has no state before its start."""
        before, t, s = times[ends].unbind(1)
        x, x_s = (_gather(states, ends[:, k]) for k in (1, 2))
        first, previous = ends[:, 0] == ends[:, 1], None
        own = own & ~first
        if self.self_condition or bool(own.any()):
            with torch.no_grad():
                earlier = _gather(states, ends[:, 0])
                estimate = self._estimate(model, example, earlier, before, t, None)
                x = _choose(own, self._landing(model, example, estimate, t), x)
                if self.self_condition:
                    previous = _choose(first, map_parts(torch.zeros_like, x), estimate.x0)
        clock, stop = (known_at_zero(time, example.known, x) for time in (t, s))
        output = model.output(x, clock, told(example.cond, s), previous)
        x0, noise = implied(x, x_s, clock, stop, model.schedule)
        errors = prediction_errors(model, x, clock, t, output, x0, noise, self.weighting)
        return self.losses(example, errors, t, adapted=True)

    @staticmethod
    def _estimate(model: Denoiser, example: Example, x: Sample, t: Tensor, s: Tensor, previous: Sample | None) -> Any:
        return model(x, known_at_zero(t, example.known, x), told(example.cond, s), previous)

    @staticmethod
    def _landing(model: Denoiser, example: Example, estimate: Any, s: Tensor) -> Sample:
        x_s = landing(estimate, known_at_zero(s, example.known, estimate.x0), model.schedule)
        return impose(example, example.space.project(impose(example, x_s)))

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """For each number of calls, the mean square between what the student makes in them and what the teacher
        makes of the same noise."""
        stops, schedule = self.stops(model.schedule), model.schedule
        noise = example.space.noise(example.x0, held_out_generators(seed, items, 0))
        (end,) = self.paths.states(example, noise, schedule, [self.paths.steps])
        for calls, places in stops.items():
            times = make_grid(self.paths.grid, self.paths.steps, schedule)[places]
            x, previous = self.paths.start(example, noise, schedule), None
            for t, s in pairwise(times):
                t, s = (time.expand(batch_size(x)) for time in (t, s))
                estimate = self._estimate(model, example, x, t, s, previous)
                x = self._landing(model, example, estimate, s)
                previous = estimate.x0 if self.self_condition else None
            errors = map_parts(lambda a, b: (fine(a) - fine(b)) ** 2, x, end)
            yield f"calls{calls}", self.losses(example, parts(errors), t, adapted=False)


def _gather(states: Sequence[Sample], places: Tensor) -> Sample:
    """Of each sample the state at its own place."""
    rows = torch.arange(len(places))

    def one(*some: Tensor) -> Tensor:
        return torch.stack(some)[places.to(some[0].device), rows.to(some[0].device)]

    return map_parts(one, states[0], *states[1:])


def _choose(which: Tensor, one: Sample, other: Sample) -> Sample:
    """``one`` for the samples where ``which`` holds."""

    def pick_of(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(which.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return map_parts(pick_of, one, other)


@OBJECTIVES.register("reflow")
class Reflow(Denoising):
    """Rectification (Liu et al. 2023): the denoising objective on pairs of a noise and what the teacher makes of it,
    whose paths are straighter, so that a denoiser of one time needs fewer steps. The data gives shapes and conditions
    only.

    Args:
        steps, sampler, grid, temperature: how the teacher samples. The noise of a pair is that times ``temperature``.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        steps: int = 16,
        sampler: Any = "dpmpp_2m",
        grid: Any = "uniform",
        temperature: Any = 1.0,
        weighting: Any = "output",
        times: Any = "uniform",
        part_weights: Mapping[str, float] | None = None,
        stratified: bool = True,
        time_min: float = 1e-4,
    ) -> None:
        super().__init__(weighting, times, part_weights, stratified=stratified, time_min=time_min)
        if teacher is None:
            raise ValueError("Reflow learns from a teacher: teacher=CHECKPOINT")
        self.paths = Paths(teacher, steps, sampler, grid, temperature)

    def pair(self, model: Denoiser, example: Example, generators: Sequence[Generator]) -> tuple[Example, Sample]:
        """The example with the teacher's samples for its data, and the noise that they came from."""
        noise = example.space.noise(example.x0, generators)
        ends = self.paths.states(example, noise, model.schedule, [self.paths.steps])
        x = self.paths.start(example, noise, model.schedule)
        top = make_grid(self.paths.grid, self.paths.steps, model.schedule)[0]
        flat = implied_noise(x, map_parts(torch.zeros_like, x), top, model.schedule)
        return replace(example, x0=ends[0]), flat

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        t = self.draw_times(example, model, random)
        example, noise = self.pair(model, example, random.generators)
        return self.at(model, example, t, noise, False)

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        example, noise = self.pair(model, example, held_out_generators(seed, items, 0))
        for u in QUANTILES:
            t = self.times(torch.full((len(items),), u, dtype=torch.float64), model.schedule)
            yield f"u{u:.4f}", self.at(model, example, t.clamp(self.time_min, 1.0), noise, False)
