r"""Samples given a measurement, ``y = A(x0) + sigma_y noise``, by any sampler: denoisers around denoisers.

By Tweedie's formula a score moves the estimate of x0. The score of y given x_t follows from the normal approximation
``p(x0 | x_t) = N(D, C)`` about the estimate ``D(x_t)``, with J = dD/dx_t and A taken to be linear about D:

    E[x0 | x_t, y] = D + (sigma^2 / alpha) grad log p(y | x_t)
    grad log p(y | x_t) = J^T A^T u            u = (A C A^T + sigma_y^2)^-1 (y - A(D))

    dps     no C: a step of given size along the gradient of |y - A(D)|       biased, one backward pass
    pigdm   C = r^2 I, r^2 = std^2 sigma^2 / (alpha^2 std^2 + sigma^2)        exact for data N(m, std^2 I)
    mmps    C = (sigma^2 / alpha) J, the covariance itself                    exact for any normal data

Everything with A and J is automatic differentiation of the measurement and of the denoiser. The equation is solved by
conjugate gradients, each sample by itself. Where alpha = 0, x_t says nothing of x0 and the estimate is left as it is.

    seen = MEASUREMENTS.build({"name": "downsample", "factor": [1, 4, 4]})
    given = POSTERIORS.build({"name": "mmps", "sigma_y": 0.05}, denoise=denoiser, y=seen(clip), measurement=seen)
    sharp = generate(given, torch.zeros_like(clip), steps=50, seeds=0)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoise, implied_noise
from .measurements import Measurement
from .predictions import Estimate, scale_like
from .registry import Registry
from .samplers.exponential import Interval
from .samples import Cond, Sample, Time, align_left, batch_size, map_parts, parts, product
from .schedules import Schedule

POSTERIORS: Registry[Posterior] = Registry("posterior")


class Posterior(ABC):
    """A denoiser whose estimate of x0 knows a measurement.

    Args:
        denoise: the denoiser; one that can be differentiated in x (without a cache).
        y: what was measured: a sample of the shape of ``measurement(x0)``, batch first. Several times as many samples
            are several copies of them, as guidance around a posterior asks for.
        measurement: the function A.
        sigma_y: standard deviation of the measurement's noise.
        schedule: by default the denoiser's own.
    """

    def __init__(
        self,
        denoise: Denoise,
        y: Sample,
        measurement: Measurement,
        sigma_y: float = 0.05,
        schedule: Schedule | None = None,
    ) -> None:
        schedule = getattr(denoise, "schedule", None) if schedule is None else schedule
        if schedule is None:
            raise ValueError("a posterior needs a schedule: this denoiser has none of its own")
        if sigma_y < 0:
            raise ValueError(f"sigma_y must not be negative, got {sigma_y}")
        self.denoise, self.schedule, self.measurement, self.sigma_y = denoise, schedule, measurement, sigma_y
        self.y = _rows(y)

    @abstractmethod
    def correction(self, at: Linearised, t: Time) -> Sample:
        """What y adds to the estimate of x0."""

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        with torch.enable_grad():
            x = map_parts(lambda part: part.detach().requires_grad_(), x)
            main = self.denoise(x, t, cond, previous)
            at = Linearised(x, main.x0, self.measurement, self.y.repeat(batch_size(x) // len(self.y), 1))
        x0 = map_parts(lambda part, more: part.detach() + more, main.x0, self.correction(at, t))
        shift = main.shift if main.shift is None else map_parts(torch.detach, main.shift)
        begins = map_parts(torch.detach, x if shift is None else map_parts(torch.add, x, shift))
        return Estimate(x0, lambda: implied_noise(begins, x0, t, self.schedule), shift)

    def per_score(self, values: Sample, t: Time) -> Sample:
        """``values`` times sigma^2 / alpha, element by element; 0 where alpha = 0."""
        return self._times(values, t, lambda alpha, sigma: torch.where(alpha > 0, sigma**2 / alpha, 0.0))

    def _times(self, values: Sample, t: Time, factor: Callable[[Tensor, Tensor], Tensor]) -> Sample:
        def one(part: Tensor, time: Any) -> Tensor:
            return part * scale_like(factor(*self.schedule.alpha_sigma(torch.as_tensor(time))), part)

        return map_parts(one, values, t)


class Linearised:
    """A denoiser and a measurement as linear maps about one x_t.

    Args:
        x: where; its parts require gradients.
        x0: the estimate there, with its graph.
        measurement: the function A.
        y: ``(batch, m)``.

    Attributes:
        residual: ``y - A(x0)``, ``(batch, m)``.
    """

    def __init__(self, x: Sample, x0: Sample, measurement: Measurement, y: Tensor) -> None:
        self._x, self._x0 = list(parts(x).values()), list(parts(x0).values())
        names, flat = list(parts(x0)), [part.detach().requires_grad_() for part in self._x0]
        self._like: Callable[[list[Tensor]], Sample] = (
            (lambda found: found[0]) if isinstance(x0, Tensor) else lambda found: product(dict(zip(names, found)))
        )
        with torch.enable_grad():
            seen = _rows(measurement(self._like(flat)))
            if seen.shape != y.shape:
                raise ValueError(f"y has {tuple(y.shape)} numbers, the measurement of a sample {tuple(seen.shape)}")
            # A v is the gradient, in u, of the adjoint's product with v: no forward-mode rules are needed.
            self._weights = torch.zeros_like(seen).requires_grad_()
            self._adjoint = _gradients([seen], flat, [self._weights], create_graph=True)
        self._seen, self._flat = seen, flat
        self.residual = (y.to(seen) - seen).detach()

    def adjoint(self, u: Tensor) -> Sample:
        """``A^T u``: a sample, from (batch, m)."""
        return self._like(_gradients([self._seen], self._flat, [u]))

    def forward(self, v: Sample) -> Tensor:
        """``A v``: (batch, m), from a sample."""
        return _gradients(self._adjoint, [self._weights], list(parts(v).values()))[0]

    def pulled(self, v: Sample) -> Sample:
        """``J^T v``: a sample where x is, from one where x0 is."""
        return self._like(_gradients(self._x0, self._x, list(parts(v).values())))


@POSTERIORS.register("dps")
class DPS(Posterior):
    """Diffusion posterior sampling (Chung et al. 2023, alg. 1): after each of ``levels`` ancestral steps x moves by
    ``-zeta grad |y - A(D)|``, towards where the measurement is most likely: the result is biased.

    Here the estimate is moved by as much as such a step needs, so that ``ddpm`` with ``levels`` steps is the published
    algorithm, and fewer steps push as far in all. The size of its steps takes the place of ``sigma_y``.

    Args:
        zeta: the step's size; published values lie between 0.01 and 1.
        levels: the steps of the published algorithm.
    """

    def __init__(
        self,
        denoise: Denoise,
        y: Sample,
        measurement: Measurement,
        zeta: float = 1.0,
        levels: int = 1000,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, y, measurement, 0.0, schedule)
        if zeta < 0 or levels < 1:
            raise ValueError(f"dps needs zeta >= 0 and levels >= 1, got {zeta} and {levels}")
        self.zeta, self.levels = zeta, levels

    def correction(self, at: Linearised, t: Time) -> Sample:
        norm = at.residual.norm(dim=1, keepdim=True).clamp(min=torch.finfo(at.residual.dtype).tiny)
        return map_parts(self._step, at.pulled(at.adjoint(at.residual / norm)), t)

    def _step(self, part: Tensor, t: Any) -> Tensor:
        time = torch.as_tensor(t, dtype=torch.float64)
        step = Interval(self.schedule, time, (time - 1 / self.levels).clamp(min=0))
        weight = step.alpha_s * -torch.expm1(-2 * step.h)  # of x0 in an ancestral step
        return part * scale_like(torch.where(step.moves & (step.alpha > 0), self.zeta / weight, 0.0), part)


@POSTERIORS.register("pigdm")
class PiGDM(Posterior):
    """Pseudo-inverse guidance (Song et al. 2023), weighted by Tweedie's formula for any schedule and noise.

    Args:
        std: standard deviation of the data, in r^2; None: for each sample the one that makes A(x0) as large as y. It is
            larger than that of a single number where y are averages of data that varies slowly.
        iterations: of the conjugate gradients; one is enough for ``mask``, ``every`` and ``downsample``.
    """

    def __init__(
        self,
        denoise: Denoise,
        y: Sample,
        measurement: Measurement,
        sigma_y: float = 0.05,
        std: float | None = None,
        iterations: int = 20,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, y, measurement, sigma_y, schedule)
        if (std is not None and std <= 0) or iterations < 1:
            raise ValueError(f"pigdm needs std > 0 and iterations >= 1, got {std} and {iterations}")
        self.std, self.iterations = std, iterations

    def correction(self, at: Linearised, t: Time) -> Sample:
        variance = self._variance(at) if self.std is None else torch.tensor(self.std**2, dtype=torch.float64)

        def covariance(alpha: Tensor, sigma: Tensor) -> Tensor:
            own = variance.to(alpha.device)
            own = align_left(own, alpha) if alpha.ndim > own.ndim else own
            return own * sigma**2 / (alpha**2 * own + sigma**2)

        def system(u: Tensor) -> Tensor:
            return at.forward(self._times(at.adjoint(u), t, covariance)) + self.sigma_y**2 * u

        u = conjugate_gradients(system, at.residual, self.iterations)
        return self.per_score(at.pulled(at.adjoint(u)), t)

    def _variance(self, at: Linearised) -> Tensor:
        """``(|y|^2 - m sigma_y^2) / tr(A A^T)``, ``(batch,)``; the trace by one draw of signs, exact where A A^T is
        diagonal."""
        count = at.residual.shape[1]
        signs = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0)) * 2 - 1
        trace = _rows(at.adjoint(signs.to(at.residual).expand_as(at.residual))).square().sum(1)
        size = self.y.repeat(len(trace) // len(self.y), 1).to(trace).square().sum(1) - count * self.sigma_y**2
        return (size / trace).clamp(min=1e-4).double().cpu()


@POSTERIORS.register("mmps")
class MMPS(Posterior):
    """Moment matching (Rozet et al. 2024): the covariance is the denoiser's own, ``(sigma^2 / alpha) J``, applied by a
    backward pass for each iteration (J is symmetric for the exact denoiser, and taken to be).

    Args:
        iterations: of the conjugate gradients: as many as ``y`` has numbers solve the equation, few are enough.
    """

    def __init__(
        self,
        denoise: Denoise,
        y: Sample,
        measurement: Measurement,
        sigma_y: float = 0.05,
        iterations: int = 5,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(denoise, y, measurement, sigma_y, schedule)
        if iterations < 1:
            raise ValueError(f"mmps needs at least 1 iteration, got {iterations}")
        self.iterations = iterations

    def correction(self, at: Linearised, t: Time) -> Sample:
        def covariance(u: Tensor) -> Sample:
            return self.per_score(at.pulled(at.adjoint(u)), t)

        def system(u: Tensor) -> Tensor:
            return at.forward(covariance(u)) + self.sigma_y**2 * u

        return covariance(conjugate_gradients(system, at.residual, self.iterations))


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """The solution u of ``system(u) = b``, each row by itself: symmetric, positive; b (batch, m).

    A row rests once its residual is ``tolerance`` times b, or where the system is not positive (a network's Jacobian
    need not be), so that it does not depend on the others.
    """
    u, residual, direction = torch.zeros_like(b), b, b
    square = residual.square().sum(1, keepdim=True)
    goal, live = square * tolerance**2, square > 0
    for _ in range(iterations):
        if not bool(live.any()):
            break
        image = system(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        live = live & (curvature > 0)
        step = torch.where(live, square / curvature, 0.0)
        u, residual = u + step * direction, residual - step * image
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = torch.where(live, residual + square / before * direction, direction)
        live = live & (square > goal)
    return u


def _rows(y: Sample) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts(y).values()], 1)


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor], create_graph: bool = False
) -> list[Tensor]:
    """Of each input; 0 where no output depends on it. The graph is kept."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(one) for one in inputs]
    told, by = zip(*pairs)
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(told, inputs, by, create_graph=create_graph, **options))
