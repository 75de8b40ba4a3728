"""One molecule as plain arrays: what data loaders give and what the decoder makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..extras import require

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_ELEMENTS = (
    "* H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
    "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir "
    "Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh "
    "Fl Mc Lv Ts Og"
)
SYMBOLS = tuple(_ELEMENTS.split())  # by atomic number; 0 is no element


@dataclass(frozen=True)
class Molecule:
    """A molecule with explicit hydrogens, Kekulé bonds and formal charges.

    Attributes:
        numbers: ``(n,)`` uint8, atomic numbers.
        positions: ``(n, 3)`` float32, angstrom.
        charges: ``(n,)`` int8, formal charges.
        bonds: ``(e, 3)`` int16, rows ``(i, j, order)`` with i < j and order in {1, 2, 3}.
    """

    numbers: np.ndarray
    positions: np.ndarray
    charges: np.ndarray
    bonds: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)


def to_rdkit(molecule: Molecule) -> Mol:
    """An rdkit molecule with one conformer, its bonds and charges exactly as given. Never raises on valid arrays.

    It is not sanitised: a molecule that a model made may be wrong, and finding that out is the caller's business. No
    atom will take implicit hydrogens; what is missing shows as radicals once the molecule is sanitised.
    """
    Chem = require("rdkit.Chem", "molecules")
    orders = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = Chem.RWMol()
    for number, charge in zip(molecule.numbers.tolist(), molecule.charges.tolist(), strict=True):
        atom = Chem.Atom(number if number < len(SYMBOLS) else 0)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for (i, j), order in {(i, j): order for i, j, order in molecule.bonds.tolist()}.items():
        mol.AddBond(i, j, orders[order])
    conformer = Chem.Conformer(len(molecule))
    conformer.Set3D(True)
    conformer.SetPositions(np.array(molecule.positions, dtype=np.float64).reshape(-1, 3))
    mol.AddConformer(conformer, assignId=True)
    return mol.GetMol()


def from_rdkit(mol: Mol) -> Molecule:
    """The atoms, bonds (Kekulised) and first conformer of an rdkit molecule, which is left as it was.

    Atoms are those present: implicit hydrogens are not added.

    Raises:
        ValueError: "no 3D coordinates", "cannot be Kekulised", or a bond that is not single, double or triple.
    """
    Chem = require("rdkit.Chem", "molecules")
    if not mol.GetNumConformers():
        raise ValueError("no 3D coordinates")
    mol = Chem.Mol(mol)
    try:
        Chem.Kekulize(mol, clearAromaticFlags=True)
    except Chem.KekulizeException:
        raise ValueError("cannot be Kekulised") from None
    orders = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
    bonds = []
    for bond in mol.GetBonds():
        if bond.GetBondType() not in orders:
            raise ValueError(f"a bond of type {bond.GetBondType()}")
        i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        bonds.append((i, j, orders[bond.GetBondType()]))
    return Molecule(
        numbers=np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], np.uint8),
        positions=mol.GetConformer().GetPositions().astype(np.float32),
        charges=np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()], np.int8),
        bonds=np.array(sorted(bonds), np.int16).reshape(-1, 3),
    )
