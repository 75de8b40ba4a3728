"""Known pixels as a condition on the latent grid: one for frames to go on from, to lead up to, to fill between and
around, and the same for latents and for pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .autoencoder import merge

GIVEN = "given"  # what the network calls it


def given_width(factors: Sequence[int], colours: int) -> int:
    """Numbers of a position in ``given_cells``."""
    return factors[0] * factors[1] * factors[2] * (colours + 1)


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
