"""The small layers that networks share: embeddings of times, labels and scalars, modulation, attention, MLP.

Tokens are ``(batch, tokens, width)``. Every layer works in float32, float64 and bfloat16 and under autocast, has no
data-dependent control flow, and therefore compiles into one graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from .positions import Rotary, rotate


def fourier_features(values: Tensor, dim: int, low: float, high: float) -> Tensor:
    """``[cos(w v), sin(w v)]`` at ``dim / 2`` angular frequencies, geometric from ``low`` to ``high``: ``(..., dim)``.

    Computed in the precision of ``values``, at least float32: a time in bfloat16 would be off by 0.4 %.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    powers = torch.arange(dim // 2, dtype=values.dtype, device=values.device) / max(dim // 2 - 1, 1)
    angles = values.unsqueeze(-1) * (low * torch.exp(powers * math.log(high / low)))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def layer_norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """LayerNorm over the last dimension, without a bias.

    It serves as QK-norm too: on CPUs it takes a third of the time of ``F.rms_norm``, forward and backward. Spelled out
    it takes a third of the time of ``F.layer_norm`` in turn where a compiler fuses it, and twice the time elsewhere.
    """
    if not torch.compiler.is_compiling():
        return F.layer_norm(x, x.shape[-1:], gain, eps=1e-6)
    centred = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = centred - centred.mean(-1, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return (out if gain is None else out * gain).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive LayerNorm (Peebles and Xie 2023): ``layer_norm(x) (1 + scale) + shift``."""
    return torch.addcmul(shift, layer_norm(x), 1 + scale)


def module_key(name: str) -> str:
    """What a module of that name is stored as: any name is allowed, also those of a module's own attributes."""
    key = name.replace(".", ":")
    return f"{key}_" if not key or hasattr(nn.ModuleDict(), key) else key


def forward_mode(*inputs: Tensor) -> bool:
    """Whether a forward-mode derivative is taken along any of them."""
    return not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in inputs)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (batch, heads, tokens, dim) each, ``mask`` boolean.

    Of few keys, its backward pass on CPUs takes two to four times as long in bfloat16 as in float32. The fused kernels
    have no forward-mode derivative: where one is taken, it is spelled out.
    """
    if forward_mode(q, k, v):
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, -1) @ v
    few = k.shape[-2] < 256 and k.device.type == "cpu" and torch.is_grad_enabled()
    if not few or v.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(v.dtype)


class TimeEmbedding(nn.Module):
    """Times in [0, 1] of any shape to vectors ``(*shape, width)``. With ``timesteps`` T they are told as those of DDPM,
    ``T t - 1``, at frequencies from 1 to 1 / 10000 (Ho et al. 2020)."""

    def __init__(self, width: int, features: int = 256, timesteps: int | None = None) -> None:
        super().__init__()
        self.features, self.timesteps = features, timesteps
        self.input = nn.Linear(features, width)
        self.output = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        if self.timesteps is None:
            features = fourier_features(t, self.features, 1.0, 1000.0)
        else:
            features = fourier_features(t * self.timesteps - 1, self.features, 1.0, 1e-4)
        return self.output(F.silu(self.input(features.to(self.input.weight.dtype))))


class LabelEmbedding(nn.Module):
    """Class labels, -1 = not given, to vectors ``(batch, width)``. Several labels a sample, ``(batch, k)``, are
    averaged; "not given" is a learned vector."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.labels = labels
        self.table = nn.Embedding(labels + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        rows = torch.where(label < 0, self.labels, label)
        return self.table(rows.reshape(rows.shape[0], -1)).mean(1)


class ScalarEmbedding(nn.Module):
    """Named numbers of a sample, NaN or absent = not given, to vectors ``(batch, width)``.

    Values should be standardised (about unit variance); each missing one is a learned vector of features.
    """

    def __init__(self, names: Sequence[str], width: int, features: int = 64) -> None:
        super().__init__()
        self.names, self.features = tuple(names), features
        self.null = nn.Parameter(torch.empty(len(self.names), features))
        self.input = nn.Linear(len(self.names) * features, width)
        self.output = nn.Linear(width, width)

    def forward(self, cond: Mapping[str, Tensor], batch: int) -> Tensor:
        weight = self.input.weight
        absent = torch.full((batch,), math.nan, device=weight.device)
        values = torch.stack([cond.get(name, absent).reshape(batch) for name in self.names], dim=1)
        missing = values.isnan().unsqueeze(-1)
        features = fourier_features(values.nan_to_num(0.0), self.features, 0.1, 10.0).to(weight.dtype)
        features = torch.where(missing, self.null, features)
        return self.output(F.silu(self.input(features.flatten(1))))


class VectorEmbedding(nn.Module):
    """A vector of a sample, ``(batch, dim)``, to ``(batch, width)``; one with a NaN is not given: a learned vector."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.null = nn.Parameter(torch.empty(width))
        self.input = nn.Linear(dim, width)
        self.output = nn.Linear(width, width)

    def forward(self, vector: Tensor) -> Tensor:
        missing = vector.isnan().any(-1, keepdim=True)
        hidden = self.input(layer_norm(torch.where(missing, 0, vector)).to(self.input.weight.dtype))
        return self.output(F.silu(torch.where(missing, self.null, hidden)))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): ``output(silu(gate(x)) input(x))``. ``hidden`` is the width that a plain MLP of as many
    parameters has; here two thirds of it, rounded to a multiple of 8. Not ``gated`` it is plain, with GELU."""

    def __init__(self, width: int, hidden: int, gated: bool = True, bias: bool = False) -> None:
        super().__init__()
        hidden = 8 * max(round(hidden / 12), 1) if gated else hidden
        self.gate = nn.Linear(width, hidden, bias=bias) if gated else None
        self.input = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.output(F.gelu(self.input(x), approximate="tanh"))
        return self.output(F.silu(self.gate(x)) * self.input(x))


class Attention(nn.Module):
    """Attention of ``x`` to ``context``, to itself without one; queries and keys are normalised within each head with a
    learned gain (QK-norm, Dehghani et al. 2023), so that scores stay bounded, unless ``qk_norm`` is off.

    ``context_width`` is that of the context where it is another one. ``mask`` is boolean, broadcasts to
    ``(batch, heads, queries, keys)``, True where a key may be seen. ``rotary`` turns queries and keys alike, so it is
    for self-attention. ``past`` is what ``remember`` gave for earlier tokens, ``(batch, 2, earlier, width)``: they are
    seen too, and ``rotary`` and the keys of ``mask`` begin with them. Three projections rather than one fused: on CPUs
    as fast or faster, and what low-rank adapters expect.
    """

    def __init__(
        self, width: int, heads: int, context_width: int | None = None, bias: bool = False, qk_norm: bool = True
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        context_width = context_width or width
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(context_width, width, bias=bias)
        self.value = nn.Linear(context_width, width, bias=bias)
        self.query_gain = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.key_gain = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.output = nn.Linear(width, width, bias=bias)

    def remember(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, normalised and not yet turned, and values: (batch, tokens, heads, dim) each."""
        k, v = (y.unflatten(-1, (self.heads, -1)) for y in (self.key(context), self.value(context)))
        return k if self.key_gain is None else layer_norm(k, self.key_gain), v

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rotary: Rotary | None = None,
        past: Tensor | None = None,
    ) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1))
        q = (q if self.query_gain is None else layer_norm(q, self.query_gain)).transpose(1, 2)
        k, v = self.remember(x if context is None else context)
        turn = rotary
        if past is not None:
            before = past.unflatten(-1, (self.heads, -1)).unbind(1)
            k, v = (torch.cat((old.to(new.dtype), new), dim=1) for old, new in zip(before, (k, v), strict=True))
            turn = None if rotary is None else (rotary[0][..., -x.shape[1] :, :], rotary[1][..., -x.shape[1] :, :])
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if rotary is not None and turn is not None:
            q, k = rotate(q, turn), rotate(k, rotary)
        out = attend(q, k, v, mask)
        return self.output(out.transpose(1, 2).flatten(2))
