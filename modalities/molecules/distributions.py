"""Histograms of what molecules look like, and the Wasserstein-1 distance between two sets of them.

Everything is counted on a fixed fine grid (bond lengths 0.002 angstrom, angles 0.5 degrees, torsions 1 degree), so a
reference set is a few kilobytes of counts and the distances need no data set. On a line

    W1(p, q) = integral |P(x) - Q(x)| dx          (P, Q: cumulative distributions)

Torsions are folded to |phi| in [0, 180]: the fold makes mirror images equal and leaves no seam at +-180, so the
distance on the line is the distance on the folded circle. Geometry is grouped by chemistry (element pair and order of a
bond, element and degree of an angle's centre, central bond of a torsion); a kind's distance is the mean over groups,
weighted by how often the reference has them. Element counts are summed instead: atoms misplaced per molecule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_ORDERS = {1.0: "-", 1.5: ":", 2.0: "=", 3.0: "#"}
_LINEAR = 175.0  # degrees; a torsion around a wider angle has no direction


@dataclass(frozen=True)
class Kind:
    """One kind of measurement: the grid it is counted on (values are clipped to [low, high]), unit and meaning."""

    step: float
    low: float
    high: float
    unit: str
    protocol: str
    summed: bool = False


KINDS = {
    "bond_lengths": Kind(0.002, 0, 10, "Å", "per element pair and order, weighted as in real data"),
    "bond_angles": Kind(0.5, 0, 180, "°", "per element and degree of the centre, weighted as in real data"),
    "torsions": Kind(1, 0, 180, "°", "|phi| per central bond, weighted as in real data"),
    "elements": Kind(1, 0, 10_000, "atoms", "counts per molecule, summed over elements", summed=True),
    "atoms": Kind(1, 0, 100_000, "atoms", "atoms per molecule"),
    "rings": Kind(1, 0, 1_000, "rings", "rings per molecule"),
    "ring_sizes": Kind(1, 0, 1_000, "atoms", "sizes of all rings (SSSR)"),
    "qed": Kind(0.005, 0, 1, "", "drug-likeness QED"),
    "sa": Kind(0.02, 0, 12, "", "synthetic accessibility, 1 easy to 10 hard"),
    "logp": Kind(0.02, -50, 50, "", "Crippen logP"),
}


@dataclass(frozen=True)
class Histogram:
    """Counts on the grid ``step * (start + k)``."""

    step: float
    start: int
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, step: float) -> Histogram:
        """Count values, each at its nearest grid point."""
        points = np.rint(np.asarray(values) / step).astype(np.int64)
        start = int(points.min()) if len(points) else 0
        return cls(step, start, np.bincount(points - start))

    @property
    def total(self) -> int:
        """The number of values counted."""
        return int(self.counts.sum())

    def wasserstein(self, other: Histogram) -> float:
        """The Wasserstein-1 distance between the two normalised histograms, in the unit of the values."""
        start = min(self.start, other.start)
        size = max(h.start + len(h.counts) for h in (self, other)) - start
        difference = np.zeros(size)
        for histogram, sign in ((self, 1), (other, -1)):
            place = histogram.start - start
            difference[place : place + len(histogram.counts)] += sign * histogram.counts / histogram.total
        return float(self.step * np.abs(np.cumsum(difference)).sum())


#: kind -> group -> histogram
Distributions = Mapping[str, Mapping[str, Histogram]]


def measure(molecules: Iterable[Mol], extra: Mapping[str, Sequence[float]] | None = None) -> Distributions:
    """Histograms of every kind over sanitised molecules with explicit hydrogens.

    Molecules without 3D coordinates count for composition only. ``extra``: values of kinds that are computed
    elsewhere (``qed``, ``sa``, ``logp``), one per molecule, without those that could not be computed.
    """
    values: dict[str, dict[str, Any]] = {kind: defaultdict(list) for kind in KINDS}
    geometry = _Geometry()
    molecules = list(molecules)
    elements = []
    for mol in molecules:
        symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
        elements.append(symbols)
        values["atoms"][""].append(len(symbols))
        rings = mol.GetRingInfo().AtomRings()
        values["rings"][""].append(len(rings))
        values["ring_sizes"][""].extend(map(len, rings))
        if has_geometry(mol):
            geometry.add(mol, symbols)
    for symbol in {symbol for symbols in elements for symbol in symbols}:
        values["elements"][symbol] = [symbols.count(symbol) for symbols in elements]
    for kind, numbers in (extra or {}).items():
        values[kind][""] = list(numbers)
    for kind, groups in geometry.values().items():
        values[kind].update(groups)
    return {
        kind: {
            group: Histogram.of(np.clip(numbers, KINDS[kind].low, KINDS[kind].high), KINDS[kind].step)
            for group, numbers in sorted(groups.items())
            if len(numbers)
        }
        for kind, groups in values.items()
    }


def distance(kind: str, samples: Distributions, reference: Distributions) -> tuple[float | None, float]:
    """``(W1, covered)``: the distance of one kind, and the share of the reference whose groups the samples have.

    None where samples and reference share no group.
    """
    ours, theirs = samples.get(kind, {}), reference.get(kind, {})
    if KINDS[kind].summed:
        if not ours or not theirs:
            return None, 0.0
        pairs = [(_or_absent(ours, g), _or_absent(theirs, g)) for g in {*ours, *theirs}]
        return sum(a.wasserstein(b) for a, b in pairs), 1.0
    shared = [group for group in theirs if group in ours]
    weights = [theirs[group].total for group in shared]
    if not shared:
        return None, 0.0
    mean = float(np.average([ours[group].wasserstein(theirs[group]) for group in shared], weights=weights))
    return mean, sum(weights) / sum(h.total for h in theirs.values())


def _or_absent(side: Mapping[str, Histogram], group: str) -> Histogram:
    """The histogram of a group, or that of "none of it in any molecule"."""
    some = next(iter(side.values()))
    return side.get(group, Histogram(some.step, 0, np.array([some.total])))


def has_geometry(mol: Mol) -> bool:
    """Does the molecule have finite 3D coordinates?"""
    return mol.GetNumConformers() > 0 and bool(np.isfinite(mol.GetConformer().GetPositions()).all())


class _Geometry:
    """Bonds, angles and torsions of many molecules, gathered as indices and computed in one go."""

    def __init__(self) -> None:
        self.positions: list[np.ndarray] = []
        self.atoms = 0
        self.indices: dict[int, list[tuple[int, ...]]] = {2: [], 3: [], 4: []}
        self.groups: dict[int, list[str]] = {2: [], 3: [], 4: []}

    def add(self, mol: Mol, symbols: Sequence[str]) -> None:
        base = self.atoms
        neighbours: list[list[int]] = [[] for _ in symbols]
        bonds = []
        for bond in mol.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            neighbours[i].append(j)
            neighbours[j].append(i)
            first, second = sorted((symbols[i], symbols[j]))
            bonds.append((i, j, first + _ORDERS.get(bond.GetBondTypeAsDouble(), "~") + second))
        for i, j, group in bonds:
            self._append(group, base, i, j)
            for k in neighbours[i]:
                for m in neighbours[j]:
                    if k != j and m != i and k != m:
                        self._append(group, base, k, i, j, m)
        for i, around in enumerate(neighbours):
            for j, k in combinations(around, 2):
                self._append(f"{symbols[i]}{len(around)}", base, j, i, k)
        self.positions.append(mol.GetConformer().GetPositions())
        self.atoms += len(symbols)

    def _append(self, group: str, base: int, *atoms: int) -> None:
        self.indices[len(atoms)].append(tuple(base + atom for atom in atoms))
        self.groups[len(atoms)].append(group)

    def values(self) -> dict[str, dict[str, np.ndarray]]:
        """Bond lengths (angstrom), angles and folded torsions (degrees) by group."""
        x = np.concatenate([np.zeros((0, 3)), *self.positions])
        i, j = self._corners(2)
        lengths = np.linalg.norm(x[i] - x[j], axis=-1)
        i, j, k = self._corners(3)
        angles = _angle(x[i] - x[j], x[k] - x[j])
        i, j, k, m = self._corners(4)
        a, b, c = x[j] - x[i], x[k] - x[j], x[m] - x[k]
        torsions = _angle(np.cross(a, b), np.cross(b, c))
        bent = np.maximum(_angle(-a, b), _angle(-b, c)) < _LINEAR
        return {
            "bond_lengths": _by_group(lengths, np.array(self.groups[2], str)),
            "bond_angles": _by_group(angles, np.array(self.groups[3], str)),
            "torsions": _by_group(torsions[bent], np.array(self.groups[4], str)[bent]),
        }

    def _corners(self, size: int) -> np.ndarray:
        return np.array(self.indices[size], np.int64).reshape(-1, size).T


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The angle between vectors in degrees, accurate near 0 and 180."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1)))


def _by_group(values: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[order], return_index=True)
    return dict(zip(names.tolist(), np.split(values[order], starts[1:]), strict=True)) if len(names) else {}
