"""Training what turns frames into latents and back, and how well it does.

    L = l1 |x - y| + mse (x - y)^2 + kl KL(q(z|x) || N(0, 1))

with pixels in [-1, 1] and every term a mean: over pixels, or over latent numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from noiseloom.core.objectives import OBJECTIVES, Losses, Objective
from noiseloom.core.randomness import StepRandomness

from ..report import Report, Row, mean_row
from .clip import Clip, signed, unsigned

_EVALUATED = 256  # held-out clips that a report is of
_MOTION = "sum of |frame differences| over that of the clips"
_ERROR = "mean |difference of frame differences|, of pixels in [0, 1]"


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


def batched(clips: Sequence[Clip]) -> Tensor:
    """Clips of one shape as (batch, time, height, width, colours) in [-1, 1]."""
    return signed(np.stack([clip.frames for clip in clips]))


@torch.no_grad()
def reconstruction_report(component: Any, held_out: Any) -> Report:
    """How like held-out clips are to their reconstructions, and whether these move as they do."""
    from .frame_metrics import psnr, ssim, temporal_error

    device, moved = next(component.parameters()).device, [0.0, 0.0]
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "temporal_error": []}
    for index in range(0, len(held_out), max(len(held_out) // _EVALUATED, 1)):
        real = held_out[index].frames
        made = unsigned(component.decode(component.encode(signed(real[None]).to(device)))[0])
        scores["psnr"].append(float(psnr(real, made).mean()))
        scores["ssim"].append(float(ssim(real, made).mean()))
        if len(real) > 1:
            scores["temporal_error"].append(temporal_error(real, made))
            moved = [sum_ + _motion(frames) for sum_, frames in zip(moved, (real, made), strict=True)]
    kept = moved[1] / moved[0] if moved[0] else None  # over all clips: one that stands still has none of its own
    rows = [
        mean_row("psnr", scores["psnr"], "mean over frames and clips, 8 bits", "dB", better="higher"),
        mean_row("ssim", scores["ssim"], "Gaussian window of 11, mean over frames and clips", better="higher"),
        Row("motion", kept, len(scores["temporal_error"]), _MOTION, real=1.0, better="real"),
        mean_row("temporal_error", scores["temporal_error"], _ERROR, better="lower"),
    ]
    return Report(f"{component.name} on held-out clips", rows)


def _motion(frames: np.ndarray) -> float:
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).sum())
