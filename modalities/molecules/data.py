"""Where molecules come from: a name or a path becomes a :class:`MoleculeSet`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from . import sdf, smiles
from .collection import DataReport, MoleculeSet
from .qm9 import SPLITS, load_qm9
from .screening import Limits, NoMolecules
from .sdf import read_sdf
from .smiles import read_smiles

__all__ = [
    "DataReport",
    "MoleculeSet",
    "NoMolecules",
    "load_qm9",
    "load_tiny",
    "open_molecules",
    "read_sdf",
    "read_smiles",
    "split_indices",
]

TINY = Path(__file__).parent / "assets" / "qm9_tiny.npz"
TINY_SIZES = (1600, 200, 200)  # train, valid, test: in this order in the file
_PER_MILLE = (900, 950, 1000)  # where train, valid and test end, of own data


def open_molecules(source: str | os.PathLike[str], split: str = "train", **options: Any) -> MoleculeSet:
    """Molecules by name or path.

    Args:
        source: "qm9", "qm9-tiny", an SDF or a folder of SDFs, a SMILES file, or an ``.npz`` that
            :meth:`MoleculeSet.save` wrote.
        split: "train", "valid", "test" or "all". Own files are split 90/5/5 by :func:`split_indices`; the report tells
            of the whole file. A part of a short file may be empty.
        options: ``vocabulary`` and ``max_atoms`` for every source, and those of :func:`read_sdf` or
            :func:`read_smiles`.

    Raises:
        ValueError: a source, split or option that does not exist; the message names the choices.
        FileNotFoundError: there is no such file.
        NoMolecules: the file has no usable molecule.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"unknown split {split!r}. Choices: {', '.join(SPLITS)}, all")
    path = Path(source).expanduser()
    name = os.fspath(source)
    reader: Callable[..., MoleculeSet] | None = None
    if path.is_dir() or sdf.is_sdf(path):
        reader = read_sdf
    elif smiles.is_smiles(path):
        reader = read_smiles
    accepted = ["vocabulary", "max_atoms"] if reader is None else list(inspect.signature(reader).parameters)[1:]
    unknown = [key for key in options if key not in accepted]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(map(repr, unknown))}. Options: {', '.join(accepted)}")
    if reader is not None:
        molecules = reader(path, **options)
    elif name in ("qm9", "qm9-tiny"):
        return Limits(**options).apply(load_qm9(split) if name == "qm9" else load_tiny(split))
    elif path.suffix == ".npz":
        molecules = Limits(**options).apply(MoleculeSet.load(path))
    else:
        kinds = ", ".join(("qm9", "qm9-tiny", "a folder of SDFs", *sdf.SUFFIXES, *smiles.SUFFIXES, ".npz"))
        raise ValueError(f"unknown source of molecules {name!r}. Choices: {kinds}")
    return molecules if split == "all" else molecules.subset(split_indices(molecules, split))


def split_indices(molecules: MoleculeSet, split: str) -> np.ndarray:
    """The molecules of own data that belong to a split, by a hash of their SMILES, or of their graph.

    A molecule stays in its split whatever else is in the file, and all conformers of a molecule are in one split.
    """
    part = SPLITS.index(split)
    low, high = (0, *_PER_MILLE)[part : part + 2]
    if molecules.smiles is not None:
        keys = [text.encode() for text in molecules.smiles]
    else:
        keys = [m.numbers.tobytes() + m.charges.tobytes() + m.bonds.tobytes() for m in molecules]
    places = np.array([int.from_bytes(blake2b(key, digest_size=8).digest()) % _PER_MILLE[-1] for key in keys], int)
    return np.flatnonzero((low <= places) & (places < high))


def load_tiny(split: str = "train") -> MoleculeSet:
    """The bundled 2,000 molecules of QM9: "train" (1,600), "valid" (200), "test" (200) or "all"."""
    if split not in (*SPLITS, "all"):
        raise ValueError(f"unknown split {split!r}. Choices: {', '.join(SPLITS)}, all")
    molecules = MoleculeSet.load(TINY)
    if split == "all":
        return molecules
    ends = np.cumsum((0, *TINY_SIZES))
    part = SPLITS.index(split)
    return molecules.subset(np.arange(ends[part], ends[part + 1]))


def make_tiny(path: str | os.PathLike[str] = TINY) -> None:
    """Write the bundled file: a random but fixed choice from each of EDM's splits of QM9."""
    draw = np.random.default_rng(0)
    chosen, texts, properties = [], [], []
    for split, size in zip(SPLITS, TINY_SIZES, strict=True):
        source = load_qm9(split)
        part = source.subset(np.sort(draw.choice(len(source), size, replace=False)))
        chosen += list(part)
        texts += list(part.smiles or ())
        properties.append(part.properties)
    columns = {name: np.concatenate([values[name] for values in properties]) for name in properties[0]}
    MoleculeSet.pack(chosen, columns, texts).save(path)
