"""Metrics on geometries whose answer is known, and on real molecules, whose ceiling is known."""

import json
import time

import numpy as np
import pytest

pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
from rdkit import Chem
from rdkit.Chem import AllChem

from noiseloom.modalities import extras
from noiseloom.modalities.molecules import metrics, reference, scores
from noiseloom.modalities.molecules.data import load_qm9, load_tiny
from noiseloom.modalities.molecules.distributions import KINDS, Histogram, distance, measure
from noiseloom.modalities.molecules.molecule import Molecule, to_rdkit
from noiseloom.modalities.molecules.stability import bonds_stable, known_elements, lookup_orders, lookup_stable
from noiseloom.modalities.report import Report, Row, number, share

needs_qm9 = pytest.mark.skipif(
    not (extras.data_folder() / "qm9.npz").is_file(),
    reason=f"no qm9.npz in {extras.data_folder()}: set NOISELOOM_DATA",
)
METHANE = 1.09 / 3**0.5 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], float)


def mol(numbers, positions, bonds=(), charges=None):
    charges = np.zeros(len(numbers)) if charges is None else np.array(charges)
    bonds = np.array(bonds, np.int16).reshape(-1, 3)
    return to_rdkit(
        Molecule(np.array(numbers, np.uint8), np.array(positions, np.float32), charges.astype(np.int8), bonds)
    )


def embedded(smiles, seed=1):
    made = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(made, randomSeed=seed) == 0
    return made


@pytest.fixture(scope="module")
def real():
    return [to_rdkit(molecule) for molecule in load_tiny("test")]


# ---- geometry lookup


@pytest.mark.parametrize(
    ("pair", "pm", "order"),
    [
        ((6, 6), 163.9, 1), ((6, 6), 164.1, 0), ((6, 6), 138.9, 2), ((6, 6), 139.1, 1), ((6, 6), 122.9, 3),
        ((6, 6), 123.1, 2), ((1, 6), 118.9, 1), ((1, 6), 119.1, 0), ((6, 7), 118.9, 3), ((7, 6), 133.9, 2),
        ((7, 7), 112.9, 3), ((8, 8), 125.9, 2), ((6, 8), 115.9, 3), ((6, 9), 144.9, 1), ((6, 9), 100.0, 1),
        ((15, 16), 190.9, 2), ((16, 6), 164.9, 2), ((9, 5), 100.0, 0), ((2, 2), 50.0, 0),
    ],
)  # fmt: skip
def test_lookup_switches_order_at_length_plus_margin(pair, pm, order):
    orders = lookup_orders([np.array(pair)], [np.array([[0, 0, 0], [0, 0, pm / 100]])])[0]
    assert orders.tolist() == [[0, order], [order, 0]]


def test_lookup_on_hand_made_molecules():
    water = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    far = METHANE.copy()
    far[4] *= 1.2  # one hydrogen out of reach: it and the carbon are not stable
    numbers = [
        np.array([6, 1, 1, 1, 1]),
        np.array([8, 1, 1]),
        np.array([6, 1, 1, 1, 1]),
        np.array([], int),
        np.array([36]),
    ]
    positions = [METHANE, water, far, np.zeros((0, 3)), np.zeros((1, 3))]
    orders = lookup_orders(numbers, positions)
    stable = [lookup_stable(z, o).tolist() for z, o in zip(numbers, orders, strict=True)]
    assert stable == [[True] * 5, [True] * 3, [False, True, True, True, False], [], [False]]


def test_lookup_does_not_depend_on_the_company():
    tiny = load_tiny("valid")
    numbers, positions = [m.numbers for m in tiny], [m.positions for m in tiny]
    together = lookup_orders(numbers, positions)
    for z, x, orders in list(zip(numbers, positions, together, strict=True))[:20]:
        assert (lookup_orders([z], [x])[0] == orders).all()
        assert (orders == orders.T).all()


def test_positions_that_are_not_numbers_have_no_bonds():
    x = METHANE.copy()
    x[1] = np.nan
    orders = lookup_orders([np.array([6, 1, 1, 1, 1])], [x])[0]
    assert orders.sum(axis=1).tolist() == [3, 0, 1, 1, 1]


