"""Changing a given sample: keep parts of it, or start from it. Both are ordinary sampling."""

from __future__ import annotations

from typing import Any

from .denoiser import Denoise
from .samplers import generate
from .samples import Sample


def inpaint(denoise: Denoise, clean: Sample, known: Sample, **options: Any) -> Sample:
    """Generate what is not known: continuation, interpolation, a scaffold grown.

    Args:
        denoise: a denoiser that has learned with known parts at t = 0; others see them too, with less coherence.
        clean: the sample; its known elements are returned bit by bit, the others are not looked at.
        known: boolean, left-aligned with the sample, part by part.
        options: as for ``generate``.
    """
    return generate(denoise, clean, known=known, **options)


def vary(denoise: Denoise, clean: Sample, strength: float, **options: Any) -> Sample:
    """A variation of ``clean``: noise added up to time ``strength``, then removed (SDEdit, Meng et al. 2022).

    Args:
        denoise: a denoiser.
        clean: where to start.
        strength: 0 returns ``clean`` as it is, 1 forgets it.
        options: as for ``generate``.
    """
    return generate(denoise, clean, strength=strength, **options)
