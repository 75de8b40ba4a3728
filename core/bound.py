r"""The variational bound on the likelihood of a denoiser as a diffusion model.

    -log p(x) <= KL(q(x_1 | x) || N(0, sigma_1^2)) + sum KL(q(x_s | x_t, x) || p(x_s | x_t)) + E[-log p(x | x_t1)]

the prior's term, those of the levels, and the decoder's of the first one. With the posterior's variance a level's term
is ``(SNR(s) - SNR(t)) / 2 E|x - x0|^2``, and in the limit of many (Kingma et al. 2021, eq. 17) their sum is

    1/2 int SNR E|x - x0(x_t)|^2 d log SNR
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from .denoiser import Denoise
from .grids import Rule, make_grid
from .likelihood import bits_per_dimension
from .predictions import Estimate, scale_like
from .randomness import generator, sample_generators
from .samplers.ancestral import Posterior
from .samplers.exponential import Interval
from .samplers.loop import default_space, noised
from .samples import Cond, Sample, batch_size, known_at_zero, map_parts
from .schedules import SCHEDULES, Schedule
from .spaces import Space

Variance = Literal["small", "large", "learned"]
LOWEST = -20.0  # the log-SNR below which there is nothing left to integrate


@dataclass(frozen=True)
class Bound:
    """The terms of an upper bound of the negative log-likelihood, ``(batch,)`` each, float64.

    Attributes:
        prior: nats that the last level costs.
        levels: nats of all levels between.
        decoder: nats of the data given the first level.
        dimension: the number of real, unknown elements.
    """

    prior: Tensor
    levels: Tensor
    decoder: Tensor
    dimension: Tensor

    @property
    def nats(self) -> Tensor:
        """A lower bound of the log-likelihood, ``(batch,)``."""
        return -(self.prior + self.levels + self.decoder)

    def bits_per_dimension(self, bin_width: float | None = None) -> Tensor:
        """``(batch,)``; ``bin_width`` as of ``likelihood.bits_per_dimension``, unless the decoder had bins already."""
        return bits_per_dimension(self.nats, self.dimension, bin_width)


class _Terms:
    """What both bounds are made of: one batch, its denoiser and its noise."""

    def __init__(
        self,
        denoise: Denoise,
        x: Sample,
        schedule: Schedule | str | Mapping[str, Any] | None,
        seeds: int | Sequence[int],
        space: Space | None,
        cond: Cond | None,
        known: Sample | None,
    ) -> None:
        own = getattr(denoise, "schedule", None)
        self.schedule = SCHEDULES.build(schedule if schedule is not None else own if own is not None else "flow")
        self.denoise, self.x, self.cond, self.known = denoise, x, cond, known
        self.space = default_space(x) if space is None else space
        count = batch_size(x)
        self.generators: list[Generator] = (
            sample_generators(seeds, range(count)) if isinstance(seeds, int) else [generator(s) for s in seeds]
        )
        self.dimension = self.space.dimension(x).cpu()

    def estimate(self, t: Tensor) -> Estimate:
        """Of x with fresh noise at time ``t``, 0-d or ``(batch,)``."""
        times = known_at_zero(t, self.known, self.x)
        noise = self.space.noise(self.x, self.generators)
        return self.denoise(noised(self.x, noise, times, self.schedule), times, self.cond, None)

    def square(self, x0: Sample) -> Tensor:
        """``|x - x0|^2``."""
        error = map_parts(torch.sub, self.x, x0)
        return self.space.dot(error, error).cpu()

    def total(self, values: Callable[..., Tensor], *of: Any) -> Tensor:
        """A sum over real, unknown elements of a function of x and others."""
        summed = map_parts(values, self.x, *of)
        return self.space.dot(summed, map_parts(torch.ones_like, self.x)).cpu()

    def prior(self, log_snr: float) -> Tensor:
        """KL(q(x_t | x) || N(0, sigma^2)) at the time of ``log_snr``."""
        return math.exp(log_snr) / 2 * self.space.dot(self.x, self.x).cpu()

    def decoder(self, x0: Sample, variance: Any, bin_width: float | None) -> Tensor:
        """Nats of x under ``N(x0, variance)``; of bins of that width around x, where given."""
        if bin_width is None and isinstance(variance, Tensor) and variance.ndim == 0:
            return self.square(x0) / (2 * variance) + self.dimension / 2 * torch.log(2 * math.pi * variance)
        return self.total(lambda x, mean, v: normal_nats(x, mean, v, bin_width), x0, variance)


def normal_nats(x: Tensor, mean: Tensor, variance: Tensor, bin_width: float | None = None) -> Tensor:
    """``-log N(x; mean, variance)`` elementwise, or that of the bin of width ``bin_width`` around x; float64."""
    distance, std = x.double() - mean, torch.as_tensor(variance, device=x.device).double().sqrt()
    if bin_width is None:
        return (distance / std) ** 2 / 2 + torch.log(std) + math.log(2 * math.pi) / 2
    near = (distance.abs() - bin_width / 2) / std  # on the left side, where the tail keeps its digits
    far = (distance.abs() + bin_width / 2) / std
    high, low = torch.special.log_ndtr(-near), torch.special.log_ndtr(-far)
    return -(high + torch.log(-torch.expm1(low - high)))


@torch.no_grad()
def discrete_bound(
    denoise: Denoise,
    x: Sample,
    *,
    schedule: Schedule | str | Mapping[str, Any] | None = None,
    grid: Tensor | Rule | str | Mapping[str, Any] = "log_snr",
    steps: int | None = None,
    variance: Variance = "small",
    bin_width: float | None = None,
    seeds: int | Sequence[int] = 0,
    space: Space | None = None,
    cond: Cond | None = None,
    known: Sample | None = None,
) -> Bound:
    """The bound of the chain that visits the times of ``grid``, one draw of noise at each (Ho et al. 2020, eq. 5).

    Args:
        denoise: the denoiser; it is called without ``previous``.
        x: data.
        schedule: by default the denoiser's own, else ``flow``.
        grid: times falling to 0: the levels. What counts is how little log-SNR rises from one to the next: DDPM's own
            bound is that of ``grid="trailing", steps=1000`` under the schedule ``linear``.
        steps: how many.
        variance: of the reverse steps, as of the sampler ``ddpm``. The decoder's is sigma^2 / alpha^2 of the first
            level, or what is learned.
        bin_width: for data that was rounded, the distance of neighbouring values: the decoder then tells of bins.
        seeds: one for each sample, or one for the batch.
        space, cond, known: as of ``likelihood.log_likelihood``.
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(f"variance must be 'small', 'large' or 'learned', got {variance!r}")
    terms = _Terms(denoise, x, schedule, seeds, space, cond, known)
    times = make_grid(grid, steps, terms.schedule)
    if times.ndim != 1 or float(times[-1]) != 0:
        raise ValueError("a bound takes one time for all elements, and a grid that ends at t = 0")
    if variance == "learned" and len(times) < 3:
        raise ValueError("a learned variance needs at least 2 steps")
    levels = torch.zeros_like(terms.dimension)
    for t, s in pairwise(times[:-1]):
        posterior = Posterior(Interval(terms.schedule, t, s))
        estimate = terms.estimate(t)
        square = terms.square(estimate.x0)
        if variance == "learned":
            levels = levels + terms.total(partial(level_nats, posterior=posterior), estimate.x0, _said(estimate))
        else:
            chosen = posterior.small if variance == "small" else posterior.large
            wide = torch.log(chosen / posterior.small) + posterior.small / chosen - 1
            levels = levels + float(posterior.b**2 / chosen) / 2 * square + float(wide) / 2 * terms.dimension
    first = times[-2]
    estimate = terms.estimate(first)
    if variance == "learned":
        posterior = first_posterior(terms.schedule, first, times[-3])
        spread: Any = map_parts(lambda f: learned_variance(f, posterior), _said(estimate))
    else:
        spread = torch.exp(-terms.schedule.log_snr(first))
    decoder = terms.decoder(estimate.x0, spread, bin_width)
    return Bound(terms.prior(float(terms.schedule.log_snr(times[0]))), levels, decoder, terms.dimension)


