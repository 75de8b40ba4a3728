"""The page that shows molecules: 3D viewers, scores and a table, in one HTML file that needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report import Report, Row, number
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
    parts = {
        "title": escape(title),
        "summary": escape(" · ".join([f"{len(rows):,} molecules", *counts] if rows else ["no molecules"])),
        "tiles": "".join(_tile(row) for row in scored if row.name in _TILES and row.value is not None),
        "caption": escape(f"The first {len(cards):,} of {len(rows):,}" if len(cards) < len(rows) else ""),
        "table": _table(report) if report is not None and rows else "",
        "files": _files(bool(rows), report is not None),
        "data": json.dumps(cards, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    # one pass, so that nothing a part contains is taken for a place to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))


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


def _tile(row: Row) -> str:
    value, real = (number(figure, row.unit).removesuffix(row.unit) for figure in (row.value, row.real))
    below = f"of {row.n:,}" if row.real is None else f"real data {real}"
    return (
        f"<div class=tile><span>{escape(_TILES[row.name])}</span>"
        f"<b>{escape(value)}<small>{escape(row.unit)}</small></b><small>{escape(below)}</small></div>"
    )


def _table(report: Report) -> str:
    lines = "".join(
        f"<tr><th scope=row>{escape(name)}<small>{escape(protocol)}</small></th>"
        f"<td>{escape(value)}</td><td>{escape(real)}</td><td>{escape(n)}</td></tr>"
        for name, value, real, n, protocol in report.cells()
    )
    failed = [f"{count:,} {reason}" for reason, count in report.failed.items()]
    remarks = ["Failed: " + ", ".join(failed)] if failed else []
    remarks += report.notes
    return (
        "<details open><summary>All scores</summary><div class=scroll><table><thead><tr><th scope=col>metric</th>"
        "<th scope=col>value ± 95 %</th><th scope=col>real data</th><th scope=col>n</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
        + "".join(f"<p class=note>{escape(remark)}</p>" for remark in remarks)
        + (f"<p class=note>Real data: {escape(report.real)}.</p>" if report.real else "")
        + "</details>"
    )


def _files(picture: bool, metrics: bool) -> str:
    names = ["samples.sdf", "samples.csv", *["samples.png"] * picture, *["metrics.json"] * metrics]
    return "".join(f'<a href="{name}">{name}</a>' for name in names)
