"""Energies of sounds, for guidance (``core.guidance.gradients``): of log-mel frames, in octaves or doublings.

They are extensive, so that a scale means the same for sounds of any length: frames times the square of how far the
whole sound is from its target, halved.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noiseloom.core.guidance import ENERGIES
from noiseloom.core.samples import Cond, Sample

from .mel import MelPreset
from .representation import Mel


class OfMel(ABC):
    """An energy of what a mel spectrogram measures, by its name."""

    def __init__(self, modality: Any) -> None:
        representation = getattr(modality, "representation", None)
        if not isinstance(representation, Mel):
            raise ValueError(f"energy {type(self).__name__.lower()!r} is for audio as mel frames")
        self.preset, self.mean, self.std = representation.preset, modality.mean, modality.std

    def __call__(self, x0: Sample, cond: Cond | None) -> Tensor:
        """``frames excess^2 / 2``."""
        assert isinstance(x0, Tensor)
        return _keep(x0, cond).sum(1) * self.excess(x0, cond) ** 2 / 2

    def excess(self, x0: Tensor, cond: Cond | None) -> Tensor:
        """How far above its target a sound is, as a logarithm to base 2: ``(batch,)``."""
        log_mel = (x0 * self.std.to(x0) + self.mean.to(x0)).unflatten(2, (-1, self.preset.bands))
        keep = _keep(x0, cond)[:, :, None, None]
        return self._excess(log_mel, keep)

    @abstractmethod
    def _excess(self, log_mel: Tensor, keep: Tensor) -> Tensor:
        """``log_mel``: (batch, frames, channels, bands); ``keep``: 1 at real frames, (batch, frames, 1, 1)."""


@ENERGIES.register("loudness")
class Loudness(OfMel):
    """A spring of each frame towards a level of the whole sound.

    Args:
        target: dB of the root mean square of the mel magnitudes, over bands and frames.
        modality: audio.
    """

    def __init__(self, target: float, modality: Any = None) -> None:
        super().__init__(modality)
        self.target = target

    def _excess(self, log_mel: Tensor, keep: Tensor) -> Tensor:
        power = ((2 * log_mel).exp() * keep).sum((1, 2, 3))
        count = keep.sum((1, 2, 3)).clamp(min=1) * log_mel.shape[2] * log_mel.shape[3]
        return torch.log2(power / count) / 2 - self.target / (20 * math.log10(2))


@ENERGIES.register("brightness")
class Brightness(OfMel):
    """A spring of each frame towards a spectral centroid of the whole sound.

    Args:
        target: the mean frequency in Hz, weighted by magnitude.
        modality: audio.
    """

    def __init__(self, target: float, modality: Any = None) -> None:
        super().__init__(modality)
        if target <= 0:
            raise ValueError(f"target must be positive, got {target}")
        self.target = target
        self.frequencies, self.widths = _bands(self.preset)

    def _excess(self, log_mel: Tensor, keep: Tensor) -> Tensor:
        weights = log_mel.exp() * self.widths.to(log_mel) * keep
        centroid = (weights * self.frequencies.to(log_mel)).sum((1, 2, 3)) / weights.sum((1, 2, 3))
        return torch.log2(centroid / self.target)


def _keep(x0: Tensor, cond: Cond | None) -> Tensor:
    mask = (cond or {}).get("mask")
    return torch.ones_like(x0[..., 0]) if mask is None else mask.to(x0)


def _bands(preset: MelPreset) -> tuple[Tensor, Tensor]:
    """The centre of each mel band in Hz, and what its magnitude counts for in an integral over frequency."""
    filters = preset.filters().double().numpy()
    bins, area = np.linspace(0, preset.rate / 2, filters.shape[1]), filters.sum(1)
    bands, some = np.arange(preset.bands), area > 0  # between two bins a narrow band has nothing
    centres = np.interp(bands, bands[some], (filters[some] @ bins) / area[some])
    widths = np.gradient(centres) if preset.norm == "slaney" else np.ones(preset.bands)
    return torch.tensor(centres), torch.tensor(widths)
