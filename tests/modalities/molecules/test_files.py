"""Files that people open: whole, honest about what failed, and read back as they were."""

import csv
import gzip
import json
import os
import re
import resource
import signal
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
from rdkit import Chem
from rdkit.Chem import AllChem

from noiseloom.modalities.molecules.data import load_tiny
from noiseloom.modalities.molecules.files import COLUMNS, CannotWrite, read_molecules, save
from noiseloom.modalities.molecules.metrics import evaluate
from noiseloom.modalities.molecules.molecule import Molecule, from_rdkit, to_rdkit
from noiseloom.modalities.molecules.scores import score


@pytest.fixture(scope="module")
def real():
    return [to_rdkit(molecule) for molecule in load_tiny("test").subset(range(8))]


@pytest.fixture(scope="module")
def mixed(real):
    """Two sound molecules, one that was not decoded, one with an impossible valence, one with a radical."""
    invalid = Chem.RWMol(real[2])
    for other in range(invalid.GetNumAtoms() - 1, 0, -1):
        if invalid.GetBondBetweenAtoms(0, other) is None:
            invalid.AddBond(0, other, Chem.BondType.DOUBLE)
    radical = Chem.RWMol(real[3])
    radical.RemoveAtom(radical.GetNumAtoms() - 1)
    return [real[0], real[1], None, invalid.GetMol(), radical.GetMol()]


def page_data(directory):
    text = (directory / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_everything_is_written_and_the_page_is_last(real, tmp_path):
    report = evaluate(real, strain=False)
    paths = save(real, tmp_path / "new" / "folder", seeds=range(8), report=report)
    names = ["samples.sdf", "samples.csv", "samples.png", "metrics.json", "index.html"]
    assert [path.name for path in paths] == names
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(names)  # and nothing half-written
    assert json.loads(paths[3].read_text())["metrics"]["valid"]["value"] == 100
    assert paths[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_sdf_round_trip(real, tmp_path):
    save(real, tmp_path, seeds=[11 * k for k in range(8)])
    again = read_molecules(tmp_path / "samples.sdf")
    for index, (before, after) in enumerate(zip(real, again, strict=True)):
        one, two = from_rdkit(before), from_rdkit(after)
        assert one.numbers.tolist() == two.numbers.tolist()
        assert one.charges.tolist() == two.charges.tolist()
        assert one.bonds.tolist() == two.bonds.tolist()
        assert np.abs(one.positions - two.positions).max() < 1e-4
        assert after.GetIntProp("seed") == 11 * index
        assert after.GetProp("valid") == "True"
        assert after.GetDoubleProp("qed") > 0
        assert after.GetProp("smiles") == score([before], strain=False).scores[0].smiles


def test_a_saved_set_scores_the_same_when_read_again(mixed, tmp_path):
    first = evaluate(mixed, strain=False)
    save(mixed, tmp_path, report=first)
    second = evaluate(read_molecules(tmp_path), strain=False)  # the folder: its samples.sdf
    assert len(second.items) == 5
    assert [(s.valid, s.stable, s.smiles) for s in second.items] == [(s.valid, s.stable, s.smiles) for s in first.items]
    assert second["valid"].value == first["valid"].value == 60
    assert second["molecules_stable_by_bonds"].value == 40


def test_other_programs_can_read_the_sdf(mixed, tmp_path):
    save(mixed, tmp_path)
    supplier = Chem.SDMolSupplier(str(tmp_path / "samples.sdf"), removeHs=False)
    assert [mol is not None for mol in supplier] == [True, True, True, False, True]
    assert supplier[2].GetNumAtoms() == 0
    assert supplier[2].GetProp("failure") == "not decoded"


def test_csv_has_a_row_for_every_sample(mixed, tmp_path):
    save(mixed, tmp_path, seeds=[5, 6, 7, 8, 9])
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["seed"] for row in rows] == ["5", "6", "7", "8", "9"]
    assert [row["valid"] for row in rows] == ["True", "True", "False", "False", "True"]
    assert [row["failure"] for row in rows] == ["", "", "not decoded", "impossible valence", ""]
    assert rows[2]["qed"] == ""


def test_the_page_shows_what_there_is_and_loads_nothing(mixed, tmp_path):
    save(mixed, tmp_path, report=evaluate(mixed, strain=False), title="Five <b>candidates</b> & {{data}}")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<title>Five &lt;b&gt;candidates&lt;/b&gt; &amp; {{data}}</title>" in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(|@import|import\(|fetch\(""", text)
    assert "5 molecules · 3 valid" in text
    cards = page_data(tmp_path)
    assert [card["valid"] for card in cards] == [True, True, False, False, True]
    assert [bool(card["symbols"]) for card in cards] == [True, True, False, True, True]
    for card in cards:
        assert len(card["positions"] if card["symbols"] else []) == 3 * len(card["symbols"])
    assert "Failed: 1 not decoded, 1 impossible valence" in text
    parser = HTMLParser()
    parser.feed(text)


def test_the_page_keeps_shapes_and_hands(real, tmp_path):
    save(real, tmp_path, shown=3)
    cards = page_data(tmp_path)
    assert len(cards) == 3
    assert "The first 3 of 8" in (tmp_path / "index.html").read_text(encoding="utf-8")
    for card, mol in zip(cards, real, strict=False):
        drawn = np.array(card["positions"]).reshape(-1, 3) / 1000
        true = mol.GetConformer().GetPositions()
        drawn, true = drawn - drawn.mean(axis=0), true - true.mean(axis=0)
        u, _, v = np.linalg.svd(drawn.T @ true)
        assert np.linalg.det(u @ v) == pytest.approx(1)  # the best rotation onto the original is no reflection
        assert np.abs(drawn @ (u @ v) - true).max() < 2e-3


