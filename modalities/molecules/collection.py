"""Many molecules in a few flat arrays, with an account of what was left out."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import make_folder, replacing
from .molecule import Molecule

EXAMPLES = 3  # names kept for each reason of a report
STEP = 2.5e-4  # angstrom, of stored positions
_GRID = 16.0  # stored centres are multiples of 1/16 angstrom, hence exact in float32


@dataclass
class DataReport:
    """What a source gave: molecules kept, molecules dropped by reason, and changes made on the way.

    Attributes:
        kept: molecules in the collection.
        dropped: molecules left out, by reason.
        examples: the first few names behind each reason or note.
        notes: counted changes to molecules that were kept, e.g. "hydrogens added".
    """

    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, name: str) -> None:
        """Count one molecule that was left out."""
        self._count(self.dropped, reason, name)

    def note(self, change: str, name: str) -> None:
        """Count one change to a molecule that was kept."""
        self._count(self.notes, change, name)

    def _count(self, counts: dict[str, int], key: str, name: str) -> None:
        counts[key] = counts.get(key, 0) + 1
        names = self.examples.setdefault(key, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def __str__(self) -> str:
        rows = [("kept", self.kept, "")]
        for title, counts in (("dropped", self.dropped), ("note", self.notes)):
            for key, count in sorted(counts.items(), key=lambda item: -item[1]):
                names = self.examples.get(key, [])
                rows.append((f"{title}: {key}", count, ", ".join(names) + (", ..." if count > len(names) else "")))
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{title:<{width}}  {count:>9,}  {names}".rstrip() for title, count, names in rows)


@dataclass(frozen=True, eq=False, repr=False)
class MoleculeSet:
    """An immutable collection of M molecules with A atoms and E bonds in all.

    Molecule m owns the atoms ``offsets[m]:offsets[m + 1]`` and the bonds ``bond_offsets[m]:bond_offsets[m + 1]``.
    The arrays are read-only: make tensors with ``torch.tensor(array)``.

    Attributes:
        numbers: ``(A,)`` uint8, atomic numbers.
        positions: ``(A, 3)`` float32, angstrom.
        charges: ``(A,)`` int8, formal charges.
        offsets: ``(M + 1,)`` int64.
        bonds: ``(E, 3)`` int16, rows ``(i, j, order)``; i < j count the atoms of their own molecule; order 1, 2 or 3.
        bond_offsets: ``(M + 1,)`` int64.
        properties: ``(M,)`` float64 by name, NaN where a molecule does not have it.
        smiles: M strings as the source gave them, or None.
        report: what the source gave. A subset keeps the report of its source, with its own ``kept``.

    Raises:
        ValueError: arrays that do not describe molecules.
    """

    numbers: np.ndarray
    positions: np.ndarray
    charges: np.ndarray
    offsets: np.ndarray
    bonds: np.ndarray
    bond_offsets: np.ndarray
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)
    smiles: Sequence[str] | None = None
    report: DataReport = field(default_factory=DataReport)

    def __post_init__(self) -> None:
        dtypes = {"numbers": np.uint8, "positions": np.float32, "charges": np.int8, "offsets": np.int64}
        for name, dtype in (dtypes | {"bonds": np.int16, "bond_offsets": np.int64}).items():
            object.__setattr__(self, name, _frozen(getattr(self, name), dtype))
        object.__setattr__(self, "properties", {k: _frozen(v, np.float64) for k, v in self.properties.items()})
        object.__setattr__(self, "report", replace(self.report, kept=len(self)))
        self._check()

    def _check(self) -> None:
        atoms, count = len(self.numbers), len(self)
        for offsets, end in ((self.offsets, atoms), (self.bond_offsets, len(self.bonds))):
            if offsets.shape != (count + 1,) or offsets[0] or offsets[-1] != end or (np.diff(offsets) < 0).any():
                raise ValueError("molecule set: the offsets do not cover the arrays")
        if self.positions.shape != (atoms, 3) or self.charges.shape != (atoms,) or self.bonds.shape[1:] != (3,):
            raise ValueError("molecule set: positions, charges or bonds have the wrong shape")
        if not np.isfinite(self.positions).all():
            raise ValueError("molecule set: a position is not finite")
        i, j, order = self.bonds.T
        size = np.repeat(self.sizes, np.diff(self.bond_offsets))
        if (i < 0).any() or (i >= j).any() or (j >= size).any() or (order < 1).any() or (order > 3).any():
            raise ValueError("molecule set: a bond is not (i, j, order) with i < j < n and order 1, 2 or 3")
        lengths = {name: len(values) for name, values in self.properties.items()}
        lengths |= {} if self.smiles is None else {"smiles": len(self.smiles)}
        for name, length in lengths.items():
            if length != count:
                raise ValueError(f"molecule set: {length} values of {name} for {count} molecules")

    def __repr__(self) -> str:
        return f"MoleculeSet({len(self)} molecules, {len(self.numbers)} atoms, properties={list(self.properties)})"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Molecule:
        if not -len(self) <= index < len(self):
            raise IndexError(f"molecule {index} of {len(self)}")
        m = index % len(self)
        atoms = slice(self.offsets[m], self.offsets[m + 1])
        bonds = slice(self.bond_offsets[m], self.bond_offsets[m + 1])
        return Molecule(self.numbers[atoms], self.positions[atoms], self.charges[atoms], self.bonds[bonds])

    def __iter__(self) -> Iterator[Molecule]:
        return (self[index] for index in range(len(self)))

    @property
    def sizes(self) -> np.ndarray:
        """``(M,)`` int64: the number of atoms of each molecule."""
        return np.diff(self.offsets)

    def subset(self, indices: Sequence[int] | np.ndarray) -> MoleculeSet:
        """The molecules at ``indices`` (integers, or one boolean per molecule), in that order."""
        chosen = np.arange(len(self))[np.asarray(indices, dtype=None if len(indices) else np.int64)]
        offsets, atoms = _gather(self.offsets, chosen)
        bond_offsets, bonds = _gather(self.bond_offsets, chosen)
        return MoleculeSet(
            self.numbers[atoms],
            self.positions[atoms],
            self.charges[atoms],
            offsets,
            self.bonds[bonds],
            bond_offsets,
            {name: values[chosen] for name, values in self.properties.items()},
            None if self.smiles is None else [self.smiles[index] for index in chosen],
            self.report,
        )

    @classmethod
    def pack(
        cls,
        molecules: Iterable[Molecule],
        properties: Mapping[str, np.ndarray] | None = None,
        smiles: Sequence[str] | None = None,
        report: DataReport | None = None,
    ) -> MoleculeSet:
        """A collection from single molecules."""
        items = list(molecules)
        empty = Molecule(np.zeros(0), np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3)))
        joined = [np.concatenate([getattr(m, f.name) for m in [empty, *items]]) for f in fields(Molecule)]
        numbers, positions, charges, bonds = joined
        offsets = np.cumsum([0] + [len(m.numbers) for m in items])
        bond_offsets = np.cumsum([0] + [len(m.bonds) for m in items])
        report = report or DataReport()
        return cls(numbers, positions, charges, offsets, bonds, bond_offsets, properties or {}, smiles, report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` of plain arrays (no pickle), whole or not at all.

        Positions are kept as whole steps of 2.5e-4 angstrom from a centre of each molecule, in 16 bits where they fit
        (8 angstrom from the centre), else in 32. Saving what was loaded changes nothing.
        """
        count, owner = np.maximum(self.sizes, 1), np.repeat(np.arange(len(self)), self.sizes)
        sums = np.stack([np.bincount(owner, axis, minlength=len(self)) for axis in self.positions.T], axis=1)
        centres = np.round(sums / count[:, None] * _GRID) / _GRID
        steps = np.round((self.positions - centres[owner]) / STEP)
        dtype = np.int16 if np.abs(steps).max(initial=0) <= 32767 else np.int32
        arrays = {name: getattr(self, name) for name in ("numbers", "charges", "offsets", "bonds", "bond_offsets")}
        arrays |= {"steps": steps.astype(dtype), "scale": np.float64(STEP), "centres": centres.astype(np.float32)}
        arrays |= {f"property.{name}": values for name, values in self.properties.items()}
        if self.smiles is not None:
            arrays["smiles"] = np.frombuffer("\n".join(self.smiles).encode(), np.uint8)
        arrays["report"] = np.array(json.dumps(vars(self.report)))
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MoleculeSet:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated or not a molecule set.
        """
        arrays = read_arrays(path)
        try:
            offsets = arrays["offsets"].astype(np.int64)
            centres = np.repeat(arrays["centres"], np.diff(offsets), axis=0)
            return cls(
                arrays["numbers"],
                centres + arrays["steps"] * arrays["scale"],
                arrays["charges"],
                offsets,
                arrays["bonds"],
                arrays["bond_offsets"],
                {name.removeprefix("property."): a for name, a in arrays.items() if name.startswith("property.")},
                arrays["smiles"].tobytes().decode().split("\n")[: len(offsets) - 1] if "smiles" in arrays else None,
                DataReport(**json.loads(str(arrays["report"]))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a molecule set: {error}") from error


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz``, whole or not at all, making its folder if need be.

    Raises:
        CannotWrite: a full disk, no permission.
    """
    path = Path(path)
    make_folder(path.parent)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays))


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz``, never unpickling.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, not an ``.npz``, or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or not an .npz file: {error}") from error


def _frozen(values: np.ndarray, dtype: type) -> np.ndarray:
    array: np.ndarray = np.asarray(values, dtype=dtype)
    array = array.copy() if array is values and array.flags.writeable else array
    array.setflags(write=False)
    return array


def _gather(offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New offsets, and the rows of the chosen groups one after another."""
    sizes = np.diff(offsets)[chosen]
    new = np.concatenate([[0], np.cumsum(sizes)])
    return new, np.arange(new[-1]) + np.repeat(offsets[:-1][chosen] - new[:-1], sizes)
