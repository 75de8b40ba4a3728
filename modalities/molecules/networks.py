"""Networks for molecules: an E(3)-equivariant one on e3nn's irreps, and a pair-aware transformer.

Both refine atoms (scalars, ``(batch, n, width)``) and ordered pairs of atoms (``(batch, n, n, pairs)``) side by side;
the pairs bias the atoms' attention, add messages to it and end as bond logits. They differ in how they see space:

``equivariant``  carries steerable features on ``"Cx1o + Cx2e + ..."``. The tensor products are factorised so that the
    loop holds matrix products only: attention moves steerables between atoms (0e x l -> l), pair scalars weigh the
    spherical harmonics of each direction (0e x Y_l -> l), inner products bring steerables back to scalars of atoms
    and of pairs (l x l -> 0e), and scalars gate them. Fully connected products cost ~10x as much for the same result.
``transformer``  reads coordinates as they are and learns the symmetry from rotated data.

Shapes: ``_B`` batch, ``_N`` atoms, ``_D`` width, ``_P`` pair channels, ``_H`` heads, ``_M`` components 2l + 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.conditioning import given
from noiseloom.core.samples import Cond, Sample, align_left, pick, product

from ..extras import require

PARTS = ("positions", "atoms", "charges", "bonds")


def _linear(inputs: int, outputs: int, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _waves(values: Tensor, count: int, low: float, high: float) -> Tensor:
    """``count`` Gaussian bumps of width one spacing over [low, high]: (...,) -> (..., count), float32."""
    centres = torch.linspace(low, high, count, device=values.device, dtype=torch.float32)
    return torch.exp(-(((values.float()[..., None] - centres) * ((count - 1) / (high - low))) ** 2) / 2)


def _cosines(t: Tensor, count: int) -> Tensor:
    """Fourier features of a time in [0, 1] on frequencies 2^k pi / 2, k from 0 to 7: (...,) -> (..., count)."""
    frequencies = torch.pi / 2 * 2 ** torch.linspace(0, 7, count // 2, device=t.device, dtype=torch.float32)
    angle = t.float()[..., None] * frequencies
    return torch.cat([torch.cos(angle), torch.sin(angle)], -1)


def _squared_distances(x: Tensor) -> Tensor:
    """(B, N, 3) -> (B, N, N); float32."""
    x = x.float()
    return ((x[:, :, None] - x[:, None, :]) ** 2).sum(-1)


class ConditionEmbedding(nn.Module):
    """Time, size and conditions of each molecule (or atom, where times differ) as one vector.

    Args:
        width: of the vector.
        conditions: the length of each named condition vector; an entry that is NaN is not given.
    """

    def __init__(self, width: int, conditions: dict[str, int]) -> None:
        super().__init__()
        self.conditions = dict(conditions)
        self.time = _mlp(64, width, width)
        self.size = nn.Linear(16, width)
        self.values = nn.ModuleDict({name: _mlp(2 * count, width, width) for name, count in conditions.items()})

    def forward(self, t: Tensor, mask: Tensor, cond: Cond) -> Tensor:
        """t (B,) or (B, N) -> (B, 1 or N, width)."""
        t = t.reshape(-1, 1) if t.ndim == 1 else t
        atoms = mask.sum(1, keepdim=True)
        out = self.time(_cosines(t, 64)) + self.size(_waves(torch.log(atoms.float()), 16, 0.5, 5.0))
        for name, embed in self.values.items():
            if name in cond:
                value = cond[name].to(out.device)
                known = given(value)
                filled = torch.where(known, value, torch.zeros_like(value)).float()
                # "nothing given" must add exactly nothing, whatever the embedding's biases are
                present = known.any(-1, keepdim=True).float()
                out = out + (embed(torch.cat([filled, known.float()], -1)) * present)[:, None]
        return out


class PairEmbedding(nn.Module):
    """The first features of ordered pairs: both bonds, both distances, the pair's time, coordinates where they count."""

    bumps = 16  # Gaussian features of a distance

    def __init__(self, bond_types: int, pairs: int, geometry: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * (bond_types + self.bumps) + geometry, 2 * pairs)
        self.clock = nn.Linear(64, 2 * pairs, bias=False)
        self.contract = nn.Linear(2 * pairs, pairs)
        self.norm = nn.LayerNorm(pairs)

    def forward(self, bonds: Tensor, bonds0: Tensor, x: Tensor, x0: Tensor, t: Tensor, places: list[Tensor]) -> Tensor:
        """bonds (B,N,N,4), x (B,N,3), each with its previous estimate; t (B,1,1) or (B,N,N) -> (B,N,N,P)."""
        near = [_waves(torch.sqrt(_squared_distances(p) + 1e-8), self.bumps, 0.0, 5.0).to(bonds.dtype) for p in (x, x0)]
        hidden = self.expand(torch.cat([bonds, bonds0, *near, *places], -1)) + self.clock(_cosines(t, 64))
        return self.norm(self.contract(F.silu(hidden)))


