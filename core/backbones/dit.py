"""A diffusion transformer (DiT, Peebles and Xie 2023) for grids of any number of axes: sound, images, video.

The sample ``(batch, channels, *grid)``, or ``(batch, *grid, channels)``, is cut into patches. Tokens attend to each
other with rotary positions in physical units; time and the conditions of the whole sample act through adaLN-zero; a
context sequence acts through cross-attention, or as tokens in front of the others. At initialisation the output is 0.

Tokens that share a time form a group, ``(batch, groups, tokens of a group, width)``: one group where time is per
sample, one per frame where it is per frame. Modulation is computed once per group.

Frames of a causal network see earlier ones only. Their keys and values are a condition, ``past``, that ``remember``
makes: the network itself keeps nothing. ``core.streaming`` samples that way.

The blocks are alike: ``core.devices.compile_network`` compiles one for all, in a fraction of the time that
``torch.compile(net)`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import Block, perturbed_rows, visible
from .gridded import Gridded
from .layers import modulate
from .positions import Rotary, grid_positions, rotary, sincos

ATTENTION = {"full": ("all",), "factorised": ("space", "time")}  # what the tokens of a sequence run over, in turn
POSITIONS = ("rotary", "sincos")
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # width, depth, heads


class DiT(Gridded):
    """``forward(x, t, cond, previous)``: (batch, channels, *grid) to the same shape and dtype, but for
    ``output_channels``.

    ``t`` in [0, 1] is one number, (batch,), (batch, frames) or otherwise left-aligned with the grid, or of the sample's
    rank, such as (batch, 1, *grid); a token has the highest time of its elements. Conditions, all optional, others are
    ignored; "not given" is a missing key, -1 for a label, NaN for a number, a NaN vector in the context:

        mask        real elements, boolean, aligned as ``t``
        <label>     class, (batch,), or k of them, (batch, k), by each name in ``labels``
        <scalar>    each number named in ``scalars``, (batch,), standardised
        <vector>    each vector named in ``vectors``, (batch, its dim)
        context     a sequence (batch, length, context_dim), with context_mask (batch, length)
        past        keys and values of earlier frames, see ``remember``; ``x`` and all else are of the frames after them
        perturbed   blocks that are weakened, (batch, depth) on the CPU, see ``core.guidance.blocks``
        spacing     distance between neighbouring elements along each axis, (batch, axes)
        <map>       each tensor on the sample's grid named in ``concat``, of the sample's layout with its own channels;
                    one with a NaN at a real element is not given for that sample: zeros

    Padding has no effect on real elements and is zero in the output. Patches need not divide the grid.

    Args:
        channels: channels of the sample.
        patch: elements of a patch along each axis; its length is the number of axes.
        channels_last: the sample is (batch, *grid, channels).
        size: width, depth and heads by the DiT paper's name: S, B, L or XL. Each may also be given.
        mlp_ratio: hidden width over width of a plain MLP with as many parameters as the gated one.
        attention: ``full``, or ``factorised`` (Latte, Ma et al. 2024, variant 1): blocks in turn of attention within a
            frame and of each place over all frames. The first axis is then time.
        causal: a frame (of the first axis) sees itself and earlier ones only, and need not be computed again for later
            ones: see ``remember``.
        labels: number of classes of each label by its name; a number alone is that of ``label``.
        scalars: names of the numbers that it is conditioned on.
        vectors: dimension of each vector that it is conditioned on, by its name: embeddings of texts or references.
        concat: channels of each tensor on the sample's grid that is put behind the channels of the sample, by its
            name: known pixels and which are known, a frame to start from, a layout.
        context_dim: width of the context sequence.
        in_context: put the context in front of the tokens instead of cross-attending to it. Its tokens have no
            positions, and the highest time of the sample.
        self_condition: take ``previous``, the last estimate of x0 (zeros where None), as further channels.
        element_times: take the time of each element as further channels, as they are where any part of a token may be
            known; tokens are then modulated by the highest time of the sample, not by their own.
        two_times: take ``cond["target"]``, the time that a step from ``t`` is to reach (``Conditioned``): a flow map.
        spacing: distance between neighbouring elements, e.g. (seconds, pixels, pixels), where a sample gives none.
        edges: axes along which a token is told how far it is between the two ends of the grid: rotary positions say how
            far tokens are from each other, not where a wall is. Not for an axis with padding.
        skip: the name of a map of ``concat``, with the sample's channels, that is added to the output: a guess of x0 of
            which the network says the correction. For ``prediction=x0``.
        wavelengths: the shortest and longest rotary wavelength of each axis in units of ``spacing``; by default 6 and
            6000 patches.
        positions: ``rotary``, or ``sincos``: features of absolute positions, counted in patches, added to the tokens.
        timesteps: tell times as DDPM's timesteps of so many levels (``TimeEmbedding``).
        gated: SwiGLU instead of an MLP with GELU.
        qk_norm: normalise queries and keys (``Attention``).
        bias: whether the linear layers of attention and MLP have biases.
        output_channels: channels of the output, by default the sample's: twice as many for a learned variance.
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
        attention: str = "full",
        causal: bool = False,
        labels: int | Mapping[str, int] | None = None,
        scalars: Sequence[str] = (),
        vectors: Mapping[str, int] | None = None,
        concat: Mapping[str, int] | None = None,
        context_dim: int | None = None,
        in_context: bool = False,
        self_condition: bool = False,
        element_times: bool = False,
        two_times: bool = False,
        edges: Sequence[int] = (),
        skip: str | None = None,
        spacing: Sequence[float] | None = None,
        wavelengths: Sequence[tuple[float, float]] | None = None,
        positions: str = "rotary",
        timesteps: int | None = None,
        gated: bool = True,
        qk_norm: bool = True,
        bias: bool = False,
        output_channels: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}. Choices: {', '.join(SIZES)}")
        if attention not in ATTENTION:
            raise ValueError(f"unknown attention {attention!r}. Choices: {', '.join(ATTENTION)}")
        width, depth, heads = width or SIZES[size][0], depth or SIZES[size][1], heads or SIZES[size][2]
        self.heads, self.in_context, self.checkpointing = heads, in_context, checkpointing
        self.factorised, self.causal = attention == "factorised", causal
        if self.factorised and len(patch) < 2:
            raise ValueError("factorised attention needs an axis of time and others")
        if in_context and (self.factorised or causal):
            raise ValueError("a context in front of the tokens needs full attention that is not causal")
        if causal and 0 in edges:
            raise ValueError("a causal network does not know where the first axis ends: leave 0 out of edges")
        if positions not in POSITIONS:
            raise ValueError(f"unknown positions {positions!r}. Choices: {', '.join(POSITIONS)}")
        if causal and positions != "rotary":
            raise ValueError("a causal network, whose past may be cut, needs rotary positions")
        self.absolute = positions == "sincos"

        own = (channels, patch, channels_last, spacing, wavelengths)
        self.embed_grid(width, *own, concat, self_condition, element_times, edges, skip)
        self.embed_conditions(width, labels, scalars, vectors, two_times, timesteps)
        self.embed_context(width, context_dim)
        cross = context_dim is not None and not in_context
        self.kinds, hidden = ATTENTION[attention], round(mlp_ratio * width)
        kinds = [self.kinds[i % len(self.kinds)] for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, hidden, cross, kind, bias, qk_norm, gated) for kind in kinds)
        self.layers = depth - kinds.count("space")  # those that see other frames
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, self.token_numbers // channels * (output_channels or channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform layers, small embeddings, and zeros wherever a residual or the output begins."""
        for name, parameter in self.named_parameters():
            starts_at_zero = "modulation" in name or name == "output.weight"
            if starts_at_zero or name.endswith(("bias", "cross_attention.output.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("_gain"):
                nn.init.ones_(parameter)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.init_conditions()

    def regions(self) -> list[nn.Module]:
        """The blocks: one piece of code (two where they are factorised), so that one of them is compiled for all."""
        return list(self.blocks)

    def forward(
        self, x: Tensor, t: float | Tensor, cond: Mapping[str, Any] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        return self._run(x, t, cond or {}, previous, None)

    def remember(self, x: Tensor, cond: Mapping[str, Any] | None = None, previous: Tensor | None = None) -> Tensor:
        """The key-value cache by which later frames see the clean frames ``x`` and those of ``cond["past"]`` before.

        Returns:
            what ``cond["past"]`` takes: keys and values, (batch, frames, layers, 2, places, width). Frames may be cut
            off its front: positions are relative.
        """
        cond = cond or {}
        memory: list[Tensor] = []
        self._run(x, 0.0, cond, previous, memory)
        new, past = torch.stack(memory, dim=2), cond.get("past")
        return new if past is None else torch.cat((past.to(new.dtype), new), dim=1)

    def _run(
        self,
        x: Tensor,
        t: float | Tensor,
        cond: Mapping[str, Any],
        previous: Tensor | None,
        memory: list[Tensor] | None,
    ) -> Tensor:
        """The output; the keys and values of each layer that sees other frames are added to ``memory``."""
        if not self.causal and (memory is not None or cond.get("past") is not None):
            raise ValueError("only a causal network has a past: frames of another one change with those after them")
        x, mask, t, tokens = self.read(x, t, cond, previous)
        batch, counts = x.shape[0], self.patches.counts(x.shape[2:])
        if self.absolute:
            places = grid_positions(counts, [1.0] * len(counts), x.device)
            tokens = tokens + sincos(places, self.width).to(tokens.dtype)
        keys = None
        if mask is not None:
            keys = self.patches.highest(mask, x.shape[2:]).expand(batch, *counts).flatten(1)
        times = self._times(t, mask, x, self.patches).flatten(1)
        past = cond.get("past")
        frames = (0 if past is None else past.shape[1], counts[0], math.prod(counts[1:]))
        if past is not None and past.shape != (fits := (batch, frames[0], self.layers, 2, frames[2], self.width)):
            raise ValueError(f"past of shape {tuple(past.shape)} does not fit {fits}")

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
                context = context_keys = None
            else:
                context_keys = context_keys[:, None, None]  # against (batch, heads, queries, keys)

        c = F.silu(self.condition(times, cond, batch)).unsqueeze(2)
        groups = times.shape[1]
        if self.factorised:  # groups are frames: where times differ within a frame, its tokens are modulated each
            if groups > counts[0]:
                c = c.flatten(1, 2).repeat_interleave(tokens.shape[1] // groups, dim=1).unflatten(1, frames[1:])
            groups = counts[0]
        h = tokens.unflatten(1, (groups, tokens.shape[1] // groups)).clone()  # a compiler tells a view from the rest
        sights = {}
        for kind in self.kinds:
            tables = None if self.absolute else self._rotary(kind, counts, frames[0], front, cond, tokens)
            sights[kind] = (tables, visible(keys, frames, kind, self.causal, x.device))
        layers = iter(() if past is None else past.unbind(2))
        changes = perturbed_rows(cond.get("perturbed"), batch, len(self.blocks), x.device)
        arguments = [
            (c, *sights[axes], context, context_keys, None if axes == "space" else next(layers, None), change)
            for axes, change in zip([block.axes for block in self.blocks], changes, strict=True)
        ]
        if memory is None:
            h = self.run_blocks(h, arguments, keys)
        else:
            for block, own in zip(self.blocks, arguments, strict=True):
                if block.axes != "space":
                    memory.append(block.remember(h, c, counts[0]))  # type: ignore[operator]
                h = block(h, *own)

        shift, scale = self.modulation(c).chunk(2, dim=-1)
        out = self.output(modulate(h, shift, scale).flatten(1, 2)[:, front:])
        return self.write(out, x, mask, cond)

    def run_blocks(self, h: Tensor, arguments: Sequence[tuple], real: Tensor | None = None, start: int = 0) -> Tensor:
        """The tokens ``h`` after as many blocks as there are ``arguments``, from block ``start`` on. ``core.caching``
        puts itself in its place; ``real``, which tokens are no padding, (batch, tokens), is for it."""
        for block, own in zip(list(self.blocks)[start:], arguments, strict=False):
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, *own, use_reentrant=False)
            else:
                h = block(h, *own)
        return h

    def _rotary(
        self, axes: str, counts: Sequence[int], before: int, front: int, cond: Mapping[str, Any], tokens: Tensor
    ) -> Rotary:
        """For the tokens of a sequence, those of earlier frames first, or those of the context, which lie at 0."""
        own = {"all": slice(None), "space": slice(1, None), "time": slice(1)}[axes]
        steps = self._steps(cond, self.patch, own)
        positions = grid_positions([before + counts[0], *counts[1:]][own], steps, tokens.device)
        tables = rotary(F.pad(positions, (0, 0, front, 0)), self.width // self.heads, self.wavelengths[own])
        if axes != "all" and positions.ndim > 2:  # a spacing for each sample, which has several sequences
            sequences = tokens.shape[1] // math.prod(counts[own])
            tables = (tables[0].repeat_interleave(sequences, 0), tables[1].repeat_interleave(sequences, 0))
        return tables[0].to(tokens.dtype), tables[1].to(tokens.dtype)