@needs_qm9
def test_lookup_reproduces_the_figures_of_qm9_and_is_fast():
    data = load_qm9("test")
    assert len(data) > 13_000
    numbers, positions = [m.numbers for m in data], [m.positions for m in data]
    stable = [lookup_stable(z, o) for z, o in zip(numbers, lookup_orders(numbers, positions), strict=True)]
    assert 100 * np.concatenate(stable).mean() == pytest.approx(99.34, abs=0.01)
    assert 100 * np.mean([atoms.all() for atoms in stable]) == pytest.approx(95.22, abs=0.05)
    start = time.process_time()
    for z, orders in zip(numbers[:2000], lookup_orders(numbers[:2000], positions[:2000]), strict=True):
        lookup_stable(z, orders)
    assert time.process_time() - start < 2


# ---- explicit bonds


@needs_qm9
def test_bonds_of_real_molecules_are_all_stable():
    data = load_qm9("test")
    chosen = np.random.default_rng(0).choice(len(data), 500, replace=False)
    charged = [index for index in range(len(data)) if data[index].charges.any()]
    assert all(bonds_stable(to_rdkit(data[int(index)])).all() for index in [*chosen, *charged])


@pytest.mark.parametrize(
    "smiles", ["c1ccncc1", "C[N+](=O)[O-]", "CS(=O)(=O)N", "OP(=O)(O)O", "[C-]#[N+]C", "CC(=O)[O-]"]
)
def test_stable_kinds_of_bonding(smiles):
    aromatic = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert bonds_stable(aromatic).all()


def test_broken_valences_are_found():
    whole = embedded("CCO")
    lost = Chem.RWMol(whole)
    lost.RemoveAtom(lost.GetNumAtoms() - 1)  # the hydroxyl hydrogen
    assert bonds_stable(lost).tolist() == [True, True, False] + [True] * 5
    extra = Chem.RWMol(whole)
    extra.RemoveBond(0, 1)
    extra.AddBond(0, 1, Chem.BondType.DOUBLE)
    assert bonds_stable(extra).tolist() == [False, False] + [True] * 7
    charged = Chem.RWMol(whole)
    charged.GetAtomWithIdx(2).SetFormalCharge(1)
    assert bonds_stable(charged).tolist() == [True, True, False] + [True] * 6


def test_aromatic_rings_without_a_kekule_form_are_not_stable():
    ring = Chem.RWMol()
    for _ in range(5):
        ring.AddAtom(Chem.Atom(6))
    for i in range(5):
        ring.AddBond(i, (i + 1) % 5, Chem.BondType.AROMATIC)
        ring.GetAtomWithIdx(i).SetIsAromatic(True)
        ring.GetBondWithIdx(i).SetIsAromatic(True)
    assert not bonds_stable(ring).any()


def test_unknown_elements_are_counted():
    krypton = mol([36, 6, 1, 1, 1, 1], [[9, 9, 9], *METHANE.tolist()], [(1, k, 1) for k in range(2, 6)])
    assert known_elements(np.array([36, 6, 1])).tolist() == [False, True, True]
    report = metrics.evaluate([krypton], strain=False)
    assert report.items[0].unknown_atoms == 1
    assert report["atoms_stable_by_bonds"].value == pytest.approx(100 * 5 / 6)
    assert any("without a known valence" in note for note in report.notes)


# ---- scores of single molecules


def test_scores_of_a_sound_molecule():
    s = scores.score([embedded("CCO")]).scores[0]
    assert (s.decoded, s.valid, s.connected, s.stable, s.smiles, s.failure) == (True, True, True, True, "CCO", "")
    assert 0 < s.qed < 1
    assert 1 < s.sa < 3
    assert s.logp == pytest.approx(-0.0014, abs=1e-3)
    assert s.posebusters is None


def test_strain_is_zero_at_the_minimum_and_grows_with_distortion():
    relaxed = embedded("CCCO")
    AllChem.MMFFOptimizeMolecule(relaxed, mmffVariant="MMFF94s", maxIters=5000)
    noisy = Chem.Mol(relaxed)
    noise = 0.1 * np.random.default_rng(0).standard_normal((relaxed.GetNumAtoms(), 3))
    noisy.GetConformer().SetPositions(relaxed.GetConformer().GetPositions() + noise)
    before = noisy.GetConformer().GetPositions()
    assert scores.strain_energy(relaxed) == pytest.approx(0, abs=0.01)
    assert scores.strain_energy(noisy) > 5
    assert (noisy.GetConformer().GetPositions() == before).all()
    assert scores.strain_energy(Chem.RemoveHs(relaxed)) is None


