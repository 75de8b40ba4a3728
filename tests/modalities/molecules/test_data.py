"""Molecules from real files and from broken ones: nothing is lost without a count."""

import gzip
import io

import numpy as np
import pytest

pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
from rdkit import Chem

from noiseloom.modalities import extras
from noiseloom.modalities.molecules import qm9
from noiseloom.modalities.molecules.collection import DataReport, MoleculeSet
from noiseloom.modalities.molecules.data import (
    NoMolecules,
    load_qm9,
    load_tiny,
    open_molecules,
    read_sdf,
    read_smiles,
    split_indices,
)
from noiseloom.modalities.molecules.molecule import Molecule, from_rdkit, to_rdkit

needs_qm9 = pytest.mark.skipif(
    not (extras.data_folder() / "qm9.npz").is_file(),
    reason=f"no qm9.npz in {extras.data_folder()}: set NOISELOOM_DATA",
)


@pytest.fixture
def tiny():
    return load_tiny("valid")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sdf(*molecules, **properties):
    text = io.StringIO()
    with Chem.SDWriter(text) as writer:
        writer.SetKekulize(False)
        for index, mol in enumerate(molecules):
            for name, values in properties.items():
                if values[index] is not None:
                    mol.SetProp(name, str(values[index]))
            writer.write(mol)
    return text.getvalue()


def embedded(smiles):
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    return mol


def same(one, other):
    return (
        np.array_equal(one.numbers, other.numbers)
        and np.array_equal(one.charges, other.charges)
        and sorted(one.bonds.tolist()) == sorted(other.bonds.tolist())
        and np.allclose(one.positions, other.positions, atol=6e-5)
    )


# ---- the collection


def test_save_and_load_change_nothing(tiny, tmp_path):
    tiny.report.drop("a reason", "a name")
    tiny.save(tmp_path / "a.npz")
    back = MoleculeSet.load(tmp_path / "a.npz")
    assert all(same(*pair) for pair in zip(tiny, back, strict=True))
    assert np.array_equal(tiny.positions, back.positions)
    assert back.smiles == tiny.smiles
    assert back.report == tiny.report
    assert all(np.array_equal(tiny.properties[name], back.properties[name]) for name in tiny.properties)
    back.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_long_and_distant_molecules_are_saved_to_the_step(tmp_path):
    line = np.zeros((3, 3))
    line[:, 0] = 100, 130, 160
    chain = Molecule(np.full(3, 6), line + 1e-3, np.zeros(3), np.array([[0, 1, 1], [1, 2, 1]]))
    MoleculeSet.pack([chain]).save(tmp_path / "a.npz")
    assert np.abs(MoleculeSet.load(tmp_path / "a.npz").positions - chain.positions).max() < 1.3e-4


def test_subset_gathers_atoms_bonds_and_columns(tiny):
    chosen = [7, 3, 3, -1]
    part = tiny.subset(chosen)
    assert all(same(part[place], tiny[index]) for place, index in enumerate(chosen))
    assert part.sizes.tolist() == [len(tiny[index]) for index in chosen]
    assert part.properties["gap"].tolist() == [tiny.properties["gap"][index] for index in chosen]
    assert part.smiles == [tiny.smiles[index] for index in chosen]
    assert part.report.kept == 4
    assert len(tiny.subset([])) == 0
    assert tiny.subset(tiny.sizes > 20).sizes.min() == 21


def test_the_collection_is_read_only(tiny):
    with pytest.raises(ValueError, match="read-only"):
        tiny.positions[0] = 0
    with pytest.raises(IndexError, match="molecule 200 of 200"):
        tiny[200]


@pytest.mark.parametrize(
    ("bonds", "positions"),
    [([[1, 0, 1]], np.zeros((2, 3))), ([[0, 2, 1]], np.zeros((2, 3))), ([[0, 1, 4]], np.zeros((2, 3)))]
    + [([[0, 1, 1]], np.full((2, 3), np.nan)), ([[0, 1, 1]], np.zeros((2, 2)))],
)
def test_arrays_that_are_no_molecules_are_refused(bonds, positions):
    with pytest.raises(ValueError, match="molecule set"):
        MoleculeSet(np.ones(2), positions, np.zeros(2), np.array([0, 2]), np.array(bonds), np.array([0, 1]))