def test_what_molecules_say_cannot_become_markup(real, tmp_path):
    scores = [
        s.__class__(**{**vars(s), "smiles": "</script><script>alert(1)</script>"}) for s in score(real[:1]).scores
    ]
    save(real[:1], tmp_path, scores=scores)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "</script><script>alert" not in text
    assert page_data(tmp_path)[0]["smiles"] == "</script><script>alert(1)</script>"


def test_no_molecules(tmp_path):
    (tmp_path / "samples.png").write_bytes(b"of an earlier run")
    paths = save([], tmp_path, report=evaluate([]))
    assert "samples.png" not in [path.name for path in paths]
    assert not (tmp_path / "samples.png").exists()
    assert (tmp_path / "samples.sdf").read_text() == ""
    assert "no molecules" in paths[-1].read_text(encoding="utf-8")
    assert read_molecules(tmp_path / "samples.sdf") == []


def test_coordinates_that_no_file_can_hold(real, tmp_path):
    lost, far = Chem.Mol(real[0]), Chem.Mol(real[0])
    lost.GetConformer().SetPositions(np.full((lost.GetNumAtoms(), 3), np.nan))
    far.GetConformer().SetPositions(1e7 * far.GetConformer().GetPositions())
    save([lost, far, real[1]], tmp_path, report=evaluate([lost, far, real[1]]))
    assert [mol is not None for mol in read_molecules(tmp_path)] == [False, False, True]
    assert page_data(tmp_path)[0]["symbols"] == []


def test_aromatic_input_is_drawn_and_written_with_single_and_double_bonds(tmp_path):
    benzene = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
    AllChem.EmbedMolecule(benzene, randomSeed=1)
    save([benzene], tmp_path)
    assert sorted(page_data(tmp_path)[0]["bonds"][2::3]) == [1] * 9 + [2] * 3
    assert not any(bond.GetIsAromatic() for bond in read_molecules(tmp_path)[0].GetBonds())
    assert sorted(from_rdkit(read_molecules(tmp_path)[0]).bonds[:, 2].tolist()) == [1] * 9 + [2] * 3


# ---- writing that cannot succeed


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(real, tmp_path):
    save(real[:1], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond 1 kB
        with pytest.raises(CannotWrite, match=r"^cannot write .*samples\.sdf: File too large$"):
            save(real, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_folders_place(real, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CannotWrite, match=r"cannot make the folder .*taken"):
        save(real[:1], tmp_path / "taken")
    with pytest.raises(CannotWrite, match="cannot make the folder"):
        save(real[:1], tmp_path / "taken" / "below")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(real, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CannotWrite, match="Permission denied"):
        save(real[:1], tmp_path)


def test_seeds_must_be_one_for_each(real, tmp_path):
    with pytest.raises(ValueError, match="2 seeds for 8 molecules"):
        save(real, tmp_path, seeds=[1, 2])


# ---- anyone's files


def test_sdf_without_bonds_is_scored_by_lookup(real, tmp_path):
    bare = []
    for mol in real:
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], np.uint8)
        molecule = Molecule(
            numbers, mol.GetConformer().GetPositions(), np.zeros(len(numbers), np.int8), np.zeros((0, 3))
        )
        bare.append(to_rdkit(molecule))
    (tmp_path / "bare.sdf").write_text("".join(Chem.MolToMolBlock(mol) + "$$$$\n" for mol in bare))
    read = read_molecules(tmp_path / "bare.sdf")
    assert not any(mol.GetNumBonds() for mol in read)
    report = evaluate(read, strain=False)
    assert (
        report["molecules_stable_by_lookup"].value == evaluate(real, strain=False)["molecules_stable_by_lookup"].value
    )
    assert report["valid"].value > 80


def test_xyz_of_several_frames(tmp_path):
    water = "3\nwater, with a fourth column\nO 0 0 0 -0.8\nH 0.96 0 0 0.4\nh -0.24 0.93 0 0.4\n"
    broken = "2\nno such element\nQx 0 0 0\nH 1 0 0\n"
    (tmp_path / "a.xyz").write_text(water + broken + "\n" + water.replace("O ", "8 ") + "7\ncut short\nC 0 0 0\n")
    molecules = read_molecules(tmp_path / "a.xyz")
    assert [mol is not None for mol in molecules] == [True, False, True, False]
    report = evaluate(molecules, strain=False)
    assert report["molecules_stable_by_lookup"].value == 50
    assert [s.smiles for s in report.items] == ["O", "", "O", ""]


def test_broken_records_keep_their_place(real, tmp_path):
    blocks = [Chem.MolToMolBlock(mol) for mol in real[:3]]
    text = blocks[0] + "$$$$\n" + "not\na\nrecord\n$$$$\n" + blocks[1] + "$$$$\n" + blocks[2][:200]
    (tmp_path / "a.sdf").write_text(text)
    with gzip.open(tmp_path / "b.sdf.gz", "wt") as file:
        file.write(text)
    for path in (tmp_path / "a.sdf", tmp_path / "b.sdf.gz"):
        assert [mol is not None for mol in read_molecules(path)] == [True, False, True, False]
    assert len(read_molecules(tmp_path)) == 8


def test_files_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"Choices: \.sdf"):
        read_molecules(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"no \.sdf"):
        read_molecules(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_molecules(tmp_path / "missing.sdf")
