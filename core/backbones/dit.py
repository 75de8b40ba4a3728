"""A diffusion transformer (DiT, Peebles and Xie 2023) for grids of any number of axes: sound, images, video.

The sample ``(batch, channels, *grid)``, or ``(batch, *grid, channels)``, is cut into patches. Tokens attend to each
other with rotary positions in physical units; time and the conditions of the whole sample act through adaLN-zero; a
context sequence acts through cross-attention, or as tokens in front of the others. At initialisation the output is 0.

Tokens that share a time form a group, ``(batch, groups, tokens of a group, width)``: one group where time is per
sample, one per frame where it is per frame. Modulation is computed once per group.

The blocks are alike: ``core.devices.compile_network`` compiles one for all, in a fraction of the time that
``torch.compile(net)`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import (
    MLP,
    Attention,
    LabelEmbedding,
    ScalarEmbedding,
    TimeEmbedding,
    VectorEmbedding,
    layer_norm,
    modulate,
)
from .positions import Rotary, grid_positions, rotary

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # width, depth, heads


class Block(nn.Module):
    """Self-attention, cross-attention where there is a context, and MLP: residuals that start at zero."""

    def __init__(self, width: int, heads: int, hidden: int, cross: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads) if cross else None
        self.mlp = MLP(width, hidden)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        rotary: Rotary,
        keys: Tensor | None = None,
        context: Tensor | None = None,
        context_keys: Tensor | None = None,
    ) -> Tensor:
        """``x``: (batch, groups, tokens, width); ``c``: (batch, groups, 1, width); keys: (batch, 1, 1, tokens)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        tokens = modulate(x, shift1, scale1).flatten(1, 2)
        x = torch.addcmul(x, gate1, self.attention(tokens, mask=keys, rotary=rotary).view_as(x))
        if self.cross_attention is not None:
            tokens = layer_norm(x).flatten(1, 2)
            x = x + self.cross_attention(tokens, context, mask=context_keys).view_as(x)
        return torch.addcmul(x, gate2, self.mlp(modulate(x, shift2, scale2)))


