"""Metrics of a set of molecules, each with its protocol, its n and the figure of real data beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..report import Z95, Report, Row, share
from .distributions import KINDS, Distributions, distance, has_geometry, measure
from .molecule import to_rdkit
from .qm9 import load_qm9
from .reference import QM9_REFERENCE, Reference, qm9_reference, qm9_train, write_train_hashes
from .scores import Scored, Scores, score

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_AVERAGED = {"qed": "drug-likeness QED", "sa": "synthetic accessibility, 1 easy to 10 hard", "logp": "Crippen logP"}


def evaluate(
    molecules: Sequence[Mol | None],
    reference: Reference | Sequence[Mol] | None = None,
    train_smiles: Container[str] | None = None,
    *,
    title: str = "molecules",
    bonds: Literal["auto", "given", "lookup"] = "auto",
    strain: bool = True,
    posebusters: int = 0,
    progress: bool = False,
) -> Report:
    """Score molecules; every one of them counts, failed ones too.

    Args:
        molecules: with explicit hydrogens and a 3D conformer; None for a sample that could not be decoded.
        reference: real molecules to compare with, or what was measured on them; by default QM9's, bundled.
        train_smiles: canonical SMILES (without hydrogens and stereochemistry) for novelty; by default QM9's training
            split where the reference is QM9's, else novelty is left out.
        title: what is scored, for the report's first line.
        bonds, strain, posebusters, progress: see :func:`.scores.score`.

    Returns:
        The report; its ``items`` are the :class:`.scores.Scores`, one for each molecule.

    Raises:
        MissingExtra: ``posebusters`` > 0 without the package.
    """
    notes: list[str] = []
    if reference is None:
        reference = qm9_reference()
        if train_smiles is None and (train_smiles := qm9_train()) is None:
            notes.append("novelty is left out: this RDKit writes other canonical SMILES than the bundled ones of QM9")
    elif not isinstance(reference, Reference):
        reference = as_reference(reference, strain=strain)
    scored = score(molecules, bonds=bonds, strain=strain, posebusters=posebusters, progress=progress)
    distributions = _distributions(scored)
    rows = _shares(scored, train_smiles) + _averages(scored) + _distances(distributions, reference.distributions)
    rows = [replace(row, real=reference.values.get(row.name)) for row in rows]
    notes += _notes(scored, distributions, reference)
    real = f"{reference.name}; their distances (w1) are to other real molecules"
    return Report(f"{title}: {len(molecules):,} molecules", rows, _failed(scored.scores), notes, real, scored.scores)


def as_reference(
    molecules: Sequence[Mol],
    others: Sequence[Sequence[Mol]] = (),
    train_smiles: Container[str] | None = None,
    *,
    name: str = "the reference",
    strain: bool = True,
    posebusters: int = 0,
    progress: bool = False,
) -> Reference:
    """Measure real molecules.

    Args:
        molecules: whose values and histograms are kept.
        others: more sets of real molecules, for the distances between real sets (the mean over these); by default
            every other molecule of the set is compared with the rest.
        train_smiles: for novelty.
        name: which molecules, in a few words.
        strain, posebusters, progress: see :func:`.scores.score`.
    """
    scored = score(molecules, strain=strain, posebusters=posebusters, progress=progress)
    distributions = _distributions(scored)
    if others:
        floors = [_distances(_distributions(score(other, strain=False)), distributions) for other in others]
    else:
        halves = [Scored(scored.molecules[k::2], scored.scores[k::2], scored.bonds) for k in (0, 1)]
        floors = [_distances(*map(_distributions, halves))]
    values = {row.name: row.value for row in _shares(scored, train_smiles) + _averages(scored) if row.value is not None}
    for metric in {row.name for rows in floors for row in rows}:
        found = [row.value for rows in floors for row in rows if row.name == metric and row.value is not None]
        values[metric] = float(np.mean(found))
    rounded = {metric: float(f"{value:.5g}") for metric, value in sorted(values.items())}
    return Reference(f"{name}, {len(molecules):,} molecules", len(molecules), rounded, distributions)


def make_qm9_assets(n: int = 2000, others: int = 5, posebusters: int = 200) -> None:
    """Write the bundled figures of real data (minutes): ``n`` random molecules of QM9's test split, their distances
    from sets of as many of its training split, and the hashes of the training split's SMILES."""
    draw = np.random.default_rng(0)
    test, train = load_qm9("test"), load_qm9("train")
    write_train_hashes(train.smiles or ())
    qm9_train.cache_clear()
    chosen = [to_rdkit(test[int(index)]) for index in draw.permutation(len(test))[:n]]
    pool = [to_rdkit(train[int(index)]) for index in draw.permutation(len(train))[: others * n]]
    made = as_reference(
        chosen,
        [pool[k::others] for k in range(others)],
        qm9_train(),
        name="QM9 test split, DFT geometries",
        posebusters=posebusters,
        progress=True,
    )
    QM9_REFERENCE.write_text(made.to_json(), encoding="utf-8")
    qm9_reference.cache_clear()


