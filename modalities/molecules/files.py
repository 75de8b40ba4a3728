"""Molecules to and from files that people open: SDF, CSV, a picture, a page with 3D viewers, and the metrics as JSON.

Every file is written beside its place and then renamed, so a reader never sees half of one. A sample that failed keeps
its place: a row in the CSV and a record of no atoms in the SDF, so that scoring the file again counts it again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic import CannotWrite as CannotWrite
from ..atomic import write_all
from ..extras import require
from ..report import Report
from .distributions import has_geometry
from .molecule import SYMBOLS, Molecule, to_rdkit
from .scores import Scores, score
from .screening import DamagedFile, Unusable, read_lines
from .sdf import is_sdf, parse_record, records
from .viewer import page

if TYPE_CHECKING:
    from rdkit.Chem import Mol

COLUMNS = (
    *("index", "seed", "valid", "connected", "stable", "lookup_stable", "atoms", "smiles"),
    *("qed", "logp", "sa", "strain", "posebusters", "failure"),
)
DRAWN = 24  # molecules in the picture
_TILE = (230, 200)  # pixels of one molecule in the picture
_LARGEST = 9999.0  # angstrom, the largest coordinate an SDF has columns for


def save(
    molecules: Sequence[Mol | None],
    directory: str | os.PathLike[str],
    *,
    seeds: Sequence[int | None] | None = None,
    scores: Sequence[Scores] | None = None,
    report: Report | None = None,
    title: str = "Molecules",
    shown: int = 36,
) -> list[Path]:
    """Write ``samples.sdf``, ``samples.csv``, ``samples.png``, ``metrics.json`` (with a report) and ``index.html``.

    Args:
        molecules: None for samples that failed.
        directory: made if need be; files of the same names are replaced, others are left alone.
        seeds: one for each molecule.
        scores: one for each molecule; by default the report's, else they are computed.
        report: for the page's table and ``metrics.json``.
        title: the page's heading.
        shown: molecules with a 3D viewer on the page, the first ones.

    Returns:
        The paths written, the page last.

    Raises:
        ValueError: not one seed, or not one of the scores, for each molecule.
        CannotWrite: a full disk, no permission, a file in the folder's place.
    """
    directory = Path(directory)
    if scores is None:
        scores = report.items if report is not None and report.items else score(molecules).scores
    seeds = [None] * len(molecules) if seeds is None else seeds
    for name, given in (("seeds", seeds), ("scores", scores)):
        if len(given) != len(molecules):
            raise ValueError(f"{len(given)} {name} for {len(molecules)} molecules")
    rows = [_row(index, seed, its) for index, (seed, its) in enumerate(zip(seeds, scores, strict=True))]
    with require("rdkit.rdBase", "molecules").BlockLogs():
        contents: dict[str, Iterable[str] | bytes | None] = {
            "samples.sdf": (_record(mol, row) for mol, row in zip(molecules, rows, strict=True)),
            "samples.csv": [_table(rows)],
            "samples.png": _picture(molecules[:DRAWN], rows[:DRAWN]) if molecules else None,
            "metrics.json": None if report is None else [report.to_json()],
            "index.html": [page(title, molecules[:shown], rows, report)],
        }
        return write_all(directory, contents)


def read_molecules(path: str | os.PathLike[str]) -> list[Mol | None]:
    """Molecules from ``.sdf``, ``.sdf.gz``, ``.mol`` or ``.xyz`` (any number of frames), or from a folder of them.

    Nothing is sanitised, added or left out: a record that cannot be read, or that has no atoms, is None.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file of another kind, or a folder without one of these.
    """
    path = Path(path)
    if path.is_dir() and (path / "samples.sdf").is_file():
        path = path / "samples.sdf"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and (is_sdf(file) or _is_xyz(file)))
    else:
        files = [path]
    molecules: list[Mol | None] = []
    for file in files:
        if not is_sdf(file) and not _is_xyz(file):
            raise ValueError(f"{file}: not a file of molecules. Choices: .sdf, .sdf.gz, .mol, .xyz")
        molecules += _read_xyz(file) if _is_xyz(file) else map(_read_record, records(file))
    if path.is_dir() and not files:
        raise ValueError(f"{path}: no .sdf, .mol or .xyz file in this folder")
    return molecules


def _row(index: int, seed: int | None, scores: Scores) -> dict[str, Any]:
    values: dict[str, Any] = {"index": index, "seed": seed}
    values |= {name: getattr(scores, name) for name in COLUMNS if name not in ("index", "seed", "posebusters")}
    values["posebusters"] = None if scores.posebusters is None else not scores.posebusters
    return {name: round(v, 4) if isinstance(v := values[name], float) else v for name in COLUMNS}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _record(mol: Mol | None, row: dict[str, Any]) -> str:
    """One SDF record; of no atoms where there is nothing that an SDF can hold."""
    Chem = require("rdkit.Chem", "molecules")
    name = f"sample {row['index']}"
    block = f"{name}\n     noiseloom          3D\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n"
    if mol is not None and has_geometry(mol) and np.abs(mol.GetConformer().GetPositions()).max(initial=0) < _LARGEST:
        copy = Chem.Mol(mol)
        if row["valid"]:
            Chem.SanitizeMol(copy)
        copy.SetProp("_Name", name)
        try:
            block = Chem.MolToMolBlock(copy, kekulize=row["valid"])
        except (RuntimeError, ValueError):
            row = row | {"failure": f"{row['failure']}; cannot be written"}
    fields = "".join(f">  <{key}>\n{value}\n\n" for key, value in row.items() if value not in (None, ""))
    return f"{block}{fields}$$$$\n"


def _picture(molecules: Sequence[Mol | None], rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG of 2D structures without hydrogens; a tile says so where there is none."""
    Chem = require("rdkit.Chem", "molecules")
    draw = require("rdkit.Chem.Draw.rdMolDraw2D", "molecules")
    tiles, legends = [], []
    for mol, row in zip(molecules, rows, strict=True):
        if mol is not None and row["valid"]:
            tile = Chem.Mol(mol)
            Chem.SanitizeMol(tile)
            Chem.RemoveStereochemistry(tile)
            tile = Chem.RemoveHs(tile)
            require("rdkit.Chem.rdDepictor", "molecules").Compute2DCoords(tile)
        else:
            tile = Chem.MolFromSmiles("*")
            tile.GetAtomWithIdx(0).SetProp("atomLabel", row["failure"])
        tiles.append(tile)
        legends.append(f"#{row['index']}" + (f"   QED {row['qed']:.2f}" if row["valid"] else ""))
    columns = min(6, len(tiles))
    canvas = draw.MolDraw2DCairo(columns * _TILE[0], -(-len(tiles) // columns) * _TILE[1], *_TILE)
    canvas.drawOptions().legendFontSize = 16
    canvas.drawOptions().padding = 0.1
    canvas.DrawMolecules(tiles, legends=legends)
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


def _is_xyz(path: Path) -> bool:
    return path.name.lower().endswith((".xyz", ".xyz.gz"))


def _read_record(record: tuple[str, str | None]) -> Mol | None:
    text, problem = record
    try:
        with require("rdkit.rdBase", "molecules").BlockLogs():
            mol = None if problem else parse_record(text)
    except Unusable:
        return None
    return mol if mol is not None and mol.GetNumAtoms() else None


def _read_xyz(path: Path) -> Iterator[Mol | None]:
    """Frames of an XYZ file: a count, a comment, then "element x y z ..." per atom; elements as symbols or numbers."""
    lines = iter(read_lines(path))
    for head in lines:
        if not head.strip():
            continue
        try:
            count = int(head)
            next(lines)
            frame = [next(lines).split() for _ in range(count)]
        except (ValueError, StopIteration, DamagedFile):
            yield None  # without a sound count there is no telling where the next frame starts
            return
        yield _frame(frame)


def _frame(atoms: Sequence[Sequence[str]]) -> Mol | None:
    try:
        numbers = [int(a[0]) if a[0].isdigit() else SYMBOLS.index(a[0].capitalize()) for a in atoms]
        positions = np.array([[float(a[axis]) for axis in (1, 2, 3)] for a in atoms], np.float32)
    except (ValueError, IndexError):
        return None
    charges, bonds = np.zeros(len(atoms), np.int8), np.zeros((0, 3), np.int16)
    return to_rdkit(Molecule(np.array(numbers, np.int64), positions, charges, bonds)) if atoms else None
