"""Training what turns frames into latents and back, and how well it does.

    L = l1 |x - y| + mse (x - y)^2 + kl KL(q(z|x) || N(0, 1))

with pixels in [-1, 1] and every term a mean: over pixels, or over latent numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from noiseloom.core.objectives import OBJECTIVES, Losses, Objective
from noiseloom.core.randomness import StepRandomness

from ..report import Report, Row
from .clip import Clip

_EVALUATED = 256  # held-out clips that a report is of


@dataclass(frozen=True)
class VideoBatch:
    """Frames (batch, time, height, width, colours) in [-1, 1]."""

    frames: Tensor


class Reconstructing(Protocol):
    """A component that makes videos again."""

    name: str

    def reconstruct(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Videos (batch, time, height, width, colours) made again, and the divergence of their latents, (batch,)."""
        ...


@OBJECTIVES.register("video_reconstruction")
class VideoReconstruction(Objective):
    """Frames made again should be the same.

    Args:
        component: what is trained (given by the run).
        l1, mse, kl: weights.
    """

    def __init__(self, component: Reconstructing, l1: float = 1.0, mse: float = 1.0, kl: float = 3e-4) -> None:
        super().__init__()
        self.weights = {"l1": l1, "mse": mse, "kl": kl}

    def forward(self, model: Any, example: VideoBatch, random: StepRandomness) -> Losses:
        made, kl = model.reconstruct(example.frames)
        error = made.float() - example.frames
        parts = {"l1": error.abs().flatten(1).mean(1), "mse": error.square().flatten(1).mean(1), "kl": kl}
        return Losses(torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(0), parts)

    def held_out(
        self, model: Any, example: VideoBatch, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        yield "", self.forward(model, example, StepRandomness(seed, 0, [0], 1))


def signed(clips: Sequence[Clip]) -> Tensor:
    """Clips of one shape as (batch, time, height, width, colours) in [-1, 1]; back by rounding (x + 1) 127.5."""
    return torch.stack([torch.tensor(clip.frames) for clip in clips]).float() / 127.5 - 1


@torch.no_grad()
def reconstruction_report(component: Any, held_out: Any) -> Report:
    """How like held-out clips are to their reconstructions, and whether these move as they do."""
    from .frame_metrics import psnr, ssim

    device = next(component.parameters()).device
    chosen = range(0, len(held_out), max(len(held_out) // _EVALUATED, 1))
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "moved": [], "flicker": []}
    for index in chosen:
        clip = held_out[index]
        made = component.decode(component.encode(signed([clip]).to(device)))[0].cpu()
        again = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        scores["psnr"].append(float(psnr(clip.frames, again).mean()))
        scores["ssim"].append(float(ssim(clip.frames, again).mean()))
        if len(clip) > 1:
            real, own = (torch.tensor(x).float().diff(dim=0) / 255 for x in (clip.frames, again))
            scores["moved"].append(float(own.abs().mean() / real.abs().mean().clamp(min=1e-6)))
            scores["flicker"].append(float((own - real).abs().mean()))

    def row(name: str, key: str, protocol: str, **options: Any) -> Row:
        values = scores[key]
        return Row(name, sum(values) / len(values) if values else None, len(values), protocol, **options)

    return Report(
        f"{component.name} on held-out clips",
        [
            row("psnr", "psnr", "mean over frames and clips, 8 bits", unit="dB"),
            row("ssim", "ssim", "Gaussian window of 11, mean over frames and clips", real=1.0),
            row("motion", "moved", "mean |frame difference| over that of the clip", real=1.0, better="real"),
            row("temporal_error", "flicker", "mean |difference of frame differences|, of [0, 1]", better="lower"),
        ],
    )
