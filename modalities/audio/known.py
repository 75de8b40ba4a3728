"""Which parts of a sound are known in training, so that one model learns every edit: continue, prepend, fill, extend
the bandwidth. A known part is a part at t = 0."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def random_known(length: int, shape: tuple[int, int], generator: Generator, bands: int = 0) -> Tensor:
    """A random choice of known elements, boolean, of ``shape`` (frames, width): one of

    - a beginning or an end, to go on from or lead up to;
    - everything outside one or two gaps, to fill;
    - where frames are ``bands`` frequencies for each channel: the low ones, to extend the bandwidth.

    Args:
        length: real frames; those after it stay unknown.
        shape: frames with padding, and numbers in a frame.
    """

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    known = torch.zeros(shape, dtype=torch.bool)
    kind = uniform()
    if bands and kind < 0.25:
        low = round(bands * uniform(0.2, 0.8))
        known[:length].unflatten(1, (-1, bands))[..., :low] = True
    elif kind < 0.7:
        share = round(length * uniform(0.1, 0.9))
        known[slice(0, share) if uniform() < 0.7 else slice(length - share, length)] = True
    else:
        known[:length] = True
        for _ in range(1 + (uniform() < 0.5)):
            gap = max(round(length * uniform(0.1, 0.5)), 1)
            start = round((length - gap) * uniform())
            known[start : start + gap] = False
    return known
