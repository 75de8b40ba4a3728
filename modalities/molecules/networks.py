"""Networks for molecules: an E(3)-equivariant one on e3nn's irreps, and a pair-aware transformer.

Both refine atoms (scalars, ``(batch, n, width)``) and ordered pairs of atoms (``(batch, n, n, pairs)``) side by side;
the pairs bias the atoms' attention, add messages to it and end as bond logits. They differ in how they see space:

``equivariant``  carries steerable features on ``"Cx1o + Cx2e + ..."``. The tensor products are factorised so that the
    loop holds matrix products only: attention moves steerables between atoms (0e x l -> l), pair scalars weigh the
    spherical harmonics of each direction (0e x Y_l -> l), inner products bring steerables back to scalars of atoms
    and of pairs (l x l -> 0e), and scalars gate them.
``transformer``  reads coordinates as they are and learns the symmetry from rotated data.

Shapes: B batch, N atoms, M = 2l + 1 components of a steerable feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.samples import Cond, Sample, align_left, pick, product
from noiseloom.core.spaces import Centred

from ..extras import require
from .blocks import AtomBlock, ConditionEmbedding, Duration, PairBlock, PairEmbedding, SteerableNorm, linear


class MoleculeNetwork(nn.Module, ABC):
    """What both networks share: embeddings, blocks and heads."""

    def __init__(
        self,
        atom_types: int,
        charge_types: int,
        bond_types: int,
        conditions: dict[str, int],
        width: int,
        pairs: int,
        layers: int,
        heads: int,
        channels: dict[int, int],
        two_times: bool = False,
    ) -> None:
        super().__init__()
        if width % heads or any(count % heads for count in channels.values()):
            raise ValueError(f"width {width} and steerable channels {channels} must be multiples of heads = {heads}")
        self.types = {"atoms": atom_types, "charges": charge_types, "bonds": bond_types}
        self.embed_condition = ConditionEmbedding(width, conditions)
        # One modulation for all layers plus an offset for each (adaLN-single): a third of the parameters of adaLN.
        self.modulation = linear(width, 6 * width, zero=True)
        self.embed_atoms = nn.Linear(2 * (atom_types + charge_types) + self.atom_geometry, width)
        self.embed_pairs = PairEmbedding(bond_types, pairs, self.pair_geometry)
        self.atom_blocks = nn.ModuleList(AtomBlock(width, pairs, heads, channels) for _ in range(layers))
        # Pairs cost n^2: they are refined after every second layer, and after the last.
        self.pair_blocks = nn.ModuleList(PairBlock(width, pairs, channels) for _ in range((layers + 1) // 2))
        self.norm_out = nn.LayerNorm(width)
        self.atoms_out = linear(width, atom_types + charge_types, zero=True)
        self.bonds_out = nn.Sequential(
            nn.LayerNorm(pairs), nn.Linear(pairs, pairs), nn.SiLU(), linear(pairs, bond_types, zero=True)
        )
        self.duration = Duration(width, 2 * pairs) if two_times else None

    atom_geometry = 0  # coordinates that an atom's embedding reads
    pair_geometry = 0  # coordinates that a pair's embedding reads

    @abstractmethod
    def steerables(self, x: Tensor, x0: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """First steerable features of the atoms and harmonics of the pairs, by degree."""

    @abstractmethod
    def geometry(self, x: Tensor, x0: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Coordinates for the embeddings of atoms and of pairs."""

    @abstractmethod
    def positions_out(self, s: Tensor, v: dict[int, Tensor]) -> Tensor:
        """The output for positions, (B, N, 3)."""

    def forward(self, x: Sample, t: Any, cond: Cond | None = None, previous: Sample | None = None) -> Sample:
        """x {positions (B,N,3), atoms (B,N,K), charges (B,N,C), bonds (B,N,N,4)}, cond["mask"] (B,N).

        Of a network of two times cond["target"], () or (B,), is the time that a step is to reach; t itself without it.
        """
        if cond is None or "mask" not in cond:
            raise ValueError('a molecule network needs cond["mask"], boolean (batch, atoms)')
        positions = x["positions"]
        mask = cond["mask"].to(positions.device)
        t_atoms, t_bonds = (
            self._times(pick(t, part), x[part], dims) for part, dims in (("positions", 2), ("bonds", 3))
        )
        centred = Centred(mask)
        previous = previous if previous is not None else x.apply(torch.zeros_like)
        place, first = (centred.project(p["positions"]) for p in (x, previous))

        c = self.embed_condition(t_atoms, mask, cond)
        v, harmonics = self.steerables(place, first)
        atom_places, pair_places = self.geometry(place, first)
        s = self.embed_atoms(
            torch.cat([x["atoms"], x["charges"], previous["atoms"], previous["charges"], *atom_places], -1)
        )
        clock = t_bonds.reshape(-1, 1, 1) if t_bonds.ndim == 1 else t_bonds
        late = None
        if self.duration is not None:
            far, late = self.duration(t_atoms.reshape(len(mask), -1), clock, cond.get("target"))
            c = c + far
        s = s + c
        e = self.embed_pairs(x["bonds"], previous["bonds"], place, first, clock, pair_places, late)
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -1e4)[:, None, None]
        modulation = self.modulation(F.silu(c))
        for layer, block in enumerate(self.atom_blocks):
            s, v = block(s, e, v, harmonics, modulation, bias)
            if layer % 2 == 1 or layer == len(self.atom_blocks) - 1:
                e = self.pair_blocks[layer // 2](s, e, v)

        atoms, charges = self.atoms_out(self.norm_out(s)).split([self.types["atoms"], self.types["charges"]], -1)
        bonds = self.bonds_out(e + e.transpose(1, 2))
        return product(
            {
                "positions": centred.project(self.positions_out(s, v).to(positions.dtype)),
                "atoms": atoms,
                "charges": charges,
                "bonds": bonds,
            }
        )

    def regions(self) -> list[nn.Module]:
        """What to compile: each kind of block once, reused by all its layers, in place of one long graph."""
        return [self.embed_pairs, *self.atom_blocks, *self.pair_blocks]

    @staticmethod
    def _times(t: Any, part: Tensor, dims: int) -> Tensor:
        """Times of a part as (B,), or one for each atom (B, N) or pair (B, N, N) where they differ."""
        t = torch.as_tensor(t, device=part.device)
        if t.ndim == 0:
            return t.expand(len(part))
        t = t.reshape(t.shape[:dims]) if t.ndim > dims else t
        return t if t.ndim == 1 else align_left(t, part[..., 0]).expand(part.shape[:dims])


@NETWORKS.register("equivariant")
class EquivariantNetwork(MoleculeNetwork):
    """E(3)-equivariant: outputs turn with the input; translations, permutations and padding change nothing.

    Args:
        atom_types, charge_types, bond_types: classes of each categorical part.
        conditions: length of each named condition vector.
        irreps: steerable features of an atom in e3nn's notation, e.g. ``"32x1o + 16x2e"``; parities are those of
            spherical harmonics.
        width, pairs, layers, heads: sizes.
        two_times: take ``cond["target"]``, the time that a step is to reach: a flow map.
    """

    def __init__(
        self,
        atom_types: int,
        charge_types: int,
        bond_types: int = 4,
        conditions: dict[str, int] | None = None,
        irreps: str = "32x1o + 16x2e",
        width: int = 192,
        pairs: int = 64,
        layers: int = 6,
        heads: int = 8,
        two_times: bool = False,
    ) -> None:
        o3 = require("e3nn.o3", "molecules")
        self_irreps = o3.Irreps(irreps)
        channels = {ir.l: count for count, ir in self_irreps}
        if any(ir.p != (-1) ** ir.l or ir.l == 0 for _, ir in self_irreps) or 1 not in channels:
            raise ValueError(f"irreps {irreps!r} must hold 1o and only degrees >= 1 of natural parity (1o, 2e, 3o ...)")
        super().__init__(
            atom_types, charge_types, bond_types, conditions or {}, width, pairs, layers, heads, channels, two_times
        )
        self.harmonics = o3.SphericalHarmonics(list(channels), normalize=True, normalization="component")
        self.degrees: Sequence[int] = tuple(channels)
        self.first = nn.ModuleDict({"1": nn.Linear(2, channels[1], bias=False)})
        self.first_channels = channels
        self.positions_norm = SteerableNorm(channels[1])
        self.positions_gate = nn.Linear(width, channels[1])
        self.positions_head = nn.Linear(channels[1], 1, bias=False)

    def steerables(self, x: Tensor, x0: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        # Directions in float32: their angles must not carry the rounding of autocast.
        arrow = x.float()[:, :, None] - x.float()[:, None, :]
        harmonics = dict(
            zip(self.degrees, self.harmonics(arrow).split([2 * d + 1 for d in self.degrees], -1), strict=True)
        )
        v = {d: x.new_zeros(*x.shape[:2], 2 * d + 1, count) for d, count in self.first_channels.items()}
        v[1] = self.first["1"](torch.stack([x, x0], -1))
        return v, harmonics

    def geometry(self, x: Tensor, x0: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [], []

    def positions_out(self, s: Tensor, v: dict[int, Tensor]) -> Tensor:
        gated = self.positions_norm(v[1]) * self.positions_gate(s)[:, :, None]
        return self.positions_head(gated)[..., 0]


@NETWORKS.register("transformer")
class PairTransformer(MoleculeNetwork):
    """Not equivariant: coordinates are features; train it on rotated data (``rotate=True`` of the modality)."""

    atom_geometry = 6
    pair_geometry = 6

    def __init__(
        self,
        atom_types: int,
        charge_types: int,
        bond_types: int = 4,
        conditions: dict[str, int] | None = None,
        width: int = 192,
        pairs: int = 64,
        layers: int = 6,
        heads: int = 8,
        two_times: bool = False,
    ) -> None:
        super().__init__(
            atom_types, charge_types, bond_types, conditions or {}, width, pairs, layers, heads, {}, two_times
        )
        self.positions_head = linear(width, 3, zero=True)

    def steerables(self, x: Tensor, x0: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        return {}, {}

    def geometry(self, x: Tensor, x0: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [x, x0], [x[:, :, None] - x[:, None, :], x0[:, :, None] - x0[:, None, :]]

    def positions_out(self, s: Tensor, v: dict[int, Tensor]) -> Tensor:
        return self.positions_head(self.norm_out(s))
