"""What can be said about one molecule: is it valid, connected, stable, strained, drug-like?

*Valid* means that RDKit sanitises the whole molecule as it was made, never its largest fragment; radicals pass, but the
stability columns catch them. *Stable* means that every atom passes, see :mod:`.stability`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from ..extras import require
from .distributions import has_geometry
from .screening import graph_smiles
from .stability import bonds_stable, known_elements, lookup_orders, lookup_stable, with_orders

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_RELAX_STEPS = 2000


@dataclass(frozen=True)
class Scores:
    """One molecule's scores; a molecule that failed has zeros and None, and the reason in ``failure``.

    Attributes:
        decoded: there is a molecule with at least one atom.
        valid: RDKit sanitises it whole.
        connected: it has one fragment.
        atoms: its atoms, hydrogens included.
        stable_atoms: atoms whose bond orders and charge fit the strict valence table; -1 where bonds were looked up.
        lookup_stable_atoms: atoms that EDM's distance lookup finds stable.
        lookup_valid: RDKit sanitises the bonds of the lookup (EDM's validity).
        unknown_atoms: atoms of elements in neither valence table; they count as not stable.
        smiles: canonical, without hydrogens and stereochemistry; "" where not valid.
        qed, logp, sa: drug-likeness, Crippen logP, synthetic accessibility (1 easy to 10 hard); valid molecules only.
        strain: MMFF94s energy above the nearest minimum, kcal/mol; valid, connected, 3D, all hydrogens present.
        posebusters: names of the failed PoseBusters tests, () if none; None where not run.
        failure: why it is not valid, "" where it is.
    """

    decoded: bool = False
    valid: bool = False
    connected: bool = False
    atoms: int = 0
    stable_atoms: int = 0
    lookup_stable_atoms: int = 0
    lookup_valid: bool = False
    unknown_atoms: int = 0
    smiles: str = ""
    qed: float | None = None
    logp: float | None = None
    sa: float | None = None
    strain: float | None = None
    posebusters: tuple[str, ...] | None = None
    failure: str = "not decoded"

    @property
    def stable(self) -> bool:
        """Every atom is stable: by its bonds, or by the lookup where the bonds come from there."""
        return self.decoded and self.atoms == (self.lookup_stable_atoms if self.stable_atoms < 0 else self.stable_atoms)

    @property
    def lookup_stable(self) -> bool:
        """Every atom is stable under EDM's distance lookup."""
        return self.decoded and self.atoms == self.lookup_stable_atoms


@dataclass(frozen=True)
class Scored:
    """Molecules as they were scored.

    Attributes:
        molecules: sanitised copies in the order given, None where not valid.
        scores: of each molecule.
        bonds: where the bonds are from.
        posebusters: how many of the first molecules went through PoseBusters.
    """

    molecules: Sequence[Mol | None]
    scores: Sequence[Scores]
    bonds: Literal["given", "lookup"]
    posebusters: int = 0


def has_bonds(molecules: Iterable[Mol | None]) -> bool:
    """Does any molecule of more than one atom have a bond?"""
    sized = [mol for mol in molecules if mol is not None and mol.GetNumAtoms() > 1]
    return not sized or any(mol.GetNumBonds() for mol in sized)


def score(
    molecules: Sequence[Mol | None],
    *,
    bonds: Literal["auto", "given", "lookup"] = "auto",
    strain: bool = True,
    posebusters: int = 0,
    progress: bool = False,
) -> Scored:
    """Score molecules one by one; none is changed.

    Args:
        molecules: with explicit hydrogens and a 3D conformer, sanitised or not; None for one that failed.
        bonds: where bonds come from: the molecules, or EDM's distance lookup; "auto" looks them up if there are none
            in any molecule (.xyz files, SDF without bonds).
        strain: compute MMFF94s strain energies (about 1.5 ms each for molecules like QM9's).
        posebusters: run PoseBusters on the first so many molecules (a second each, strained cages up to 20).
        progress: show a progress bar.

    Raises:
        MissingExtra: ``posebusters`` > 0 without the package.
    """
    failed_tests = _posebusters() if posebusters else None
    if bonds == "auto":
        bonds = "given" if has_bonds(molecules) else "lookup"
    numbers = [_numbers(mol) for mol in molecules]
    orders = lookup_orders(numbers, [_positions(mol) for mol in molecules])
    bar = tqdm(desc="scoring", unit="molecule", total=len(molecules), disable=not progress, delay=1)
    kept: list[Mol | None] = []
    scores: list[Scores] = []
    with require("rdkit.rdBase", "molecules").BlockLogs(), bar:
        for index, (mol, found) in enumerate(zip(molecules, orders, strict=True)):
            tests = failed_tests if index < posebusters else None
            made, its_scores = _score(mol, found, bonds == "lookup", strain, tests)
            kept.append(made)
            scores.append(its_scores)
            bar.update()
    return Scored(kept, scores, bonds, min(posebusters, len(scores)))


def _score(
    mol: Mol | None,
    orders: np.ndarray,
    by_lookup: bool,
    strain: bool,
    failed_tests: Callable[[Mol], tuple[str, ...]] | None,
) -> tuple[Mol | None, Scores]:
    if mol is None or not mol.GetNumAtoms():
        return None, Scores()
    Chem = require("rdkit.Chem", "molecules")
    numbers, looked_up = _numbers(mol), with_orders(mol, orders)
    made = looked_up if by_lookup else _as_made(mol)
    stable = -1 if by_lookup else int(bonds_stable(made).sum())
    connected = len(Chem.GetMolFrags(made)) == 1
    failure = sanitise(made)
    scores = Scores(
        decoded=True,
        valid=not failure,
        connected=connected,
        atoms=len(numbers),
        stable_atoms=stable,
        lookup_stable_atoms=int(lookup_stable(numbers, orders).sum()),
        lookup_valid=not (failure if by_lookup else sanitise(looked_up)),
        unknown_atoms=int((~known_elements(numbers)).sum()),
        failure=failure,
    )
    if failure:
        return None, scores
    scores = replace(scores, **_properties(made))
    if strain and connected:
        scores = replace(scores, strain=strain_energy(made))
    if failed_tests:
        scores = replace(scores, posebusters=failed_tests(made))
    return made, scores


def sanitise(mol: Mol) -> str:
    """Sanitise in place; why it fails in a few words, or ""."""
    Chem = require("rdkit.Chem", "molecules")
    try:
        Chem.SanitizeMol(mol)
    except Chem.AtomValenceException:
        return "impossible valence"
    except Chem.KekulizeException:
        return "cannot be Kekulised"
    except (Chem.MolSanitizeException, RuntimeError, ValueError):
        return "cannot be sanitised"
    return ""


def strain_energy(mol: Mol) -> float | None:
    """MMFF94s energy of the geometry above the nearest minimum, kcal/mol.

    None without parameters, finite 3D coordinates or all hydrogens.
    """
    force_fields = require("rdkit.Chem.rdForceFieldHelpers", "molecules")
    if not has_geometry(mol) or any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        return None
    relaxed = type(mol)(mol)  # before the parameters are looked for: that puts MMFF's aromaticity in place of RDKit's
    if (parameters := force_fields.MMFFGetMoleculeProperties(relaxed, mmffVariant="MMFF94s")) is None:
        return None
    field = force_fields.MMFFGetMoleculeForceField(relaxed, parameters)
    before = field.CalcEnergy()
    field.Minimize(maxIts=_RELAX_STEPS)
    difference = before - field.CalcEnergy()
    return difference if np.isfinite(difference) else None


def _numbers(mol: Mol | None) -> np.ndarray:
    return np.array([] if mol is None else [atom.GetAtomicNum() for atom in mol.GetAtoms()], np.int64)


def _positions(mol: Mol | None) -> np.ndarray:
    if mol is None or not mol.GetNumConformers():
        return np.full((0 if mol is None else mol.GetNumAtoms(), 3), np.nan)  # no coordinates: nothing is bonded
    return mol.GetConformer().GetPositions()


def _as_made(mol: Mol) -> Mol:
    """A copy that takes no hydrogens in sanitisation where it has explicit ones: what is missing must show."""
    copy = type(mol)(mol)
    if any(atom.GetAtomicNum() == 1 for atom in copy.GetAtoms()):
        for atom in copy.GetAtoms():
            atom.SetNoImplicit(True)
    return copy


def _properties(mol: Mol) -> dict[str, Any]:
    Chem = require("rdkit.Chem", "molecules")
    skeleton = Chem.Mol(mol)
    Chem.RemoveStereochemistry(skeleton)
    skeleton = Chem.RemoveHs(skeleton)
    values: dict[str, Any] = {"smiles": graph_smiles(skeleton)}
    values["logp"] = float(require("rdkit.Chem.Crippen", "molecules").MolLogP(skeleton))
    values["qed"] = float(require("rdkit.Chem.QED", "molecules").qed(skeleton))
    if (accessibility := _accessibility()) is not None:
        values["sa"] = float(accessibility(skeleton))
    return values


@cache
def _accessibility() -> Any:
    """RDKit's SA score (Ertl and Schuffenhauer 2009); its wheels ship it under Contrib, other builds may not."""
    try:
        return require("rdkit.Contrib.SA_Score.sascorer", "molecules").calculateScore
    except ImportError:
        return None


def _posebusters() -> Callable[[Mol], tuple[str, ...]]:
    """A function from a sanitised molecule to the names of the PoseBusters tests (configuration "mol") it fails.

    A test without a result is not failed: real strained cages, for one, have no conformers to compare energies with.
    """
    buster = require("posebusters", "molecules-eval").PoseBusters(config="mol")
    logging.getLogger("posebusters").setLevel(logging.ERROR)  # it warns of every test without a result, twice

    def failed_tests(mol: Mol) -> tuple[str, ...]:
        results = buster.bust(type(mol)(mol)).iloc[0]  # a copy: it sanitises what it is given
        return tuple(sorted(str(name) for name, passed in results.items() if passed == 0))

    return failed_tests
