"""A U-Net (Ronneberger et al. 2015; Ho et al. 2020) for grids of one, two or three axes: sound, images, video.

The sample is cut into patches as for a ``DiT`` (``gridded.py``); a patch of one element is the usual U-Net. Residual
blocks of convolutions refine the tokens at each of several levels, each coarser than the one before: down to the
coarsest, and up again, where every block is given what its counterpart on the way down has made. Time and the
conditions of the whole sample scale and shift the norms; a context sequence acts through cross-attention at the levels
that have attention. Blocks, norms and magnitudes are those of ADM and EDM (Dhariwal and Nichol 2021; Karras et al.
2022), but that a skip joins by a projection in front of its block, so that the blocks of a level are alike and compile
once. At initialisation the output is 0.

Levels are grids of larger patches: those of level l are ``stride ** l`` as long. So masks, times and positions are told
to each level as a DiT of such patches is told them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gridded import Gridded
from .patches import Patches
from .positions import Rotary, grid_positions, rotary
from .unet_blocks import GroupNorm, Level, ResidualBlock, convolution, only


class UNet(Gridded):
    """``forward(x, t, cond, previous)``: (batch, channels, *grid) to the same shape and dtype, but for
    ``output_channels``; called as a ``DiT`` is and with the same conditions, but for ``past`` and ``perturbed``.

    ``t`` is one number, (batch,), (batch, frames) or otherwise left-aligned with the grid, or of the sample's rank; a
    token has the highest time of its elements. ``cond["target"]`` may be so too. Padding has no effect on real elements
    and is zero in the output. The grid need not divide by patches and strides.

    Args:
        channels: channels of the sample.
        patch: elements of a patch along each axis; its length is the number of axes.
        channels_last: the sample is (batch, *grid, channels).
        width: channels of the finest level.
        multipliers: channels of each level over ``width``, the finest first: as many levels.
        depth: residual blocks in all, rounded up to as many at each level down and up.
        heads: attention heads at ``width``; a level of twice the width has twice as many. By default of 64 channels.
        attention_levels: the levels with attention, 0 the finest, -1 the coarsest.
        kernel: elements of a convolution, along all axes or each.
        stride: how much coarser each level is than the one before, along all axes or each; [1, 2, 2] keeps all frames.
        labels, scalars, vectors, concat, context_dim, self_condition, two_times: as of ``DiT``.
        element_times: as of ``DiT``: the time of each element is further channels, and the highest one modulates.
        edges: axes along which a token is told how far it is between the two ends of the grid. Convolutions notice a
            wall that is near by themselves. Not for an axis with padding.
        skip: as of ``DiT``: a map of ``concat`` that is added to the output.
        spacing: distance between neighbouring elements where a sample gives none. Attention measures in it;
            convolutions count elements.
        wavelengths: the shortest and longest rotary wavelength of each axis at the finest level in units of
            ``spacing``, longer by the stride at each further one; by default 6 and 6000 patches.
        output_channels: channels of the output, by default the sample's: twice as many for a learned variance.
    """

    def __init__(
        self,
        channels: int,
        patch: Sequence[int] = (1, 1),
        channels_last: bool = False,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2),
        depth: int = 12,
        heads: int | None = None,
        attention_levels: Sequence[int] = (-1,),
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        labels: int | Mapping[str, int] | None = None,
        scalars: Sequence[str] = (),
        vectors: Mapping[str, int] | None = None,
        concat: Mapping[str, int] | None = None,
        context_dim: int | None = None,
        self_condition: bool = False,
        element_times: bool = False,
        two_times: bool = False,
        edges: Sequence[int] = (),
        skip: str | None = None,
        spacing: Sequence[float] | None = None,
        wavelengths: Sequence[tuple[float, float]] | None = None,
        output_channels: int | None = None,
    ) -> None:
        super().__init__()
        axes, levels = len(patch), len(multipliers)
        kernel, stride = ([one] * axes if isinstance(one, int) else list(one) for one in (kernel, stride))
        if not len(kernel) == len(stride) == axes:
            raise ValueError(f"{axes} axes need as many kernels and strides")
        if wrong := [level for level in attention_levels if not -levels <= level < levels]:
            raise ValueError(f"there is no level {wrong[0]} to attend at: there are {levels}")
        own = (channels, patch, channels_last, spacing, wavelengths)
        self.embed_grid(width, *own, concat, self_condition, element_times, edges, skip)
        embedding = width * max(multipliers)
        self.embed_conditions(embedding, labels, scalars, vectors, two_times)
        self.embed_context(embedding, context_dim)

        self.strides = [[n**level for n in stride] for level in range(levels)]  # of each level over the finest
        self.level_patches = [Patches([n * p for n, p in zip(own, patch, strict=True)]) for own in self.strides]
        self.attends = {level % levels for level in attention_levels}
        self.head_dim = width // (heads or max(width // 64, 1))
        widths, blocks = [width * multiplier for multiplier in multipliers], -(-depth // (2 * levels))

        def blocks_of(level: int, count: int) -> nn.ModuleList:
            own = widths[level] // self.head_dim if level in self.attends else None
            made = (ResidualBlock(widths[level], embedding, kernel, own, context_dim is not None) for _ in range(count))
            return nn.ModuleList(made)

        self.levels = nn.ModuleList(
            Level(finer, coarser, stride, blocks_of(level, blocks), blocks_of(level, blocks))
            for level, (finer, coarser) in enumerate(pairwise(widths))
        )
        self.middle = blocks_of(levels - 1, 2 * blocks)
        self.norm = GroupNorm(width)
        self.output = convolution(width, self.token_numbers // channels * (output_channels or channels), kernel)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform layers, small embeddings, and zeros wherever a residual or the output begins."""
        zeros = ("convolution2.weight", "attention.output.weight", "bias")
        for name, parameter in self.named_parameters():
            if name.endswith(zeros) or name == "output.weight":
                nn.init.zeros_(parameter)
            elif name.endswith("_gain"):
                nn.init.ones_(parameter)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.init_conditions()

    def regions(self) -> list[nn.Module]:
        """The residual blocks: those of a level are one piece of code."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def forward(
        self, x: Tensor, t: float | Tensor, cond: Mapping[str, Any] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        cond = cond or {}
        x, mask, t, tokens = self.read(x, t, cond, previous)
        context = self._context(cond, x.shape[0]) if self.context is not None else None
        counts = [patches.counts(x.shape[2:]) for patches in self.level_patches]
        first = self._modulation(t, mask, x, cond, self.patches)
        alike = first.shape[1:-1].numel() == 1  # one time a sample, at every level
        told: list[tuple] = []
        for level, patches in enumerate(self.level_patches):
            real = None if mask is None else patches.highest(mask, x.shape[2:]).expand(-1, *counts[level]).unsqueeze(1)
            c = first if alike or level == 0 else self._modulation(t, mask, x, cond, patches)
            told.append((c, real, *self._sight(level, counts[level], cond, context, tokens)))

        levels: list[Any] = list(self.levels)
        h, skips = tokens.transpose(1, 2).unflatten(2, counts[0]), []
        # Channels stay last in memory where convolutions can have it so. A compiler tells a view from the rest.
        h = h.contiguous() if h.ndim == 3 else h.clone()
        for part, own in zip(levels, told, strict=False):
            for block in part.before:
                h = block(h, *own)
                skips.append(h)
            h = part.down(h, own[1])
        for block in self.middle:
            h = block(h, *told[-1])
        for part, own, grid in reversed(list(zip(levels, told, counts, strict=False))):
            h = part.up(h, grid, own[1])
            for join, block in zip(part.joins, part.after, strict=True):
                h = block(join(torch.cat((h, skips.pop()), dim=1)), *own)
        real = told[0][1]
        out = self.output(only(real, F.silu(self.norm(h, real))))
        return self.write(out.flatten(2).transpose(1, 2), x, mask, cond)

    def _modulation(
        self, t: Tensor, mask: Tensor | None, x: Tensor, cond: Mapping[str, Any], patches: Patches
    ) -> Tensor:
        """What modulates a level, (batch or 1, *axes, embedding), axes of size 1 where it does not vary."""
        times = self._times(t, mask, x, patches)
        if self.duration is not None and "target" in cond:
            times, target = torch.broadcast_tensors(times, self._times(cond["target"], mask, x, patches))
            cond = {**cond, "target": target.flatten(1)}
        return F.silu(self.condition(times.flatten(1), cond, x.shape[0])).unflatten(1, times.shape[1:])

    def _sight(
        self,
        level: int,
        counts: Sequence[int],
        cond: Mapping[str, Any],
        context: tuple[Tensor, Tensor] | None,
        tokens: Tensor,
    ) -> tuple[Rotary | None, Tensor | None, Tensor | None]:
        """Of a level with attention the rotary tables, the context and which of it is given."""
        if level not in self.attends:
            return None, None, None
        steps = self._steps(cond, self.level_patches[level].patch)
        waves = [(n * a, n * b) for n, (a, b) in zip(self.strides[level], self.wavelengths, strict=True)]
        cos, sin = rotary(grid_positions(counts, steps, tokens.device), self.head_dim, waves)
        turn = cos.to(tokens.dtype), sin.to(tokens.dtype)
        return (turn, None, None) if context is None else (turn, context[0], context[1][:, None, None])
