"""Guidance by a gradient: of a classifier, of any log-probability, of an energy.

To multiply the density by ``p^scale`` adds ``scale grad log p`` to the score (Dhariwal and Nichol 2021, alg. 1), and to
the estimate ``(sigma^2 / alpha) scale grad log p``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..predictions import Estimate, scale_like
from ..registry import Registry
from ..samples import WHOLE, Cond, Sample, Time, align_left, map_parts, parts, product
from ..schedules import Schedule
from .guidance import GUIDANCE, OneCall, inner

Gradient = Literal["x", "through", "x0"]
LogProb = Callable[[Sample, Time, "Cond | None"], Tensor]


class Energy(Protocol):
    """A differentiable energy of clean samples: ``(batch,)``, in the units that its docstring says. Entries of
    ``ENERGIES`` take the ``modality`` that the samples are of."""

    def __call__(self, x0: Sample, cond: Cond | None) -> Tensor: ...


ENERGIES: Registry[Energy] = Registry("energy")


@GUIDANCE.register("classifier")
class Classifier(OneCall):
    """Classifier guidance (Dhariwal and Nichol 2021): up the gradient of any log-probability.

    The gradient is that with respect to

        x        of ``log_prob(x_t)``, a classifier that knows noise
        through  x_t of ``log_prob(x0)``, through the denoiser (Chung et al. 2023): a backward pass
        x0       x0 of ``log_prob(x0)``, without a backward pass through the denoiser

    In the last, x0 given x_t is taken for normal, of variance ``r^2 = sigma^2 / (alpha^2 + sigma^2)`` as for data of
    unit variance (Song et al. 2023), and moves to its most probable value on the way uphill, by ``scale r^2 g / (1 +
    scale r^2 h)`` with ``h`` the curvature along the gradient ``g``: exact for a normal likelihood, calm at any scale.

    Args:
        denoise: the denoiser to guide.
        log_prob: ``log_prob(x or x0, t, cond) -> (batch,)``; or an energy's name or {"name": ..., options}.
        scale: 0 is no guidance.
        gradient: x, through or x0.
        interval, schedule: see ``Guidance``.
        modality: what the samples are, for an energy by name.
    """

    def __init__(
        self,
        denoise: Denoise,
        log_prob: LogProb | str | Mapping[str, Any],
        scale: float = 1.0,
        gradient: Gradient = "x",
        interval: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        modality: Any = None,
    ) -> None:
        super().__init__(denoise, interval, schedule)
        if gradient not in ("x", "through", "x0"):
            raise ValueError(f"gradient must be 'x', 'through' or 'x0', got {gradient!r}")
        self.log_prob: Any = log_prob
        if isinstance(log_prob, str | Mapping):
            energy = ENERGIES.build(log_prob, modality=modality)
            self.log_prob = lambda x0, t, cond: -energy(x0, cond)
        self.scale, self.gradient = scale, gradient

    def guided(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Estimate:
        if self.gradient == "x0":
            estimate = self.denoise(x, t, cond, previous)
            return self.estimate(x, self._most_probable(estimate.x0, t, cond), t, estimate.shift)
        x0: Any
        shift: Any
        if self.gradient == "x":
            estimate = self.denoise(x, t, cond, previous)
            with torch.enable_grad():
                at = _leaf(x)
                slopes = _gradients(self.log_prob(at, t, cond).sum(), at)
            x0, shift = estimate.x0, estimate.shift
        else:
            within = torch.is_grad_enabled() and any(part.requires_grad for part in parts(x).values())
            with torch.enable_grad():
                at = x if within else _leaf(x)  # a gradient through this one goes on to x
                estimate = self.denoise(at, t, cond, previous)
                slopes = _gradients(self.log_prob(estimate.x0, t, cond).sum(), at, retain=within)
            x0, shift = (one if within or one is None else _cut(one) for one in (estimate.x0, estimate.shift))

        def moved(x0: Tensor, slope: Tensor, time: Any) -> Tensor:
            alpha, sigma = self.schedule.alpha_sigma(torch.as_tensor(time, dtype=torch.float64))
            factor = torch.where(alpha > 0, sigma**2 / alpha.clamp(min=1e-150), 0.0)  # without signal x says nothing
            return x0 + self._at(self.scale, time, x0, neutral=0.0) * scale_like(factor, x0) * slope

        return self.estimate(x, map_parts(moved, x0, slopes, t), t, shift)

    def _most_probable(self, x0: Sample, t: Time, cond: Cond | None) -> Sample:
        """The most probable x0 on the way uphill, to second order."""

        def pushed(x0: Tensor, slope: Tensor, time: Any) -> Tensor:
            alpha, sigma = self.schedule.alpha_sigma(torch.as_tensor(time, dtype=torch.float64))
            variance = scale_like(sigma**2 / (alpha**2 + sigma**2), x0)
            return self._at(self.scale, time, x0, neutral=0.0) * variance * slope.detach()

        with torch.enable_grad():
            at = _leaf(x0)
            slopes = _gradients(self.log_prob(at, t, cond).sum(), at, twice=True)
            push = map_parts(pushed, x0, slopes, t)
            bends = _gradients(_products(push, slopes).sum(), at)
        curvature = -_products(push, bends) / _products(push, slopes).detach().clamp(min=1e-30)
        step = 1 / (1 + curvature.clamp(min=0))
        return map_parts(lambda x0, push: x0 + align_left(step, x0) * push, x0, push)

    def _idle(self, cond: Cond | None) -> bool:
        return self.scale == 0


def _leaf(x: Sample) -> Sample:
    return map_parts(lambda part: part.detach().requires_grad_(), x)


def _cut(x: Sample) -> Sample:
    return map_parts(Tensor.detach, x)


def _gradients(total: Tensor, at: Sample, retain: bool = False, twice: bool = False) -> Sample:
    """Of a sum over samples, part by part; 0 where it does not depend on a part."""
    own = parts(at)
    if not total.requires_grad:
        return map_parts(torch.zeros_like, at)
    options: dict[str, Any] = {"retain_graph": retain or twice, "create_graph": twice}
    found = torch.autograd.grad(total, list(own.values()), allow_unused=True, materialize_grads=True, **options)
    named = dict(zip(own, found, strict=True))
    return named[WHOLE] if isinstance(at, Tensor) else product(named)


def _products(a: Sample, b: Sample) -> Tensor:
    """The inner product of each sample over all its parts: ``(batch,)``."""
    others = parts(b)
    return torch.stack([inner(part, others[name], None) for name, part in parts(a).items()]).sum(0)


@GUIDANCE.register("energy")
class EnergyGuidance(Classifier):
    """Samples of ``p(x) exp(-scale energy(x))``: classifier guidance by an energy of the clean sample.

    Args:
        energy: a name of `noiseloom list energies` or {"name": ..., options}; in Python also any
            ``energy(x0, cond) -> (batch,)``.
        scale: 0 is no guidance.
        gradient: x0 or through, see ``Classifier``.
    """

    def __init__(
        self,
        denoise: Denoise,
        energy: Energy | str | Mapping[str, Any],
        scale: float = 1.0,
        gradient: Gradient = "x0",
        interval: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        modality: Any = None,
    ) -> None:
        built = ENERGIES.build(energy, modality=modality)
        super().__init__(denoise, lambda x0, t, cond: -built(x0, cond), scale, gradient, interval, schedule)
