"""The held-out loss: the honest progress figure of every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from ..devices import move
from ..objectives import Objective
from ..samples import WHOLE
from .batches import TrainingData


@torch.no_grad()
def held_out_sums(
    model: nn.Module,
    objective: Objective,
    data: TrainingData,
    batches: Sequence[Sequence[int]],
    seed: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, float]:
    """Sums of losses over the items of ``batches``, for each part and each view of ``Objective.held_out``.

    ``loss`` and ``loss/<part>`` are means over the views, ``loss/<view>`` the total of one of them.
    """
    sums: dict[str, float] = {}

    def add(name: str, value: torch.Tensor, share: float) -> None:
        sums[name] = sums.get(name, 0.0) + float(value.double().sum()) * share

    for items in batches:
        example = move(data.example(items, None), device)
        with autocast():
            views = list(objective.held_out(model, example, items, seed))
        for view, losses in views:
            add("loss", losses.total, 1 / len(views))
            if view:
                add(f"loss/{view}", losses.total, 1.0)
            for name, part in losses.parts.items():
                if name != WHOLE:
                    add(f"loss/{name}", part, 1 / len(views))
    return sums