class DiT(nn.Module):
    """``forward(x, t, cond, previous)``: (batch, channels, *grid) to the same shape and dtype.

    ``t`` in [0, 1] is one number, (batch,), (batch, frames) or otherwise left-aligned with the grid, or of the sample's
    rank, such as (batch, 1, *grid); a token has the highest time of its elements. Conditions, all optional, others are
    ignored; "not given" is a missing key, -1 for a label, NaN for a number, a NaN vector in the context:

        mask        real elements, boolean, aligned as ``t``
        <label>     class, (batch,), or k of them, (batch, k), by each name in ``labels``
        <scalar>    each number named in ``scalars``, (batch,), standardised
        <vector>    each vector named in ``vectors``, (batch, its dim)
        context     a sequence (batch, length, context_dim), with context_mask (batch, length)
        spacing     distance between neighbouring elements along each axis, (batch, axes)

    Padding has no effect on real elements and is zero in the output. Patches need not divide the grid.

    Args:
        channels: channels of the sample.
        patch: elements of a patch along each axis; its length is the number of axes.
        channels_last: the sample is (batch, *grid, channels).
        size: width, depth and heads by the DiT paper's name: S, B, L or XL. Each may also be given.
        mlp_ratio: hidden width over width of a plain MLP with as many parameters as the gated one.
        labels: number of classes of each label by its name; a number alone is that of ``label``.
        scalars: names of the numbers that it is conditioned on.
        vectors: dimension of each vector that it is conditioned on, by its name: embeddings of texts or references.
        context_dim: width of the context sequence.
        in_context: put the context in front of the tokens instead of cross-attending to it. Its tokens have no
            positions, and the highest time of the sample.
        self_condition: take ``previous``, the last estimate of x0 (zeros where None), as further channels.
        element_times: take the time of each element as further channels, as they are where any part of a token may be
            known; tokens are then modulated by the highest time of the sample, not by their own.
        spacing: distance between neighbouring elements, e.g. (seconds, pixels, pixels), where a sample gives none.
        wavelengths: the shortest and longest rotary wavelength of each axis in units of ``spacing``; by default 6 and
            6000 patches.
        checkpointing: recompute the blocks in the backward pass, to save memory.
    """

    def __init__(
        self,
        channels: int,
        patch: Sequence[int] = (2, 2),
        channels_last: bool = False,
        size: str = "S",
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        labels: int | Mapping[str, int] | None = None,
        scalars: Sequence[str] = (),
        vectors: Mapping[str, int] | None = None,
        context_dim: int | None = None,
        in_context: bool = False,
        self_condition: bool = False,
        element_times: bool = False,
        spacing: Sequence[float] | None = None,
        wavelengths: Sequence[tuple[float, float]] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}. Choices: {', '.join(SIZES)}")
        width, depth, heads = width or SIZES[size][0], depth or SIZES[size][1], heads or SIZES[size][2]
        self.channels, self.channels_last, self.heads = channels, channels_last, heads
        self.patch = tuple(patch)
        self.spacing = tuple(spacing) if spacing is not None else (1.0,) * len(self.patch)
        if wavelengths is None:
            wavelengths = [(6 * n * d, 6000 * n * d) for n, d in zip(self.patch, self.spacing, strict=True)]
        self.wavelengths = [(shortest, longest) for shortest, longest in wavelengths]
        if not len(self.patch) == len(self.spacing) == len(self.wavelengths):
            raise ValueError(f"{len(self.patch)} axes need as many spacings and wavelengths")
        self.in_context, self.self_condition, self.checkpointing = in_context, self_condition, checkpointing
        self.element_times = element_times

        elements = math.prod(self.patch)
        self.width, self.token_numbers = width, elements * channels
        self.embed = nn.Linear(elements * channels * (1 + self_condition + element_times), width)
        self.time = TimeEmbedding(width)
        classes = {"label": labels} if isinstance(labels, int) else dict(labels or {})
        self.label_names, self.vector_dims = tuple(classes), dict(vectors or {})
        self.labels = nn.ModuleDict({_key(name): LabelEmbedding(count, width) for name, count in classes.items()})
        self.vectors = nn.ModuleDict({_key(name): VectorEmbedding(dim, width) for name, dim in (vectors or {}).items()})
        self.scalars = ScalarEmbedding(scalars, width) if scalars else None
        self.context = nn.Linear(context_dim, width) if context_dim is not None else None
        if context_dim is not None:
            self.null_context = nn.Parameter(torch.empty(1, 1, width))
        cross = context_dim is not None and not in_context
        self.blocks = nn.ModuleList(Block(width, heads, round(mlp_ratio * width), cross) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, elements * channels)
        self.reset_parameters()

        names = [f"n{i}" for i in range(len(self.patch))], [f"p{i}" for i in range(len(self.patch))]
        tokens, grid = f"b ({' '.join(names[0])}) ({' '.join(names[1])} c)", " ".join(map("({} {})".format, *names))
        self._split, self._join = f"b c {grid} -> {tokens}", f"{tokens} -> b c {grid}"
        self._sizes = dict(zip(names[1], self.patch, strict=True))

    def reset_parameters(self) -> None:
        """Xavier-uniform layers, small embeddings, and zeros wherever a residual or the output begins."""
        for name, parameter in self.named_parameters():
            starts_at_zero = "modulation" in name or name == "output.weight"
            if starts_at_zero or name.endswith(("bias", "cross_attention.output.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("_gain"):
                nn.init.ones_(parameter)
            elif "null" in name or name.startswith(("time.", "labels.")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter)

    def regions(self) -> list[nn.Module]:
        """The blocks: one piece of code, so that one of them is compiled for all."""
        return list(self.blocks)

    def forward(
        self, x: Tensor, t: float | Tensor, cond: Mapping[str, Any] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        axes, at = len(self.patch), -1 if self.channels_last else 1
        if x.ndim != 2 + axes or x.shape[at] != self.channels:
            raise ValueError(f"expected {axes} axes and {self.channels} channels at {at}, got {tuple(x.shape)}")
        x, previous = x.movedim(at, 1), None if previous is None else previous.movedim(at, 1)
        cond = cond or {}
        batch, grid, dtype = x.shape[0], x.shape[2:], x.dtype
        counts = [-(-size // patch) for size, patch in zip(grid, self.patch, strict=True)]
        mask = self._on_grid("mask", cond["mask"], x) if "mask" in cond else None
        keys = None
        if mask is not None:
            keys = self._over_patches(mask, grid).expand(batch, *counts).flatten(1)
        t = torch.as_tensor(t, device=x.device)
        if self.element_times:
            levels = self._levels(t.movedim(at, 1) if t.ndim == x.ndim else t, mask, x)
            times = levels.flatten(1).amax(1, keepdim=True)
            tokens = self.embed(self._tokens(x, mask, previous, levels))
        else:
            times = self._times(t, mask, x, counts)
            tokens = self.embed(self._tokens(x, mask, previous))
        positions = grid_positions(counts, self._steps(cond), x.device)

        context, context_keys, front = None, None, 0
        if self.context is not None:
            context, context_keys = self._context(cond, batch)
            if self.in_context:
                front = context.shape[1]
                if times.shape[1] > 1:  # every token becomes a group of its own
                    times = times.repeat_interleave(tokens.shape[1] // times.shape[1], dim=1)
                    times = torch.cat((times.amax(1, keepdim=True).expand(-1, front), times), dim=1)
                keys = torch.ones_like(tokens[..., 0], dtype=torch.bool) if keys is None else keys
                keys = torch.cat((context_keys, keys), dim=1)
                tokens = torch.cat((context, tokens), dim=1)
                positions = F.pad(positions, (0, 0, front, 0))
                context = context_keys = None

        c = self._condition(times, cond, batch)
        tables = rotary(positions, tokens.shape[-1] // self.heads, self.wavelengths)
        tables = (tables[0].to(tokens.dtype), tables[1].to(tokens.dtype))
        h = tokens.unflatten(1, (times.shape[1], tokens.shape[1] // times.shape[1]))
        for block in self.blocks:
            arguments = (h, c, tables, _broadcast(keys), context, _broadcast(context_keys))
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, *arguments, use_reentrant=False)
            else:
                h = block(*arguments)

        shift, scale = self.modulation(c).chunk(2, dim=-1)
        out = self.output(modulate(h, shift, scale).flatten(1, 2)[:, front:])
        out = rearrange(out, self._join, **self._sizes, **{f"n{i}": n for i, n in enumerate(counts)})
        out = out[(..., *(slice(size) for size in grid))].to(dtype)
        out = out if mask is None else torch.where(mask.unsqueeze(1), out, 0)
        return out.movedim(1, at)

    def _on_grid(self, name: str, values: Tensor, x: Tensor) -> Tensor:
        """Values for a sample or its elements as (batch or 1, *axes), axes of size 1 where they do not vary."""
        full = (x.shape[0], *x.shape[2:])
        given, values = values.shape, values.amax(-1 if self.channels_last else 1) if values.ndim == x.ndim else values
        shape = (values.shape or (1,)) + (1,) * (len(full) - max(values.ndim, 1))
        if len(shape) > len(full) or any(size not in (1, most) for size, most in zip(shape, full, strict=True)):
            raise ValueError(f"{name} of shape {tuple(given)} does not fit {full[0]} samples of {full[1:]} elements")
        return values.reshape(shape)

    def _over_patches(self, values: Tensor, grid: Sequence[int]) -> Tensor:
        """The maximum of (batch, *axes) over each patch; axes of size 1 stay."""
        for axis, patch in enumerate(self.patch, start=1):
            if values.shape[axis] > 1 and patch > 1:
                missing = -grid[axis - 1] % patch
                values = F.pad(values, (0, 0) * (values.ndim - 1 - axis) + (0, missing))
                values = values.unflatten(axis, (-1, patch)).amax(axis + 1)
        return values

    def _times(self, t: float | Tensor, mask: Tensor | None, x: Tensor, counts: Sequence[int]) -> Tensor:
        """One time for each group of tokens, (batch or 1, groups); the time of padding has no effect."""
        t = self._on_grid("t", torch.as_tensor(t, device=x.device), x)
        if mask is not None:
            alike = [axis for axis in range(1, t.ndim) if t.shape[axis] == 1]
            t = torch.where(mask.amax(alike, keepdim=True) if alike else mask, t, 0)
        t = self._over_patches(t, x.shape[2:])
        varying = [axis for axis in range(1, t.ndim) if t.shape[axis] > 1]
        leading = counts[: max(varying, default=0)]
        return t.reshape(t.shape[: 1 + len(leading)]).expand(-1, *leading).reshape(t.shape[0], math.prod(leading))

    def _levels(self, t: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
        """The time of each element, (batch, channels, *grid); 0 at padding."""
        if 0 < t.ndim < x.ndim:  # left-aligned with (batch, *grid)
            t = t.reshape(len(t), 1, *t.shape[1:], *[1] * (x.ndim - 1 - t.ndim))
        levels = t.to(torch.promote_types(x.dtype, torch.float32)).expand_as(x)
        return levels if mask is None else torch.where(mask.unsqueeze(1), levels, 0)

    def _tokens(self, x: Tensor, mask: Tensor | None, previous: Tensor | None, levels: Tensor | None = None) -> Tensor:
        """Patches, (batch, tokens, elements of a patch x channels), zero at padding."""
        if self.self_condition:
            x = torch.cat((x, torch.zeros_like(x) if previous is None else previous.to(x.dtype)), dim=1)
        if levels is not None:
            x = torch.cat((x, levels.to(x.dtype) - 0.5), dim=1)
        if mask is not None:
            x = torch.where(mask.unsqueeze(1), x, 0)
        missing = [-size % patch for size, patch in zip(x.shape[2:], self.patch, strict=True)]
        if any(missing):
            x = F.pad(x, [n for size in reversed(missing) for n in (0, size)])
        return rearrange(x, self._split, **self._sizes).to(self.embed.weight.dtype)

    def _steps(self, cond: Mapping[str, Any]) -> Sequence[float] | Tensor:
        """The distance between neighbouring tokens along each axis."""
        if "spacing" not in cond:
            return [n * distance for n, distance in zip(self.patch, self.spacing, strict=True)]
        spacing = cond["spacing"]
        return torch.where(spacing.isnan(), spacing.new_tensor(self.spacing), spacing) * spacing.new_tensor(self.patch)

    def _condition(self, times: Tensor, cond: Mapping[str, Any], batch: int) -> Tensor:
        """What modulates each group: (batch or 1, groups, 1, width)."""
        c = self.time(times)
        for name, embed in zip(self.label_names, self.labels.values(), strict=True):
            label = cond[name] if name in cond else torch.full((batch,), -1, device=times.device)
            c = c + embed(label).unsqueeze(1)
        for (name, dim), embed in zip(self.vector_dims.items(), self.vectors.values(), strict=True):
            vector = cond[name] if name in cond else torch.full((batch, dim), math.nan)
            c = c + embed(vector.to(times.device)).unsqueeze(1)
        if self.scalars is not None:
            c = c + self.scalars(cond, batch).unsqueeze(1)
        return F.silu(c).unsqueeze(2)

    def _context(self, cond: Mapping[str, Any], batch: int) -> tuple[Tensor, Tensor]:
        """The context as (batch, 1 + length, width), a learned token first, and which of its tokens are given."""
        assert self.context is not None
        tokens = self.null_context.expand(batch, -1, -1)
        given = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        if "context" in cond:
            context = cond["context"]
            present = ~context.isnan().any(-1)
            if "context_mask" in cond:
                present = present & cond["context_mask"]
            context = torch.where(present.unsqueeze(-1), context, 0).to(self.context.weight.dtype)
            context = self.context(layer_norm(context))
            tokens = torch.cat((tokens.to(context.dtype), context), dim=1)
            given = torch.cat((given, present), dim=1)
        return tokens, given


def _key(name: str) -> str:
    """What a module of that name is stored as: any name is allowed, also those of a module's own attributes."""
    key = name.replace(".", ":")
    return f"{key}_" if not key or hasattr(nn.ModuleDict(), key) else key


def _broadcast(keys: Tensor | None) -> Tensor | None:
    """(batch, keys) against (batch, heads, queries, keys)."""
    return None if keys is None else keys[:, None, None]
