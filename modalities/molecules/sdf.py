"""SDF files: molecules with the geometry, bonds and charges that they were written with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..extras import require
from .collection import MoleculeSet
from .molecule import from_rdkit
from .screening import Collector, DamagedFile, Limits, NoMolecules, Unusable, graph_smiles, read_lines, sanitise

if TYPE_CHECKING:
    from rdkit.Chem import Mol

SUFFIXES = (".sdf", ".sdf.gz", ".sd", ".sd.gz", ".mol")


def read_sdf(
    path: str | os.PathLike[str],
    *,
    add_hydrogens: bool = False,
    keep_fragments: bool = False,
    vocabulary: Sequence[str] | None = None,
    max_atoms: int | None = None,
) -> MoleculeSet:
    """Molecules from an SDF (``.sdf``, ``.sdf.gz``, ``.mol``) or from all of them under a folder.

    Kept are records that rdkit can sanitise, with 3D coordinates and explicit hydrogens. All others are counted by
    reason and named ``file #record``; one broken record does not stop the rest. Single and double bonds stay as they
    are written, aromatic ones are Kekulised. Data fields that hold numbers become ``properties``. ``smiles`` are
    canonical, without stereochemistry.

    Args:
        path: a file or a folder.
        add_hydrogens: place missing hydrogens (counted as a note) instead of leaving such molecules out.
        keep_fragments: keep molecules that are not connected.
        vocabulary: the element symbols allowed, e.g. ``("H", "C", "N", "O", "F")``; by default all.
        max_atoms: the most atoms, hydrogens included.

    Raises:
        FileNotFoundError: there is no such file or folder.
        NoMolecules: no record is usable (an empty file, a file of another kind); the message says why.
    """
    path = Path(path)
    limits = Limits(vocabulary, max_atoms, keep_fragments)
    block_logs = require("rdkit.rdBase", "molecules").BlockLogs
    collector = Collector()
    with block_logs(), tqdm(desc=f"reading {path.name}", unit="molecule", delay=1) as progress:
        for file in _files(path):
            number = 0
            for number, (text, problem) in enumerate(records(file), start=1):
                name = _name(file, number, text)
                try:
                    if problem:
                        raise Unusable(problem)
                    _take(collector, text, name, limits, add_hydrogens)
                except Unusable as reason:
                    collector.report.drop(str(reason), name)
                progress.update()
            if not number:
                collector.report.drop("empty file", file.name)
    return collector.finish(path)


def is_sdf(path: Path) -> bool:
    """Whether a file's name says that it holds SDF records."""
    return path.name.lower().endswith(SUFFIXES)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if is_sdf(file) and file.is_file())
    if not files:
        raise NoMolecules(f"{path}: no file that ends in {', '.join(SUFFIXES)}")
    return files


def records(path: Path) -> Iterator[tuple[str, str | None]]:
    """The text of each record, and what is wrong with it if its end is missing."""
    lines: list[str] = []
    try:
        for line in read_lines(path):
            if line.startswith("$$$$"):
                yield "".join(lines), None
                lines.clear()
            else:
                lines.append(line)
    except DamagedFile as damage:
        yield "".join(lines), str(damage)
        return
    text = "".join(lines)
    if text.strip():
        # A .mol file has neither data fields nor a "$$$$"; with data fields, the last one may be cut short.
        whole = "M  END" in text and "\n>" not in text
        yield text, None if whole else "truncated record" if "V2000" in text or "V3000" in text else "not an SDF record"


def _name(path: Path, number: int, text: str) -> str:
    title = text.split("\n", 1)[0].strip()
    return f"{path.name} #{number}" + (f" ({title[:40]})" if title.isprintable() and title else "")


def _take(collector: Collector, text: str, name: str, limits: Limits, add_hydrogens: bool) -> None:
    Chem = require("rdkit.Chem", "molecules")
    mol = parse_record(text)
    if not mol.GetNumAtoms():
        raise Unusable("no atoms")
    positions = mol.GetConformer().GetPositions() if mol.GetNumConformers() else np.zeros((1, 3))
    if not (mol.GetNumConformers() and mol.GetConformer().Is3D()) or (len(positions) > 1 and not np.ptp(positions)):
        raise Unusable("no 3D coordinates")
    if not np.isfinite(positions).all():
        raise Unusable("a coordinate is not a number")
    sanitise(mol, limits)
    if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        if not add_hydrogens:
            raise Unusable("hydrogens missing")
        mol = Chem.AddHs(mol, addCoords=True)
        collector.report.note("hydrogens added", name)
    limits.check(np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]))
    try:
        molecule = from_rdkit(mol)
    except ValueError as error:
        raise Unusable(str(error)) from None
    collector.add(molecule, graph_smiles(mol), {key: mol.GetProp(key) for key in mol.GetPropNames()})


def parse_record(text: str) -> Mol:
    """One record as an rdkit molecule, not sanitised; raises :class:`Unusable` where it cannot be read."""
    supplier = require("rdkit.Chem", "molecules").SDMolSupplier()
    supplier.SetData(text, sanitize=False, removeHs=False)
    mol = supplier[0] if len(supplier) else None
    if mol is None:
        raise Unusable("unreadable record")
    return mol
