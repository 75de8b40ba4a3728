"""The denoising objective: any prediction, weighting and time distribution.

    L = E_t E_x0 E_noise  weight(t) |output(alpha x0 + sigma noise, t) - target|^2

which is DDPM, score matching, rectified flow or EDM according to the three names it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..predictions import scale_like
from ..randomness import StepRandomness, generator
from ..registry import Registry
from ..samples import WHOLE, Cond, Sample, Time, known_at_zero, parts, pick
from ..spaces import Space
from .importance import LossSecondMoment
from .objective import Losses, Objective
from .times import TIME_DISTRIBUTIONS
from .weightings import WEIGHTINGS, Weighting, robust

OBJECTIVES: Registry[Any] = Registry("objective")
QUANTILES = tuple((k + 0.5) / 8 for k in range(8))  # of the training times, where the held-out loss is measured
Couple = Callable[[Sample, Sample, Space], Sample]  # couple(x0, noise, space) -> noise, paired with the data
_HELD_OUT = -3  # a key of generators apart from a step's


@dataclass(frozen=True)
class Example:
    """A batch ready for training.

    Attributes:
        x0: the clean sample.
        space: its space, holding this batch's masks.
        cond: conditions, with the mask under ``mask``.
        known: boolean, by part, left-aligned with the sample; elements given at t = 0. None: nothing is known.
    """

    x0: Sample
    space: Space
    cond: Cond
    known: Sample | None = None


def held_out_generators(seed: int, items: Sequence[int], view: int) -> list[torch.Generator]:
    """One generator for each held-out item, which depends on (seed, item, view) only."""
    return [generator(seed, _HELD_OUT, item, view) for item in items]


def prediction_errors(
    denoiser: Denoiser, x: Sample, times: Time, t: Tensor, output: Sample, x0: Sample, noise: Sample, weighting: Any
) -> dict[str, Tensor]:
    """The weighted error of the output at ``x``, element by element and part by part.

    Args:
        times: of each element of ``x``.
        t: the time that is weighted, (batch,) or left-aligned.
        x0, noise: what the output should have said, ``x = alpha x0 + sigma noise``.
        weighting: one, or one for each part.
    """
    schedule, errors = denoiser.schedule, dict[str, Tensor]()
    alpha, sigma = schedule.alpha_sigma(t)
    for name, part in parts(x).items():
        prediction = denoiser.part_prediction(name)
        own = schedule.alpha_sigma(pick(times, name))
        error = prediction.error(part, pick(output, name), pick(x0, name), pick(noise, name), *own)
        weight = pick(weighting, name)(t, schedule, prediction.x0_per_output(alpha, sigma))
        errors[name] = error * scale_like(weight, error)
    return errors


def sum_losses(
    example: Example,
    errors: Mapping[str, Tensor],
    t: Tensor,
    part_weights: Mapping[str, float],
    adapt: Callable[[str, Tensor], Tensor] = lambda name, loss: loss,
) -> Losses:
    """Losses of errors by element and part: each part's mean over what is real and unknown is reported, and adapted
    and weighted it is added to the total."""
    losses: dict[str, Tensor] = (
        {WHOLE: example.space.mean(errors[WHOLE])} if isinstance(example.x0, Tensor) else example.space.mean(errors)  # type: ignore[dict-item]
    )
    total = torch.zeros_like(next(iter(losses.values())))
    for name, loss in losses.items():
        total = total + part_weights.get(name, 1.0) * adapt(name, loss)
    return Losses(total, losses, t)


def build_weighting(weighting: Any) -> Weighting | dict[str, Weighting]:
    """A weighting from its name, or one for each part from ``{part: name}``."""
    if isinstance(weighting, Mapping) and "name" not in weighting:
        return {part: WEIGHTINGS.build(one) for part, one in weighting.items()}
    return WEIGHTINGS.build(weighting)


def build_pairing(spec: Any) -> Any:
    """A pairing from its name; None stays None."""
    from .pairings import PAIRINGS  # which tells of examples, as all do that import this room

    return None if spec is None else PAIRINGS.build(spec)


class Uncertainty(nn.Module):
    """The learned log-variance of each part's loss at each noise level (Karras et al. 2024, eq. 21): the loss becomes
    ``loss / exp(u) + u``, which balances noise levels and parts."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, names: list[str], features: int = 64) -> None:
        super().__init__()
        self.names = names
        normal = torch.randn(features, generator=torch.Generator().manual_seed(0))
        self.register_buffer("frequencies", 2 * torch.pi * normal)
        self.register_buffer("phases", 2 * torch.pi * torch.rand(features, generator=torch.Generator().manual_seed(1)))
        self.head = nn.Linear(features, len(names))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, log_snr: Tensor) -> dict[str, Tensor]:
        level = log_snr.clamp(-20, 20).float()[:, None] / 8
        values = self.head(torch.cos(level * self.frequencies + self.phases) * 2**0.5)
        return dict(zip(self.names, values.unbind(1), strict=True))


def balanced(loss: Tensor, log_variance: Tensor | None) -> Tensor:
    """``loss / exp(u) + u`` with the log-variance u; None leaves the loss as it is."""
    if log_variance is None:
        return loss
    log_variance = log_variance.to(loss)
    return loss * torch.exp(-log_variance) + log_variance