def test_damaged_files_are_refused(tiny, tmp_path):
    path = tmp_path / "a.npz"
    tiny.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or not an"):
            MoleculeSet.load(path)
    np.savez(path, numbers=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="damaged or not an"):
        MoleculeSet.load(path)
    np.savez(path, numbers=np.zeros(3))
    with pytest.raises(ValueError, match="not a molecule set"):
        MoleculeSet.load(path)
    with pytest.raises(FileNotFoundError):
        MoleculeSet.load(tmp_path / "absent.npz")


def test_a_failed_save_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    tiny.save(path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        tiny.subset([0]).save(path)
    assert len(MoleculeSet.load(path)) == 200
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_the_report_reads_as_a_table():
    report = DataReport(kept=12)
    for number in range(5):
        report.drop("radical", f"#{number}")
    report.note("hydrogens added", "#9")
    lines = [line.split() for line in str(report).splitlines()]
    assert lines[0] == ["kept", "12"]
    assert lines[1] == ["dropped:", "radical", "5", "#0,", "#1,", "#2,", "..."]
    assert lines[2] == ["note:", "hydrogens", "added", "1", "#9"]


# ---- rdkit


def test_to_rdkit_and_back(tiny):
    assert any(molecule.charges.any() for molecule in tiny)
    for molecule, smiles in zip(tiny, tiny.smiles, strict=True):
        mol = to_rdkit(molecule)
        assert same(from_rdkit(mol), molecule)
        Chem.SanitizeMol(mol)  # aromatic now, and Kekulé again on the way back
        assert same_up_to_resonance(from_rdkit(mol), molecule)
        expected = Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False) == expected


def same_up_to_resonance(one, other):
    return one.bonds[:, 2].sum() == other.bonds[:, 2].sum() and np.array_equal(one.charges, other.charges)


def test_impossible_molecules_still_become_rdkit_molecules():
    crowd = Molecule(np.full(7, 6), np.zeros((7, 3)), np.full(7, 9), np.array([[0, j, 3] for j in range(1, 7)]))
    assert to_rdkit(crowd).GetNumBonds() == 6
    nothing = Molecule(np.zeros(0, int), np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 3), int))
    assert to_rdkit(nothing).GetNumAtoms() == 0
    odd = Molecule(np.array([255, 1]), np.full((2, 3), np.nan), np.zeros(2, int), np.array([[0, 1, 1], [0, 1, 2]]))
    assert to_rdkit(odd).GetNumBonds() == 1


def test_from_rdkit_names_what_it_cannot_hold():
    with pytest.raises(ValueError, match="no 3D coordinates"):
        from_rdkit(Chem.MolFromSmiles("C"))
    mol = Chem.RWMol(embedded("CO"))
    mol.GetBondWithIdx(0).SetBondType(Chem.BondType.DATIVE)
    with pytest.raises(ValueError, match="DATIVE"):
        from_rdkit(mol)


# ---- QM9


def test_bundled_molecules():
    sizes = {split: len(load_tiny(split)) for split in ("train", "valid", "test", "all")}
    assert sizes == {"train": 1600, "valid": 200, "test": 200, "all": 2000}
    everything = load_tiny("all")
    assert len(set(everything.smiles)) == 2000  # hence no molecule is in two splits
    assert set(everything.properties) == {"alpha", "gap", "homo", "lumo", "mu", "Cv"}
    gap = everything.properties["lumo"] - everything.properties["homo"]
    assert np.abs(everything.properties["gap"] - gap).max() < 5e-3  # eV
    with pytest.raises(ValueError, match="Choices: train, valid, test, all"):
        load_tiny("training")


