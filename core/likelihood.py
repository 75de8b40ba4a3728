r"""The exact log-likelihood of a sample under a denoiser, by the probability-flow ODE (Song et al. 2021, section 4.3).

With ``S = alpha + sigma``, ``u = sigma / S`` and ``z = x / S`` the ODE is ``dz/du = f = noise - x0``, finite from data
to noise. Along it ``d log p(z) / du = -div_z f``, so that with x_1 the end of the ODE that starts at x

    log p(x) = log N(x_1; 0, sigma(1)^2) + d log(S_1 / S_0) + int S div_x f du

The divergence is the trace of a Jacobian, exact (one backward pass for each element) or estimated without bias as
``e^T (df/dx) e`` with random probes e (Hutchinson 1989), held fixed along the ODE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import Rule, make_grid
from .randomness import generator, sample_generators
from .samplers.loop import default_space
from .samplers.sampler import combine
from .samples import Cond, Sample, align_left, batch_size, known_at_zero, map_parts, parts, pick, product
from .schedules import SCHEDULES, Schedule
from .spaces import Space

Divergence = Literal["rademacher", "gaussian", "exact"]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method.

    Attributes:
        order: its order of convergence.
        rows: the weights of earlier slopes for each stage.
        weights: of all slopes, for the step.
        errors: of all slopes, for the difference to a method of one order less; None where there is none.
    """

    order: int
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    errors: tuple[float, ...] | None = None


