"""Changing a given sample: keep parts of it, start from it, or close it to a loop. All are ordinary sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoise, implied_noise
from .predictions import Estimate
from .samplers import generate
from .samples import Cond, Sample, Time
from .schedules import Schedule


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


class Looped:
    """A denoiser of sequences that lead back into themselves: at each noise level the network sees the sequence turned
    by another amount, so that no place is its end for long.

    Args:
        denoise: a denoiser of ``(batch, length, ...)`` with a schedule of its own.
        lengths: real elements of each sample, ``(batch,)``; padding stays where it is.
    """

    def __init__(self, denoise: Denoise, lengths: Tensor) -> None:
        self.denoise, self.lengths = denoise, lengths
        self.schedule: Schedule = denoise.schedule  # type: ignore[attr-defined]

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        assert isinstance(x, Tensor)
        level = float(torch.as_tensor(t).amax())
        there = self._places(x, level * _TURNS)
        back = torch.argsort(there, dim=1)
        before = None if previous is None else _taken(previous, there)  # type: ignore[arg-type]
        time = _taken(t, there) if isinstance(t, Tensor) and t.ndim > 1 and t.shape[1] == x.shape[1] else t
        x0 = _taken(self.denoise(_taken(x, there), time, cond, before).x0, back)  # type: ignore[arg-type]
        return Estimate(x0, lambda: implied_noise(x, x0, t, self.schedule))

    def _places(self, x: Tensor, turns: float) -> Tensor:
        """Where each element of the turned sequences comes from, ``(batch, length)``."""
        places, lengths = torch.arange(x.shape[1], device=x.device), self.lengths.to(x.device)[:, None]
        turned = (places + (turns % 1 * lengths).long()) % lengths
        return torch.where(places < lengths, turned, places)


_TURNS = 1000 * (5**0.5 - 1) / 2  # turns between t = 0 and 1: the golden ratio spreads neighbouring levels evenly


def _taken(values: Tensor, places: Tensor) -> Tensor:
    index = places.reshape(*places.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index.expand(len(values), *index.shape[1:]))
