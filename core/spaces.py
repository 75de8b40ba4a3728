"""Where a sample lives: its noise, its projection, and which elements are real.

A space is made for one batch: it holds that batch's masks. ``mask`` marks real elements (the rest is padding) and
``known`` marks elements that are given, at t = 0; both are boolean and left-aligned with the sample. A generator draws
the shape of its own sample only, so noise depends neither on padding nor on neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from .predictions import scale_like
from .samples import Sample, Time, align_left, pick, product
from .schedules import Schedule


class Space(ABC):
    """The geometry of a batch of samples."""

    @abstractmethod
    def noise(self, like: Any, generators: Sequence[Generator]) -> Any:
        """Standard normal noise in this space, of the shape, dtype and device of ``like``; zero on padding."""

    @abstractmethod
    def project(self, x: Any) -> Any:
        """``x`` moved onto the space: padding zeroed, mean removed, pairs symmetrised."""

    def noised(self, x0: Any, noise: Any, t: Any, schedule: Schedule) -> tuple[Any, Any, Any]:
        """The state at times ``t`` (float64, left-aligned), and the clean and noisy ends of the straight line through
        it: ``alpha x0 + sigma noise``, and those two themselves where the space is flat."""
        alpha, sigma = schedule.alpha_sigma(t)
        return scale_like(alpha, x0) * x0 + scale_like(sigma, x0) * noise, x0, noise

    def tempered(self, noise: Any, temperature: Any) -> Any:
        """Noise times ``temperature``.

        Raises:
            ValueError: noise that has no temperature.
        """
        return noise * temperature

    def check(self, sampler: Any) -> None:
        """
        Raises:
            ValueError: a sampler that does not work in this space.
        """
        if hasattr(sampler, "prior"):
            raise ValueError(f"sampler {type(sampler).__name__.lower()} is for tokens (core.categorical)")

    @abstractmethod
    def mean(self, values: Any) -> Any:
        """The mean over real, unknown elements of each sample: ``(batch,)``, or one for each part by name."""

    def mean_square(self, x: Any) -> Any:
        """The mean square over real, unknown elements of each sample."""
        return self.mean(x * x)

    def dot(self, a: Any, b: Any) -> Tensor:
        """The inner product in which noise is isotropic, over real, unknown elements: ``(batch,)``, float64."""
        raise NotImplementedError(f"{type(self).__name__} has no inner product")

    def dimension(self, like: Any) -> Tensor:
        """The dimension of each sample's real, unknown elements: ``(batch,)``, float64."""
        raise NotImplementedError(f"{type(self).__name__} has no dimension to count")


def _draw(shapes: Sequence[tuple[int, ...]], generators: Sequence[Generator]) -> list[Tensor]:
    if len(shapes) != len(generators):
        raise ValueError(f"{len(shapes)} samples need as many generators, got {len(generators)}")
    return [torch.randn(shape, generator=g) for shape, g in zip(shapes, generators, strict=True)]


