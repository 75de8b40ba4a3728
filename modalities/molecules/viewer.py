"""The page that shows molecules: 3D viewers, scores and a table, in one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..page import fill, links, score_table, script_data, tile
from ..report import Report
from .distributions import has_geometry
from .molecule import SYMBOLS, from_rdkit

if TYPE_CHECKING:
    from rdkit.Chem import Mol

TEMPLATE = Path(__file__).parent / "assets" / "viewer.html"
_TILES = {  # headline figures, by row name; those a report does not have are left out
    "valid_and_connected": "valid, connected",
    "molecules_stable_by_bonds": "stable, by bonds",
    "molecules_stable_by_lookup": "stable, by distances",
    "unique": "unique",
    "posebusters": "pass PoseBusters",
    "strain_median": "median strain",
}
_ORDERS = {1.0: 1, 1.5: 1, 2.0: 2, 3.0: 3}  # aromatic bonds that cannot be Kekulised are drawn as single ones


def page(title: str, shown: Sequence[Mol | None], rows: Sequence[Mapping[str, Any]], report: Report | None) -> str:
    """The HTML text.

    Args:
        title: the heading.
        shown: molecules that get a viewer, the first ones of all.
        rows: the scores of all molecules by column name.
        report: for the figures and the table; None: neither is shown.
    """
    cards = [dict(row) | _drawing(mol) for mol, row in zip(shown, rows, strict=False)]
    counts = [f"{sum(bool(row[key]) for row in rows):,} {key}" for key in ("valid", "connected", "stable")]
    scored = [] if report is None else report.rows
    files = ["samples.sdf", "samples.csv", *["samples.png"] * bool(rows), *["metrics.json"] * (report is not None)]
    parts = {
        "title": escape(title),
        "summary": escape(" · ".join([f"{len(rows):,} molecules", *counts] if rows else ["no molecules"])),
        "tiles": "".join(tile(row, _TILES[row.name]) for row in scored if row.name in _TILES and row.value is not None),
        "caption": escape(f"The first {len(cards):,} of {len(rows):,}" if len(cards) < len(rows) else ""),
        "table": score_table(report) if report is not None and rows else "",
        "files": links(files),
        "data": script_data(cards),
    }
    return fill(TEMPLATE, parts)


def _drawing(mol: Mol | None) -> dict[str, Any]:
    """Symbols, positions (milliangstrom, flat, seen from the broad side) and bonds (i, j, order, flat), if any."""
    if mol is None or not mol.GetNumAtoms() or not has_geometry(mol):
        return {"symbols": []}
    try:
        bonds = from_rdkit(mol).bonds.ravel().tolist()
    except ValueError:
        found = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), b.GetBondTypeAsDouble()) for b in mol.GetBonds()]
        bonds = [value for i, j, order in found for value in (i, j, _ORDERS.get(order, 1))]
    positions = np.clip(mol.GetConformer().GetPositions(), -1e6, 1e6)
    axes = np.linalg.svd(positions - positions.mean(axis=0))[2]
    axes[2] *= np.linalg.det(axes)  # a rotation: hands stay as they are
    positions = positions @ axes.T
    positions -= (positions.min(axis=0) + positions.max(axis=0)) / 2
    symbols = [SYMBOLS[atom.GetAtomicNum()] for atom in mol.GetAtoms()]
    return {"symbols": symbols, "positions": np.rint(1000 * positions).astype(int).ravel().tolist(), "bonds": bonds}
