"""A first guess of a clip from what is known of it: what has been seen of a pixel stays, or moves on as it did.

Nowcasting calls the two Eulerian and Lagrangian persistence (Germann and Zawadzki 2002). A network that corrects such a
guess has learned to forecast before its first step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_APART = 4  # frames over which motion is measured: it is small against a pixel from one to the next


def nearest_known(known: Tensor) -> Tensor:
    """The nearest time at which each is known, the earlier of two; any where it never is. ``known``: (batch, T, ...),
    boolean."""
    count = known.shape[1]
    now = torch.arange(count, device=known.device).view(1, -1, *[1] * (known.ndim - 2)).expand_as(known)
    before = torch.where(known, now, -count - 1).cummax(1).values
    after = torch.where(known, now, 3 * count).flip(1).cummin(1).values.flip(1)
    return torch.where(now - before <= after - now, before, after).clamp(0, count - 1)


def held(frames: Tensor, known: Tensor) -> Tensor:
    """Frames whose unknown pixels hold the same pixel of the nearest time at which it is known; zero where it never is.

    Args:
        frames: (batch, T, H, W, colours).
        known: (batch, T, H, W), boolean.
    """
    values = frames.gather(1, nearest_known(known).unsqueeze(-1).expand_as(frames))
    return torch.where(known.any(1, keepdim=True).unsqueeze(-1), values, 0)


def drift(frames: Tensor, known: Tensor) -> Tensor:
    """How far all of a clip moves in a frame, (batch, 2), pixels down and right: the peak of the phase correlation of
    known frames up to 4 apart, added up. Edges are faded out, because what leaves does not come in again. Zero where no
    two such frames are known.

    Args:
        frames, known: as of ``held``; frames of which only parts are known do not count.
    """
    whole, (height, width) = known.flatten(2).all(2), frames.shape[2:4]
    grey = frames.float().mean(-1)
    fade = torch.outer(*(torch.hann_window(n, periodic=False, device=frames.device) for n in (height, width)))
    spectra = torch.fft.rfft2((grey - grey.mean((2, 3), keepdim=True)) * fade)
    out = frames.new_zeros(len(frames), 2, dtype=torch.float32)
    found = torch.zeros(len(frames), dtype=torch.bool, device=frames.device)
    for apart in range(min(_APART, frames.shape[1] - 1), 0, -1):
        pairs = whole[:, apart:] & whole[:, :-apart]
        cross = (spectra[:, apart:] * spectra[:, :-apart].conj() * pairs[..., None, None]).sum(1)
        match = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=(height, width))
        peak = match.flatten(1).argmax(1)
        place = torch.stack((peak // width, peak % width), 1)
        size = torch.tensor([height, width], device=frames.device)
        place = place - size * (place > size // 2)
        new = pairs.any(1) & ~found
        out, found = torch.where(new[:, None], place / apart, out), found | new
    return out


def moved(frames: Tensor, known: Tensor) -> Tensor:
    """``held``, and what is held moves on by the ``drift`` of its clip; what comes in from outside is the edge's."""
    still, whole = held(frames, known), known.flatten(2).all(2)
    ahead = torch.arange(frames.shape[1], device=frames.device) - nearest_known(whole)
    size = torch.tensor(frames.shape[2:4], device=frames.device)
    step = -2 * drift(frames, known)[:, None] * ahead.unsqueeze(-1) / size  # of a frame from -1 to 1
    turn = torch.eye(2, device=frames.device).expand(*ahead.shape, 2, 2)
    where = torch.cat((turn, step.flip(-1).unsqueeze(-1)), -1).flatten(0, 1)
    images = still.flatten(0, 1).movedim(-1, 1)
    grid = F.affine_grid(where.to(images), list(images.shape), align_corners=False)
    there = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    there = there.movedim(1, -1).unflatten(0, ahead.shape)
    stays = (step == 0).all(-1)[..., None, None, None] | known.unsqueeze(-1)
    return torch.where(stays, still, there)


GUESSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"held": held, "moved": moved}
