"""Jumps that are taught by two jumps of half their size: shortcut models and progressive distillation.

Times lie on dyadic grids: a jump of size ``2^-k`` leaves from a multiple of it. The smallest half-jump is a step of the
ordinary denoiser, told no duration, so that all sizes rest on what is learned from data or of a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoise, Denoiser
from ..randomness import StepRandomness
from ..samples import Sample, Time, known_at_zero
from .denoising import OBJECTIVES, Couple, Example, build_weighting, held_out_generators, prediction_errors
from .flow_maps import FlowMapObjective, implied, landing, put, state, take, told
from .objective import Losses


class SelfConsistency(FlowMapObjective):
    """A jump from t to s is regressed on the half-jumps t -> m -> s, which carry no gradient. Categorical parts are
    regressed by cross-entropy on the classes that the two jumps imply."""

    def __init__(
        self,
        teacher: Denoise | None,
        levels: int,
        weighting: Any,
        times: Any,
        part_weights: Mapping[str, float] | None,
        couple: Couple | None,
        pairing: Any,
        time_min: float,
    ) -> None:
        super().__init__(teacher, times, part_weights, 0.0, 1.0, couple, pairing, time_min)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.levels, self.weighting = levels, build_weighting(weighting)

    def draw_jumps(self, random: StepRandomness, first: int = 0) -> tuple[Tensor, Tensor]:
        """(t, s) of each sample, on the grid of a size from ``2^-first`` to ``2^-(levels - 1)``, all alike probable."""
        level = first + torch.floor(random.uniform() * (self.levels - first))
        size = 2.0**-level
        t = size * torch.ceil(random.uniform() / size).clamp(min=1)
        return t, t - size

    def half_jump(self, model: Denoiser, example: Example, x: Sample, t: Tensor, s: Tensor, small: Tensor) -> Sample:
        """Where a half-jump lands. ``small``: which samples make the smallest of all."""
        times, ends = (known_at_zero(time, example.known, x) for time in (t, s))
        estimate = model(x, times, told(example.cond, torch.where(small, t, s)))
        return landing(estimate, ends, model.schedule)

    @torch.no_grad()
    def halves(
        self, model: Denoiser, example: Example, x: Sample, times: Time, t: Tensor, s: Tensor
    ) -> tuple[Sample, Sample]:
        """The (x0, noise) of both half-jumps together."""
        middle, small = (t + s) / 2, (t - s) < 1.5 * 2.0 ** (1 - self.levels)
        there = example.space.project(self.half_jump(model, example, x, t, middle, small))
        end = self.half_jump(model, example, there, middle, s, small)
        return implied(x, end, times, known_at_zero(s, example.known, x), model.schedule)

    def at(self, model: Denoiser, example: Example, t: Tensor, s: Tensor, noise: Sample) -> Losses:
        """The losses of jumps from t to s, (batch,) each; where s = t, of denoising."""
        x, times = state(example, noise, t, model.schedule)
        still, moves = (torch.nonzero(which)[:, 0] for which in (s >= t, s < t))
        x0, eps = self.guide(example, x, times, noise) if len(still) else (example.x0, noise)
        if len(moves):
            jump = self.halves(model, *(take(value, moves) for value in (example, x, times, t, s)))
            x0, eps = put(x0, moves, jump[0]), put(eps, moves, jump[1])
        output = model.output(x, times, told(example.cond, s))
        errors = prediction_errors(model, x, times, t, output, x0, eps, self.weighting)
        return self.losses(example, errors, t, adapted=True)

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """Of the ordinary denoiser, and of the last jump of each size."""
        for k in range(self.levels + 1):
            noise = self.draw_noise(example, held_out_generators(seed, items, k))
            size = torch.full((len(items),), 2.0**-k, dtype=torch.float64)
            small = k == self.levels
            t = torch.full_like(size, 0.5) if small else size
            name = "still" if small else f"jump{2**k}"
            yield name, self.at(model, example, t, t if small else torch.zeros_like(t), noise)


@OBJECTIVES.register("shortcut")
class Shortcut(SelfConsistency):
    """Shortcut models (Frans et al. 2025): flow matching, and jumps of all sizes taught by the model's own half-jumps.

    Args:
        levels: sizes of jumps, 1 to ``2^-(levels - 1)``; the smallest is two ordinary steps.
        still: the share of samples of flow matching.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        levels: int = 7,
        still: float = 0.75,
        weighting: Any = "output",
        times: Any = "uniform",
        part_weights: Mapping[str, float] | None = None,
        couple: Couple | None = None,
        pairing: Any = None,
        time_min: float = 1e-4,
    ) -> None:
        super().__init__(teacher, levels, weighting, times, part_weights, couple, pairing, time_min)
        if not 0 <= still <= 1:
            raise ValueError(f"still lies in [0, 1], got {still}")
        self.still = still

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        t, s = self.draw_jumps(random)
        ordinary = self.draw_times(model, random)
        still = random.uniform() < self.still
        t, s = torch.where(still, ordinary, t), torch.where(still, ordinary, s)
        return self.at(model, example, t, s, self.draw_noise(example, random.generators))


@OBJECTIVES.register("progressive")
class Progressive(SelfConsistency):
    """Progressive distillation (Salimans and Ho 2022) in one run: a jump equals two of half its size, the smallest of
    which are the teacher's DDIM steps. Sizes open one after another, from ``2^-(levels - 1)`` to 1; smaller ones are
    trained on, so that the half-jumps stay what they were.

    Args:
        levels: sizes of jumps; the teacher makes ``2^levels`` steps.
        steps: training steps over which the sizes open, evenly.
        newest: the share of samples of the size that was opened last.
    """

    def __init__(
        self,
        steps: int,
        teacher: Denoise | None = None,
        levels: int = 6,
        newest: float = 0.5,
        weighting: Any = "output",
        part_weights: Mapping[str, float] | None = None,
        couple: Couple | None = None,
    ) -> None:
        super().__init__(teacher, levels, weighting, "uniform", part_weights, couple, None, 1e-4)
        if not 0 <= newest <= 1 or steps < 1:
            raise ValueError(f"newest lies in [0, 1] and steps is at least 1, got {newest} and {steps}")
        self.required_teacher()
        self.steps, self.newest = steps, newest

    def opened(self, step: int) -> int:
        """The level of the largest jumps at a training step: from ``levels - 1`` to 0."""
        return max(self.levels - 1 - step * self.levels // self.steps, 0)

    def half_jump(self, model: Denoiser, example: Example, x: Sample, t: Tensor, s: Tensor, small: Tensor) -> Sample:
        rows = torch.nonzero(small)[:, 0]
        if not len(rows):
            return super().half_jump(model, example, x, t, s, small)
        own = x if bool(small.all()) else super().half_jump(model, example, x, t, s, small)
        some, x, t, s = (take(value, rows) for value in (example, x, t, s))
        times, ends = (known_at_zero(time, some.known, x) for time in (t, s))
        return put(own, rows, landing(self.required_teacher()(x, times, some.cond), ends, model.schedule))

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        first = self.opened(random.step)
        t, s = self.draw_jumps(random, first)
        size, new = 2.0**-first, random.uniform() < self.newest
        start = size * torch.ceil(random.uniform() / size).clamp(min=1)
        t, s = torch.where(new, start, t), torch.where(new, start - size, s)
        return self.at(model, example, t, s, self.draw_noise(example, random.generators))
