"""What is seen of a sample: ``y = A(x0) + noise``, for ``core.posterior``.

A measurement is a function of a clean sample that PyTorch can differentiate, batch first; it may be nonlinear, and no
matrix, adjoint or pseudo-inverse is asked for. Any function will do; those named here act part by part. Numbers for
each axis (``factor``, ``width``) begin with the first axis after the batch; axes that are not named are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .registry import Registry
from .samples import Sample, align_left, map_parts

Measurement = Callable[[Sample], Sample]
MEASUREMENTS: Registry[Measurement] = Registry("measurement")


@MEASUREMENTS.register("mask")
def mask(known: Any) -> Measurement:
    """The known elements, and 0 elsewhere. ``known``: booleans, (batch or 1, ...), left-aligned with the sample; by
    part where parts differ."""
    flags = known if hasattr(known, "items") else torch.as_tensor(known, dtype=torch.bool)

    def one(x: Tensor, own: Any) -> Tensor:
        return x * align_left(torch.as_tensor(own, dtype=torch.bool).to(x), x)

    return lambda x0: map_parts(one, x0, flags)


@MEASUREMENTS.register("every")
def every(step: int = 2, axis: int = 1, start: int = 0, stop: int | None = None) -> Measurement:
    """The elements ``start``, ``start + step``, ... before ``stop`` of an axis (1: the first after the batch)."""
    if step < 1 or axis < 1:
        raise ValueError(f"every needs step and axis of at least 1, got {step} and {axis}")
    return lambda x0: map_parts(lambda x: x[(slice(None),) * axis + (slice(start, stop, step),)], x0)


@MEASUREMENTS.register("downsample")
def downsample(factor: int | Sequence[int] = 2) -> Measurement:
    """Means of blocks of ``factor`` elements along each axis: its posterior is super-resolution. (batch, n, ...) gives
    (batch, n // factor, ...); elements that fill no block are not seen."""
    factors = [factor] if isinstance(factor, int) else [int(one) for one in factor]
    if min(factors) < 1:
        raise ValueError(f"factor must be at least 1, got {factors}")

    def one(x: Tensor) -> Tensor:
        for axis, size in enumerate(factors, 1):
            blocks = x.shape[axis] // size
            if not blocks:
                raise ValueError(f"no block of {size} elements in the {x.shape[axis]} of axis {axis}")
            x = x.narrow(axis, 0, blocks * size).unflatten(axis, (blocks, size)).mean(axis + 1)
        return x

    return lambda x0: map_parts(one, x0)


@MEASUREMENTS.register("blur")
def blur(width: float | Sequence[float] = 1.0) -> Measurement:
    """Normal weights of standard deviation ``width`` elements along each axis, renormalised at its ends; the shape
    stays."""
    widths = [width] if isinstance(width, int | float) else [float(one) for one in width]
    if min(widths) < 0:
        raise ValueError(f"width must not be negative, got {widths}")

    def one(x: Tensor) -> Tensor:
        for axis, deviation in enumerate(widths, 1):
            if deviation:
                place = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype)
                weights = torch.softmax(-(((place[:, None] - place) / deviation) ** 2) / 2, 1)
                x = (x.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
        return x

    return lambda x0: map_parts(one, x0)


@MEASUREMENTS.register("linear")
def linear(matrix: Any) -> Measurement:
    """``matrix`` (m, n) times the n numbers of each sample, (batch, m); by part where parts differ."""
    given = matrix if isinstance(matrix, Mapping) else torch.as_tensor(matrix)
    return lambda x0: map_parts(lambda x, own: x.flatten(1) @ torch.as_tensor(own).to(x).mT, x0, given)


@MEASUREMENTS.register("magnitude")
def magnitude(axis: int = 1) -> Measurement:
    """The magnitudes of the Fourier transform along an axis, without their phases: n numbers give n // 2 + 1."""
    return lambda x0: map_parts(lambda x: torch.fft.rfft(x, dim=axis, norm="ortho").abs(), x0)