def test_strain_leaves_aromaticity_as_rdkit_sees_it():
    pyridone = embedded("Cc1cc(F)c[nH]c1=O")  # aromatic to RDKit, not to MMFF
    kept = scores.score([pyridone]).molecules[0]
    assert sum(bond.GetIsAromatic() for bond in kept.GetBonds()) == 6
    assert sum(h.total for group, h in measure([kept])["bond_lengths"].items() if ":" in group) == 6


def test_a_molecule_with_five_bonds_on_carbon_is_not_valid():
    numbers, bonds = [6, 1, 1, 1, 1, 1], [(0, k, 1) for k in range(1, 6)]
    s = scores.score([mol(numbers, [*METHANE.tolist(), [1, 0, 0]], bonds)]).scores[0]
    assert (s.valid, s.stable, s.failure, s.smiles, s.qed) == (False, False, "impossible valence", "", None)


def test_a_missing_hydrogen_is_not_filled_in():
    s = scores.score([mol([6, 1, 1, 1], METHANE[:4], [(0, k, 1) for k in range(1, 4)])]).scores[0]
    assert (s.valid, s.stable, s.smiles, s.stable_atoms) == (True, False, "[CH3]", 3)


def test_two_fragments_are_valid_but_not_connected():
    pair = Chem.CombineMols(embedded("CO"), embedded("CC"))
    report = metrics.evaluate([pair, embedded("CO")])
    assert (report["valid"].value, report["connected"].value, report["valid_and_connected"].value) == (100, 50, 50)
    assert report.failed == {"not connected": 1}
    assert report.items[0].strain is None


def test_smiles_do_not_depend_on_stereochemistry_or_input_form():
    left, right = embedded("C[C@H](O)F"), embedded("C[C@@H](O)F")
    for made in (left, right):
        Chem.AssignStereochemistryFrom3D(made)
    plain = to_rdkit(load_tiny("test")[0])
    sanitised = Chem.Mol(plain)
    Chem.SanitizeMol(sanitised)
    names = [s.smiles for s in scores.score([left, right, plain, sanitised], strain=False).scores]
    assert names[0] == names[1] == "CC(O)F"
    assert names[2] == names[3] != ""


# ---- sets of molecules


def test_failed_samples_stay_in_the_denominator(real):
    report = metrics.evaluate([*real[:3], None, Chem.Mol()], strain=False)
    for name in ("valid", "connected", "molecules_stable_by_bonds", "molecules_stable_by_lookup", "valid_by_lookup"):
        assert report[name].n == 5
    assert report["valid"].value == pytest.approx(60)
    assert report["molecules_stable_by_bonds"].value == pytest.approx(60)
    assert report.failed == {"not decoded": 2}
    assert len(report.items) == 5


def test_the_real_figures_stand_beside(real):
    report = metrics.evaluate(real)
    assert report["molecules_stable_by_bonds"].value == report["valid_and_connected"].value == 100
    assert report["molecules_stable_by_bonds"].real == 100
    assert report["molecules_stable_by_lookup"].real == pytest.approx(95.2, abs=1.5)
    assert report["atoms_stable_by_lookup"].real == pytest.approx(99.34, abs=0.2)
    assert abs(report["molecules_stable_by_lookup"].value - report["molecules_stable_by_lookup"].real) < 5
    assert report["strain_median"].value == pytest.approx(report["strain_median"].real, rel=0.3)
    assert all(row.real is not None for row in report.rows)
    for kind in KINDS:  # 200 real molecules against 2,000: only sampling noise, sqrt(5.5) of the floor in expectation
        row = report[f"w1_{kind}"]
        assert row.value < 6 * row.real + 1e-9, kind
    assert "95" in str(report)
    assert json.loads(report.to_json())["metrics"]["valid"]["value"] == 100


def test_uniqueness_and_novelty(real):
    names = [s.smiles for s in scores.score(real[:4], strain=False).scores]
    report = metrics.evaluate([*real[:4], real[0]], train_smiles={names[0], names[1]}, strain=False)
    assert report["unique"].value == pytest.approx(80)
    assert (report["novel"].value, report["novel"].n) == (50, 4)


