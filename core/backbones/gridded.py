"""What networks of a grid share: how a sample becomes tokens, and what each token is told.

The sample ``(batch, channels, *grid)``, or ``(batch, *grid, channels)``, is cut into patches; each is a token. Times,
masks and maps may be of the sample, of frames or of single elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .conditioned import Conditioned
from .layers import fourier_features, layer_norm
from .patches import Patches, known_map
from .positions import between_ends

_EDGE_FEATURES, _EDGE_WAVES = 16, (math.pi, 16 * math.pi)  # of a place between two ends


class Gridded(Conditioned):
    """A network that calls ``embed_grid`` and ``embed_context`` when it is built, and ``read`` in each forward pass."""

    causal = False

    def embed_grid(
        self,
        width: int,
        channels: int,
        patch: Sequence[int],
        channels_last: bool,
        spacing: Sequence[float] | None,
        wavelengths: Sequence[tuple[float, float]] | None,
        concat: Mapping[str, int] | None,
        self_condition: bool,
        element_times: bool,
        edges: Sequence[int],
        skip: str | None,
    ) -> None:
        """The layer that makes tokens of ``width``; the options are those of ``DiT``."""
        self.width, self.channels, self.channels_last = width, channels, channels_last
        self.patch, self.patches = tuple(patch), Patches(patch)
        self.spacing = tuple(spacing) if spacing is not None else (1.0,) * len(self.patch)
        if wavelengths is None:
            wavelengths = [(6 * n * d, 6000 * n * d) for n, d in zip(self.patch, self.spacing, strict=True)]
        self.wavelengths = [(shortest, longest) for shortest, longest in wavelengths]
        if not len(self.patch) == len(self.spacing) == len(self.wavelengths):
            raise ValueError(f"{len(self.patch)} axes need as many spacings and wavelengths")
        self.concat, self.self_condition, self.element_times = dict(concat or {}), self_condition, element_times
        elements = math.prod(self.patch)
        self.token_numbers = elements * channels
        inputs = channels * (1 + self_condition + element_times) + sum(self.concat.values())
        self.embed = nn.Linear(elements * inputs, width)
        if skip is not None and self.concat.get(skip) != channels:
            raise ValueError(f"skip is a map of {channels} channels, one of concat = {self.concat}, not {skip!r}")
        self.skip = skip
        self.edge_axes = tuple(edges)
        self.edges = nn.Linear(_EDGE_FEATURES * len(self.edge_axes), width, bias=False) if edges else None

    def embed_context(self, width: int, context_dim: int | None) -> None:
        """The layer that brings a context sequence to ``width``, and the token that stands in front of it."""
        self.context = nn.Linear(context_dim, width) if context_dim is not None else None
        if context_dim is not None:
            self.null_context = nn.Parameter(torch.empty(1, 1, width))

    def read(
        self, x: Tensor, t: float | Tensor, cond: Mapping[str, Any], previous: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """What comes in.

        Returns:
            the sample, channels first; its mask, (batch or 1, *axes), or None; the times that modulate, for
            ``_times``; its tokens, (batch, tokens, width).

        Raises:
            ValueError: a shape that does not fit.
        """
        axes, at = len(self.patch), -1 if self.channels_last else 1
        if x.ndim != 2 + axes or x.shape[at] != self.channels:
            raise ValueError(f"expected {axes} axes and {self.channels} channels at {at}, got {tuple(x.shape)}")
        x, previous = x.movedim(at, 1), None if previous is None else previous.movedim(at, 1)
        mask = self._on_grid("mask", cond["mask"], x) if "mask" in cond else None
        t = torch.as_tensor(t, device=x.device)
        levels = None
        if self.element_times:
            levels = self._levels(t.movedim(at, 1) if t.ndim == x.ndim else t, mask, x)
            t = levels.amax([1, *range(3, x.ndim)]) if self.causal else levels.flatten(1).amax(1)
        tokens = self.embed(self._tokens(x, mask, cond, previous, levels))
        if self.edges is not None:
            places = between_ends(self.patches.counts(x.shape[2:]), x.device)[:, self.edge_axes]
            ends = fourier_features(places, _EDGE_FEATURES, *_EDGE_WAVES)
            tokens = tokens + self.edges(ends.flatten(1).to(tokens.dtype))
        return x, mask, t, tokens

    def write(self, tokens: Tensor, x: Tensor, mask: Tensor | None, cond: Mapping[str, Any]) -> Tensor:
        """Tokens, (batch, tokens, elements of a patch x channels), as the sample's shape and dtype, with what they are
        a correction of (``skip``); zero at padding. ``x`` and ``mask`` are those of ``read``."""
        out = self.patches.join(tokens, x.shape[2:]).to(x.dtype)
        if self.skip in cond:
            out = out + cond[self.skip].movedim(-1 if self.channels_last else 1, 1).to(x).nan_to_num(0.0)
        out = out if mask is None else torch.where(mask.unsqueeze(1), out, 0)
        return out.movedim(1, -1 if self.channels_last else 1)

    def _on_grid(self, name: str, values: Tensor, x: Tensor) -> Tensor:
        """Values for a sample or its elements as (batch or 1, *axes), axes of size 1 where they do not vary."""
        full = (x.shape[0], *x.shape[2:])
        given, values = values.shape, values.amax(-1 if self.channels_last else 1) if values.ndim == x.ndim else values
        shape = (values.shape or (1,)) + (1,) * (len(full) - max(values.ndim, 1))
        if len(shape) > len(full) or any(size not in (1, most) for size, most in zip(shape, full, strict=True)):
            raise ValueError(f"{name} of shape {tuple(given)} does not fit {full[0]} samples of {full[1:]} elements")
        return values.reshape(shape)

    def _times(self, t: float | Tensor, mask: Tensor | None, x: Tensor, patches: Patches) -> Tensor:
        """The highest time of each patch, (batch or 1, *axes); axes behind the last along which times vary have size 1.
        The time of padding has no effect."""
        t = self._on_grid("t", torch.as_tensor(t, device=x.device), x)
        if mask is not None:
            alike = [axis for axis in range(1, t.ndim) if t.shape[axis] == 1]
            t = torch.where(mask.amax(alike, keepdim=True) if alike else mask, t, 0)
        t = patches.highest(t, x.shape[2:])
        varying = max([0, *(axis for axis in range(1, t.ndim) if t.shape[axis] > 1)])
        return t.expand(-1, *patches.counts(x.shape[2:])[:varying], *t.shape[1 + varying :])

    def _levels(self, t: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
        """The time of each element, (batch, channels, *grid); 0 at padding."""
        if 0 < t.ndim < x.ndim:  # left-aligned with (batch, *grid)
            t = t.reshape(len(t), 1, *t.shape[1:], *[1] * (x.ndim - 1 - t.ndim))
        levels = t.to(torch.promote_types(x.dtype, torch.float32)).expand_as(x)
        return levels if mask is None else torch.where(mask.unsqueeze(1), levels, 0)

    def _tokens(
        self, x: Tensor, mask: Tensor | None, cond: Mapping[str, Any], previous: Tensor | None, levels: Tensor | None
    ) -> Tensor:
        """Patches, (batch, tokens, elements of a patch x channels), zero at padding."""
        maps = []
        for name, channels in self.concat.items():
            values = cond[name].movedim(-1 if self.channels_last else 1, 1) if name in cond else None
            maps.append(known_map(name, values, (x.shape[0], channels, *x.shape[2:]), mask, x))
        if self.self_condition:
            x = torch.cat((x, torch.zeros_like(x) if previous is None else previous.to(x.dtype)), dim=1)
        if levels is not None:
            x = torch.cat((x, levels.to(x.dtype) - 0.5), dim=1)
        if maps:
            x = torch.cat((x, *maps), dim=1)
        if mask is not None:
            x = torch.where(mask.unsqueeze(1), x, 0)
        return self.patches.split(x).to(self.embed.weight.dtype)

    def _steps(self, cond: Mapping[str, Any], patch: Sequence[int], own: slice = slice(None)) -> list[float] | Tensor:
        """The distance between neighbouring patches along each of some axes."""
        if "spacing" not in cond:
            return [n * distance for n, distance in zip(patch, self.spacing, strict=True)][own]
        spacing = cond["spacing"]
        spacing = torch.where(spacing.isnan(), spacing.new_tensor(self.spacing), spacing)
        return (spacing * spacing.new_tensor(patch))[:, own]

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
