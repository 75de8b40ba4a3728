"""The contract of an objective: what the training loop minimises and what it reports of held-out items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..randomness import StepRandomness


@dataclass(frozen=True)
class Losses:
    """Losses of one batch: ``total`` and each of ``parts`` are ``(batch,)``; ``t`` is the batch's time, if it has one.

    ``total`` is what is minimised (training) or compared (held out); ``parts`` are reported beside it.
    """

    total: Tensor
    parts: dict[str, Tensor]
    t: Tensor | None = None


class Objective(nn.Module, ABC):
    """What is minimised over the parameters of a model and its own (an uncertainty, discriminators)."""

    @abstractmethod
    def forward(self, model: Any, example: Any, random: StepRandomness) -> Losses:
        """The losses of a training batch; it draws from ``random``, or torch's generator, which the loop seeds."""

    @abstractmethod
    def held_out(self, model: Any, example: Any, items: Sequence[int], seed: int) -> Iterator[tuple[str, Losses]]:
        """The losses of held-out ``items``, which depend on (seed, item) and the weights only: one or several views,
        such as noise levels, each with a name of its own ("" for none). The held-out loss is their mean."""
