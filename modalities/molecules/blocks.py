"""What molecule networks are made of: embeddings, attention over atoms, updates of pairs.

Shapes: B batch, N atoms, D width, P pair channels, H heads, M = 2l + 1 components and C channels of a
steerable feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noiseloom.core.conditioning import given
from noiseloom.core.samples import Cond


def linear(inputs: int, outputs: int, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def waves(values: Tensor, count: int, low: float, high: float) -> Tensor:
    """``count`` Gaussian bumps of width one spacing over [low, high]: (...,) -> (..., count), float32."""
    centres = torch.linspace(low, high, count, device=values.device, dtype=torch.float32)
    return torch.exp(-(((values.float()[..., None] - centres) * ((count - 1) / (high - low))) ** 2) / 2)


def cosines(t: Tensor, count: int) -> Tensor:
    """Fourier features of a time in [0, 1] on frequencies 2^k pi / 2, k from 0 to 7: (...,) -> (..., count)."""
    frequencies = torch.pi / 2 * 2 ** torch.linspace(0, 7, count // 2, device=t.device, dtype=torch.float32)
    angle = t.float()[..., None] * frequencies
    return torch.cat([torch.cos(angle), torch.sin(angle)], -1)


def squared_distances(x: Tensor) -> Tensor:
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
        self.time = mlp(64, width, width)
        self.size = nn.Linear(16, width)
        self.values = nn.ModuleDict({name: mlp(2 * count, width, width) for name, count in conditions.items()})

    def forward(self, t: Tensor, mask: Tensor, cond: Cond) -> Tensor:
        """t (B,) or (B, N) -> (B, 1 or N, width)."""
        t = t.reshape(-1, 1) if t.ndim == 1 else t
        atoms = mask.sum(1, keepdim=True)
        out = self.time(cosines(t, 64)) + self.size(waves(torch.log(atoms.float()), 16, 0.5, 5.0))
        for name, embed in self.values.items():
            if name in cond:
                value = cond[name].to(out.device)
                known = given(value)
                filled = torch.where(known, value, torch.zeros_like(value)).float()
                # "nothing given" must add exactly nothing, whatever the embedding's biases are
                present = known.any(-1, keepdim=True).float()
                out = out + (embed(torch.cat([filled, known.float()], -1)) * present)[:, None]
        return out


class Duration(nn.Module):
    """How far a step goes, for atoms and for pairs; it says nothing at first, so that a network of one time becomes one
    of two with the same outputs."""

    def __init__(self, width: int, pairs: int) -> None:
        super().__init__()
        self.atoms = nn.Sequential(nn.Linear(64, width), nn.SiLU(), linear(width, width, zero=True))
        self.pairs = nn.Linear(64, pairs, bias=False)
        nn.init.zeros_(self.pairs.weight)

    def forward(self, t_atoms: Tensor, t_pairs: Tensor, target: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """t (B, 1 or N) and (B, 1 or N, 1 or N), target () or (B,), None: t itself -> (B, 1 or N, width) and
        (B, 1 or N, 1 or N, pairs)."""

        if isinstance(target, Tensor) and target.ndim > 1:
            raise ValueError(f"a molecule is told one time that a step is to reach, not {tuple(target.shape)}")

        def far(t: Tensor) -> Tensor:
            if target is None:
                return cosines(torch.zeros_like(t), 64)
            end = torch.as_tensor(target, dtype=t.dtype, device=t.device).reshape(-1, *[1] * (t.ndim - 1))
            return cosines((t - end).clamp(min=0), 64)

        return self.atoms(far(t_atoms)), self.pairs(far(t_pairs))


class PairEmbedding(nn.Module):
    """The first features of ordered pairs: both bonds, both distances, the pair's time, coordinates if they count."""

    bumps = 16  # Gaussian features of a distance

    def __init__(self, bond_types: int, pairs: int, geometry: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * (bond_types + self.bumps) + geometry, 2 * pairs)
        self.clock = nn.Linear(64, 2 * pairs, bias=False)
        self.contract = nn.Linear(2 * pairs, pairs)
        self.norm = nn.LayerNorm(pairs)

    def forward(
        self,
        bonds: Tensor,
        bonds0: Tensor,
        x: Tensor,
        x0: Tensor,
        t: Tensor,
        places: list[Tensor],
        late: Tensor | None = None,
    ) -> Tensor:
        """bonds (B,N,N,4), x (B,N,3), each with its previous estimate; t (B,1,1) or (B,N,N); ``late``, what
        ``Duration`` says of the pairs, of the shape of t and 2P -> (B,N,N,P)."""
        near = [waves(torch.sqrt(squared_distances(p) + 1e-8), self.bumps, 0.0, 5.0).to(bonds.dtype) for p in (x, x0)]
        hidden = self.expand(torch.cat([bonds, bonds0, *near, *places], -1)) + self.clock(cosines(t, 64))
        hidden = hidden if late is None else hidden + late
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

        real = torch.exp(bias[:, 0])[..., None]  # (B,1,N,1): 1 for atoms, 0 for padding
        real = (real * torch.rsqrt(real.sum(2, keepdim=True))).to(s.dtype)
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