#: Heun; Bogacki and Shampine 1989; the classical method; Dormand and Prince 1980
TABLEAUX = {
    "heun": Tableau(2, ((), (1.0,)), (0.5, 0.5), (-0.5, 0.5)),
    "bosh3": Tableau(
        3,
        ((), (0.5,), (0.0, 0.75), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0.0),
        (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    ),
    "rk4": Tableau(4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "dopri5": Tableau(
        5,
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
}


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of a batch.

    Attributes:
        nats: the log-density of each sample, ``(batch,)``, float64.
        dimension: the number of its real, unknown elements, ``(batch,)``, float64.
        latent: where the ODE takes the samples: x at t = 1.
        calls: of the denoiser.
    """

    nats: Tensor
    dimension: Tensor
    latent: Sample
    calls: int

    def bits_per_dimension(self, bin_width: float | None = None) -> Tensor:
        """``-log2 p(x) / d``: of the density, or of data rounded to bins (see ``bits_per_dimension``)."""
        return bits_per_dimension(self.nats, self.dimension, bin_width)


def bits_per_dimension(nats: Tensor, dimension: Tensor, bin_width: float | None = None) -> Tensor:
    """The negative log-likelihood in bits for each dimension.

    Args:
        nats: log-densities, ``(batch,)``.
        dimension: dimensions, ``(batch,)``.
        bin_width: of data that was rounded, the distance of neighbouring values, in units of x: a bin's probability is
            density times width, which adds ``-log2(bin_width)`` bits (7 for bytes scaled to [-1, 1]). None: x is
            continuous, and its bits may be negative.
    """
    if bin_width is not None and bin_width <= 0:
        raise ValueError(f"bin_width must be positive, got {bin_width}")
    return -nats / (dimension * math.log(2)) - (0.0 if bin_width is None else math.log2(bin_width))


def log_likelihood(
    denoise: Denoise,
    x: Sample,
    *,
    schedule: Schedule | str | Mapping[str, Any] | None = None,
    solver: str = "rk4",
    grid: Tensor | Rule | str | Mapping[str, Any] = "uniform",
    steps: int | None = None,
    tolerance: float | None = None,
    divergence: Divergence = "rademacher",
    probes: int = 1,
    seeds: int | Sequence[int] = 0,
    space: Space | None = None,
    cond: Cond | None = None,
    known: Sample | None = None,
) -> Likelihood:
    """The log-density of ``x`` under the probability-flow ODE of ``denoise``.

    Each sample has its own steps and its own probes: its likelihood does not depend on the batch.

    Args:
        denoise: the denoiser; it is called without ``previous``.
        x: samples at the last time of ``grid``, 0: data.
        schedule: by default the denoiser's own, else ``flow``.
        solver: a name of ``TABLEAUX``.
        grid: a rule, or times falling from 1: the steps of the solver, taken backwards.
        steps: how many, 50 by default.
        tolerance: choose the steps by the estimated error instead: of z, relative and absolute, and of the log-density
            in nats per dimension.
        divergence: ``exact``, or the distribution of the probes. Rademacher's have less variance, none where the
            Jacobian is diagonal.
        probes: how many are averaged.
        seeds: one for each sample, or one for the batch.
        space: where the sample lives; all of R^n by default. Only real elements count.
        cond: conditions, batch-first tensors by name.
        known: boolean, left-aligned with the sample, part by part: given elements; the likelihood is that of the
            others, given these.

    Raises:
        ValueError: unknown names, or a solver without an error estimate where ``tolerance`` is given.
    """
    if solver not in TABLEAUX:
        raise ValueError(f"unknown solver {solver!r}. Choices: {', '.join(TABLEAUX)}")
    if divergence not in ("rademacher", "gaussian", "exact"):
        raise ValueError(f"divergence must be 'rademacher', 'gaussian' or 'exact', got {divergence!r}")
    tableau = TABLEAUX[solver]
    if tolerance is not None and tableau.errors is None:
        choices = ", ".join(name for name, other in TABLEAUX.items() if other.errors)
        raise ValueError(f"{solver} does not estimate its error, which a tolerance needs. Choices: {choices}")
    own = getattr(denoise, "schedule", None)
    schedule = SCHEDULES.build(schedule if schedule is not None else own if own is not None else "flow")
    home = default_space(x) if space is None else space
    count = batch_size(x)
    dimension = home.dimension(x).cpu()
    drift = _Drift(denoise, schedule, home, x, cond, known)
    if divergence != "exact":
        owns = sample_generators(seeds, range(count)) if isinstance(seeds, int) else [generator(s) for s in seeds]
        drift.probes = [_probe(home, x, owns, divergence == "rademacher") for _ in range(probes)]

    times = make_grid(grid, steps, schedule).flip(0)
    if times.ndim != 1:
        raise ValueError("a likelihood takes one time for all elements: a grid of numbers")
    alpha, sigma = schedule.alpha_sigma(times)
    scale, u = alpha + sigma, sigma / (alpha + sigma)
    z = map_parts(lambda part: part / float(scale[0]), home.project(x))
    if tolerance is None:
        z, gathered = _fixed(drift, tableau, z, u)
    else:
        z, gathered = _adaptive(drift, tableau, z, u, tolerance, dimension)
    latent = drift.placed(z, scale[-1:].expand(count))
    variance = float(sigma[-1]) ** 2
    prior = -home.dot(latent, latent).cpu() / (2 * variance) - dimension / 2 * math.log(2 * math.pi * variance)
    nats = prior + dimension * math.log(float(scale[-1] / scale[0])) + gathered
    return Likelihood(nats, dimension, latent, drift.calls)


class _Drift:
    """The slope of z and of the log-density that is gathered: ``(f, S div_x f)``."""

    def __init__(
        self, denoise: Denoise, schedule: Schedule, space: Space, x: Sample, cond: Cond | None, known: Sample | None
    ) -> None:
        self.denoise, self.schedule, self.space, self.clean = denoise, schedule, space, x
        self.cond, self.known = cond, known
        self.probes: list[Sample] | None = None  # None: the exact trace
        self.calls = 0

    def placed(self, z: Sample, scale: Tensor) -> Sample:
        """x of z, with the known elements in their place."""
        x = combine((scale,), (z,))
        if self.known is None:
            return x
        return map_parts(lambda p, clean, own: torch.where(align_left(own, p), clean, p), x, self.clean, self.known)

    def free(self, x: Sample) -> Sample:
        """Zero where elements are known."""
        return x if self.known is None else map_parts(lambda p, k: p * ~align_left(k, p), x, self.known)

    def __call__(self, z: Sample, u: Tensor) -> tuple[Sample, Tensor]:
        t = self.schedule.time_of_log_snr(2 * torch.log((1 - u) / u))
        alpha, sigma = self.schedule.alpha_sigma(t)
        scale = alpha + sigma
        self.calls += 1
        with torch.enable_grad():
            x = map_parts(lambda part: part.detach().requires_grad_(), self.placed(z, scale))
            estimate = self.denoise(x, known_at_zero(t, self.known, x), self.cond, None)
            slope = self.free(combine((1.0, -1.0), (estimate.noise, estimate.x0)))
            trace = self._exact(slope, x) if self.probes is None else self._estimated(slope, x)
        slope = self.space.project(map_parts(torch.Tensor.detach, slope))
        return slope, scale * trace.cpu()

    def _pulled(self, value: Tensor, x: Sample) -> Sample:
        """The gradient of a sum over samples."""
        leaves = parts(x)
        gradients = torch.autograd.grad(value.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
        found = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        return found[""] if isinstance(x, Tensor) else product(found)

    def _estimated(self, slope: Sample, x: Sample) -> Tensor:
        assert self.probes is not None
        free = [self.free(probe) for probe in self.probes]
        traces = [_sum(probe, self._pulled(self.space.dot(probe, slope), x)) for probe in free]
        return torch.stack(traces).mean(0)

    def _exact(self, slope: Sample, x: Sample) -> Tensor:
        total = torch.zeros(batch_size(x), dtype=torch.float64)
        for name, part in parts(x).items():
            for place in range(part[0].numel()):
                unit = map_parts(torch.zeros_like, x)
                pick(unit, name).flatten(1)[:, place] = 1
                axis = self.space.project(self.free(unit))
                pulled = self._pulled(_sum(axis, slope), x)
                total = total + _sum(axis, pulled).cpu()
        return total


def _sum(a: Sample, b: Sample) -> Tensor:
    """The plain inner product of each sample, float64."""
    return torch.stack([(p.double() * pick(b, name)).flatten(1).sum(1) for name, p in parts(a).items()]).sum(0)


def _probe(space: Space, like: Sample, generators: Sequence[torch.Generator], signs: bool) -> Sample:
    drawn = space.noise(like, generators)
    if not signs:
        return drawn
    signed = map_parts(torch.sign, drawn)
    for name, part in parts(space.project(signed)).items():
        if not torch.equal(part, pick(signed, name)):
            raise ValueError(f"signs do not lie in {type(space).__name__}: use divergence 'gaussian' or 'exact'")
    return signed


Slope = Callable[[Sample, Tensor], tuple[Sample, Tensor]]


def _attempt(
    slope: Slope, tableau: Tableau, z: Sample, u: Tensor, h: Tensor
) -> tuple[Sample, Tensor, list[Sample], Tensor]:
    """One step: z and what is gathered at ``u + h``, and the slopes of both."""
    slopes: list[Sample] = []
    rates: list[Tensor] = []
    for row in tableau.rows:
        start = combine((1.0, *(h * w for w in row)), (z, *slopes)) if row else z
        f, rate = slope(start, u + sum(row) * h)
        slopes.append(f)
        rates.append(rate)
    end = combine((1.0, *(h * w for w in tableau.weights)), (z, *slopes))
    return end, h * combine(tableau.weights, rates), slopes, torch.stack(rates)


def _fixed(slope: Slope, tableau: Tableau, z: Sample, times: Tensor) -> tuple[Sample, Tensor]:
    gathered = torch.zeros(batch_size(z), dtype=torch.float64)
    for start, end in pairwise(times):
        u, h = (value.expand(batch_size(z)) for value in (start, end - start))
        z, gain, _, _ = _attempt(slope, tableau, z, u, h)
        gathered = gathered + gain
    return z, gathered


def _adaptive(
    slope: _Drift, tableau: Tableau, z: Sample, times: Tensor, tolerance: float, dimension: Tensor
) -> tuple[Sample, Tensor]:
    """Steps of each sample's own length: those whose error is too large are tried again, shorter."""
    assert tableau.errors is not None
    space, count, end = slope.space, batch_size(z), float(times[-1])
    u, gathered = times[:1].repeat(count), torch.zeros(count, dtype=torch.float64)
    h = torch.full_like(u, 1e-3)
    while bool((u < end).any()):
        h = torch.minimum(h, end - u)
        after, gain, slopes, rates = _attempt(slope, tableau, z, u, h)
        wrong = combine([h * e for e in tableau.errors], slopes)
        size = map_parts(lambda a, b: tolerance * (1 + torch.maximum(a.abs(), b.abs())), z, after)
        relative = map_parts(torch.div, wrong, size)
        lost = h * combine(tableau.errors, list(rates)) / dimension
        square = space.dot(relative, relative).cpu() / dimension
        error = torch.maximum(square.sqrt(), lost.abs() / tolerance)
        good = error.isfinite() & (error <= 1)
        z = map_parts(lambda a, b, flags: torch.where(align_left(flags.to(a.device), a), b, a), z, after, good)
        gathered, u = torch.where(good, gathered + gain, gathered), torch.where(good, u + h, u)
        u = torch.where(end - u < 1e-12, end, u)
        factor = 0.9 * error.clamp(min=1e-10).pow(-1 / tableau.order)
        h = h * factor.nan_to_num(0.1).clamp(0.1, 5.0)
        if bool((h < 1e-12).logical_and(u < end).any()):
            raise ValueError("the steps became too short: a larger tolerance, or a denoiser that is finite everywhere")
    return z, gathered