def _masked_mean(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of ``values`` over the elements where ``keep`` (left-aligned) holds; 0 for a sample with none."""
    each = values.float().reshape(keep.shape + (-1,)).mean(-1)
    keep = keep.to(each.dtype)
    return (each * keep).flatten(1).sum(1) / keep.flatten(1).sum(1).clamp(min=1)


def _masked_sum(values: Tensor, keep: Tensor | None) -> Tensor:
    """Sum of ``values`` over the elements where ``keep`` (left-aligned) holds, in float64."""
    values = values.double()
    return (values if keep is None else torch.where(align_left(keep, values), values, 0.0)).flatten(1).sum(1)


@dataclass(frozen=True)
class Euclidean(Space):
    """All of R^n; with a ``mask``, of each sample its real elements only.

    Attributes:
        mask: boolean, ``(batch, ...)``, left-aligned with the sample; None where everything is real.
        known: boolean, left-aligned with the sample, at least of the mask's rank; given elements, left out of the loss.
    """

    mask: Tensor | None = None
    known: Tensor | None = None

    def noise(self, like: Tensor, generators: Sequence[Generator]) -> Tensor:
        if self.mask is None:
            if len(like) != len(generators):
                raise ValueError(f"{len(like)} samples need as many generators, got {len(generators)}")
            drawn = torch.empty(like.shape)
            for row, own in zip(drawn, generators, strict=True):
                row.normal_(generator=own)
            return drawn.to(like)
        mask = self.mask.cpu()
        rest = tuple(like.shape[mask.ndim :])
        counts = mask.flatten(1).sum(1).tolist()
        out = torch.zeros(like.shape)
        out[mask] = torch.cat(_draw([(count, *rest) for count in counts], generators))
        return out.to(like)

    def project(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x * align_left(self.mask.to(x), x)

    def _keep(self) -> Tensor | None:
        if self.known is None:
            return self.mask
        return ~self.known if self.mask is None else ~self.known & align_left(self.mask, self.known)

    def mean(self, values: Tensor) -> Tensor:
        keep = self._keep()
        return values.float().flatten(1).mean(1) if keep is None else _masked_mean(values, keep)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return _masked_sum(a.double() * b, self._keep())

    def dimension(self, like: Tensor) -> Tensor:
        return _masked_sum(torch.ones_like(like), self._keep())


@dataclass(frozen=True)
class Centred(Space):
    """Point sets ``(batch, points, dims)`` with zero mean: translation is taken out (Hoogeboom et al. 2022, eq. 13).

    A sample with known points is anchored by them: the mean of its known points is zero instead, and the noise of the
    others is free to move.
    """

    mask: Tensor
    known: Tensor | None = None

    def _anchor(self) -> Tensor:
        if self.known is None:
            return self.mask
        known = self.known & self.mask
        return torch.where(known.any(1, keepdim=True), known, self.mask)

    def noise(self, like: Tensor, generators: Sequence[Generator]) -> Tensor:
        drawn = Euclidean(self.mask).noise(like, generators)
        if self.known is None:
            return self._centre(drawn, self.mask)
        free = (self.known & self.mask).any(1)[:, None, None]
        return torch.where(free, drawn, self._centre(drawn, self.mask))

    def _centre(self, x: Tensor, anchor: Tensor) -> Tensor:
        weight = anchor.to(x)[..., None]
        mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return (x - mean) * self.mask.to(x)[..., None]

    def project(self, x: Tensor) -> Tensor:
        return self._centre(x, self._anchor())

    def mean(self, values: Tensor) -> Tensor:
        return Euclidean(self.mask, self.known).mean(values)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return Euclidean(self.mask, self.known).dot(a, b)

    def dimension(self, like: Tensor) -> Tensor:
        fixed = torch.zeros(len(like), device=like.device) if self.known is None else (self.known & self.mask).any(1)
        return Euclidean(self.mask, self.known).dimension(like) - torch.where(fixed.bool(), 0, like.shape[-1])


@dataclass(frozen=True)
class SymmetricPairs(Space):
    """Symmetric pair values ``(batch, points, points, ...)`` without a diagonal: one draw for each pair i < j.

    Attributes:
        mask: boolean, ``(batch, points)``: a pair is real where both its points are.
        known: boolean, ``(batch, points)``: a pair is known where both its points are.
    """

    mask: Tensor
    known: Tensor | None = None

    def _upper(self, points: Tensor) -> Tensor:
        return torch.triu(points[:, :, None] & points[:, None, :], diagonal=1)

    def noise(self, like: Tensor, generators: Sequence[Generator]) -> Tensor:
        upper = Euclidean(self._upper(self.mask)).noise(like, generators)
        return upper + upper.transpose(1, 2)

    def project(self, x: Tensor) -> Tensor:
        pairs = self._upper(self.mask)
        return (x + x.transpose(1, 2)) / 2 * align_left((pairs | pairs.transpose(1, 2)).to(x), x)

    def _keep(self) -> Tensor:
        keep = self._upper(self.mask)
        return keep if self.known is None else keep & ~self._upper(self.known)

    def mean(self, values: Tensor) -> Tensor:
        return _masked_mean(values, self._keep())

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return _masked_sum(a.double() * b, self._keep())

    def dimension(self, like: Tensor) -> Tensor:
        return _masked_sum(torch.ones_like(like), self._keep())


@dataclass(frozen=True)
class Product(Space):
    """A product of spaces: a ``TensorDict`` sample, part by part in the order given here."""

    spaces: Mapping[str, Space]

    def noise(self, like: Sample, generators: Sequence[Generator]) -> Sample:
        return product({name: space.noise(like[name], generators) for name, space in self.spaces.items()})

    def project(self, x: Sample) -> Sample:
        return product({name: space.project(x[name]) for name, space in self.spaces.items()})

    def noised(self, x0: Sample, noise: Sample, t: Time, schedule: Schedule) -> tuple[Sample, Sample, Sample]:
        made = {
            name: space.noised(x0[name], noise[name], pick(t, name), schedule) for name, space in self.spaces.items()
        }
        x, clean, noisy = (product({name: one[i] for name, one in made.items()}) for i in range(3))
        return x, clean, noisy

    def tempered(self, noise: Sample, temperature: Any) -> Sample:
        return product(
            {name: space.tempered(noise[name], pick(temperature, name)) for name, space in self.spaces.items()}
        )

    def check(self, sampler: Any) -> None:
        for name, space in self.spaces.items():
            space.check(sampler.of(name) if hasattr(sampler, "of") else sampler)

    def mean(self, values: Sample) -> dict[str, Tensor]:
        return {name: space.mean(values[name]) for name, space in self.spaces.items()}

    def dot(self, a: Sample, b: Sample) -> Tensor:
        return torch.stack([space.dot(a[name], b[name]) for name, space in self.spaces.items()]).sum(0)

    def dimension(self, like: Sample) -> Tensor:
        return torch.stack([space.dimension(like[name]) for name, space in self.spaces.items()]).sum(0)