def test_no_molecules_is_a_report_that_says_so():
    report = metrics.evaluate([])
    assert report["valid"].value is None
    assert "nothing was measured" in " ".join(report.notes)
    assert "valid" in str(report)
    json.loads(report.to_json())


def test_without_bonds_they_are_looked_up(real):
    bare = [mol([a.GetAtomicNum() for a in m.GetAtoms()], m.GetConformer().GetPositions()) for m in real[:60]]
    given, looked_up = metrics.evaluate(real[:60]), metrics.evaluate(bare)
    assert looked_up["valid"].value == given["valid_by_lookup"].value
    assert looked_up["molecules_stable_by_lookup"].value == given["molecules_stable_by_lookup"].value
    assert "molecules_stable_by_bonds" not in looked_up.values()
    assert any("looked up" in note for note in looked_up.notes)
    # one molecule without bonds among others that have them is a failure of the model, not a reason to look them up
    mixed = metrics.evaluate([real[0], bare[1]], strain=False)
    assert mixed["molecules_stable_by_bonds"].value == 50


def test_heavy_atoms_alone_are_pointed_out(real):
    bare = [Chem.RemoveHs(embedded("CCO"))]
    report = metrics.evaluate(bare)
    assert report["molecules_stable_by_bonds"].value == 0
    assert any("explicit hydrogens" in note for note in report.notes)


def test_a_reference_of_ones_own(real):
    report = metrics.evaluate(real[:40], real[40:], strain=False)
    assert "novel" not in report.values()
    assert report["valid"].real == 100
    assert report["w1_bond_lengths"].real > 0
    assert report.real.startswith("the reference, 160 molecules")


def test_posebusters_pass_real_and_fail_bent_molecules(real):
    pytest.importorskip("posebusters", reason="needs the extra 'molecules-eval'")
    flat = embedded("CCCC")
    flat.GetConformer().SetPositions(flat.GetConformer().GetPositions() * [1, 1, 0.1])
    report = metrics.evaluate([real[0], None, flat, real[1]], strain=False, posebusters=3)
    assert (report["posebusters"].n, report["posebusters"].value) == (3, pytest.approx(100 / 3))
    assert report.items[0].posebusters == ()
    assert report.items[2].posebusters
    assert report.items[3].posebusters is None


def test_posebusters_missing_is_a_clear_error(real, monkeypatch):
    monkeypatch.setattr(extras, "import_module", lambda name: __import__("no_such_package"))
    with pytest.raises(extras.MissingExtra, match=r"pip install .*molecules-eval"):
        scores._posebusters()


# ---- distributions


def test_distance_to_itself_is_zero_and_of_a_shift_is_the_shift():
    values = np.random.default_rng(0).normal(1.4, 0.05, 3000)
    one, moved = Histogram.of(values, 0.002), Histogram.of(values + 0.1, 0.002)
    assert one.wasserstein(one) == 0
    assert one.wasserstein(moved) == moved.wasserstein(one) == pytest.approx(0.1, abs=2e-5)
    exact = np.abs(np.sort(values) - np.sort(values**2)).mean()
    assert one.wasserstein(Histogram.of(values**2, 0.002)) == pytest.approx(exact, abs=2e-4)


def test_a_set_has_no_distance_to_itself(real):
    measured = metrics._distributions(scores.score(real, strain=False))
    for kind in KINDS:
        assert distance(kind, measured, measured) == (0, 1)


def test_stretched_bonds_are_measured():
    molecule = embedded("CC")
    longer = Chem.Mol(molecule)
    longer.GetConformer().SetPositions(1.1 * molecule.GetConformer().GetPositions())
    positions = molecule.GetConformer().GetPositions()
    lengths = [
        np.linalg.norm(positions[bond.GetBeginAtomIdx()] - positions[bond.GetEndAtomIdx()])
        for bond in molecule.GetBonds()
    ]
    sets = [measure([made]) for made in (molecule, longer)]
    assert distance("bond_lengths", *sets)[0] == pytest.approx(0.1 * np.mean(lengths), abs=1e-3)
    assert distance("bond_angles", *sets)[0] == pytest.approx(0, abs=1e-9)
    assert distance("torsions", *sets)[0] == 0


