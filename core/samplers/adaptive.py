"""The probability-flow ODE in steps as long as a tolerance allows, each sample its own.

A step is predicted from the estimates at its start and at that of the step before, and corrected by the estimate at its
end, with the exponential weights of ``exponential``: UniPC of order 2 (Zhao et al. 2023), a pair of orders 2 and 3 in
one call, for the estimate at the end is that at the next start. Their difference is the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..predictions import scale_like
from ..samples import Sample, align_left, batch_size, map_parts
from ..schedules import Schedule
from ..spaces import Space
from .exponential import Interval, moments, node_weights
from .sampler import SAMPLERS, BoundDenoise, Sampler, State, combine


class Pace(NamedTuple):
    """What the steps so far leave for the next.

    Attributes:
        space: gives the mean square of an error.
        length: of the next step, as a rise of log(alpha / sigma); ``(batch,)``.
        errors: of the last two steps, in units of the tolerance; ``(2, batch)``.
        now: the estimate at the present time.
        before: the estimate at the start of the step before,
        level: and log(alpha / sigma) there, ``(batch, *time)``; NaN for none.
    """

    space: Space
    length: Any = None
    errors: Any = None
    now: Any = None
    before: Any = None
    level: Any = None


@SAMPLERS.register("adaptive")
class Adaptive(Sampler):
    """Steps as long as the error allows, by a PID controller (Soederlind 2003), between the times of the grid, all of
    which are visited: with ``steps=1`` they are free. Where log(alpha / sigma) is infinite, or so large that what is
    left is below the tolerance, the step is DDIM's.

    Args:
        rtol: tolerated error of a step, relative to x.
        atol: the same, absolute, where alpha^2 + sigma^2 = 1.
        gains: of the controller: proportional, integral, derivative.
        max_calls: of the denoiser, in one step of the grid.
    """

    order = 3
    calls_per_step = None
    elementwise = False

    def __init__(
        self,
        rtol: float = 0.01,
        atol: float = 0.001,
        gains: Sequence[float] = (0.2, 0.4, 0.0),
        max_calls: int = 1000,
    ) -> None:
        if rtol <= 0 or atol <= 0 or max_calls < 1 or len(gains) != 3:
            raise ValueError("adaptive needs rtol > 0, atol > 0, three gains and max_calls >= 1")
        self.rtol, self.atol, self.max_calls = rtol, atol, max_calls
        p, i, d = gains
        self.powers = torch.tensor([[-p - i - d], [p + 2 * d], [-d]], dtype=torch.float64) / self.order
        self.bound = math.log(10 / math.sqrt(min(rtol, 1.0)))  # what is left beyond is rtol / 100 in variance

    def plan(self, schedule: Schedule, grid: Tensor) -> Sequence[Any]:
        return [(schedule, t, s) for t, s in pairwise(grid)]

    def begin(self, space: Space) -> State:
        return State(None, (Pace(space),))

    def step(
        self, denoise: BoundDenoise, x: Sample, coefficients: Any, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        schedule, *ends = coefficients
        t, s = (end.expand(batch_size(x), *end.shape[1:]) for end in ends)
        first, last = schedule.log_snr(torch.stack((t, s))) / 2
        low = first.clamp(min=-self.bound).minimum(last)
        high = last.clamp(max=self.bound).maximum(low)
        span = (high - low).nan_to_num(0.0)
        longest = span.flatten(1).amax(1) if span.ndim > 1 else span

        def time_at(way: Tensor) -> Tensor:
            level = torch.where(align_left(way, span) == 1, high, low + align_left(way, span) * span)
            inner = torch.where(level > first, schedule.time_of_log_snr(2 * level), t)
            return torch.where(level >= last, s, inner)

        x0, (pace, *_) = state
        space, length, errors, now, before, level = pace
        if length is None:
            x0 = now = before = denoise(x, t, None).x0
            # The first step is short: a long one might not notice what it passes over.
            length, errors = torch.full_like(longest, 0.1), torch.ones_like(longest).expand(2, -1)
            level = torch.full_like(first, torch.nan)
        way = torch.where(longest > 0, 0.0, 1.0)  # how much of the step is behind
        time, calls = time_at(way), 0
        x = _leap(schedule, t, time, x, now)
        while bool((left := 1 - way).any()):
            if (calls := calls + 1) > self.max_calls:
                raise ValueError(f"adaptive: {self.max_calls} calls did not reach the end of a step; allow more error")
            part = torch.where(length < longest * left, length / longest, left)
            part = torch.where((part < left) & (2 * part > left), left / 2, part)  # no crumb at the end
            ahead = torch.where(part == left, 1.0, way + part)
            move = Interval(schedule, time, time_at(ahead))
            predicted, correct = _pair(move, level, (x, now, before))
            new = denoise(predicted, move.s, x0).x0
            corrected = correct(new)
            error = torch.where(left > 0, self._error(space, move, x, predicted, corrected).to(left), 0.0)
            kept, tried = (left > 0) & ~(error > 1), left > 0
            history = torch.cat([error.clamp(min=1e-3)[None], errors])
            factor = torch.where(kept, torch.prod(history ** self.powers.to(left), 0), history[0] ** (-1 / self.order))
            grown = part * longest * (0.9 * factor).clamp(0.2, 5.0)
            length = torch.where(tried, torch.where(kept & (ahead == 1), grown.maximum(length), grown), length)
            errors = torch.where(kept, history[:2], errors)
            x, x0 = _where(kept, corrected, x), _where(tried, new, x0)
            now, before = _where(kept, new, now), _where(kept, now, before)
            kept_here = align_left(kept, level)
            level, time = torch.where(kept_here, move.level, level), torch.where(kept_here, move.s, time)
            way = torch.where(kept, ahead, way)
        return _leap(schedule, time, s, x, now), State(x0, (Pace(space, length, errors, now, before, level),))

    def _error(self, space: Space, move: Interval, x: Sample, predicted: Sample, corrected: Sample) -> Tensor:
        """Of a step, in units of the tolerance: ``(batch,)``. What is not finite has none, to come to an end."""
        size, size_s = torch.hypot(move.alpha, move.sigma), torch.hypot(move.alpha_s, move.sigma_s)

        def relative(part: Tensor, low: Tensor, high: Tensor) -> Tensor:
            largest = torch.maximum(part.abs() * scale_like(size_s / size, part), high.abs())
            return (high - low) / (self.atol * scale_like(size_s, part) + self.rtol * largest)

        square = space.mean_square(map_parts(relative, x, predicted, corrected))
        square = square if isinstance(square, Tensor) else torch.stack(list(square.values())).amax(0)
        return square.double().sqrt().nan_to_num(0.0, posinf=0.0)


def _leap(schedule: Schedule, t: Tensor, s: Tensor, x: Sample, x0: Sample) -> Sample:
    """The DDIM step from t to s, where there is one."""
    return combine(Interval(schedule, t, s).first_order(), (x, x0)) if bool((t > s).any()) else x


def _pair(
    move: Interval, level: Tensor, known: tuple[Sample, Sample, Sample]
) -> tuple[Sample, Callable[[Sample], Sample]]:
    """The step predicted from (x, the estimates now and before, that at ``level``), and a function of the estimate at
    its end that corrects it."""
    zero, one, all_of = torch.zeros_like(move.h), torch.ones_like(move.h), torch.ones_like(move.moves)
    nodes, used = [zero, (level - move.level) / move.h], [all_of, move.inside & level.isfinite() & (level < move.level)]
    integrals = moments(move.h, 3)

    def weights(nodes: list[Tensor], used: list[Tensor]) -> list[Tensor]:
        return [move.alpha_s * w for w in node_weights(nodes, used, integrals[: len(nodes)])]

    corrected = weights([*nodes, one], [*used, move.inside])
    predicted = combine((move.shrink, *weights(nodes, used)), known)
    return predicted, lambda new: combine((move.shrink, *corrected), (*known, new))


def _where(flags: Tensor, new: Sample, old: Sample) -> Sample:
    """``new`` for the samples that are flagged."""
    if bool(flags.all()):
        return new
    return map_parts(lambda a, b: torch.where(align_left(flags.to(a.device), a), a, b), new, old)
