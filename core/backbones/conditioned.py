"""What a network is told of a whole sample: its time, labels, numbers and vectors, as one vector that modulates it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import LabelEmbedding, ScalarEmbedding, TimeEmbedding, VectorEmbedding, module_key

_ROOMS = ("time", "duration", "labels", "scalars", "vectors")


class Conditioned(nn.Module):
    """A network that is modulated by time and conditions; it calls ``embed_conditions`` and ``init_conditions`` when it
    is built, and ``condition`` in each forward pass. "Not given" is a missing key, -1 for a label, NaN for a number and
    a NaN in a vector. Of a network of two times, ``cond["target"]`` is the time that a step from ``t`` is to reach, (),
    (batch,) or (batch, groups); without it, ``t`` itself."""

    def embed_conditions(
        self,
        width: int,
        labels: int | Mapping[str, int] | None = None,
        scalars: Sequence[str] = (),
        vectors: Mapping[str, int] | None = None,
        two_times: bool = False,
        timesteps: int | None = None,
    ) -> None:
        """The embeddings.

        Args:
            labels: number of classes of each label by its name; a number alone is that of ``label``.
            scalars: names of numbers.
            vectors: dimension of each vector by its name.
            two_times: the network is told where a step ends, beside where it starts.
            timesteps: tell times as DDPM's timesteps of so many levels (``TimeEmbedding``).
        """
        self.time = TimeEmbedding(width, timesteps=timesteps)
        self.duration = TimeEmbedding(width) if two_times else None
        classes = {"label": labels} if isinstance(labels, int) else dict(labels or {})
        self.label_names, self.vector_dims = tuple(classes), dict(vectors or {})
        self.labels = nn.ModuleDict({module_key(name): LabelEmbedding(count, width) for name, count in classes.items()})
        self.vectors = nn.ModuleDict(
            {module_key(name): VectorEmbedding(dim, width) for name, dim in self.vector_dims.items()}
        )
        self.scalars = ScalarEmbedding(scalars, width) if scalars else None

    def init_conditions(self) -> None:
        """Small embeddings; that of a step's duration says nothing at first, so that a network of one time becomes one
        of two with the same outputs."""
        for name, parameter in self.named_parameters():
            room = name.partition(".")[0]
            if room in _ROOMS and (name.endswith("bias") or name.startswith("duration.output")):
                nn.init.zeros_(parameter)
            elif room in ("time", "duration", "labels") or "null" in name:
                nn.init.normal_(parameter, std=0.02)

    def condition(self, times: Tensor, cond: Mapping[str, Any], batch: int) -> Tensor:
        """(batch or 1, groups, width), before its nonlinearity, of times (batch or 1, groups)."""
        c = self.time(times)
        if self.duration is not None:
            target = torch.as_tensor(cond.get("target", times), dtype=times.dtype, device=times.device)
            target = target.reshape(-1, 1) if target.ndim < 2 else target
            c = c + self.duration((times - target).clamp(min=0))
        for name, embed in zip(self.label_names, self.labels.values(), strict=True):
            label = cond[name] if name in cond else torch.full((batch,), -1, device=times.device)
            c = c + embed(label).unsqueeze(1)
        for (name, dim), embed in zip(self.vector_dims.items(), self.vectors.values(), strict=True):
            vector = cond[name] if name in cond else torch.full((batch, dim), math.nan)
            c = c + embed(vector.to(times.device)).unsqueeze(1)
        return c if self.scalars is None else c + self.scalars(cond, batch).unsqueeze(1)
