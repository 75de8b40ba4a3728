"""Molecules to tensors and back.

    positions  (batch, n, 3)       angstrom / scale, zero mean
    atoms      (batch, n, K)       one-hot over the vocabulary of elements, times one_hot_scale
    charges    (batch, n, C)       one-hot over the formal charges, times one_hot_scale
    bonds      (batch, n, n, 4)    symmetric one-hot over none, single, double, triple, times one_hot_scale

Types and bonds diffuse as scaled one-hots beside the positions: one Gaussian process for all parts, so that every
sampler, guidance rule and few-step method runs on all of them (docs/log.md tells how that was decided).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noiseloom.core.samples import Sample, product
from noiseloom.core.spaces import Centred, Euclidean, Product, SymmetricPairs

from .molecule import SYMBOLS, Molecule

BONDS = 4  # none, single, double, triple


def space_of(mask: Tensor, known: Sample | None = None) -> Product:
    """The space of a batch: ``mask`` (batch, n) marks its atoms, ``known`` (batch, n) those that are given."""
    given = known["atoms"] if known is not None else None
    return Product(
        {
            "positions": Centred(mask, given),
            "atoms": Euclidean(mask, given),
            "charges": Euclidean(mask, given),
            "bonds": SymmetricPairs(mask, given),
        }
    )


def known_parts(atoms: Tensor) -> Sample:
    """Known flags of every part from those of the atoms (batch, n); a bond is known where both its atoms are."""
    return product(
        {"positions": atoms, "atoms": atoms, "charges": atoms, "bonds": atoms[:, :, None] & atoms[:, None, :]}
    )


@dataclass(frozen=True)
class Encoding:
    """How molecules of a data set are written as tensors.

    Attributes:
        elements: symbols, the classes of atoms.
        charges: formal charges, their classes.
        scale: angstrom in a unit of length.
        one_hot_scale: the value of a one-hot's one.
    """

    elements: tuple[str, ...]
    charges: tuple[int, ...]
    scale: float
    one_hot_scale: float

    def tensors(self, molecules: Sequence[Molecule]) -> tuple[Sample, Tensor]:
        """The batch of some molecules and its mask (batch, n); float32.

        Raises:
            ValueError: an element or charge that is not in the vocabulary.
        """
        lookup = np.full(256, -1)
        for index, symbol in enumerate(self.elements):
            lookup[SYMBOLS.index(symbol)] = index
        size = max(len(molecule) for molecule in molecules)
        batch = len(molecules)
        positions = np.zeros((batch, size, 3), np.float32)
        atoms = np.full((batch, size), -1)
        charges = np.full((batch, size), -1)
        bonds = np.zeros((batch, size, size), np.int64)
        for row, molecule in enumerate(molecules):
            n = len(molecule)
            positions[row, :n] = molecule.positions - molecule.positions.mean(0)
            atoms[row, :n] = lookup[molecule.numbers]
            charges[row, :n] = molecule.charges.astype(int) - self.charges[0]
            i, j, order = molecule.bonds.T
            bonds[row, i, j] = bonds[row, j, i] = order
            if (atoms[row, :n] < 0).any() or (charges[row, :n] < 0).any() or (charges[row] >= len(self.charges)).any():
                raise ValueError(
                    f"a molecule has elements or charges outside the vocabulary: "
                    f"{', '.join(self.elements)}; charges {', '.join(map(str, self.charges))}"
                )
        mask = torch.from_numpy(atoms >= 0)
        pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(size, dtype=torch.bool)

        def one_hot(classes: np.ndarray, count: int, real: Tensor) -> Tensor:
            hot = torch.nn.functional.one_hot(torch.from_numpy(classes).clamp(min=0), count).float()
            return hot * (self.one_hot_scale * real)[..., None]

        x0 = product(
            {
                "positions": torch.from_numpy(positions / self.scale),
                "atoms": one_hot(atoms, len(self.elements), mask),
                "charges": one_hot(charges, len(self.charges), mask),
                "bonds": one_hot(bonds, BONDS, pairs),
            }
        )
        return x0, mask

    def molecules(self, x0: Sample, mask: Tensor) -> list[Molecule]:
        """The most probable molecule of each clean sample."""
        numbers = np.array([SYMBOLS.index(symbol) for symbol in self.elements], np.uint8)
        charge_of = np.array(self.charges, np.int8)
        positions = (x0["positions"].float() * self.scale).cpu().numpy()
        atoms, charges, bonds = (x0[part].float().argmax(-1).cpu().numpy() for part in ("atoms", "charges", "bonds"))
        out = []
        for row, real in enumerate(mask.cpu().numpy()):
            order = np.triu(bonds[row][np.ix_(real, real)], 1)
            i, j = np.nonzero(order)
            rows = np.stack([i, j, order[i, j]], 1).astype(np.int16)
            out.append(Molecule(numbers[atoms[row][real]], positions[row][real], charge_of[charges[row][real]], rows))
        return out