def _shares(scored: Scored, train_smiles: Container[str] | None) -> list[Row]:
    """Percentages: of all molecules unless the protocol says otherwise."""
    scores, looked_up = scored.scores, scored.bonds == "lookup"
    n, valid = len(scores), [s for s in scores if s.valid]
    source = " (bonds by distance lookup: none were given)" if looked_up else ""
    rows = [
        share("valid", len(valid), n, f"RDKit sanitises the whole molecule{source}"),
        share("connected", sum(s.connected for s in scores), n, "one fragment"),
        share("valid_and_connected", sum(s.connected for s in valid), n, "both"),
    ]
    if not looked_up:
        protocol = "Kekulé orders and charges, strict valences, explicit hydrogens"
        rows.append(
            _atoms("atoms_stable_by_bonds", [(s.stable_atoms, s.atoms) for s in scores], f"{protocol}; of atoms")
        )
        rows.append(share("molecules_stable_by_bonds", sum(s.stable for s in scores), n, f"{protocol}; all atoms"))
    protocol = "EDM: orders from distances, no charges"
    counts = [(s.lookup_stable_atoms, s.atoms) for s in scores]
    rows.append(_atoms("atoms_stable_by_lookup", counts, f"{protocol}; of atoms"))
    rows.append(share("molecules_stable_by_lookup", sum(s.lookup_stable for s in scores), n, f"{protocol}; all atoms"))
    rows.append(share("valid_by_lookup", sum(s.lookup_valid for s in scores), n, f"{protocol}; RDKit sanitises these"))
    unique = {s.smiles for s in valid}
    rows.append(
        share("unique", len(unique), len(valid), "distinct canonical SMILES, no stereo; of valid; falls with n")
    )
    if train_smiles is not None:
        new = sum(smiles not in train_smiles for smiles in unique)
        caveat = "on QM9, which enumerates its space, no merit"
        rows.append(
            share("novel", new, len(unique), f"SMILES not in the training set; of unique; {caveat}", better="real")
        )
    if tried := scored.posebusters:
        passed = sum(s.posebusters == () for s in scores[:tried])
        rows.append(share("posebusters", passed, tried, "fails no test of PoseBusters 'mol'"))
    return rows


def _atoms(name: str, counts: Sequence[tuple[int, int]], protocol: str) -> Row:
    """A percentage of atoms; atoms of one molecule fail together, so the error is that of a ratio over molecules."""
    stable, atoms = np.array(counts, np.float64).reshape(-1, 2).T
    if not atoms.sum():
        return share(name, 0, 0, protocol)
    p = stable.sum() / atoms.sum()
    error = 100 * Z95 * float(np.sqrt(((stable - p * atoms) ** 2).sum()) / atoms.sum())
    row = share(name, float(stable.sum()), int(atoms.sum()), protocol)
    return replace(row, error=max(error, row.error or 0.0))


