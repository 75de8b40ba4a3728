"""Energies of positions: their values, who is pushed where, and that guidance makes them fall."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import noiseloom
from noiseloom.core.guidance import ENERGIES
from noiseloom.core.samples import Sample, product
from noiseloom.modalities.molecules.energies import RadiusOfGyration, Repulsion
from noiseloom.modalities.molecules.molecule import Molecule
from noiseloom.modalities.molecules.state import Encoding

ENCODING = Encoding(("H", "C"), (0,), 1.5, 0.5)
MOLECULES = SimpleNamespace(encoding=ENCODING)


def chain(*places: tuple[float, float, float], symbols: str, bonds: list[tuple[int, int, int]]) -> tuple[Sample, Any]:
    """One molecule as a sample, not centred."""
    numbers = torch.tensor([{"H": 1, "C": 6}[s] for s in symbols], dtype=torch.uint8).numpy()
    positions, charges = torch.tensor(places).numpy(), torch.zeros(len(places), dtype=torch.int8).numpy()
    orders = torch.tensor(bonds, dtype=torch.int16).reshape(-1, 3).numpy()
    x0, mask = ENCODING.tensors([Molecule(numbers, positions, charges, orders)])
    return x0.double(), {"mask": mask}


def test_only_atoms_that_are_neither_bonded_nor_share_a_neighbour_repel() -> None:
    row = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (3.0, 0.0, 0.0)]
    x0, cond = chain(*row, symbols="CCCC", bonds=[(0, 1, 1), (1, 2, 2), (2, 3, 1)])
    energy = Repulsion(contact=1.0, modality=MOLECULES)
    contact = 2 * float(energy.radii[1])
    assert float(energy(x0, cond)) == pytest.approx((contact - 3.0) ** 2 / 2, abs=1e-5)  # the ends
    x0, cond = chain(*row, symbols="CCCC", bonds=[])
    expected = sum(max(contact - abs(i - j), 0) ** 2 / 2 for i in range(4) for j in range(i))
    assert float(energy(x0, cond)) == pytest.approx(expected, abs=1e-4)
    x0, cond = chain((0.0, 0.0, 0.0), (2.0, 0.0, 0.0), symbols="HC", bonds=[])
    radii = Repulsion(contact=0.75, modality=MOLECULES).radii.sum()
    assert float(Repulsion(modality=MOLECULES)(x0, cond)) == pytest.approx(
        float((radii - 2).clamp(min=0) ** 2 / 2), abs=1e-5
    )


def test_the_radius_of_gyration() -> None:
    x0, cond = chain((0.0, 0.0, 0.0), (2.0, 0.0, 0.0), symbols="HC", bonds=[])
    energy = RadiusOfGyration(1.5, modality=MOLECULES)
    assert float(energy.radius(x0, cond)) == pytest.approx(1.0, abs=1e-6)
    assert float(energy(x0, cond)) == pytest.approx(2 * 0.5**2 / 2, abs=1e-6)


@pytest.mark.parametrize("energy", [Repulsion(1.0, MOLECULES), RadiusOfGyration(0.9, MOLECULES)])
def test_positions_alone_are_moved_and_padding_does_not_count(energy: Any) -> None:
    random = torch.Generator().manual_seed(0)

    def sample(n: int, positions: Tensor) -> Sample:
        bonds = torch.zeros(1, n, n, 4).double()
        bonds[..., 0] = 0.5
        atoms = torch.zeros(1, n, 2).double()
        atoms[..., 1] = 0.5
        leaves = {"positions": positions, "atoms": atoms, "bonds": bonds}
        return product({name: part.clone().requires_grad_() for name, part in leaves.items()})

    positions = torch.randn(1, 5, 3, generator=random, dtype=torch.float64)
    padded, alone = sample(5, positions), sample(4, positions[:, :4])
    mask = torch.tensor([[True] * 4 + [False]])
    value = energy(padded, {"mask": mask})
    assert torch.allclose(value, energy(alone, None))
    assert value.shape == (1,)
    value.sum().backward()
    assert padded["atoms"].grad is None
    assert padded["bonds"].grad is None
    gradient = padded["positions"].grad
    assert (gradient[0, 4] == 0).all()
    assert gradient[0, :4].abs().amax() > 1e-3
    assert torch.allclose(gradient.sum(1), torch.zeros(1, 3).double(), atol=1e-9)  # no force on the whole
    step = sample(5, positions - 0.01 * gradient)
    assert float(energy(step, {"mask": mask}).detach()) < float(value.detach())
    together = sample(5, positions * 0)  # all in one place
    energy(together, {"mask": mask}).sum().backward()
    assert together["positions"].grad.isfinite().all()


def test_energies_of_other_modalities_are_told() -> None:
    for spec in ("repulsion", {"name": "radius_of_gyration", "target": 2.0}):
        with pytest.raises(ValueError, match="is for molecules"):
            ENERGIES.build(spec, modality=SimpleNamespace())
    for wrong in ({"name": "repulsion", "contact": 0.0}, {"name": "radius_of_gyration", "target": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            ENERGIES.build(wrong, modality=MOLECULES)


@pytest.mark.parametrize(
    ("name", "options"), [("repulsion", {"contact": 0.9}), ("radius_of_gyration", {"target": 1.7})]
)
def test_guidance_makes_the_energy_of_bundled_samples_fall(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = noiseloom.load("molecules-qm9", device="cpu")
    energy, decode, seen = ENERGIES.build({"name": name, **options}, modality=pipeline.modality), None, []
    decode = pipeline.modality.decode
    monkeypatch.setattr(
        pipeline.modality, "decode", lambda x0, layout: seen.append(energy(x0, layout.cond)) or decode(x0, layout)
    )
    guidance = {"name": "energy", "energy": {"name": name, **options}, "scale": 20.0}
    for spec in (None, guidance):
        pipeline.sample(4, atoms=14, steps=6, guidance=spec, seed=1, progress=False)
    before, after = (float(values.mean()) for values in seen)
    assert after < 0.5 * before
