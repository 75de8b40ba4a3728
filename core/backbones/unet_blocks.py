"""What a U-Net is made of, in 1, 2 or 3 dimensions: features are (batch, width, *grid).

``real``, boolean (batch or 1, 1, *grid), says which elements are no padding (None: all are real). What a layer leaves
at padding is never looked at: norms and attention leave it out, and every convolution that is wider than one element
sees zeros there, which is what it sees beyond the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, forward_mode, layer_norm
from .positions import Rotary

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolution(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] | None = None) -> nn.Module:
    """A convolution along ``len(kernel)`` axes of (batch, inputs, *grid), of an odd kernel; of n elements it makes
    ceil(n / stride).

    Raises:
        ValueError: more than three axes, or an even kernel.
    """
    if not 1 <= len(kernel) <= len(_CONVOLUTIONS):
        raise ValueError(f"convolutions run along 1 to 3 axes, not {len(kernel)}")
    if not all(size % 2 for size in kernel):
        raise ValueError(f"a kernel has a middle: its size is odd along each axis, got {list(kernel)}")
    own: Any = _CONVOLUTIONS[len(kernel) - 1]
    return own(inputs, outputs, tuple(kernel), tuple(stride or [1] * len(kernel)), [size // 2 for size in kernel])


def only(real: Tensor | None, x: Tensor) -> Tensor:
    """``x``, zero at padding."""
    return x if real is None else torch.where(real, x, 0)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018) over the real elements: each group of channels of a sample gets zero mean
    and unit variance. There are as many groups as divide the width, up to 32 and with 4 channels or more each.

    Args:
        width: channels.
        affine: a learned gain and bias for each channel.
    """

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__()
        self.groups = next(n for n in range(min(32, max(width // 4, 1)), 0, -1) if width % n == 0)
        self.norm_gain = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        if real is None and not forward_mode(x):  # of the fused one there is none, of all memory formats
            return F.group_norm(x, self.groups, self.norm_gain, self.bias, eps=1e-5)
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.groups, -1))
        own = torch.ones_like(wide[:1, :1, :1], dtype=torch.bool) if real is None else real.unsqueeze(1)
        dims = tuple(range(2, wide.ndim))
        count = (own.sum(dims, keepdim=True) * wide.shape[2]).clamp(min=1)
        centred = only(own, wide - only(own, wide).sum(dims, keepdim=True) / count)
        variance = centred.square().sum(dims, keepdim=True) / count
        out = (centred * torch.rsqrt(variance + 1e-5)).flatten(1, 2)
        if self.norm_gain is not None and self.bias is not None:
            gain, bias = (each.view(-1, *[1] * (x.ndim - 2)) for each in (self.norm_gain, self.bias))
            out = out * gain + bias
        return out.to(x.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions behind norms, the second scaled and shifted by what modulates (Dhariwal and Nichol 2021); on
    request self-attention, and cross-attention to a context. Residuals start at zero; each sum is scaled by sqrt(1/2),
    so that two terms of unit variance make one of unit variance (Karras et al. 2022).

    Args:
        width: channels in and out.
        embedding: width of what modulates, and of the context.
        kernel: elements of a convolution along each axis.
        heads: of attention; None: there is none.
        cross: attend to a context too.
    """

    def __init__(self, width: int, embedding: int, kernel: Sequence[int], heads: int | None, cross: bool) -> None:
        super().__init__()
        self.norm1, self.convolution1 = GroupNorm(width), convolution(width, width, kernel)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.norm2, self.convolution2 = GroupNorm(width, affine=False), convolution(width, width, kernel)
        self.attention = self.cross_attention = None
        if heads is not None:
            self.attention_norm, self.attention = GroupNorm(width), Attention(width, heads)
            self.cross_attention = Attention(width, heads, embedding) if cross else None

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        real: Tensor | None = None,
        rotary: Rotary | None = None,
        context: Tensor | None = None,
        context_keys: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: (batch, width, *grid).
            c: what modulates, (batch or 1, *axes, embedding), axes of size 1 where it does not vary.
            real: see above.
            rotary: of the elements, in the order of the grid.
            context: (batch, length, embedding).
            context_keys: which of the context are given; broadcasts to (batch, heads, queries, length).
        """
        shift, scale = self.modulation(c).movedim(-1, 1).chunk(2, dim=1)
        h = self.convolution1(only(real, F.silu(self.norm1(x, real))))
        h = torch.addcmul(shift, self.norm2(h, real), 1 + scale)
        x = (x + self.convolution2(only(real, F.silu(h)))) * math.sqrt(0.5)
        if self.attention is None:
            return x
        keys = None if real is None else real.flatten(1)[:, None, None]
        tokens = self.attention_norm(x, real).flatten(2).transpose(1, 2)
        x = (x + self._placed(self.attention(tokens, mask=keys, rotary=rotary), x)) * math.sqrt(0.5)
        if self.cross_attention is None:
            return x
        tokens = layer_norm(x.flatten(2).transpose(1, 2))
        return (x + self._placed(self.cross_attention(tokens, context, mask=context_keys), x)) * math.sqrt(0.5)

    @staticmethod
    def _placed(tokens: Tensor, x: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(x.shape)


class Down(nn.Module):
    """To the next, coarser level: ceil(n / stride) of n elements along each axis."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, [2 * n - 1 for n in stride], stride)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        return self.convolution(only(real, x))


class Up(nn.Module):
    """To the next, finer level: every element repeated, cropped to the finer grid, and smoothed."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = [float(n) for n in stride]
        self.convolution = convolution(inputs, outputs, [2 * n - 1 for n in stride])

    def forward(self, x: Tensor, grid: Sequence[int], real: Tensor | None = None) -> Tensor:
        """``grid`` and ``real`` are those of the finer level."""
        x = F.interpolate(x, scale_factor=self.stride, mode="nearest")
        return self.convolution(only(real, x[(..., *(slice(size) for size in grid))]))


class Level(nn.Module):
    """A level above the coarsest: blocks on the way down, and as many on the way up, each joined by a skip.

    Args:
        finer, coarser: its width and that of the next level.
        stride: how much coarser the next level is, along each axis.
        before, after: its blocks.
    """

    def __init__(
        self, finer: int, coarser: int, stride: Sequence[int], before: nn.ModuleList, after: nn.ModuleList
    ) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.down, self.up = Down(finer, coarser, stride), Up(coarser, finer, stride)
        self.joins = nn.ModuleList(convolution(2 * finer, finer, [1] * len(stride)) for _ in after)