@needs_qm9
def test_qm9_has_the_split_of_edm():
    parts = {split: load_qm9(split) for split in ("train", "valid", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 99_994, "valid": 17_746, "test": 13_083}
    assert sum(parts["train"].report.dropped.values()) == 6
    assert sum(parts["valid"].report.dropped.values()) == 2
    held_out = {text for split in ("valid", "test") for text in parts[split].smiles}
    assert not held_out & set(parts["train"].smiles)
    # Mean absolute difference of random pairs: the upper bounds of EDM's table.
    draw = np.random.default_rng(0)
    for name, bound in {"alpha": 9.01, "gap": 1.47, "homo": 0.645, "lumo": 1.457, "mu": 1.616, "Cv": 6.857}.items():
        values = parts["train"].properties[name]
        assert np.abs(values - draw.permutation(values)).mean() == pytest.approx(bound, rel=0.015), name


@needs_qm9
def test_the_bundled_molecules_come_from_their_splits():
    for split in ("train", "valid", "test"):
        assert set(load_tiny(split).smiles) <= set(load_qm9(split).smiles)


def test_qm9_from_the_package(tmp_path, monkeypatch):
    """The same arrays come out of qm9pack's CSV, here of five rows, two of them wrong."""
    header = "Index,SMILES,Elements,XYZ_Ang," + ",".join(qm9._COLUMNS.values())
    rows = [f'{index},{smiles},"{elements}","{xyz}",1.,2.,-1.,1.*^0,0.,9.' for index, smiles, elements, xyz in QM9_ROWS]
    for part, lines in ((1, rows[:2]), (2, rows[2:]), (3, [])):
        (tmp_path / f"qm9_part{part}.csv").write_text("\n".join([header, *lines]) + "\n")
    monkeypatch.setattr(qm9, "SPLIT_SIZES", (2, 3, 0))
    qm9.build_qm9(tmp_path, tmp_path / "qm9.npz")
    molecules = load_qm9("all", tmp_path / "qm9.npz")
    assert molecules.smiles == ["C#N", "O", "[NH3+][O-]"]
    assert molecules.report.dropped == {"SMILES disagrees with the geometry": 2}
    assert load_qm9("train", tmp_path / "qm9.npz").smiles == ["C#N", "[NH3+][O-]"]  # rows 2 and 0: seed 0
    assert [m.bonds.tolist() for m in molecules][:2] == [[[0, 1, 3], [0, 2, 1]], [[0, 1, 1], [0, 2, 1]]]
    assert molecules[2].charges.tolist() == [1, -1, 0, 0, 0]
    assert molecules.properties["lumo"] == pytest.approx(np.full(3, qm9.HARTREE))
    assert molecules.properties["Cv"] == pytest.approx(9 - 2.981 * np.array([3, 3, 5]))


QM9_ROWS = [
    (5, "C#N", "['C','N','H']", "[[0.,0.,0.],[1.15,0.,0.],[-1.06,1.*^-6,0.]]"),
    (3, "O", "['O','H','H']", "[[0.,0.,0.],[0.96,0.,0.],[-0.24,0.93,0.]]"),
    (9, "[NH3+][O-]", "['N','O','H','H','H']", "[[0.,0.,0.],[1.4,0.,0.],[0.,1.,0.],[0.,0.,1.],[0.,0.,-1.]]"),
    (1, "CO", "['C','H','H','H','H']", "[[0.,0.,0.],[1.,0.,0.],[0.,1.,0.],[0.,0.,1.],[-1.,0.,0.]]"),
    (7, "FF", "['F','F']", "[[0.,0.,0.],[2.,0.,0.]]"),
]


def test_absent_qm9_names_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISELOOM_DATA", str(tmp_path))
    monkeypatch.setattr(qm9, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install qm9pack.*NOISELOOM_DATA"):
        load_qm9("train")


# ---- SDF


def test_sdf_round_trip(tiny, tmp_path):
    mols = [to_rdkit(molecule) for molecule in tiny]
    text = sdf(*mols, gap=tiny.properties["gap"], note=[None, "7", *["text"] * 198], part=[1.5, *[None] * 199])
    (tmp_path / "a.sdf").write_text(text)
    with gzip.open(tmp_path / "a.sdf.gz", "wt") as file:
        file.write(text)
    for name in ("a.sdf", "a.sdf.gz"):
        back = read_sdf(tmp_path / name)
        assert all(same(*pair) for pair in zip(tiny, back, strict=True))
        assert back.report.dropped == {}
        assert back.properties["gap"] == pytest.approx(tiny.properties["gap"])
        assert "note" not in back.properties
        assert back.properties["part"][0] == 1.5
        assert np.isnan(back.properties["part"][1:]).all()
    folder = read_sdf(tmp_path)
    assert len(folder) == 400


def test_every_way_an_sdf_record_can_fail(tmp_path):
    good = sdf(embedded("CCO"))
    flat = Chem.MolFromSmiles("CCO")
    flat.Compute2DCoords()
    aromatic = embedded("c1ccccc1")
    star = np.array([[0, j, 1] for j in range(1, 6)])
    crowded = to_rdkit(Molecule(np.array([6, 1, 1, 1, 1, 1]), np.eye(6, 3) * 2, np.zeros(6, int), star))
    radical = embedded("CC")
    radical.GetAtomWithIdx(0).SetNumRadicalElectrons(1)
    radical = Chem.RWMol(radical)
    radical.RemoveAtom(radical.GetNumAtoms() - 1)
    records = {
        "unreadable record": good.replace(" O  ", " Xx ", 1),
        "no 3D coordinates": sdf(flat),
        "hydrogens missing": sdf(Chem.RemoveHs(embedded("CCO"))),
        "not connected": sdf(embedded("O.O")),
        "radical": sdf(embedded("[CH3]")),
        "impossible valence": sdf(crowded),
        "atoms outside the vocabulary": sdf(embedded("CS")),
        "more than 12 atoms": sdf(embedded("CCCCC")),
        "truncated record": good[: len(good) // 2],
    }
    path = tmp_path / "a.sdf"
    imine = embedded("[H]/N=C/C")
    path.write_text(good + sdf(aromatic) + sdf(imine) + "".join(records.values()))
    vocabulary = ("H", "C", "N", "O", "F")
    molecules = read_sdf(path, vocabulary=vocabulary, max_atoms=12)
    assert molecules.report.dropped == dict.fromkeys(records, 1)
    assert molecules.smiles == ["CCO", "c1ccccc1", "CC=N"]
    assert sorted(molecules[1].bonds[:, 2]) == [1] * 9 + [2] * 3
    assert molecules.report.examples["hydrogens missing"] == ["a.sdf #6"]
    assert molecules.report.examples["truncated record"] == [f"a.sdf #{len(records) + 3}"]

    molecules = read_sdf(path, vocabulary=vocabulary, max_atoms=12, add_hydrogens=True, keep_fragments=True)
    assert molecules.smiles == ["CCO", "c1ccccc1", "CC=N", "CCO", "O.O"]
    assert molecules.report.notes == {"hydrogens added": 1}
    assert np.isfinite(molecules.positions).all()


def test_sources_without_molecules(tmp_path):
    def fails(content, reason, name="a.sdf"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NoMolecules, match=reason):
            read_sdf(tmp_path / name)

    fails(b"", "empty file")
    fails(b"\x89PNG\r\n\x1a\n\x00\x00" * 40, "not an SDF record")
    fails(b"just\nsome\nlines\nof\ntext\n", "not an SDF record")
    fails(gzip.compress(sdf(embedded("CCO")).encode())[:90], "damaged gzip stream", "b.sdf.gz")
    fails(b"not gzip", "damaged gzip stream", "c.sdf.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoMolecules, match=r"no file that ends in \.sdf"):
        read_sdf(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        read_sdf(tmp_path / "absent.sdf")
    with pytest.raises(ValueError, match="not an element: 'Q'"):
        read_sdf(tmp_path / "a.sdf", vocabulary=("C", "Q"))


def test_a_mol_file_is_an_sdf_of_one_record(tmp_path):
    (tmp_path / "a.mol").write_text(Chem.MolToMolBlock(embedded("CCO")))
    assert read_sdf(tmp_path / "a.mol").smiles == ["CCO"]


def test_a_broken_gzip_keeps_what_came_before(tiny, tmp_path):
    packed = gzip.compress(sdf(*(to_rdkit(molecule) for molecule in tiny)).encode())
    (tmp_path / "a.sdf.gz").write_bytes(packed[: len(packed) // 2])
    molecules = read_sdf(tmp_path / "a.sdf.gz")
    assert 50 < len(molecules) < 150
    assert molecules.report.dropped == {"damaged gzip stream": 1}


# ---- SMILES

LINES = [
    "smiles name",
    "CCO ethanol",
    "",
    "# a comment",
    "c1ccccc1C(=O)[O-]",
    "C1CC bad",
    "[CH3]",
    "C.C",
    "CB(C)C",
    "CS",
]


def test_smiles_conformers_do_not_depend_on_jobs_or_neighbours(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("\n".join(LINES))
    alone = read_smiles(path, jobs=1, vocabulary=("H", "B", "C", "N", "O"), cache=False)
    assert alone.report.dropped == {
        "unreadable SMILES": 1,
        "radical": 1,
        "not connected": 1,
        "no MMFF94s parameters": 1,
        "atoms outside the vocabulary": 1,
    }
    assert alone.report.examples["unreadable SMILES"] == ["line 6 C1CC"]
    assert alone.smiles == ["CCO", "O=C([O-])c1ccccc1"]
    assert alone.sizes.tolist() == [9, 14]
    assert alone[1].charges.sum() == -1
    together = read_smiles(path, jobs=2, vocabulary=("H", "B", "C", "N", "O"), cache=False)
    assert np.array_equal(alone.positions, together.positions)
    assert alone.report == together.report
    (tmp_path / "b.smi").write_text("CCO")
    assert np.array_equal(read_smiles(tmp_path / "b.smi", jobs=1).positions, alone[0].positions)
    assert not np.array_equal(read_smiles(tmp_path / "b.smi", jobs=1, seed=1).positions, alone[0].positions)


def test_conformers_come_from_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("name,SMILES,logP,remark\none,CCO,-0.3,7\ntwo,CCC,2.4,text\nthree,CC,,text\n")
    fresh = read_smiles(path, jobs=1)
    assert fresh.properties["logP"] == pytest.approx([-0.3, 2.4, np.nan], nan_ok=True)
    assert list(fresh.properties) == ["logP"]
    monkeypatch.setattr("noiseloom.modalities.molecules.smiles.conformer", None)
    cached = read_smiles(path, jobs=1)
    assert np.array_equal(fresh.positions, cached.positions)
    assert cached.report == fresh.report
    monkeypatch.undo()
    path.write_text("name,text\none,CCO\n")
    with pytest.raises(NoMolecules, match=r"no column is named SMILES. Columns: name, text"):
        read_smiles(path)


# ---- by name or path


def test_open_molecules(tiny, tmp_path):
    tiny.save(tmp_path / "a.npz")
    (tmp_path / "a.sdf").write_text(sdf(*(to_rdkit(molecule) for molecule in tiny)))
    (tmp_path / "a.smi").write_text("C\nCC\n")
    assert len(open_molecules("qm9-tiny", "test")) == 200
    assert len(open_molecules(tmp_path / "a.npz", "all")) == 200
    assert len(open_molecules(tmp_path, "all")) == 200
    assert len(open_molecules(tmp_path / "a.smi", "all", jobs=1)) == 2
    small = open_molecules("qm9-tiny", "valid", vocabulary=("H", "C", "O"), max_atoms=18)
    assert small.sizes.max() == 18
    assert set(np.unique(small.numbers)) == {1, 6, 8}
    assert len(small) + sum(small.report.dropped.values()) == 200
    with pytest.raises(ValueError, match=r"no option 'jobs'\. Options: vocabulary, max_atoms"):
        open_molecules("qm9-tiny", jobs=2)
    with pytest.raises(ValueError, match=r"unknown source of molecules 'a\.pdb'. Choices: qm9, qm9-tiny"):
        open_molecules("a.pdb")
    with pytest.raises(ValueError, match=r"unknown split 'val'\. Choices: train, valid, test, all"):
        open_molecules("qm9-tiny", "val")


@pytest.mark.parametrize("with_smiles", [True, False])
def test_own_data_is_split_by_content(with_smiles):
    molecules = load_tiny("train")
    if not with_smiles:
        molecules = MoleculeSet.pack(molecules)
    parts = {split: split_indices(molecules, split) for split in ("train", "valid", "test")}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1600))
    shares = [len(part) / 1600 for part in parts.values()]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    half = molecules.subset(range(1599, 799, -1))
    moved = {split: {1599 - index for index in split_indices(half, split)} for split in parts}
    assert all(moved[split] == {index for index in parts[split] if index > 799} for split in parts)


def test_a_missing_extra_names_the_install_command():
    with pytest.raises(extras.MissingExtra, match=r'pip install "noiseloom\[molecules\]"'):
        extras.require("no_such_package.inside", "molecules")
