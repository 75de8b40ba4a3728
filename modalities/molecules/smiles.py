"""SMILES files: molecules that get their geometry here, by ETKDGv3 and MMFF94s."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..extras import cache_folder, require
from .collection import STEP, MoleculeSet
from .molecule import Molecule, from_rdkit
from .screening import Collector, DamagedFile, Limits, NoMolecules, Unusable, graph_smiles, read_lines, sanitise

SUFFIXES = (".smi", ".smi.gz", ".csv", ".csv.gz", ".txt", ".txt.gz", ".smiles", ".smiles.gz")
_RELAXATION_STEPS = 2000
_PER_PROCESS = 64  # molecules that pay for starting a process


def read_smiles(
    path: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    seed: int = 0,
    vocabulary: Sequence[str] | None = None,
    max_atoms: int | None = None,
    cache: bool = True,
) -> MoleculeSet:
    """Molecules from a SMILES file: hydrogens added, one ETKDGv3 conformer, relaxed with MMFF94s.

    ``.smi`` and ``.txt``: a SMILES per line and, after white space, an optional name. ``.csv``: a column named SMILES
    (or the only column); columns of numbers become ``properties``. Any of them may be ``.gz``. A conformer depends on
    its SMILES and the seed only, not on its neighbours or on ``jobs``. Molecules without a conformer are counted by
    reason and named ``line N``. ``smiles`` of the result are canonical, without stereochemistry.

    Args:
        path: the file.
        jobs: processes; by default one per core, fewer for short files.
        seed: of the conformers.
        vocabulary: the element symbols allowed; by default all.
        max_atoms: the most atoms, hydrogens included.
        cache: keep the result in the user's cache, by the content of the file and the options, and use it if there.

    Raises:
        FileNotFoundError: there is no such file.
        NoMolecules: no line is usable; the message says why.
    """
    path = Path(path)
    limits = Limits(vocabulary, max_atoms)
    kept = cache_folder() / f"smiles-{_fingerprint(path, limits, seed)}.npz"
    if cache:
        with suppress(FileNotFoundError, ValueError):  # absent or damaged: made again
            return MoleculeSet.load(kept)
    collector = Collector()
    rows = list(_rows(path, collector))
    outcomes = _conformers([row[1] for row in rows], limits, seed, jobs)
    for (name, smiles, values), outcome in zip(
        rows, tqdm(outcomes, total=len(rows), desc=f"conformers of {path.name}", unit="molecule"), strict=True
    ):
        if isinstance(outcome, str):
            collector.report.drop(outcome, f"{name} {smiles[:60]}")
        else:
            molecule, canonical = outcome
            collector.add(molecule, canonical, values)
    molecules = collector.finish(path)
    if cache:
        try:
            molecules.save(kept)
        except OSError:
            molecules.report.note("conformers could not be cached", str(kept))
    return molecules


def is_smiles(path: Path) -> bool:
    """Whether a file's name says that it holds SMILES."""
    return path.name.lower().endswith(SUFFIXES)


def conformer(smiles: str, seed: int, limits: Limits) -> tuple[Molecule, str]:
    """One relaxed conformer, and the canonical SMILES.

    Raises:
        Unusable: there is none; the message is the reason.
    """
    Chem = require("rdkit.Chem", "molecules")
    embedding = require("rdkit.Chem.rdDistGeom", "molecules")
    force_field = require("rdkit.Chem.rdForceFieldHelpers", "molecules")
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        raise Unusable("unreadable SMILES")
    sanitise(mol, limits)
    Chem.SanitizeMol(mol)  # with aromaticity, which ETKDG looks at
    Chem.AssignStereochemistry(mol, cleanIt=True)
    mol = Chem.AddHs(mol)
    limits.check(np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]))
    options = embedding.ETKDGv3()
    options.randomSeed = int.from_bytes(blake2b(f"{seed} {smiles}".encode(), digest_size=4).digest()) >> 1
    if embedding.EmbedMolecule(mol, options) < 0:
        options.useRandomCoords = True
        if embedding.EmbedMolecule(mol, options) < 0:
            raise Unusable("no conformer found")
    if not force_field.MMFFHasAllMoleculeParams(mol):
        raise Unusable("no MMFF94s parameters")
    if force_field.MMFFOptimizeMolecule(mol, mmffVariant="MMFF94s", maxIters=_RELAXATION_STEPS):
        raise Unusable("the conformer did not relax")
    molecule = from_rdkit(mol)
    x = molecule.positions.astype(np.float64)
    x = np.round((x - x.mean(axis=0)) / STEP) * STEP  # what the cache keeps, so that reading it changes nothing
    return replace(molecule, positions=x.astype(np.float32)), graph_smiles(mol)


def _outcome(smiles: str, seed: int, limits: Limits) -> tuple[Molecule, str] | str:
    with require("rdkit.rdBase", "molecules").BlockLogs():
        try:
            return conformer(smiles, seed, limits)
        except Unusable as reason:
            return str(reason)


def _conformers(
    smiles: Sequence[str], limits: Limits, seed: int, jobs: int | None
) -> Iterator[tuple[Molecule, str] | str]:
    work = partial(_outcome, seed=seed, limits=limits)
    jobs = jobs or min(os.cpu_count() or 1, 1 + len(smiles) // _PER_PROCESS)
    if jobs == 1:
        yield from map(work, smiles)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield from pool.map(work, smiles, chunksize=max(1, min(16, len(smiles) // (4 * jobs))))
    finally:
        pool.shutdown(cancel_futures=True)


def _rows(path: Path, collector: Collector) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """The name, the SMILES and the other columns of each line."""

    def lines() -> Iterator[str]:
        try:
            yield from read_lines(path)
        except DamagedFile as damage:
            collector.report.drop(str(damage), path.name)

    if ".csv" in path.name.lower():
        yield from _csv_rows(path, lines())
        return
    for number, line in enumerate(lines(), start=1):
        words = line.split(maxsplit=1)
        header = number == 1 and words and words[0].lower() == "smiles"
        if words and not header and not line.startswith("#"):
            yield f"line {number}", words[0], {}


def _csv_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    reader = csv.reader(lines)
    header = next(reader, [])
    titles = [title.strip().lower() for title in header]
    if header and "smiles" not in titles:
        if len(header) > 1:
            raise NoMolecules(f"{path}: no column is named SMILES. Columns: {', '.join(header)}")
        yield "line 1", header[0].strip(), {}
    column = titles.index("smiles") if "smiles" in titles else 0
    for row in reader:
        if len(row) > column and row[column].strip():
            values = {title: text for title, text in zip(header, row, strict=False) if title != header[column]}
            yield f"line {reader.line_num}", row[column].strip(), values


def _fingerprint(path: Path, limits: Limits, seed: int) -> str:
    version = require("rdkit", "molecules").__version__
    digest = blake2b(f"1 {version} {path.suffixes} {limits} {seed}".encode(), digest_size=12)
    digest.update(path.read_bytes())
    return digest.hexdigest()
