"""Training of the reverse step's variance beside its mean (Nichol and Dhariwal 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..bound import first_posterior, learned_variance, level_nats, normal_nats
from ..denoiser import Denoiser
from ..predictions import LearnedRange, Prediction
from ..samplers.ancestral import Posterior
from ..samplers.exponential import Interval
from ..samples import Sample, Time, align_left, parts, pick
from .denoising import OBJECTIVES, Couple, Denoising


@OBJECTIVES.register("hybrid")
class Hybrid(Denoising):
    """Denoising plus ``weight`` times the variational bound of ``levels`` steps, which trains the variance alone: the
    mean in it is held fixed (eq. 16). For networks of the prediction ``learned_range``.

    Args:
        levels: steps of the chain whose bound it is: a time t stands for the step from t to t - 1 / levels.
        weight: of the bound, in nats per dimension.
        weighting, times, part_weights, stratified, time_min, couple, pairing: of ``denoising``.
    """

    def __init__(
        self,
        levels: int = 1000,
        weight: float = 0.001,
        weighting: Any = "output",
        times: Any = "uniform",
        part_weights: Mapping[str, float] | None = None,
        stratified: bool = True,
        time_min: float = 1e-4,
        couple: Couple | None = None,
        pairing: Any = None,
    ) -> None:
        super().__init__(
            weighting, times, part_weights, stratified=stratified, time_min=time_min, couple=couple, pairing=pairing
        )
        if levels < 2 or weight < 0:
            raise ValueError(f"hybrid needs levels >= 2 and weight >= 0, got {levels} and {weight}")
        self.levels, self.weight = levels, weight

    def errors(
        self, denoiser: Denoiser, x: Sample, times: Time, t: Tensor, output: Sample, x0: Sample, noise: Sample
    ) -> dict[str, Tensor]:
        predictions = {name: _learned(denoiser.part_prediction(name)) for name in parts(x)}
        errors = super().errors(denoiser, x, times, t, output, x0, noise)
        for name, part in parts(x).items():
            prediction = predictions[name]
            said = pick(output, name)
            own = denoiser.schedule.alpha_sigma(pick(times, name))
            estimate = prediction.estimate(part, said.detach(), *own)[0]
            bound = self._bound(denoiser, t, pick(x0, name), estimate, prediction.variance(part, said))
            errors[name] = errors[name] + self.weight * self.levels * bound.to(errors[name])
        return errors

    def _bound(self, denoiser: Denoiser, t: Tensor, x0: Tensor, estimate: Tensor, fraction: Tensor) -> Tensor:
        """The bound's term of the step from each time, elementwise."""
        step = 1 / self.levels
        first = t <= step * (1 + 1e-9)
        inner = torch.where(first, 2 * step, t)  # where the other terms are not needed, times that have them
        inside = Posterior(Interval(denoiser.schedule, inner, inner - step))
        last = torch.where(first, t, step)
        outside = first_posterior(denoiser.schedule, last, last + step)
        decoder = normal_nats(x0, estimate, learned_variance(fraction, outside))
        level = level_nats(x0, estimate, fraction, inside)
        return torch.where(align_left(first.to(level.device), level), decoder.to(level), level)


def _learned(prediction: Prediction) -> LearnedRange:
    if not isinstance(prediction, LearnedRange):
        raise ValueError("the objective hybrid trains a variance: it needs the prediction 'learned_range'")
    return prediction