@OBJECTIVES.register("denoising")
class Denoising(Objective):
    """Denoising, per part and per sample.

    Args:
        weighting: a name, or one for each part.
        times: the distribution of training times.
        part_weights: how much each part counts; 1 where not named.
        self_condition: probability that a step feeds the network its own first estimate of x0.
        uncertainty: learn the loss's scale at each noise level; needs the names of the parts ("" for a single tensor).
        stratified: spread the times evenly over the global batch.
        time_axes: leading axes after the batch with times of their own (1: each frame), for diffusion forcing.
        apart: the share of steps in which they have; in the others a sample has one time.
        time_min: times below it are raised to it, away from the infinite signal-to-noise ratio of t = 0.
        power, floor: of the ``robust`` loss of a sample; 0 leaves it as it is, 1/2 is pseudo-Huber.
        couple: ``couple(x0, noise, space) -> noise``: pairs the noise of a sample with its data (assignment, rotation).
        pairing: which noise goes with which sample of the batch (``PAIRINGS``: optimal transport), before ``couple``.
    """

    def __init__(
        self,
        weighting: Any = "output",
        times: Any = "uniform",
        part_weights: Mapping[str, float] | None = None,
        self_condition: float = 0.0,
        uncertainty: list[str] | None = None,
        stratified: bool = True,
        time_axes: int = 0,
        apart: float = 1.0,
        time_min: float = 1e-4,
        power: float = 0.0,
        floor: float = 1e-3,
        couple: Couple | None = None,
        pairing: Any = None,
    ) -> None:
        super().__init__()
        self.weighting = build_weighting(weighting)
        self.times = TIME_DISTRIBUTIONS.build(times)
        self.part_weights = dict(part_weights or {})
        self.self_condition = self_condition
        self.uncertainty = Uncertainty(list(uncertainty)) if uncertainty else None
        if not 0 <= apart <= 1:
            raise ValueError(f"apart lies in [0, 1], got {apart}")
        if not 0 <= power <= 1 or floor <= 0:
            raise ValueError(f"power lies in [0, 1] and floor is positive, got {power} and {floor}")
        if time_axes and isinstance(self.times, LossSecondMoment):
            raise ValueError("times 'loss_second_moment' are of whole samples: without time_axes")
        self.power, self.floor = power, floor
        self.stratified, self.time_axes, self.apart = stratified, time_axes, apart
        self.time_min, self.couple = time_min, couple
        self.pairing = build_pairing(pairing)

    def draw_times(self, example: Example, denoiser: Denoiser, random: StepRandomness) -> Tensor:
        """Times ``(batch, *first time_axes)``, float64 on the CPU."""
        if isinstance(self.times, LossSecondMoment):
            self.times.start(random.step)
        u = random.uniform(self.stratified)
        if self.time_axes and (self.apart == 1 or random.coin(self.apart)):
            shape = next(iter(parts(example.x0).values())).shape[1 : 1 + self.time_axes]
            own = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in random.generators])
            own.flatten(1)[:, 0] = 0  # each element is uniform, the first of them stratified
            u = (own + u.reshape(-1, *[1] * len(shape))) % 1
        return self.times(u, denoiser.schedule).clamp(self.time_min, 1.0)

    def draw_noise(self, example: Example, generators: Sequence[torch.Generator]) -> Sample:
        """Noise of the sample's space, paired with the data."""
        noise = example.space.noise(example.x0, generators)
        if self.pairing is not None:
            noise = self.pairing(example, noise, generators)
        return noise if self.couple is None else self.couple(example.x0, noise, example.space)

    def forward(self, model: Denoiser, example: Example, random: StepRandomness) -> Losses:
        t = self.draw_times(example, model, random)
        noise = self.draw_noise(example, random.generators)
        previous_wanted = self.self_condition > 0 and random.coin(self.self_condition)
        losses = self.at(model, example, t, noise, previous_wanted)
        return self.times.corrected(losses) if isinstance(self.times, LossSecondMoment) else losses

    def held_out(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """The loss at each of ``QUANTILES``; the noise of an item depends on (seed, item, quantile) only, so two
        evaluations differ by the weights alone."""
        for k, u in enumerate(QUANTILES):
            noise = self.draw_noise(example, held_out_generators(seed, items, k))
            quantiles = torch.full((len(items),), u, dtype=torch.float64)
            t = self.times(quantiles, model.schedule).clamp(self.time_min, 1.0)
            yield f"u{u:.4f}", self.at(model, example, t, noise, self.self_condition > 0)

    def errors(
        self, denoiser: Denoiser, x: Sample, times: Time, t: Tensor, output: Sample, x0: Sample, noise: Sample
    ) -> dict[str, Tensor]:
        """What is minimised, element by element and part by part (``prediction_errors``)."""
        return prediction_errors(denoiser, x, times, t, output, x0, noise, self.weighting)

    def at(self, denoiser: Denoiser, example: Example, t: Tensor, noise: Sample, self_condition: bool) -> Losses:
        """The losses at given times and noise (what held-out evaluation calls)."""
        schedule = denoiser.schedule
        times = known_at_zero(t, example.known, example.x0)
        x, x0, noise = example.space.noised(example.x0, noise, times, schedule)
        previous = self._first_estimate(denoiser, x, times, example.cond) if self_condition else None
        output = denoiser.output(x, times, example.cond, previous)
        errors = self.errors(denoiser, x, times, t, output, x0, noise)
        scales = self.uncertainty(schedule.log_snr(t.flatten(1)[:, 0] if t.ndim > 1 else t)) if self.uncertainty else {}

        def adapted(name: str, loss: Tensor) -> Tensor:
            return balanced(robust(loss, self.power, self.floor), scales.get(name))

        return sum_losses(example, errors, t, self.part_weights, adapted)

    @staticmethod
    @torch.no_grad()
    def _first_estimate(denoiser: Denoiser, x: Sample, t: Time, cond: Cond) -> Sample:
        return denoiser.estimate(x, t, denoiser.output(x, t, cond, None)).x0
