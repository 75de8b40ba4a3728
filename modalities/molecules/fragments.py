"""Pieces of molecules that training gives as known, so that one can grow a scaffold."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .molecule import Molecule


def random_fragment(molecule: Molecule, generator: Generator) -> Tensor:
    """A random connected piece, boolean ``(n,)``: heavy atoms grown along bonds from a random one to a random share,
    and each of their hydrogens with a chance of one half."""
    numbers = molecule.numbers.tolist()
    neighbours: list[list[int]] = [[] for _ in numbers]
    for i, j, _ in molecule.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    heavy = [i for i, number in enumerate(numbers) if number > 1]
    share, first, *coins = torch.rand(2 + len(numbers), generator=generator).tolist()
    if not heavy:
        return torch.zeros(len(numbers), dtype=torch.bool)
    grown = [heavy[int(first * len(heavy))]]
    for atom in grown:
        grown += [j for j in neighbours[atom] if numbers[j] > 1 and j not in grown]
    kept = set(grown[: max(1, round(share * 0.9 * len(heavy)))])
    hydrogen = [
        numbers[i] == 1 and coins[i] < 0.5 and any(j in kept for j in neighbours[i]) for i in range(len(numbers))
    ]
    return torch.tensor([i in kept or hydrogen[i] for i in range(len(numbers))])
