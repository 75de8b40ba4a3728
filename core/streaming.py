"""Streams: frames without end, chunk after chunk, from a causal network.

A chunk is sampled as anything else is, told the keys and values of the clean frames before it (the condition ``past``).
Once finished it passes through the network once more, clean, to be added to them. Behind a window of frames that are
seen, a chunk costs the same however many went before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoise
from .randomness import mix
from .samplers import generate
from .samples import Cond, batch_size


def stream(
    denoise: Denoise,
    x: Tensor,
    *,
    cond: Cond | Callable[[int], Cond] | None = None,
    past: Tensor | None = None,
    window: int | None = None,
    seeds: int | Sequence[int] | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Chunk after chunk, each given those before it. The frames of one chunk are made together, but earlier ones do not
    see later ones: for the solution of their joint equation let a chunk be one frame.

    Args:
        denoise: a denoiser whose network is causal, trained with clean frames before noisy ones; or guidance of it.
        x: gives the shape, dtype and device of a chunk, (batch, frames, ...) or as the network has it.
        cond: the conditions of every chunk, or a function of its index; those on the grid are of its own frames.
        past: of frames before the first chunk: what ``denoise.remember`` makes of them.
        window: how many frames of the past are seen at most, all by default. Frames are counted in patches.
        seeds: one for each sample, or one for the batch; None draws one. Chunks differ by their index.
        options: as for ``generate``.

    Yields:
        a chunk, clean, of the shape of ``x``; ``itertools.islice`` ends it.

    Raises:
        ValueError: a denoiser without a past, a window of no frames.
    """
    remember = getattr(denoise, "remember", None)
    if remember is None:
        raise ValueError(f"{type(denoise).__name__} has no past: a stream needs a causal network, guided by conditions")
    if window is not None and window < 1:
        raise ValueError(f"a window needs at least 1 frame, got {window}")
    seeds = int(torch.randint(1 << 62, ())) if seeds is None else seeds
    rows = [mix(seeds, row) for row in range(batch_size(x))] if isinstance(seeds, int) else seeds
    return _chunks(denoise, remember, x, cond if callable(cond) else lambda _: cond, past, window, rows, options)


def _chunks(
    denoise: Denoise,
    remember: Callable[[Tensor, Cond], Tensor],
    x: Tensor,
    cond: Callable[[int], Cond | None],
    past: Tensor | None,
    window: int | None,
    seeds: Sequence[int],
    options: dict[str, Any],
) -> Iterator[Tensor]:
    for index in itertools.count():
        told = dict(cond(index) or {})
        if past is not None:
            told["past"] = past if window is None else past[:, -window:]
        chunk = generate(denoise, x, cond=told, seeds=[mix(seed, index) for seed in seeds], **options)
        assert isinstance(chunk, Tensor)
        yield chunk
        with torch.no_grad():
            past = remember(chunk, told)
