"""QM9: 130,831 molecules of up to nine C, N, O, F atoms with DFT geometries and properties.

Read from ``qm9.npz`` in ``$NOISELOOM_DATA``, or made once from the package ``qm9pack`` and kept in the user's cache.
The source has no bonds: they come from the GDB SMILES, whose heavy atoms are in the order of the geometry, and every
hydrogen belongs to its nearest heavy atom. A molecule whose elements, hydrogen counts and bond lengths do not all
agree with its SMILES is left out and counted.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..extras import cache_folder, data_folder, require
from .collection import DataReport, MoleculeSet, read_arrays, write_arrays

HARTREE = 27.2114  # eV, the value EDM uses
THERMAL_CV = 2.981  # cal/mol/K per atom, what EDM subtracts from Cv
SPLITS = ("train", "valid", "test")
SPLIT_SIZES = (100_000, 17_748, 13_083)
PROPERTIES = ("alpha", "gap", "homo", "lumo", "mu", "Cv")

_STEP = 2.5e-4  # angstrom, of the stored positions
_COLUMNS = {
    "alpha": "Polarizability_bohr3",
    "gap": "HOMO_LUMO_gap_au",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "mu": "Dipole_debye",
    "Cv": "Heatcapacity_Cv_cal_mol_K",
}
_ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_RADII = np.array([0, 0.31, 0, 0, 0, 0, 0.76, 0.71, 0.66, 0.57])  # covalent, angstrom, by atomic number
_STRETCH = 1.35  # longest bond accepted, as a multiple of the sum of covalent radii


def load_qm9(split: str = "train", path: str | os.PathLike[str] | None = None) -> MoleculeSet:
    """QM9 with EDM's split and EDM's property definitions.

    Properties: alpha (Bohr^3), gap, homo, lumo (eV), mu (D), and Cv (cal/mol/K) minus 2.981 per atom.
    SMILES are GDB's, not canonical.

    Args:
        split: "train" (100,000), "valid" (17,748), "test" (13,083) or "all", before the drop of the eight molecules
            whose SMILES disagrees with their geometry.
        path: a ``qm9.npz``; by default the one in ``$NOISELOOM_DATA``, else made from ``qm9pack``.

    Raises:
        ValueError: unknown split, or a damaged file.
        FileNotFoundError: the data is neither in ``$NOISELOOM_DATA`` nor installed.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"unknown split {split!r}. Choices: {', '.join(SPLITS)}, all")
    path = find_qm9() if path is None else Path(path)
    arrays = read_arrays(path)
    try:
        return _collect(arrays, split)
    except KeyError as error:
        raise ValueError(f"{path} is not a QM9 file: it has no array {error}") from error


def find_qm9() -> Path:
    """The path of QM9 as one ``.npz``, made from the package ``qm9pack`` if need be."""
    shared, cached = data_folder() / "qm9.npz", cache_folder() / "qm9-1.npz"
    for path in (shared, cached):
        if path.is_file():
            return path
    spec = find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "QM9 was not found. Either install it: pip install qm9pack (104 MB), or set NOISELOOM_DATA to a folder "
            f"that holds qm9.npz (looked in {shared.parent})"
        )
    build_qm9(Path(next(iter(spec.submodule_search_locations))) / "data", cached)
    return cached


def _collect(arrays: dict[str, np.ndarray], split: str) -> MoleculeSet:
    offsets = arrays["offsets"].astype(np.int64)
    sizes = np.diff(offsets)
    bonds = np.stack([arrays["bond_i"], arrays["bond_j"], arrays["bond_order"]], axis=1).astype(np.int16)
    properties = {name: arrays[name].astype(np.float64) for name in PROPERTIES}
    for name in ("gap", "homo", "lumo"):
        properties[name] *= HARTREE
    properties["Cv"] -= THERMAL_CV * sizes
    smiles = [text.decode() for text in arrays["smiles"].tolist()]
    in_split = np.full(len(sizes), True) if split == "all" else arrays["split"] == SPLITS.index(split)
    kept = in_split & (arrays["bond_ok"] == 1)
    report = DataReport()
    for index in np.flatnonzero(in_split & ~kept):
        report.drop("SMILES disagrees with the geometry", f"gdb {arrays['gdb_index'][index]} {smiles[index]}")
    everything = MoleculeSet(
        numbers=arrays["z"],
        positions=arrays["coords"] * arrays["coord_scale"],
        charges=arrays["formal_charge"],
        offsets=offsets,
        bonds=bonds,
        bond_offsets=arrays["bond_offsets"],
        properties=properties,
        smiles=smiles,
        report=report,
    )
    return everything.subset(kept)


