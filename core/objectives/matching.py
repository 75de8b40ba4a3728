r"""Distribution-matching distillation (DMD2, Yin et al. 2024): a generator whose samples have the teacher's law, not
its paths.

The gradient of KL(generator || teacher), noised, is the difference of their scores. That of the generator's own samples
is estimated by a second denoiser, ``fake``, which is trained on them beside it:

    generator   (D_fake(x_t) - D_teacher(x_t)) / mean |x - D_teacher(x_t)|     for the gradient of x, x_t a noised x
    fake        the denoising objective, with x for data
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoise, Denoiser
from ..grids import make_grid
from ..randomness import StepRandomness
from ..samplers import noised
from ..samples import Sample, align_left, batch_size, known_at_zero, map_parts, parts
from .denoising import OBJECTIVES, Denoising, Example, held_out_generators, sum_losses
from .flow_maps import FlowMapObjective, check_flat, fine, impose, start, state, told
from .objective import Losses

MATCHED_TIMES = {"name": "uniform", "low": 0.02, "high": 0.98}


@OBJECTIVES.register("dmd")
class DistributionMatching(FlowMapObjective):
    """The generator is the model's estimate of x0 with target 0, at each of the times of ``calls``; sample it as a
    consistency model, which adds fresh noise between calls. It is updated every ``ratio`` steps, the fake denoiser in
    each (two time scales); one loss is the sum of both, and neither's gradient reaches the other. Categorical parts are
    generated as the means of their one-hots.

    Args:
        model: the denoiser that will be trained: the fake one begins as its copy, and is saved with the objective.
        calls: how many calls a sample is to take.
        ratio: steps of the fake denoiser for each of the generator.
        grid: the times of the calls, by rule.
        temperature: a factor on the noise that samples begin from, for all parts or by part.
        times: of the noised samples that are compared.
        fake_times, weighting: of the fake denoiser's own objective.
    """

    def __init__(
        self,
        teacher: Denoise | None = None,
        model: Denoiser | None = None,
        calls: int = 4,
        ratio: int = 5,
        grid: Any = "uniform",
        temperature: Any = 1.0,
        times: Any = MATCHED_TIMES,
        fake_times: Any = "uniform",
        weighting: Any = "output",
        part_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(teacher, times, part_weights, 0.0, 1.0, None, None, 0.0)
        self.required_teacher()
        if model is None:
            raise ValueError("dmd needs the model that it will train, to begin the fake denoiser from")
        if calls < 1 or ratio < 1:
            raise ValueError(f"calls and ratio must be at least 1, got {calls} and {ratio}")
        self.fake = copy.deepcopy(model).requires_grad_(True)
        self.fake_loss = Denoising(weighting, fake_times, part_weights)
        self.calls, self.ratio, self.grid, self.temperature = calls, ratio, grid, temperature

    def generate(
        self, model: Denoiser, example: Example, generators: Sequence[torch.Generator], call: int, learn: bool
    ) -> Sample:
        """What the model makes in its first ``call + 1`` calls; gradients flow through the last of them."""
        check_flat(example.space)
        grid = make_grid(self.grid, self.calls, model.schedule)
        x = start(example, example.space.noise(example.x0, generators), grid[0], self.temperature, model.schedule)
        for k, t in enumerate(grid[: call + 1]):
            if k:
                noise = example.space.noise(example.x0, generators)
                x = impose(example, noised(x, noise, known_at_zero(t, example.known, x), model.schedule))
            with torch.set_grad_enabled(learn and k == call):
                when = t.expand(batch_size(x))
                times = known_at_zero(when, example.known, x)
                x = model(x, times, told(example.cond, torch.zeros_like(when))).x0
                x = impose(example, example.space.project(x))
        return x

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        turn = random.step % self.ratio == 0
        x = self.generate(model, example, random.generators, random.step // self.ratio % self.calls, turn)
        made = replace(example, x0=map_parts(torch.Tensor.detach, x))
        fake = self.fake_loss(self.fake, made, random)
        reported = {f"fake{name and '_' + name}": loss for name, loss in fake.parts.items()}
        total = fake.total
        if turn:
            noise = example.space.noise(example.x0, random.generators)
            total = total + self.match(made, x, self.draw_times(model, random), noise).total
        return Losses(total, reported)

    def match(self, made: Example, x: Sample, t: Tensor, noise: Sample) -> Losses:
        """Half the mean square of the normalised difference of the scores at ``t``; its gradient is that difference.
        ``made`` holds x without its gradient."""
        with torch.no_grad():
            x_t, times = state(made, noise, t, self.fake.schedule)
            real, fake = (denoise(x_t, times, made.cond).x0 for denoise in (self.required_teacher(), self.fake))
            size = made.space.mean(map_parts(lambda a, b: (fine(a) - fine(b)).abs(), made.x0, real))
            way = map_parts(
                lambda a, b, own: (fine(a) - fine(b)) / align_left(own, a).clamp(min=1e-6), fake, real, size
            )
        errors = map_parts(lambda a, old, g: (fine(a) - fine(old) + g) ** 2 / 2, x, made.x0, way)
        return sum_losses(made, parts(errors), t, self.part_weights)

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """How far the scores of the model's samples and of the teacher's are apart, as far as ``fake`` knows them."""
        generators = held_out_generators(seed, items, 0)
        x = self.generate(model, example, generators, self.calls - 1, False)
        u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        t = self.times(u.clamp(1e-9, 1 - 1e-9), model.schedule)
        yield "", self.match(replace(example, x0=x), x, t, example.space.noise(example.x0, generators))
