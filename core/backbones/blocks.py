"""The block of a diffusion transformer, and who sees whom in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import MLP, Attention, layer_norm, modulate
from .positions import Rotary

AXES = ("all", "space", "time")  # what the tokens of a sequence run over
IDENTITY, SKIPPED = 1, 2  # how a block is perturbed: each token attends to itself alone; there is no block


class Block(nn.Module):
    """Self-attention, cross-attention where there is a context, and MLP: residuals that start at zero.

    Tokens are (batch, groups, tokens of a group, width). Self-attention is among all tokens of a sample, or factorised:
    groups are then frames, and tokens see those of their frame ("space") or of their place in all frames ("time").
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        cross: bool,
        axes: str = "all",
        bias: bool = False,
        qk_norm: bool = True,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.axes = axes
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads, bias=bias, qk_norm=qk_norm)
        self.cross_attention = Attention(width, heads, bias=bias, qk_norm=qk_norm) if cross else None
        self.mlp = MLP(width, hidden, gated, bias)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        rotary: Rotary | None,
        seen: Tensor | None = None,
        context: Tensor | None = None,
        context_keys: Tensor | None = None,
        past: Tensor | None = None,
        perturbed: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: (batch, groups, tokens, width).
            c: what modulates them; broadcasts to ``x``.
            rotary: of the tokens of a sequence, those of ``past`` first; None where positions are added to tokens.
            seen: which keys a query sees; broadcasts to (sequences, heads, queries, keys).
            context: (batch, length, width).
            context_keys: which of the context are given; broadcasts to (batch, heads, queries, length).
            past: keys and values of earlier frames, (batch, frames, 2, places, width).
            perturbed: for which samples it is ``IDENTITY`` or ``SKIPPED``, (batch, 1, 1, 1).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        before, normal = x, modulate(x, shift1, scale1)
        attended = self._attend(normal, rotary, seen, past)
        if perturbed is not None:
            own = self.attention.output(self.attention.value(normal))
            attended = torch.where(perturbed == IDENTITY, own, attended)
        x = torch.addcmul(x, gate1, attended)
        if self.cross_attention is not None:
            tokens = layer_norm(x).flatten(1, 2)
            x = x + self.cross_attention(tokens, context, mask=context_keys).view_as(x)
        x = torch.addcmul(x, gate2, self.mlp(modulate(x, shift2, scale2)))
        return x if perturbed is None else torch.where(perturbed == SKIPPED, before, x)

    def _attend(self, x: Tensor, rotary: Rotary | None, seen: Tensor | None, past: Tensor | None) -> Tensor:
        """Self-attention along the block's axes."""
        if self.axes == "time":
            x = x.transpose(1, 2)
            past = None if past is None else past.permute(0, 3, 2, 1, 4).flatten(0, 1)
        elif past is not None:
            past = past.transpose(1, 2).flatten(2, 3)
        tokens = x.flatten(1, 2) if self.axes == "all" else x.flatten(0, 1)
        out = self.attention(tokens, mask=seen, rotary=rotary, past=past).view(x.shape)
        return out.transpose(1, 2) if self.axes == "time" else out

    def remember(self, x: Tensor, c: Tensor, frames: int) -> Tensor:
        """The keys and values of ``x``, to be the ``past`` of later frames: (batch, frames, 2, places, width)."""
        shift, scale, *_ = self.modulation(c).chunk(6, dim=-1)
        keys, values = (y.flatten(-2) for y in self.attention.remember(modulate(x, shift, scale).flatten(1, 2)))
        return torch.stack([y.unflatten(1, (frames, -1)) for y in (keys, values)], dim=2)


def visible(
    keys: Tensor | None, counts: tuple[int, int, int], axes: str, causal: bool, device: torch.device
) -> Tensor | None:
    """Which keys a query sees; None where each sees all.

    Args:
        keys: which tokens of the frames are real, (batch, tokens); None: all. A place that is real in any of the frames
            is real in those before.
        counts: frames before, whose keys stand in front; frames; places of a frame.
        axes: as in ``Block``.
        causal: a frame sees itself and earlier ones only.

    Returns:
        boolean, broadcasting to (sequences, heads, queries, keys).
    """
    before, frames, places = counts
    if keys is not None:
        if before and axes != "space":
            grid = keys.unflatten(1, (frames, places))
            keys = torch.cat((grid.any(1, keepdim=True).expand(-1, before, -1), grid), dim=1).flatten(1)
        if axes == "space":
            keys = keys.unflatten(1, (frames, places)).flatten(0, 1)
        elif axes == "time":
            keys = keys.unflatten(1, (-1, places)).transpose(1, 2).flatten(0, 1)
        keys = keys[:, None, None]
    if not causal or axes == "space" or frames == 1:
        return keys
    order = torch.arange(before + frames, device=device)
    earlier = order[before:, None] >= order
    if axes == "all":
        earlier = earlier.repeat_interleave(places, 0).repeat_interleave(places, 1)
    return earlier if keys is None else earlier & keys


def perturbed_rows(changes: Tensor | None, batch: int, depth: int, device: torch.device) -> list[Tensor | None]:
    """What each block takes as ``perturbed``: None where it is what it is for all samples.

    Args:
        changes: 0, ``IDENTITY`` or ``SKIPPED``, (batch, depth); on the CPU, so that nothing waits for a device.
    """
    if changes is None:
        return [None] * depth
    if changes.shape != (batch, depth):
        raise ValueError(f"perturbed of shape {tuple(changes.shape)} does not fit {batch} samples and {depth} blocks")
    return [own.to(device)[:, None, None, None] if bool(own.any()) else None for own in changes.unbind(1)]