def build_qm9(source: Path, target: Path) -> None:
    """Write QM9 as one ``.npz`` from the CSV files of ``qm9pack`` (minutes, on one core)."""
    columns: dict[str, list] = {name: [] for name in ("gdb_index", "smiles", "bond_ok", *PROPERTIES)}
    numbers: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    bonds: list[np.ndarray] = []
    charges: list[np.ndarray] = []
    for row in tqdm(_rows(source), total=sum(SPLIT_SIZES), desc="QM9 from qm9pack", unit="molecule"):
        z = np.array([_ELEMENTS[symbol] for symbol in json.loads(row["Elements"].replace("'", '"'))], np.uint8)
        x = np.array(json.loads(_number(row["XYZ_Ang"])))
        x = np.round((x - x.mean(axis=0)) / _STEP)
        found = bonds_from_smiles(row["SMILES"], z, x * _STEP)
        bond, charge = found or (np.zeros((0, 3), np.uint8), np.zeros(len(z), np.int8))
        for values, value in ((numbers, z), (steps, x.astype(np.int16)), (bonds, bond), (charges, charge)):
            values.append(value)
        columns["gdb_index"].append(int(row["Index"]))
        columns["smiles"].append(row["SMILES"].encode())
        columns["bond_ok"].append(found is not None)
        for name in PROPERTIES:
            columns[name].append(float(_number(row[_COLUMNS[name]])))
    count = len(numbers)
    split = np.empty(count, np.uint8)
    train, test = SPLIT_SIZES[0], int(0.1 * count)
    order = np.random.RandomState(0).permutation(count)  # EDM's: train first, test last
    split[order[:train]], split[order[train : count - test]], split[order[count - test :]] = 0, 1, 2
    bond_i, bond_j, bond_order = np.concatenate(bonds).T
    arrays = {name: np.array(values) for name, values in columns.items()}
    arrays |= {name: arrays[name].astype(np.float32) for name in PROPERTIES}
    arrays |= {"z": np.concatenate(numbers), "coords": np.concatenate(steps), "coord_scale": np.array(_STEP)}
    arrays |= {"bond_i": bond_i, "bond_j": bond_j, "bond_order": bond_order, "formal_charge": np.concatenate(charges)}
    arrays |= {"offsets": np.cumsum([0, *map(len, numbers)]), "bond_offsets": np.cumsum([0, *map(len, bonds)])}
    write_arrays(target, arrays | {"split": split})


def _rows(source: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the vibrational modes are longer than the default limit
    for part in (1, 2, 3):
        with (source / f"qm9_part{part}.csv").open(newline="") as file:
            yield from csv.DictReader(file)


def _number(text: str) -> str:
    """QM9's numbers as JSON writes them: ``1.*^-6`` -> ``1.0e-6``."""
    return re.sub(r"(?<=\d)\.(?=[,\]e])", ".0", text.replace("*^", "e"))


def bonds_from_smiles(smiles: str, numbers: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Kekulé bonds ``(e, 3)`` and formal charges ``(n,)``, or None where the SMILES disagrees with the geometry.

    The heavy atoms of ``numbers`` must be in the order of the SMILES; hydrogens may stand anywhere.
    """
    Chem = require("rdkit.Chem", "molecules")
    mol = Chem.MolFromSmiles(smiles)
    heavy, light = np.flatnonzero(numbers > 1), np.flatnonzero(numbers == 1)
    if mol is None or [atom.GetAtomicNum() for atom in mol.GetAtoms()] != numbers[heavy].tolist():
        return None
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    owner = distance[np.ix_(light, heavy)].argmin(axis=1) if len(light) else light
    if np.bincount(owner, minlength=len(heavy)).tolist() != [atom.GetTotalNumHs() for atom in mol.GetAtoms()]:
        return None
    Chem.Kekulize(mol, clearAromaticFlags=True)
    ends = [(heavy[bond.GetBeginAtomIdx()], heavy[bond.GetEndAtomIdx()]) for bond in mol.GetBonds()]
    orders = [int(bond.GetBondTypeAsDouble()) for bond in mol.GetBonds()]
    bonds = [(i, j, order) for (i, j), order in zip(ends, orders, strict=True)]
    bonds += [(heavy[o], h, 1) for o, h in zip(owner, light, strict=True)]
    table = np.array(sorted((min(i, j), max(i, j), order) for i, j, order in bonds), np.uint8).reshape(-1, 3)
    i, j, _ = table.T
    if (distance[i, j] > _STRETCH * (_RADII[numbers[i]] + _RADII[numbers[j]])).any():
        return None
    charges = np.zeros(len(numbers), np.int8)
    charges[heavy] = [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    return table, charges
