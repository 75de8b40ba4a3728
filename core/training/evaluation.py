"""The held-out loss at fixed noise quantiles: the honest progress figure of every modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from ..denoiser import Denoiser
from ..devices import move
from ..objectives import Denoising
from ..randomness import generator
from ..samples import WHOLE
from .batches import TrainingData

QUANTILES = tuple((k + 0.5) / 8 for k in range(8))
_HELD_OUT = -3  # a key of generators apart from a step's


@torch.no_grad()
def held_out_sums(
    denoiser: Denoiser,
    objective: Denoising,
    data: TrainingData,
    batches: Sequence[Sequence[int]],
    seed: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, float]:
    """Sums of losses over the items of ``batches``, for each part and each quantile of the training times.

    The noise of an item depends on (seed, item, quantile) only, so two evaluations differ by the weights alone.
    ``loss`` and ``loss/<part>`` are means over the quantiles, ``loss/u<quantile>`` the total at one of them.
    """
    sums: dict[str, float] = {}

    def add(name: str, value: torch.Tensor, share: float) -> None:
        sums[name] = sums.get(name, 0.0) + float(value.double().sum()) * share

    for items in batches:
        example = data.example(items, None)
        local = move(example, device)
        for k, u in enumerate(QUANTILES):
            noise = example.space.noise(example.x0, [generator(seed, _HELD_OUT, item, k) for item in items])
            noise = move(noise, device)
            if objective.couple is not None:
                noise = objective.couple(local.x0, noise, local.space)
            quantiles = torch.full((len(items),), u, dtype=torch.float64)
            t = objective.times(quantiles, denoiser.schedule).clamp(objective.time_min, 1.0)
            with autocast():
                losses = objective.at(denoiser, local, t, noise, objective.self_condition > 0)
            add("loss", losses.total, 1 / len(QUANTILES))
            add(f"loss/u{u:.4f}", losses.total, 1.0)
            for name, part in losses.parts.items():
                if name != WHOLE:
                    add(f"loss/{name}", part, 1 / len(QUANTILES))
    return sums
