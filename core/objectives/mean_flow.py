r"""MeanFlow (Geng et al. 2025): the average velocity between two times, learned by its own identity.

With y = x / (alpha + sigma) and r = sigma / (alpha + sigma) any schedule is the straight line, ``dy/dr = v``, and the
average velocity of a step from t to s, ``u (r_t - r_s) = integral of v``, differentiates to

    u(x, t, s) = v - (r_t - r_s) du/dr          du/dr = (d/dt u(x(t), t, s)) / (dr/dt)

along the path. u is ``noise - x0`` of the estimate; v is that of the data's pair, or a teacher's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import null
from ..denoiser import Denoise, Denoiser
from ..predictions import Estimate, scale_like
from ..randomness import StepRandomness
from ..samples import Cond, Sample, known_at_zero, map_parts, parts
from .denoising import OBJECTIVES, Couple, Example
from .derivatives import Method, check_method, derivative_along, inside, path_velocity, rates
from .flow_maps import FlowMapObjective, fine, noise_share, put, state, take, told
from .objective import Losses

TIMES = {"name": "logit_normal", "mean": -0.4, "std": 1.0}  # of both ends (table 1)


def velocity(estimate: Estimate) -> Sample:
    """``noise - x0``: what moves y in r."""
    return map_parts(lambda noise, x0: noise - x0, estimate.noise, estimate.x0)


@OBJECTIVES.register("meanflow")
class MeanFlow(FlowMapObjective):
    """MeanFlow, from data or of a teacher. Categorical parts are averaged too: their velocity is that of the scaled
    one-hots, whose x0 the softmax keeps between the classes.

    Args:
        same: the share of samples with s = t, where it is flow matching.
        guidance: of a model from data: the scale of classifier-free guidance that is trained into it (eq. 19); the
            conditions must be dropped from some of the data.
        derivative: ``forward`` mode, or ``central`` difference.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        same: float = 0.75,
        times: Any = TIMES,
        guidance: float = 1.0,
        derivative: Method = "forward",
        power: float = 1.0,
        floor: float = 1e-3,
        part_weights: Mapping[str, float] | None = None,
        couple: Couple | None = None,
        pairing: Any = None,
        time_min: float = 1e-4,
    ) -> None:
        super().__init__(teacher, times, part_weights, power, floor, couple, pairing, time_min)
        if not 0 <= same < 1:
            raise ValueError(f"same lies in [0, 1), got {same}")
        if guidance != 1 and teacher is not None:
            raise ValueError("a teacher is guided itself: leave guidance out")
        self.same, self.guidance, self.derivative = same, guidance, check_method(derivative)

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        one, other = self.draw_times(model, random), self.draw_times(model, random)
        t = torch.maximum(one, other)
        s = torch.where(random.uniform() < self.same, t, torch.minimum(one, other))
        return self.at(model, example, t, s, self.draw_noise(example, random.generators))

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """Of steps to the data, s = 0."""
        yield from self.views(
            model,
            example,
            items,
            seed,
            lambda t, noise: self.at(model, example, t, torch.zeros_like(t), noise, adapted=False),
        )

    def at(
        self, model: Denoiser, example: Example, t: Tensor, s: Tensor, noise: Sample, adapted: bool = True
    ) -> Losses:
        """The losses of steps from t to s, (batch,) each."""
        x, times = state(example, noise, t, model.schedule)
        x0, eps = self.guide(example, x, times, noise)
        v = self._guided(model, example, x, t, map_parts(lambda a, b: a - b, eps, x0))
        target, rows = v, torch.nonzero(s < t)[:, 0]
        if len(rows):
            some = [take(value, rows) for value in (x, t, s, x0, eps, v, example.cond, example.known)]
            target = put(v, rows, self._average(model, *some))
        output = model.output(x, times, told(example.cond, s))
        u = velocity(model.estimate(x, times, output))
        errors = map_parts(lambda a, b: (fine(a) - fine(b)) ** 2, u, target)
        return self.losses(example, parts(errors), t, adapted)

    @torch.no_grad()
    def _guided(self, model: Denoiser, example: Example, x: Sample, t: Tensor, v: Sample) -> Sample:
        if self.guidance == 1:
            return v
        times = known_at_zero(t, example.known, x)
        weak = velocity(model(x, times, told(null(example.cond) or {}, t)))
        return map_parts(lambda one, without: without + self.guidance * (one - without), v, weak)

    def _average(
        self,
        model: Denoiser,
        x: Sample,
        t: Tensor,
        s: Tensor,
        x0: Sample,
        eps: Sample,
        v: Sample,
        cond: Cond,
        known: Any,
    ) -> Sample:
        """What u should be: ``v - (r_t - r_s) du/dr``."""
        schedule = model.schedule

        def u(x: Sample, t: Tensor) -> Sample:
            return velocity(model(x, inside(t, known, x), told(cond, s)))

        change = derivative_along(u, x, t, path_velocity(schedule, x0, eps, t, known), self.derivative)
        (alpha, sigma), (d_alpha, d_sigma) = schedule.alpha_sigma(t), rates(schedule, t)
        per_time = (d_sigma * alpha - sigma * d_alpha) / (alpha + sigma) ** 2  # dr/dt
        ratio = (noise_share(schedule, t) - noise_share(schedule, s)) / per_time
        return map_parts(lambda a, b: a - scale_like(ratio, a) * b, v, change)
