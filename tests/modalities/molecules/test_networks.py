"""The networks: symmetry, padding, known parts, and what they learn from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.samples import Sample, product

pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
import noiseloom.modalities.molecules.networks  # noqa: F401

SIZES = {"atom_types": 5, "charge_types": 3, "bond_types": 4, "conditions": {"properties": 2}}
SMALL = {"width": 32, "pairs": 16, "layers": 3, "heads": 4}


def network(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    net = NETWORKS.build({"name": name, **SIZES, **SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # layers that start at zero would hide what is behind them
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net


def batch(count: int = 2, atoms: int = 7) -> tuple[Sample, Sample, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(1)

    def one() -> Sample:
        bonds = torch.randn(count, atoms, atoms, 4, generator=g)
        return product(
            {
                "positions": torch.randn(count, atoms, 3, generator=g),
                "atoms": torch.randn(count, atoms, 5, generator=g),
                "charges": torch.randn(count, atoms, 3, generator=g),
                "bonds": bonds + bonds.transpose(1, 2),
            }
        )

    cond = {
        "mask": torch.ones(count, atoms, dtype=torch.bool),
        "properties": torch.tensor([[0.3, torch.nan]] * count),
    }
    return one(), one(), cond


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize("irreps", ["8x1o", "8x1o + 4x2e", "8x1o + 4x2e + 4x3o"])
def test_equivariant_under_rotations_reflections_and_translations(irreps: str) -> None:
    from e3nn.o3 import Irreps
    from e3nn.util.test import equivariance_error

    net = network("equivariant", irreps=irreps)
    x, previous, cond = batch(1, 7)
    t = torch.tensor([0.4], dtype=torch.float64)

    def function(positions: Tensor, earlier: Tensor) -> list[Tensor]:
        moved, first = x.clone(), previous.clone()
        moved["positions"], first["positions"] = positions[None], earlier[None]
        out = net(moved, t, cond, first)
        scalars = torch.cat([out[part].flatten() for part in ("atoms", "charges", "bonds")])
        return [out["positions"][0], scalars[None]]

    scalars = x["atoms"].numel() + x["charges"].numel() + x["bonds"].numel()
    errors = equivariance_error(
        function,
        args_in=[x["positions"][0], previous["positions"][0]],
        irreps_in=["cartesian_points", "cartesian_points"],
        irreps_out=[Irreps("1o"), Irreps(f"{scalars}x0e")],
        ntrials=4,
        do_parity=True,
        do_translation=True,
    )
    sizes = [float(value.detach().abs().max()) for value in function(x["positions"][0], previous["positions"][0])]
    assert min(sizes) > 0.1
    for error in errors.values():
        for value, size in zip(error, sizes, strict=True):
            assert float(value) / size < 1e-5


def test_the_transformer_is_not_equivariant() -> None:
    net = network("transformer")
    x, previous, cond = batch()
    turned = x.clone()
    turned["positions"] = turned["positions"] @ torch.linalg.qr(torch.randn(3, 3))[0]
    t = torch.full((2,), 0.4, dtype=torch.float64)
    assert relative(net(turned, t, cond, previous)["bonds"], net(x, t, cond, previous)["bonds"]) > 1e-2


@pytest.mark.parametrize("name", ["equivariant", "transformer"])
def test_permutations_move_the_outputs(name: str) -> None:
    net = network(name)
    x, previous, cond = batch()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))

    def permuted(sample: Sample) -> Sample:
        moved = product({part: sample[part][:, order] for part in ("positions", "atoms", "charges")})
        moved["bonds"] = sample["bonds"][:, order][:, :, order]
        return moved

    t = torch.full((2,), 0.4, dtype=torch.float64)
    expected, found = permuted(net(x, t, cond, previous)), net(permuted(x), t, cond, permuted(previous))
    for part in ("positions", "atoms", "charges", "bonds"):
        assert relative(found[part], expected[part]) < 1e-5


@pytest.mark.parametrize("name", ["equivariant", "transformer"])
def test_padding_changes_nothing(name: str) -> None:
    net = network(name)
    x, previous, cond = batch()
    wide, earlier, _ = batch(2, 10)
    for sample, padded in ((x, wide), (previous, earlier)):  # the padding holds random numbers
        for part in ("positions", "atoms", "charges"):
            padded[part][:, :7] = sample[part]
        padded["bonds"][:, :7, :7] = sample["bonds"]
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, :7] = True
    t = torch.full((2,), 0.4, dtype=torch.float64)
    expected, found = net(x, t, cond, previous), net(wide, t, {**cond, "mask": mask}, earlier)
    for part in ("positions", "atoms", "charges"):
        assert relative(found[part][:, :7], expected[part]) < 1e-5
    assert relative(found["bonds"][:, :7, :7], expected["bonds"]) < 1e-5
    assert not found["positions"][:, 7:].any()


@pytest.mark.parametrize("name", ["equivariant", "transformer"])
def test_bonds_are_symmetric_and_positions_centred(name: str) -> None:
    x, previous, cond = batch()
    out = network(name)(x, torch.full((2,), 0.4, dtype=torch.float64), cond, previous)
    assert torch.equal(out["bonds"], out["bonds"].transpose(1, 2))
    assert float(out["positions"].mean(1).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["equivariant", "transformer"])
def test_time_per_atom_equals_time_per_sample_where_constant(name: str) -> None:
    net = network(name)
    x, previous, cond = batch()
    once = net(x, torch.full((2,), 0.3, dtype=torch.float64), cond, previous)
    shapes = {part: x[part].shape[:-1] for part in ("positions", "atoms", "charges", "bonds")}
    each = product({part: torch.full(shape, 0.3, dtype=torch.float64) for part, shape in shapes.items()})
    again = net(x, each, cond, previous)
    for part in shapes:
        assert relative(again[part], once[part]) < 1e-5
    each["positions"][:, 0] = 0.0
    assert relative(net(x, each, cond, previous)["positions"], once["positions"]) > 1e-3


def test_absent_conditions_add_nothing_and_present_ones_do() -> None:
    net = network("equivariant")
    x, previous, cond = batch()
    t = torch.full((2,), 0.4, dtype=torch.float64)
    without = net(x, t, {"mask": cond["mask"]}, previous)
    absent = net(x, t, {**cond, "properties": torch.full((2, 2), torch.nan)}, previous)
    assert torch.equal(absent["bonds"], without["bonds"])
    assert relative(net(x, t, cond, previous)["bonds"], without["bonds"]) > 1e-3


def test_every_parameter_learns() -> None:
    net = network("equivariant", irreps="8x1o + 4x2e").train()
    x, previous, cond = batch()
    out = net(x, torch.full((2,), 0.4, dtype=torch.float64), cond, previous)
    sum((value**2).sum() for value in out.values()).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == ["atom_blocks.0.steer.2.norm_moved.scale"]  # features of degree 2 start at zero


def test_irreps_of_the_wrong_parity_are_refused() -> None:
    with pytest.raises(ValueError, match="natural parity"):
        network("equivariant", irreps="8x1e")
    with pytest.raises(ValueError, match="multiples of heads"):
        network("equivariant", irreps="7x1o")


@pytest.mark.parametrize("name", ["equivariant", "transformer"])
def test_a_network_of_one_time_becomes_one_of_two(name: str) -> None:
    """With the same weights it says the same, whatever it is told, until it has learned to listen."""
    one, two = (NETWORKS.build({"name": name, **SIZES, **SMALL, "two_times": told}).eval() for told in (False, True))
    lacks = two.load_state_dict(one.state_dict(), strict=False)
    assert not lacks.unexpected_keys
    assert lacks.missing_keys
    assert all(key.startswith("duration.") for key in lacks.missing_keys)
    x, _, cond = batch()
    t = torch.tensor([0.9, 0.4])
    for net in (one, two):
        with torch.no_grad():
            for key, parameter in net.named_parameters():
                if not parameter.any() and not key.startswith("duration."):
                    parameter.fill_(0.02)
    same, told = one(x, t, cond), two(x, t, {**cond, "target": torch.tensor([0.1, 0.2])})
    for part in ("positions", "atoms", "charges", "bonds"):
        assert torch.equal(told[part], same[part]), part


@pytest.mark.parametrize("name", ["equivariant", "transformer"])
def test_where_a_step_ends_reaches_every_part(name: str) -> None:
    net, (x, _, cond) = network(name, two_times=True), batch()
    t = torch.tensor([0.9, 0.4], dtype=torch.float64)
    at_once, far = net(x, t, cond), net(x, t, {**cond, "target": torch.zeros(2, dtype=torch.float64)})
    for part in ("positions", "atoms", "charges", "bonds"):
        assert relative(far[part], at_once[part]) > 1e-3, part
        assert torch.equal(net(x, t, {**cond, "target": t})[part], at_once[part]), part
    known = torch.zeros(2, 7, dtype=torch.float64)
    known[:, 2:] = t[:, None]  # two atoms are given: their step has no length
    mixed = product(
        {**dict.fromkeys(("positions", "atoms", "charges"), known), "bonds": known[:, :, None].expand(2, 7, 7)}
    )
    assert bool(net(x, mixed, {**cond, "target": t})["positions"].isfinite().all())
    with pytest.raises(ValueError, match="one time that a step is to reach"):
        net(x, t, {**cond, "target": known})
