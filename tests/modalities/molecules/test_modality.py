"""Molecules pass every modality's tests, and do what a chemist asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from noiseloom.core.randomness import sample_generators
from noiseloom.core.samples import align_left, map_parts

pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
from noiseloom.modalities.contract_tests import *  # noqa: F403
from noiseloom.modalities.contract_tests import Case
from noiseloom.modalities.molecules.alignment import assign, random_rotations, rotation_onto
from noiseloom.modalities.molecules.data import load_tiny
from noiseloom.modalities.molecules.fragments import random_fragment
from noiseloom.modalities.molecules.modality import Molecules
from noiseloom.modalities.molecules.molecule import Molecule, from_rdkit, to_rdkit
from noiseloom.modalities.molecules.request import MoleculeRequest


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Molecules.fitted("qm9-tiny"), source="qm9-tiny")


@pytest.fixture(scope="module")
def modality(case: Case) -> Molecules:
    assert isinstance(case.modality, Molecules)
    return case.modality


def same(a: Molecule, b: Molecule) -> bool:
    bonds = [sorted(map(tuple, m.bonds.tolist())) for m in (a, b)]
    return bool((a.numbers == b.numbers).all() and (a.charges == b.charges).all()) and bonds[0] == bonds[1]


def test_tensors_and_back(modality: Molecules) -> None:
    molecules = list(load_tiny("train"))[:64]
    x0, mask = modality.encoding.tensors(molecules)
    for before, after in zip(molecules, modality.encoding.molecules(x0, mask), strict=True):
        assert same(before, after)
        assert np.abs(after.positions - (before.positions - before.positions.mean(0))).max() < 1e-5


def test_an_element_outside_the_vocabulary_is_named() -> None:
    tiny = Molecules(elements=["H", "C"], charges=[0], scale=1.0, sizes={"5": 1})
    with pytest.raises(ValueError, match="outside the vocabulary: H, C; charges 0"):
        tiny.encoding.tensors(list(load_tiny("train"))[:50])


def test_sizes_follow_the_training_histogram(modality: Molecules) -> None:
    sizes = np.array([plan.size for plan in modality.plans(MoleculeRequest(), list(range(4000)))])
    weights = modality.histogram
    mean = sum(n * count for n, count in weights.items()) / sum(weights.values())
    assert abs(sizes.mean() - mean) < 0.2  # four standard errors
    assert set(sizes) <= set(weights)


def test_a_property_shifts_the_sizes(modality: Molecules) -> None:
    small, large = (
        [plan.size for plan in modality.plans(MoleculeRequest(alpha=a), list(range(200)))] for a in (45.0, 95.0)
    )
    assert np.mean(small) + 4 < np.mean(large)


def test_a_formula_sets_size_and_composition(modality: Molecules) -> None:
    request = MoleculeRequest(formula="C7H10O2")
    assert [plan.size for plan in modality.plans(request, [1, 2])] == [19, 19]
    composition = modality.layout(request, modality.plans(request, [1, 2])).cond["composition"][0] * 10
    assert dict(zip(modality.encoding.elements, composition.round().tolist(), strict=True)) == {
        "H": 10, "C": 7, "N": 0, "O": 2, "F": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"formula": "C7X2"}, "X not in the checkpoint's vocabulary"),
        ({"formula": "7C"}, "not a molecular formula"),
        ({"formula": "CH4", "atoms": 7}, "has 5 atoms"),
        ({"properties": {"beauty": 1.0}}, "not trained on beauty. Properties: alpha"),
        ({"atoms": 0}, "too few"),
        ({"alpha": 1e6}, "no training molecule is near"),
    ],
)
def test_requests_that_cannot_be_met_say_why(modality: Molecules, request_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modality.plans(MoleculeRequest(**request_), [0])


def test_a_scaffold_is_kept_where_it_is(modality: Molecules, tmp_path: Path) -> None:
    from rdkit import Chem

    whole = load_tiny("train")[5]
    path = tmp_path / "scaffold.sdf"
    with Chem.SDWriter(str(path)) as writer:
        writer.write(to_rdkit(whole))
    kept = from_rdkit(next(iter(Chem.SDMolSupplier(str(path), removeHs=False))))
    request = MoleculeRequest(scaffold=str(path), atoms=len(kept) + 3)
    layout = modality.layout(request, modality.plans(request, [0, 1]))
    assert layout.known is not None
    assert layout.known["atoms"].sum(1).tolist() == [len(kept)] * 2
    assert torch.allclose(layout.space.project(layout.start)["positions"], layout.start["positions"], atol=1e-5)
    noise = layout.space.noise(layout.start, sample_generators(0, [0, 1]))

    def fill(clean: torch.Tensor, drawn: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return torch.where(align_left(given, clean), clean, drawn)

    filled = map_parts(fill, layout.start, noise, layout.known)
    made = from_rdkit(modality.decode(filled, layout)[0])
    n = len(kept)
    assert (made.numbers[:n] == kept.numbers).all()
    assert np.abs(made.positions[:n] - kept.positions).max() < 1e-3  # in the frame of the file


def test_assignment_and_rotation_are_the_best_there_are() -> None:
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 6, 3, generator=g)
    x0 -= x0.mean(1, keepdim=True)
    turned = x0 @ random_rotations([torch.Generator().manual_seed(i) for i in range(3)])
    assert torch.allclose(turned @ rotation_onto(turned, x0), x0, atol=1e-5)
    shuffled = x0[:, torch.randperm(6, generator=g)] + 0.01
    assert torch.allclose(assign(shuffled, x0, [6, 6, 6]), x0 + 0.01, atol=1e-6)


def test_random_rotations_are_orthogonal_and_uniform() -> None:
    q = random_rotations([torch.Generator().manual_seed(i) for i in range(2000)])
    assert torch.allclose(q @ q.transpose(1, 2), torch.eye(3).expand_as(q), atol=1e-5)
    assert q.mean(0).abs().max() < 0.06  # 4.6 standard errors of an entry of variance 1/3
    assert abs(float((torch.det(q) > 0).float().mean()) - 0.5) < 0.05


def test_fragments_are_connected() -> None:
    for index, molecule in enumerate(list(load_tiny("train"))[:100]):
        chosen = random_fragment(molecule, torch.Generator().manual_seed(index)).numpy()
        if not chosen.any():
            continue
        reached, edge = {int(np.flatnonzero(chosen)[0])}, True
        while edge:
            more = {b for i, j, _ in molecule.bonds.tolist() for a, b in ((i, j), (j, i)) if a in reached and chosen[b]}
            edge = not more <= reached
            reached |= more
        assert reached == set(np.flatnonzero(chosen).tolist())


def test_known_parts_are_clean_and_left_out_of_the_loss(modality: Molecules) -> None:
    always = Molecules(**{**modality.config, "known_rate": 1.0})
    dataset = always.dataset("qm9-tiny", "train")
    example = always.encode([dataset[i] for i in range(8)], sample_generators(0, range(8)))
    assert example.known is not None
    noise = example.space.noise(example.x0, sample_generators(1, range(8)))
    known = example.known["atoms"]
    wrong = example.x0.apply(torch.ones_like)
    wrong["atoms"] = torch.where(known[..., None], wrong["atoms"], torch.zeros_like(wrong["atoms"]))
    assert not example.space.mean(wrong)["atoms"].any()
    assert not noise["positions"][~example.cond["mask"]].any()
