"""Energies of the positions of molecules, for guidance (``core.guidance.gradients``).

They are extensive, so that a scale means the same for molecules of any size, and in angstrom^2. Types and bonds are
read from the estimate and are not moved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noiseloom.core.guidance import ENERGIES
from noiseloom.core.samples import Cond, Sample

from ..extras import require
from .molecule import SYMBOLS
from .state import Encoding


@ENERGIES.register("repulsion")
class Repulsion:
    """Atoms closer than van der Waals contact, unless bonded or bonded to the same atom, are springs pressed together.

        sum over pairs of  max(0, contact (r_i + r_j) - d_ij)^2 / 2

    Args:
        contact: of the sum of the van der Waals radii, how much is contact.
        modality: molecules.
    """

    def __init__(self, contact: float = 0.75, modality: Any = None) -> None:
        if contact <= 0:
            raise ValueError(f"contact must be positive, got {contact}")
        self.encoding = _encoding(modality, "repulsion")
        table = require("rdkit.Chem", "molecules").GetPeriodicTable()
        radii = [table.GetRvdw(SYMBOLS.index(symbol)) for symbol in self.encoding.elements]
        self.radii = contact * torch.tensor(radii)

    def __call__(self, x0: Sample, cond: Cond | None) -> Tensor:
        positions, unit = x0["positions"] * self.encoding.scale, self.encoding.one_hot_scale
        mask = _mask(positions, cond)
        pairs = mask[:, :, None] & mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        bonded = (1 - x0["bonds"][..., 0].detach() / unit).clamp(0, 1) * pairs
        apart = (1 - bonded) * (1 - (bonded @ bonded).clamp(max=1)) * pairs
        radius = x0["atoms"].detach().clamp(min=0) / unit @ self.radii.to(positions)
        gaps = positions[:, :, None] - positions[:, None]
        distance = (gaps.square().sum(-1) + 1e-6).sqrt()  # two atoms in one place have no direction to part in
        pressed = (radius[:, :, None] + radius[:, None] - distance).clamp(min=0)
        return (apart * pressed**2).sum((1, 2)) / 4  # each pair is there twice


@ENERGIES.register("radius_of_gyration")
class RadiusOfGyration:
    """A spring on every atom towards a molecule of a given size, compact or stretched out.

        atoms (R - target)^2 / 2,      R^2 = mean |r_i - mean r|^2

    Args:
        target: angstrom.
        modality: molecules.
    """

    def __init__(self, target: float, modality: Any = None) -> None:
        if target <= 0:
            raise ValueError(f"target must be positive, got {target}")
        self.encoding, self.target = _encoding(modality, "radius_of_gyration"), target

    def __call__(self, x0: Sample, cond: Cond | None) -> Tensor:
        return _mask(x0["positions"], cond).sum(1) * (self.radius(x0, cond) - self.target) ** 2 / 2

    def radius(self, x0: Sample, cond: Cond | None) -> Tensor:
        """R of each molecule, angstrom: ``(batch,)``."""
        positions = x0["positions"] * self.encoding.scale
        keep = _mask(positions, cond).to(positions)[..., None]
        count = keep.sum(1, keepdim=True).clamp(min=1)
        centred = (positions - (positions * keep).sum(1, keepdim=True) / count) * keep
        return (centred.square().sum((1, 2)) / count[:, 0, 0] + 1e-6).sqrt()


def _encoding(modality: Any, name: str) -> Encoding:
    encoding = getattr(modality, "encoding", None)
    if not isinstance(encoding, Encoding):
        raise ValueError(f"energy {name!r} is for molecules")
    return encoding


def _mask(positions: Tensor, cond: Cond | None) -> Tensor:
    given = (cond or {}).get("mask")
    return torch.ones_like(positions[..., 0], dtype=torch.bool) if given is None else given