class SteerableNorm(nn.Module):
    """Each steerable feature divided by its root mean square over channels and components, (..., M, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, v: Tensor) -> Tensor:
        size = (v.float() ** 2).mean((-1, -2), keepdim=True)
        return (v.float() * torch.rsqrt(size + 1e-4) * self.scale).to(v.dtype)


class AtomBlock(nn.Module):
    """Attention over atoms, biased by the pairs and gathering from them, then a feed-forward step.

    Args:
        width: scalar channels of an atom.
        pairs: channels of a pair.
        heads: attention heads.
        channels: channels of the steerable feature of each degree, e.g. ``{1: 32, 2: 16}``; empty for none.
    """

    def __init__(self, width: int, pairs: int, heads: int, channels: dict[int, int]) -> None:
        super().__init__()
        self.heads, self.counts = heads, list(channels.values())
        self.norm_atoms = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_hidden = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Parameter(torch.zeros(6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.pair_out = nn.Linear(pairs, heads + sum(self.counts))
        self.attended = nn.Linear(width + heads * pairs, width)
        self.expand = nn.Linear(width + sum(self.counts), 4 * width)
        self.contract = nn.Linear(4 * width, width + sum(self.counts))
        self.steer = nn.ModuleDict()
        for degree, count in channels.items():
            self.steer[str(degree)] = nn.ModuleDict(
                {
                    "norm_moved": SteerableNorm(count),
                    "norm_mixed": SteerableNorm(count),
                    "moved": nn.Linear(count, count, bias=False),
                    "sides": nn.Linear(count, 2 * count, bias=False),
                    "mixed": nn.Linear(2 * count, count, bias=False),
                }
            )

    def forward(
        self, s: Tensor, e: Tensor, v: dict[int, Tensor], harmonics: dict[int, Tensor], c: Tensor, bias: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """s (B,N,D), e (B,N,N,P), v {l: (B,N,M,C)}, harmonics {l: (B,N,N,M)}, c (B,1|N,6D), bias (B,1,1,N)."""
        batch, atoms, width = s.shape
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (c + self.modulation).chunk(6, -1)

        qkv = self.qkv(self.norm_atoms(s) * (1 + scale_a) + shift_a)
        q, k, value = qkv.reshape(batch, atoms, 3, self.heads, -1).unbind(2)
        pair_bias, *weights = self.pair_out(e).split([self.heads, *self.counts], -1)
        logits = torch.einsum("bihd,bjhd->bhij", self.norm_q(q), self.norm_k(k)) * (width // self.heads) ** -0.5
        attention = torch.softmax((logits + pair_bias.permute(0, 3, 1, 2)).float() + bias, -1).to(value.dtype)
        gathered = torch.einsum("bhij,bjhd->bihd", attention, value).flatten(2)
        told = torch.einsum("bhij,bijp->bihp", attention, e).flatten(2)
        s = s + gate_a * self.attended(torch.cat([gathered, told], -1))

        real = (torch.exp(bias[:, 0]) / atoms**0.5)[..., None].to(s.dtype)  # (B,1,N,1), 0 for padding
        moved: dict[int, Tensor] = {}
        sides: list[Tensor] = []
        squares: list[Tensor] = []
        for (degree, feature), weight in zip(v.items(), weights, strict=True):
            steer = self.steer[str(degree)]
            inner = steer["norm_moved"](feature).unflatten(-1, (self.heads, -1))
            carried = torch.einsum("bhij,bjmhc->bimhc", attention, inner).flatten(3)
            spread = torch.einsum("bijc,bijm->bimc", weight * real, harmonics[degree].to(weight.dtype))
            moved[degree] = feature + steer["moved"](carried + spread)
            normed = steer["norm_mixed"](moved[degree])
            first, second = steer["sides"](normed).chunk(2, -1)
            squares.append((first * second).sum(2))
            sides.append(torch.cat([normed, first], -1))

        hidden = torch.cat([self.norm_hidden(s) * (1 + scale_f) + shift_f, *squares], -1)
        step, *gates = self.contract(F.silu(self.expand(hidden))).split([width, *self.counts], -1)
        s = s + gate_f * step
        for (degree, feature), gate, side in zip(moved.items(), gates, sides, strict=True):
            moved[degree] = feature + gate[:, :, None] * self.steer[str(degree)]["mixed"](side)
        return s, moved


class PairBlock(nn.Module):
    """An update of the pairs from both their atoms and the inner products of their steerable features."""

    gram = 16  # inner products for each degree

    def __init__(self, width: int, pairs: int, channels: dict[int, int]) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, 2 * pairs), nn.Linear(width, 2 * pairs, bias=False)
        self.expand = nn.Linear(pairs + self.gram * len(channels), 2 * pairs, bias=False)
        self.contract = nn.Linear(2 * pairs, pairs)
        self.norm_atoms, self.norm = nn.LayerNorm(width), nn.LayerNorm(pairs)
        self.steer_norm = nn.ModuleDict({str(degree): SteerableNorm(count) for degree, count in channels.items()})
        self.steer = nn.ModuleDict({str(d): nn.Linear(n, 2 * self.gram, bias=False) for d, n in channels.items()})

    def forward(self, s: Tensor, e: Tensor, v: dict[int, Tensor]) -> Tensor:
        features = [e]
        for degree, feature in v.items():
            left, right = self.steer[str(degree)](self.steer_norm[str(degree)](feature)).chunk(2, -1)
            features.append(torch.einsum("bimc,bjmc->bijc", left, right))
        inner = self.norm_atoms(s)
        at_pair = self.left(inner)[:, :, None] + self.right(inner)[:, None, :]
        return self.norm(e + self.contract(F.silu(self.expand(torch.cat(features, -1)) + at_pair)))


class MoleculeNetwork(nn.Module):
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
    ) -> None:
        super().__init__()
        if width % heads or any(count % heads for count in channels.values()):
            raise ValueError(f"width {width} and steerable channels {channels} must be multiples of heads = {heads}")
        self.types = {"atoms": atom_types, "charges": charge_types, "bonds": bond_types}
        self.embed_condition = ConditionEmbedding(width, conditions)
        # One modulation for all layers plus an offset for each (adaLN-single): a third of the parameters of adaLN.
        self.modulation = _linear(width, 6 * width, zero=True)
        self.embed_atoms = nn.Linear(2 * (atom_types + charge_types) + self.atom_geometry, width)
        self.embed_pairs = PairEmbedding(bond_types, pairs, self.pair_geometry)
        self.atom_blocks = nn.ModuleList(AtomBlock(width, pairs, heads, channels) for _ in range(layers))
        # Pairs cost n^2: they are refined after every second layer, and after the last.
        self.pair_blocks = nn.ModuleList(PairBlock(width, pairs, channels) for _ in range((layers + 1) // 2))
        self.norm_out = nn.LayerNorm(width)
        self.atoms_out = _linear(width, atom_types + charge_types, zero=True)
        self.bonds_out = nn.Sequential(
            nn.LayerNorm(pairs), nn.Linear(pairs, pairs), nn.SiLU(), _linear(pairs, bond_types, zero=True)
        )

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
        """x {positions (B,N,3), atoms (B,N,K), charges (B,N,C), bonds (B,N,N,4)}, cond["mask"] (B,N)."""
        if cond is None or "mask" not in cond:
            raise ValueError('a molecule network needs cond["mask"], boolean (batch, atoms)')
        positions = x["positions"]
        mask = cond["mask"].to(positions.device)
        t_atoms, t_bonds = (
            self._times(pick(t, part), x[part], dims) for part, dims in (("positions", 2), ("bonds", 3))
        )
        present = mask[..., None].to(positions.dtype)
        previous = previous if previous is not None else x.apply(torch.zeros_like)
        place, first = (_centred(p["positions"], present) for p in (x, previous))

        c = self.embed_condition(t_atoms, mask, cond)
        v, harmonics = self.steerables(place, first)
        atom_places, pair_places = self.geometry(place, first)
        s = self.embed_atoms(
            torch.cat([x["atoms"], x["charges"], previous["atoms"], previous["charges"], *atom_places], -1)
        )
        s = s + c
        clock = t_bonds.reshape(-1, 1, 1) if t_bonds.ndim == 1 else t_bonds
        e = self.embed_pairs(x["bonds"], previous["bonds"], place, first, clock, pair_places)
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
                "positions": _centred(self.positions_out(s, v), present).to(positions.dtype),
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


def _centred(x: Tensor, present: Tensor) -> Tensor:
    """Coordinates with the mean of the real atoms taken out, zero on padding, in the dtype of x."""
    mean = (x * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    return (x - mean) * present


@NETWORKS.register("equivariant")
class EquivariantNetwork(MoleculeNetwork):
    """E(3)-equivariant: outputs turn with the input; translations, permutations and padding change nothing.

    Args:
        atom_types, charge_types, bond_types: classes of each categorical part.
        conditions: length of each named condition vector.
        irreps: steerable features of an atom in e3nn's notation, e.g. ``"32x1o + 16x2e"``; parities are those of
            spherical harmonics.
        width, pairs, layers, heads: sizes.
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
    ) -> None:
        o3 = require("e3nn.o3", "molecules")
        self_irreps = o3.Irreps(irreps)
        channels = {ir.l: count for count, ir in self_irreps}
        if any(ir.p != (-1) ** ir.l or ir.l == 0 for _, ir in self_irreps) or 1 not in channels:
            raise ValueError(f"irreps {irreps!r} must hold 1o and only degrees >= 1 of natural parity (1o, 2e, 3o ...)")
        super().__init__(atom_types, charge_types, bond_types, conditions or {}, width, pairs, layers, heads, channels)
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
    ) -> None:
        super().__init__(atom_types, charge_types, bond_types, conditions or {}, width, pairs, layers, heads, {})
        self.positions_head = _linear(width, 3, zero=True)

    def steerables(self, x: Tensor, x0: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        return {}, {}

    def geometry(self, x: Tensor, x0: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [x, x0], [x[:, :, None] - x[:, None, :], x0[:, :, None] - x0[:, None, :]]

    def positions_out(self, s: Tensor, v: dict[int, Tensor]) -> Tensor:
        return self.positions_head(self.norm_out(s))
