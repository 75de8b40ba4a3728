"""A causal variational autoencoder of videos: frames to a smaller grid of small vectors, and back.

Layers are ConvNeXt blocks (Liu et al. 2022) over (batch, time, height, width, channels): a depthwise convolution in
space, one in time that looks back only, and an MLP at each position. Nothing is normalised over time, so a frame
depends on what came before it alone; a layer remembers the last frames it saw, and a video is coded piece by piece with
the same numbers as at once, in memory that does not grow with its length.

The first latent frame holds the first frame alone, which stands at the end of a group of ``ft`` copies of itself; each
later one holds ``ft`` frames. An image is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from noiseloom.core.backbones import layer_norm

from ..component import COMPONENTS, Component
from ..report import Report
from .clip import Clip
from .pool import Clips
from .reconstruction import VideoBatch, batched, reconstruction_report

_LOOK_BACK = 2  # frames before its own that a convolution in time sees
_MEASURED = 512  # clips that the statistics of latents are of
_LOG_VARIANCE = (-14.0, 4.0)  # its bounds

Past = list[Tensor | None]  # what each block remembers of the frames before, in order


class Block(nn.Module):
    """``x + scale * mlp(norm(space(x) + time(x)))``, and the frames that the next piece has to know."""

    def __init__(self, width: int, kernel: int, ratio: int, gain: float) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.time = nn.Parameter(torch.zeros(_LOOK_BACK, width))
        self.gain = nn.Parameter(torch.ones(width))
        self.enter = nn.Linear(width, ratio * width)
        self.leave = nn.Linear(ratio * width, width)
        self.scale = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """(batch, time, height, width, channels); before the first frame it is as if that had stood there."""
        if past is None:
            past = x[:, :1].expand(-1, _LOOK_BACK, -1, -1, -1)
        seen, length = torch.cat((past.to(x.dtype), x), dim=1), x.shape[1]
        # A view of (frames, height, width, channels) is the layout that convolutions on CPUs are fastest in.
        y = self.space(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).view_as(x)
        for back, weight in enumerate(self.time, start=1):
            y = torch.addcmul(y, seen[:, _LOOK_BACK - back : _LOOK_BACK - back + length], weight.to(y.dtype))
        y = self.leave(F.gelu(self.enter(layer_norm(y, self.gain))))
        return torch.addcmul(x, y, self.scale.to(y.dtype)), seen[:, -_LOOK_BACK:]


class Stack(nn.Module):
    """Stages of blocks; between them groups of positions are merged into one, or one is split into a group.

    Args:
        widths: channels of each stage.
        steps: (time, height, width) of a group between two stages.
        split: whether positions are split, as a decoder does, rather than merged.
    """

    def __init__(
        self, widths: Sequence[int], steps: Sequence[tuple[int, int, int]], depth: int, kernel: int, split: bool
    ) -> None:
        super().__init__()
        self.steps, self.split, self.depth = list(steps), split, depth
        gain = 1 / (depth * len(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, kernel, 3, gain) for _ in range(depth)) for width in widths
        )
        sizes = [t * h * w for t, h, w in steps]
        self.between = nn.ModuleList(
            nn.Linear(a, n * b) if split else nn.Linear(n * a, b)
            for (a, b), n in zip(pairwise(widths), sizes, strict=True)
        )

    def forward(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """(batch, time, height, width, channels) and what the last piece left; the same of this one."""
        memory, left = iter(past or [None] * self.depth * len(self.stages)), []
        for number, stage in enumerate(self.stages):
            for block in stage:  # type: ignore[attr-defined]
                x, seen = block(x, next(memory))
                left.append(seen)
            if number < len(self.steps):
                step = self.steps[number]
                x = split(self.between[number](x), step) if self.split else self.between[number](merge(x, step))
        return x, left


def merge(x: Tensor, step: Sequence[int]) -> Tensor:
    """(batch, t n, h m, w k, channels) to (batch, t, h, w, n m k channels)."""
    n, m, k = step
    return rearrange(x, "b (t n) (h m) (w k) c -> b t h w (n m k c)", n=n, m=m, k=k)


def split(x: Tensor, step: Sequence[int]) -> Tensor:
    """The inverse of ``merge``."""
    n, m, k = step
    return rearrange(x, "b t h w (n m k c) -> b (t n) (h m) (w k) c", n=n, m=m, k=k)


@COMPONENTS.register("video_autoencoder")
class VideoAutoencoder(Component):
    """Videos (batch, time, height, width, colours) in [-1, 1] to latents (batch, t, h, w, channels) and back.

    ``time`` is ``ft k + 1`` frames for ``k + 1`` latent ones; height and width are multiples of ``fh`` and ``fw``.

    Args:
        colours: 1 for grey, 3 for RGB.
        channels: numbers of a latent position.
        factors: (ft, fh, fw): how many frames, rows and columns a latent position stands for.
        patch: how many of these are merged at once on the way in, without a block before; ``factors`` are these times
            powers of two.
        widths: channels of each stage; one more than the halvings that ``patch`` leaves to do.
        depth: blocks of each stage.
        kernel: positions along height and width that a convolution sees.

    Attributes:
        latent_mean, latent_std: of each of the ``channels`` over training clips; what a generator scales by.
    """

    name = "video_autoencoder"
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        colours: int = 3,
        channels: int = 16,
        factors: Sequence[int] = (4, 8, 8),
        patch: Sequence[int] = (1, 4, 4),
        widths: Sequence[int] = (64, 128, 192),
        depth: int = 2,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if colours not in (1, 3):
            raise ValueError(f"videos are grey or RGB: colours is 1 or 3, not {colours}")
        self.steps = _halvings(factors, patch)
        if len(widths) != len(self.steps) + 1:
            needed = f"factors {tuple(factors)} after patch {tuple(patch)} need {len(self.steps) + 1} widths"
            raise ValueError(f"{needed}, not {len(widths)}")
        self.colours, self.channels = colours, channels
        self.factors, self.patch = (factors[0], factors[1], factors[2]), (patch[0], patch[1], patch[2])
        self.widths, self.depth, self.kernel = list(widths), depth, kernel
        numbers = colours * patch[0] * patch[1] * patch[2]
        self.enter = nn.Linear(numbers, widths[0])
        self.encoder = Stack(widths, self.steps, depth, kernel, split=False)
        self.moments = nn.Linear(widths[-1], 2 * channels)
        self.leave = nn.Linear(channels, widths[-1])
        self.decoder = Stack(widths[::-1], self.steps[::-1], depth, kernel, split=True)
        self.output = nn.Linear(widths[0], numbers)
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

    @property
    def config(self) -> dict[str, Any]:
        plain = {key: list(getattr(self, key)) for key in ("factors", "patch", "widths")}
        return {**plain, **{key: getattr(self, key) for key in ("colours", "channels", "depth", "kernel")}}

    def encode(self, videos: Tensor) -> Tensor:
        """(batch, time, height, width, colours) to the means (batch, t, h, w, channels), one latent frame at a time."""
        ft, past, made = self.factors[0], None, []
        for piece in self._grouped(videos).split(ft, dim=1):
            (mean, _), past = self._moments(piece, past)
            made.append(mean)
        return torch.cat(made, dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """(batch, t, h, w, channels) to (batch, time, height, width, colours)."""
        return torch.cat(list(self.decode_chunks(latents.split(1, dim=1))), dim=1)

    def decode_chunks(self, chunks: Iterator[Tensor] | Sequence[Tensor]) -> Iterator[Tensor]:
        """The frames of consecutive pieces of a video's latents, (batch, any number, h, w, channels) each.

        Whatever the pieces, latent frames are decoded one by one: the frames are bit by bit those of ``decode``, and
        memory does not depend on how many there are.
        """
        past: Past | None = None
        for chunk in chunks:
            made = []
            for one in chunk.split(1, dim=1):
                first = past is None
                frames, past = self._frames(one, past)
                made.append(frames[:, self.factors[0] - 1 :] if first else frames)
            yield torch.cat(made, dim=1)

    def reconstruct(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Videos made again all at once, in training from sampled latents, and the divergence from the standard normal
        per latent number, (batch,)."""
        (mean, log_variance), _ = self._moments(self._grouped(videos), None)
        latents = mean + torch.exp(log_variance / 2) * torch.randn_like(mean) if self.training else mean
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        return self._frames(latents, None)[0][:, self.factors[0] - 1 :], kl

    def dataset(self, sources: Sequence[str], split: str, **data: Any) -> Clips:
        return Clips(self.colours, sources, split, alike=True, factor=self.factors[0], **data)

    def example(self, items: Sequence[Clip], generators: Sequence[Generator] | None = None) -> VideoBatch:
        return VideoBatch(batched(items))

    @torch.no_grad()
    def measure(self, train: Clips) -> None:
        """Measure ``latent_mean`` and ``latent_std``."""
        chosen = range(0, len(train), max(len(train) // _MEASURED, 1))
        device = self.latent_mean.device
        latents = torch.cat([self.encode(batched([train[i]]).to(device)).flatten(0, 3).double().cpu() for i in chosen])
        self.latent_mean.copy_(latents.mean(0))
        self.latent_std.copy_(latents.std(0, correction=0))

    def evaluate(self, held_out: Clips) -> Report:
        return reconstruction_report(self, held_out)

    def _grouped(self, videos: Tensor) -> Tensor:
        """The first frame repeated so that it fills a group.

        Raises:
            ValueError: videos of another size or other colours.
        """
        (frames, height, width, colours), (ft, fh, fw) = videos.shape[1:], self.factors
        if (frames - 1) % ft or height % fh or width % fw or colours != self.colours:
            raise ValueError(
                f"this autoencoder takes {ft} k + 1 frames of {fh} m x {fw} n pixels with {self.colours} colours, "
                f"not {frames} of {height} x {width} with {colours}"
            )
        return torch.cat((videos[:, :1].expand(-1, ft - 1, -1, -1, -1), videos), dim=1)

    def _moments(self, videos: Tensor, past: Past | None) -> tuple[tuple[Tensor, Tensor], Past]:
        """Mean and log-variance, float32, of whole groups of frames."""
        x, past = self.encoder(self.enter(merge(videos, self.patch)), past)
        mean, log_variance = self.moments(layer_norm(x)).float().chunk(2, dim=-1)
        return (mean, log_variance.clamp(*_LOG_VARIANCE)), past

    def _frames(self, latents: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """``ft`` frames, float32, for each latent one."""
        x, past = self.decoder(self.leave(latents), past)
        return split(self.output(layer_norm(x)), self.patch).float(), past


def _halvings(factors: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int, int]]:
    """What is merged between the stages, until ``patch`` has grown to ``factors``."""
    fits = len(factors) == len(patch) == 3 and min(*factors, *patch) > 0
    if not fits or any(f % p or log2(f // p) % 1 for f, p in zip(factors, patch, strict=True)):
        raise ValueError(f"factors {tuple(factors)} must be patch {tuple(patch)} times powers of two, for (t, h, w)")
    left = [f // p for f, p in zip(factors, patch, strict=True)]
    steps = []
    while max(left) > 1:
        step = (min(left[0], 2), min(left[1], 2), min(left[2], 2))
        steps.append(step)
        left = [n // s for n, s in zip(left, step, strict=True)]
    return steps