def _averages(scored: Scored) -> list[Row]:
    scores = scored.scores
    protocol = "MMFF94s energy above the nearest minimum; valid, connected, with parameters"
    strains = np.array([s.strain for s in scores if s.strain is not None])
    rows = (
        [
            Row("strain_median", float(np.median(strains)), len(strains), protocol, "kcal/mol", better="real"),
            _mean("strain_mean", strains, protocol, "kcal/mol"),
        ]
        if len(strains)
        else []
    )
    for name, meaning in _AVERAGED.items():
        values = np.array([value for s in scores if (value := getattr(s, name)) is not None])
        rows += [_mean(f"{name}_mean", values, f"{meaning}; valid molecules")] if len(values) else []
    return rows


def _mean(name: str, values: np.ndarray, protocol: str, unit: str = "") -> Row:
    error = Z95 * float(np.std(values)) / np.sqrt(len(values))
    return Row(name, float(np.mean(values)), len(values), protocol, unit, error=float(error), better="real")


def _distributions(scored: Scored) -> Distributions:
    extra = {name: [v for s in scored.scores if (v := getattr(s, name)) is not None] for name in _AVERAGED}
    return measure((mol for mol in scored.molecules if mol is not None), extra)


def _distances(samples: Distributions, reference: Distributions) -> list[Row]:
    rows = []
    for name, kind in KINDS.items():
        value, _ = distance(name, samples, reference)
        if value is not None:
            n = sum(h.total for h in samples[name].values()) if not kind.summed else _molecules(samples)
            protocol = f"Wasserstein-1: {kind.protocol}; valid molecules"
            rows.append(Row(f"w1_{name}", value, n, protocol, kind.unit, better="lower"))
    return rows


def _molecules(distributions: Distributions) -> int:
    return sum(h.total for h in distributions["atoms"].values())


def _failed(scores: Sequence[Scores]) -> dict[str, int]:
    reasons = Counter(s.failure for s in scores if s.failure)
    reasons.update("not connected" for s in scores if s.valid and not s.connected)
    return dict(reasons.most_common())


def _notes(scored: Scored, distributions: Distributions, reference: Reference) -> list[str]:
    """What a reader must know and no row says."""
    scores, kept = scored.scores, [mol for mol in scored.molecules if mol is not None]
    notes = [] if scores else ["there are no molecules: nothing was measured"]
    if scored.bonds == "lookup" and scores:
        notes.append("the molecules have no bonds: single, double and triple ones were looked up from distances")
    if unknown := sum(s.unknown_atoms for s in scores):
        notes.append(f"{unknown:,} atoms of elements without a known valence count as not stable")
    if bare := sum(any(atom.GetTotalNumHs() for atom in mol.GetAtoms()) for mol in kept):
        notes.append(f"{bare:,} molecules lack explicit hydrogens: they cannot be stable, and have no strain energy")
    if flat := sum(not has_geometry(mol) for mol in kept):
        notes.append(f"{flat:,} molecules have no 3D coordinates: they have no geometry and no strain energy")
    measurable = sum(s.valid and s.connected for s in scores) - bare - flat
    if (
        any(s.strain is not None for s in scores)
        and (strained := sum(s.strain is not None for s in scores)) < measurable
    ):
        notes.append(f"{measurable - strained:,} molecules have no MMFF94 parameters: they have no strain energy")
    if kept and all(s.sa is None for s in scores):
        notes.append("this RDKit comes without its Contrib folder: no synthetic accessibility")
    if failures := Counter(test for s in scores for test in s.posebusters or ()):
        notes.append("PoseBusters failures: " + ", ".join(f"{test} {count}" for test, count in failures.most_common()))
    if kept and len(kept) < reference.n / 2:
        factor = (reference.n / len(kept)) ** 0.5
        notes.append(
            f"distances of {len(kept):,} molecules carry about {factor:.1f} times the sampling noise of real data's "
            f"figures, which are of {reference.n:,}"
        )
    for name in KINDS:
        value, covered = distance(name, distributions, reference.distributions)
        if value is not None and covered < 0.99:
            notes.append(f"w1_{name} covers {100 * covered:.1f} % of what the reference has: the rest does not occur")
    return notes
