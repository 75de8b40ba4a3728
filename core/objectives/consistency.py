r"""Consistency models: f(x_t, t) is where the path through x_t ends, at t = 0, and so the same all along it.

f is the x0 of the estimate with target 0. Training compares it at neighbouring times (``consistency``), or lets the
distance between them go to zero (``consistency_continuous``). The neighbour is on the data's own path, which is
consistency training, or a solver's step of a teacher away, which is distillation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoise, Denoiser, implied_noise
from ..predictions import Estimate, scale_like
from ..randomness import StepRandomness
from ..samples import Sample, align_left, known_at_zero, map_parts, parts
from ..schedules import Schedule
from .denoising import (
    OBJECTIVES,
    Couple,
    Example,
    Uncertainty,
    balanced,
    build_weighting,
    prediction_errors,
    sum_losses,
)
from .derivatives import Method, check_method, derivative_along, inside, path_velocity, rates
from .flow_maps import FlowMapObjective, deterministic, fine, noise_share, solve, state, told
from .objective import Losses

DISCRETE_TIMES = {"name": "log_normal", "mean": -1.1, "std": 2.0}  # Song and Dhariwal 2024, table 1
CONTINUOUS_TIMES = {"name": "log_normal", "mean": -1.0, "std": 1.4}  # Lu and Song 2025, table 4


@OBJECTIVES.register("consistency")
class Consistency(FlowMapObjective):
    """Discrete consistency training or distillation (Song et al. 2023), with what made training from data work (Song
    and Dhariwal 2024): no averaged network in the target, a pseudo-Huber loss, log-normal times, and numbers of times
    that double, weighted by ``1 / (sigma_t - sigma_s)``.

    Times are ``k / N``: those of Karras et al. on the schedule ``edm``, even ones on ``flow``. For schedules whose
    alpha is not 1, sigma / (alpha + sigma) stands for sigma in the weight. Categorical parts are compared by
    cross-entropy.

    Args:
        steps: training steps over which N doubles from ``first`` to ``last``; None: N is ``last`` all along.
        sampler: of a teacher's step to the neighbouring time.
        floor: the square of the Huber constant, for mean squares.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        steps: int | None = None,
        first: int = 10,
        last: int = 1280,
        sampler: Any = "heun",
        times: Any = DISCRETE_TIMES,
        weighting: Any = "x0",
        power: float = 0.5,
        floor: float = 0.00054**2,
        part_weights: Mapping[str, float] | None = None,
        couple: Couple | None = None,
        pairing: Any = None,
    ) -> None:
        super().__init__(teacher, times, part_weights, power, floor, couple, pairing, 0.0)
        if not 1 <= first <= last or (steps is not None and steps < 1):
            raise ValueError(f"1 <= first <= last and steps >= 1, got {first}, {last} and {steps}")
        self.steps, self.first, self.last = steps, first, last
        self.sampler, self.weighting = deterministic(sampler), build_weighting(weighting)

    def count(self, step: int) -> int:
        """N at a training step."""
        if self.steps is None:
            return self.last
        doublings = math.floor(math.log2(self.last / self.first)) + 1
        return int(min(self.first * 2 ** (step * doublings // self.steps), self.last))

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        t = self.draw_times(model, random)
        return self.at(model, example, t, self.count(random.step), self.draw_noise(example, random.generators))

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """With N as at the end."""
        yield from self.views(
            model, example, items, seed, lambda t, noise: self.at(model, example, t, self.last, noise, adapted=False)
        )

    def at(
        self, model: Denoiser, example: Example, t: Tensor, count: int, noise: Sample, adapted: bool = True
    ) -> Losses:
        """The losses of the times next above ``t`` among ``count``, against those below them."""
        t = torch.ceil(t * count).clamp(min=1) / count
        s, zero, schedule = t - 1 / count, torch.zeros_like(t), model.schedule
        s = torch.where(s < 0.5 / count, zero, s)
        x, times = state(example, noise, t, schedule)
        with torch.no_grad():
            if self.teacher is None:
                x_s, ends = state(example, noise, s, schedule)
            else:
                step = next(solve(self.teacher, example, x, torch.stack((t, s)), schedule, self.sampler))
                x_s, ends = step.x, known_at_zero(s, example.known, x)
            x0 = self._end(model(x_s, ends, told(example.cond, zero)).x0, x_s, s)
            eps = implied_noise(x, x0, times, schedule)
        output = model.output(x, times, told(example.cond, zero))
        errors = prediction_errors(model, x, times, t, output, x0, eps, self.weighting)
        level = schedule.sigma if schedule.scaling == "exploding" else partial(noise_share, schedule)
        return self.losses(example, errors, t, adapted, weight=1 / (level(t) - level(s)))

    @staticmethod
    def _end(x0: Sample, x_s: Sample, s: Tensor) -> Sample:
        """f at time 0 is the sample itself, whatever a network says."""

        def one(estimate: Tensor, own: Tensor) -> Tensor:
            return torch.where(align_left((s > 0).to(own.device), own), estimate, own)

        return map_parts(one, x0, x_s)


@OBJECTIVES.register("consistency_continuous")
class ContinuousConsistency(FlowMapObjective):
    r"""Continuous-time consistency (sCM, Lu and Song 2025), from data or of a teacher, under any schedule.

    With the angle ``tan a = sigma / (alpha s)``, s the standard deviation of the data, and y = x / sqrt(alpha^2 s^2 +
    sigma^2), any schedule is TrigFlow: y = cos(a) x0 / s + sin(a) noise, and with

        F = cos(a) noise - sin(a) x0 / s        f = s (cos(a) y - sin(a) F)

    of the estimate (for the prediction ``edm`` F is minus the output itself) F is regressed on F + g / (|g| + c) with
    the tangent (eq. 8, alg. 1)

        g = -cos^2(a) (F - dy/da) - r cos(a) sin(a) (y + dF/da)

    |g| is the root mean square of a sample's part. Categorical parts are taken as their scaled one-hots.

    Args:
        warmup: training steps over which r rises from 0 to 1.
        normalise: c; None leaves the tangent as it is.
        uncertainty: learn the loss's scale at each noise level; needs the names of the parts ("" for a single tensor).
        derivative: ``forward`` mode, or ``central`` difference.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        warmup: int = 10_000,
        normalise: float | None = 0.1,
        times: Any = CONTINUOUS_TIMES,
        uncertainty: list[str] | None = None,
        derivative: Method = "forward",
        part_weights: Mapping[str, float] | None = None,
        couple: Couple | None = None,
        pairing: Any = None,
        time_min: float = 1e-4,
    ) -> None:
        super().__init__(teacher, times, part_weights, 0.0, 1.0, couple, pairing, time_min)
        if warmup < 0 or (normalise is not None and normalise <= 0):
            raise ValueError(f"warmup >= 0 and normalise > 0, got {warmup} and {normalise}")
        self.warmup, self.normalise, self.derivative = warmup, normalise, check_method(derivative)
        self.uncertainty = Uncertainty(list(uncertainty)) if uncertainty else None

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        risen = min(random.step / self.warmup, 1.0) if self.warmup else 1.0
        t, noise = self.draw_times(model, random), self.draw_noise(example, random.generators)
        return self.at(model, example, t, noise, risen, adapted=True)

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """The mean square of the tangent as it is, which a consistent model has at zero."""
        yield from self.views(
            model, example, items, seed, lambda t, noise: self.at(model, example, t, noise, 1.0, adapted=False)
        )

    def at(self, model: Denoiser, example: Example, t: Tensor, noise: Sample, risen: float, adapted: bool) -> Losses:
        """The losses at given times and noise."""
        schedule, known, spread = model.schedule, example.known, model.sigma_data
        x, times = state(example, noise, t, schedule)
        x0, eps = self.guide(example, x, times, noise)
        cond = told(example.cond, torch.zeros_like(t))

        def spoken(estimate: Estimate, time: Any) -> Sample:
            """F of an estimate."""

            def turned(clean: Tensor, noisy: Tensor, own: Any, s: float | None) -> Tensor:
                cos, sin = _angle(schedule, own, s or 1.0)
                return scale_like(cos, clean) * noisy - scale_like(sin / (s or 1.0), clean) * clean

            return map_parts(turned, estimate.x0, estimate.noise, time, spread)

        def moving(x: Sample, t: Tensor) -> Sample:
            own = inside(t, known, x)
            return spoken(model(x, own, cond), own)

        def tangent(part: Tensor, said: Tensor, slope: Tensor, change: Tensor, s: float | None) -> Tensor:
            cos, sin = _angle(schedule, t, s or 1.0)
            both = risen * cos * sin
            scale, turn = _size(schedule, t, s or 1.0), _turning(schedule, t, s or 1.0)
            g = scale_like(cos**2, part) * (slope - said) - scale_like(both / scale, part) * part
            return g - scale_like(both / turn, part) * change

        change = derivative_along(moving, x, t, path_velocity(schedule, x0, eps, t, known), self.derivative)
        said = spoken(model.estimate(x, times, model.output(x, times, cond)), times)
        still = map_parts(lambda part: fine(part.detach()), said)
        g = map_parts(tangent, x, still, spoken(Estimate(x0, eps), times), change, spread)
        if adapted and self.normalise is not None:
            squares, least = example.space.mean_square(g), self.normalise
            g = map_parts(lambda part, square: part / (align_left(square, part).sqrt() + least), g, squares)
        errors = map_parts(lambda now, old, way: (fine(now) - old - way) ** 2, said, still, g)
        scales = self.uncertainty(schedule.log_snr(t)) if self.uncertainty and adapted else {}
        return sum_losses(
            example, parts(errors), t, self.part_weights, lambda name, loss: balanced(loss, scales.get(name))
        )


def _size(schedule: Schedule, t: Any, s: float) -> Tensor:
    """The standard deviation of x at times t where that of the data is s."""
    alpha, sigma = schedule.alpha_sigma(t)
    return torch.sqrt((alpha * s) ** 2 + sigma**2)


def _angle(schedule: Schedule, t: Any, s: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of TrigFlow's angle."""
    alpha, sigma = schedule.alpha_sigma(t)
    size = _size(schedule, t, s)
    return alpha * s / size, sigma / size


def _turning(schedule: Schedule, t: Tensor, s: float) -> Tensor:
    """da/dt of the angle."""
    (alpha, sigma), (d_alpha, d_sigma) = schedule.alpha_sigma(t), rates(schedule, t)
    return s * (d_sigma * alpha - sigma * d_alpha) / _size(schedule, t, s) ** 2