@torch.no_grad()
def continuous_bound(
    denoise: Denoise,
    x: Sample,
    *,
    schedule: Schedule | str | Mapping[str, Any] | None = None,
    draws: int = 64,
    time_min: float = 1e-3,
    bin_width: float | None = None,
    seeds: int | Sequence[int] = 0,
    space: Space | None = None,
    cond: Cond | None = None,
    known: Sample | None = None,
) -> Bound:
    """The bound in the limit of many levels, by ``draws`` log-SNRs of each sample, one in each of equal strata.

    Args:
        draws: calls of the denoiser.
        time_min: where the decoder takes over.
        denoise, x, schedule, bin_width, seeds, space, cond, known: as of ``discrete_bound``.
    """
    if draws < 1 or not 0 < time_min < 1:
        raise ValueError(f"needs draws >= 1 and 0 < time_min < 1, got {draws} and {time_min}")
    terms = _Terms(denoise, x, schedule, seeds, space, cond, known)
    first = torch.tensor(time_min, dtype=torch.float64)
    high = float(terms.schedule.log_snr(first))
    low = max(float(terms.schedule.log_snr(1.0)), LOWEST)
    levels = torch.zeros_like(terms.dimension)
    for k in range(draws):
        own = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in terms.generators])
        log_snr = low + (high - low) * (k + own) / draws
        square = terms.square(terms.estimate(terms.schedule.time_of_log_snr(log_snr)).x0)
        levels = levels + (high - low) / draws * log_snr.exp() * square / 2
    decoder = terms.decoder(terms.estimate(first).x0, torch.exp(-terms.schedule.log_snr(first)), bin_width)
    return Bound(terms.prior(float(terms.schedule.log_snr(1.0))), levels, decoder, terms.dimension)


def learned_variance(fraction: Tensor, posterior: Posterior) -> Tensor:
    """The variance that ``Estimate.variance`` means for a step, elementwise."""
    low, high = (scale_like(torch.log(value), fraction) for value in (posterior.small, posterior.large))
    return torch.exp(low + (high - low) * fraction)


def first_posterior(schedule: Schedule, first: Tensor, before: Tensor) -> Posterior:
    """That of the step from ``first`` to t = 0, with the small variance of the step that led there: its own is 0
    (Nichol and Dhariwal 2021)."""
    last = Posterior(Interval(schedule, first, torch.zeros_like(first)))
    last.small = Posterior(Interval(schedule, before, first)).small
    return last


def level_nats(x: Tensor, x0: Tensor, fraction: Tensor, posterior: Posterior) -> Tensor:
    """KL(q(x_s | x_t, x) || p(x_s | x_t)) with a learned variance, elementwise."""
    small, b = (scale_like(value, x) for value in (posterior.small, posterior.b))
    variance = learned_variance(fraction, posterior)
    return (torch.log(variance / small) + small / variance - 1 + (b * (x - x0)) ** 2 / variance) / 2


def _said(estimate: Estimate) -> Sample:
    if estimate.variance is None:
        raise ValueError("variance 'learned' needs a denoiser with the prediction 'learned_range'")
    return estimate.variance
