"""Rotary positions in any number of axes and in physical units (Su et al. 2021).

Each pair of features of a head turns by the angle ``2 pi coordinate / wavelength``, so an attention score depends on
coordinates only through their differences. Coordinates are seconds, pixels or angstroms rather than indices: frame
rate, hop or resolution may change between training and sampling. The pairs are shared out among the axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]  # cosines and signed sines, see ``rotary``


def _precise(device: torch.device | str | None) -> torch.dtype:
    """Angles need float64 (an hour of audio at 20 ms is 10^6 radians); Apple's devices have none."""
    return torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64


def grid_positions(
    shape: Sequence[int], spacing: Sequence[float] | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Coordinates of the cells of a grid, the last axis running fastest.

    Args:
        shape: cells along each axis.
        spacing: distance between neighbouring cells along each axis, ``(axes,)``, or per sample ``(batch, axes)``.

    Returns:
        ``(cells, axes)``, or ``(batch, cells, axes)`` where the spacing is per sample.
    """
    dtype = _precise(device)
    per_sample = isinstance(spacing, Tensor)
    steps = [1.0] * len(shape) if per_sample else spacing  # numbers stay numbers: no copy to the device
    axes = [torch.arange(n, dtype=dtype, device=device) * step for n, step in zip(shape, steps, strict=True)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return cells * spacing.to(cells).unsqueeze(-2) if per_sample else cells


def between_ends(shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Where the centres of the cells of a grid lie along each axis, 0 and 1 its ends: (cells, axes)."""
    cells = grid_positions(shape, [1 / n for n in shape], device)
    return cells + torch.tensor([0.5 / n for n in shape], dtype=cells.dtype, device=cells.device)


def sincos(positions: Tensor, width: int) -> Tensor:
    """Features of absolute positions to add to tokens (Vaswani et al. 2017; Peebles and Xie 2023): for each axis, the
    last first, ``[sin(w p), cos(w p)]`` at frequencies falling from 1 towards 1 / 10000.

    Args:
        positions: (tokens, axes).
        width: of the tokens; it must divide by twice the number of axes.

    Returns:
        (tokens, width).
    """
    tokens, axes = positions.shape
    if width % (2 * axes):
        raise ValueError(f"absolute positions in {axes} axes need a width that divides by {2 * axes}, got {width}")
    count = width // (2 * axes)
    powers = torch.arange(count, dtype=positions.dtype, device=positions.device) / count
    angles = positions.flip(-1).unsqueeze(-1) * torch.exp(-math.log(10000) * powers)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).reshape(tokens, width)


def rotary(positions: Tensor, dim: int, wavelengths: Sequence[tuple[float, float]]) -> Rotary:
    """Cosines and signed sines that ``rotate`` applies to heads of ``dim`` features.

    Args:
        positions: ``(tokens, axes)`` or ``(batch, tokens, axes)``, any unit.
        dim: features of a head, even; its ``dim / 2`` pairs are shared out evenly, the first axes first.
        wavelengths: for each axis the shortest and the longest wavelength, in the unit of its coordinate; the pairs of
            the axis are spaced geometrically between them.

    Returns:
        two tensors ``(tokens, dim)`` or ``(batch, 1, tokens, dim)``: they broadcast against queries and keys
        ``(batch, heads, tokens, dim)``.
    """
    axes = len(wavelengths)
    if dim % 2 or dim // 2 < axes:
        raise ValueError(f"rotary positions in {axes} axes need an even head dimension >= {2 * axes}, got {dim}")
    if positions.shape[-1] != axes:
        raise ValueError(f"positions have {positions.shape[-1]} axes, the wavelengths {axes}")
    positions = positions.to(_precise(positions.device))
    angles = []
    for axis, (shortest, longest) in enumerate(wavelengths):
        if not 0 < shortest <= longest:
            raise ValueError(f"wavelengths run from a shortest > 0 to a longest, got {shortest} and {longest}")
        pairs = dim // 2 // axes + (axis < dim // 2 % axes)
        powers = torch.arange(pairs, dtype=positions.dtype, device=positions.device) / max(pairs - 1, 1)
        frequencies = (2 * math.pi / shortest) * torch.exp(powers * math.log(shortest / longest))
        angles.append(positions[..., axis, None] * frequencies)
    angle = torch.cat(angles, dim=-1)
    if angle.ndim == 3:
        angle = angle.unsqueeze(1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Queries or keys ``(batch, heads, tokens, dim)`` turned by their positions; feature i pairs with i + dim / 2."""
    cos, sin = rotary
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # of all ways to write it the fastest, eager and compiled
    return torch.addcmul(x * cos, swapped, sin)
