"""Known pixels as a condition on the latent grid: one for frames to go on from, to lead up to, to fill between and
around, and the same for latents and for pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .autoencoder import merge

GIVEN, HELD = "given", "held"  # what the network calls them


def given_width(factors: Sequence[int], colours: int) -> int:
    """Numbers of a position in ``given_cells``."""
    return factors[0] * factors[1] * factors[2] * (colours + 1)


def held(frames: Tensor, known: Tensor) -> Tensor:
    """Frames whose unknown pixels hold the same pixel of the nearest time at which it is known (the earlier of two);
    zero where it never is. Stable Video Diffusion (arXiv:2311.15127) tells every frame its first one likewise.

    Args:
        frames: (batch, T, H, W, colours).
        known: (batch, T, H, W), boolean.
    """
    count = known.shape[1]
    now = torch.arange(count, device=known.device).view(1, -1, 1, 1).expand_as(known)
    before = torch.where(known, now, -count - 1).cummax(1).values
    after = torch.where(known, now, 3 * count).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(now - before <= after - now, before, after).clamp(0, count - 1)
    values = frames.gather(1, nearest.unsqueeze(-1).expand_as(frames))
    return torch.where(known.any(1, keepdim=True).unsqueeze(-1), values, 0)


def given_cells(frames: Tensor, known: Tensor, factors: Sequence[int]) -> Tensor:
    """The known pixels of each latent position, then a 1 for each that is known: (batch, t, h, w, ``given_width``),
    either part in the order of time, height, width (and colours) within a position.

    As in the latents, the first latent frame holds the first frame alone: it is the last of a group of ``ft``, in which
    the others are not known. Sizes that do not fit are filled up with pixels that are not known.

    Args:
        frames: (batch, T, H, W, colours) in [-1, 1].
        known: (batch, T, H, W), boolean.
        factors: (ft, fh, fw) of the representation.
    """
    (ft, fh, fw), (_, count, height, width) = factors, known.shape
    end = (0, -width % fw, 0, -height % fh, 0, -(count - 1) % ft)  # the last axis first
    frames, known = F.pad(frames, (0, 0, *end)), F.pad(known, end)
    seen = known.unsqueeze(-1)
    both = torch.where(seen, frames, 0), seen.to(frames.dtype)
    return torch.cat([merge(F.pad(x, (0, 0, 0, 0, 0, 0, ft - 1, 0)), factors) for x in both], dim=-1)
