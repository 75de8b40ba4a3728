"""What the readers of SDF and SMILES files share: which molecules are usable, and how the usable ones are collected."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..extras import require
from .collection import DataReport, MoleculeSet
from .molecule import SYMBOLS, Molecule

if TYPE_CHECKING:
    from rdkit.Chem import Mol


class Unusable(ValueError):
    """One molecule that has to be left out; the message is the reason it is counted under."""


class DamagedFile(ValueError):
    """A compressed file that ends early or is not what its name says."""


class NoMolecules(ValueError):
    """A source without a single usable molecule; the message holds the report."""


@dataclass(frozen=True)
class Limits:
    """Which molecules are wanted.

    Attributes:
        vocabulary: the element symbols allowed, or None for all.
        max_atoms: the most atoms, hydrogens included, or None.
        keep_fragments: keep what is not connected, e.g. a salt or a complex.
    """

    vocabulary: Sequence[str] | None = None
    max_atoms: int | None = None
    keep_fragments: bool = False

    def __post_init__(self) -> None:
        unknown = [symbol for symbol in self.vocabulary or () if symbol not in SYMBOLS[1:]]
        if unknown:
            raise ValueError(f"not an element: {', '.join(map(repr, unknown))}")

    def check(self, numbers: np.ndarray) -> None:
        """Raise :class:`Unusable` for a molecule of these atomic numbers ``(n,)`` that is not wanted."""
        if not len(numbers):
            raise Unusable("no atoms")
        if self.max_atoms is not None and len(numbers) > self.max_atoms:
            raise Unusable(f"more than {self.max_atoms} atoms")
        symbols = {SYMBOLS[number] for number in np.unique(numbers)}
        if "*" in symbols:
            raise Unusable("an atom that is no element")
        if self.vocabulary is not None and not symbols <= set(self.vocabulary):
            raise Unusable("atoms outside the vocabulary")

    def apply(self, molecules: MoleculeSet) -> MoleculeSet:
        """The wanted molecules of a collection; the others are counted in its report. Fragments are not looked at."""
        if self.vocabulary is None and self.max_atoms is None:
            return molecules
        keep = np.ones(len(molecules), bool)
        report = deepcopy(molecules.report)
        for index, molecule in enumerate(molecules):
            try:
                self.check(molecule.numbers)
            except Unusable as reason:
                keep[index] = False
                report.drop(str(reason), molecules.smiles[index] if molecules.smiles else f"molecule {index}")
        return replace(molecules.subset(keep), report=report)


def sanitise(mol: Mol, limits: Limits) -> None:
    """Sanitise in place; raise :class:`Unusable` for wrong valences, radicals and, unless kept, fragments.

    Aromaticity is not perceived: bonds written as single and double stay as they are.
    """
    Chem = require("rdkit.Chem", "molecules")
    flags = Chem.SanitizeFlags
    try:
        Chem.SanitizeMol(mol, flags.SANITIZE_ALL ^ flags.SANITIZE_SETAROMATICITY)
    except Chem.KekulizeException:
        raise Unusable("cannot be Kekulised") from None
    except Chem.AtomValenceException:
        raise Unusable("impossible valence") from None
    except Chem.MolSanitizeException:
        raise Unusable("cannot be sanitised") from None
    if not limits.keep_fragments and len(Chem.GetMolFrags(mol)) > 1:
        raise Unusable("not connected")
    if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        raise Unusable("radical")


def graph_smiles(mol: Mol) -> str:
    """Canonical SMILES without stereochemistry: the same for all conformers and stereoisomers of a molecule."""
    Chem = require("rdkit.Chem", "molecules")
    mol = Chem.Mol(mol)
    Chem.RemoveStereochemistry(mol)  # else a hydrogen that defines the stereo of a double bond would stay
    return Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, unpacked if its name ends in ``.gz``.

    Raises:
        OSError: it cannot be opened.
        DamagedFile: the compressed stream breaks; the lines before the break have been given.
    """
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DamagedFile("damaged gzip stream") from None


@dataclass
class Collector:
    """Molecules gathered one by one, with what is said about each, and a report of the others."""

    molecules: list[Molecule] = field(default_factory=list)
    smiles: list[str] = field(default_factory=list)
    values: list[Mapping[str, str]] = field(default_factory=list)
    report: DataReport = field(default_factory=DataReport)

    def add(self, molecule: Molecule, smiles: str, values: Mapping[str, str]) -> None:
        """Keep a molecule. ``values``: its properties as text, where it has them."""
        self.molecules.append(molecule)
        self.smiles.append(smiles)
        self.values.append(values)

    def finish(self, source: Path) -> MoleculeSet:
        """The collection.

        Raises:
            NoMolecules: nothing was kept.
        """
        if not self.molecules:
            raise NoMolecules(f"{source}: no usable molecule\n{self.report}")
        return MoleculeSet.pack(self.molecules, self._columns(), self.smiles, self.report)

    def _columns(self) -> dict[str, np.ndarray]:
        """Properties that are numbers in at least half of the places where they are given; NaN elsewhere."""
        columns = {}
        for name in dict.fromkeys(name for values in self.values for name in values):
            texts = [values.get(name, "").strip() for values in self.values]
            column = np.array([_number(text) for text in texts])
            given, numbers = sum(map(bool, texts)), int(np.isfinite(column).sum())
            if numbers and 2 * numbers >= given:
                columns[name] = column
                for text, value in zip(texts, column, strict=True):
                    if text and math.isnan(value):
                        self.report.note(f"{name} is not a number", text)
        return columns


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