def test_torsions_fold_at_180_and_mirror_images_are_equal():
    def peroxide(phi):  # H-O-O-H with dihedral phi
        end = [1.4 - 0.2, 0.94 * np.cos(np.radians(phi)), 0.94 * np.sin(np.radians(phi))]
        made = mol([1, 8, 8, 1], [[0.2, 0.94, 0], [0, 0, 0], [1.4, 0, 0], end], [(0, 1, 1), (1, 2, 1), (2, 3, 1)])
        Chem.SanitizeMol(made)
        return measure([made])

    for phi in (0, 30, 90, 150, 180):
        found = peroxide(phi)["torsions"]["O-O"]
        assert found.start == phi
        assert found.total == 1
    assert distance("torsions", peroxide(179), peroxide(-179)) == (0, 1)
    assert distance("torsions", peroxide(170), peroxide(-160))[0] == 10


def test_element_counts_add_up():
    ethane, ethanol = measure([embedded("CC")]), measure([embedded("CCO")])
    assert distance("elements", ethane, ethanol) == (1, 1)  # one oxygen
    assert distance("atoms", ethane, ethanol)[0] == 1
    assert distance("ring_sizes", ethane, ethanol) == (None, 0)
    assert distance("ring_sizes", measure([embedded("C1CC1")]), measure([embedded("c1ccccc1")]))[0] == 3


def test_absent_groups_are_said():
    report = metrics.evaluate([embedded("CC")], strain=False)
    assert any("does not occur" in note for note in report.notes)
    assert any("sampling noise" in note for note in report.notes)


# ---- bundled figures


def test_reference_survives_json(real):
    made = metrics.as_reference(real[:20], strain=False, name="twenty")
    again = reference.Reference.from_json(made.to_json())
    assert (again.name, again.n, dict(again.values)) == (made.name, made.n, dict(made.values))
    assert all(distance(kind, again.distributions, made.distributions) == (0, 1) for kind in KINDS)


def test_training_smiles_are_known_by_their_hashes():
    hashes = reference.SmilesHashes.of(["CCO", "C", "CCO"])
    assert len(hashes) == 2
    assert "CCO" in hashes
    assert "CCN" not in hashes
    train = reference.qm9_train()
    assert train is not None
    assert 99_000 < len(train) <= 100_000
    tiny = [to_rdkit(molecule) for molecule in load_tiny("train").subset(range(200))]
    assert all(s.smiles in train for s in scores.score(tiny, strain=False).scores)


def test_qm9_figures_are_those_of_real_data():
    values = reference.qm9_reference().values
    for name in ("valid", "connected", "atoms_stable_by_bonds", "molecules_stable_by_bonds"):
        assert values[name] == 100
    assert values["posebusters"] > 98
    assert reference.QM9_REFERENCE.stat().st_size < 40_000


# ---- the report


def test_shares_carry_wilson_intervals():
    row = share("x", 1906, 2000, "p")
    assert (row.value, row.error) == (pytest.approx(95.3), pytest.approx(0.93, abs=0.01))
    assert share("x", 50, 50, "p").error == pytest.approx(3.57, abs=0.01)
    assert share("x", 0, 0, "p").value is None


def test_report_prints_aligned_columns():
    rows = [share("valid", 9, 10, "how", real=100.0), Row("energy", 3.21, 5, "that", "kcal/mol", error=0.4)]
    report = Report("ten", rows, {"not decoded": 1}, ["careful"], "real things")
    lines = str(report).splitlines()
    assert lines[0] == "ten"
    assert lines[1] == "real data: real things"
    assert {line.index(word) for line, word in zip(lines[3:6], ("protocol", "how", "that"), strict=True)} == {
        lines[3].index("protocol")
    }
    assert lines[-2:] == ["failed: 1 not decoded", "note: careful"]
    with pytest.raises(KeyError, match="valid, energy"):
        report["vlid"]


def test_numbers_for_people():
    assert number(None) == "-"
    assert number(99.995, "%") == "100.00 %"
    assert number(0.00123, "Å") == "0.00123 Å"
    assert number(1234.5, "kcal/mol", 3.2) == "1234.5 ± 3.2 kcal/mol"
    assert number(0.0) == "0.00"
