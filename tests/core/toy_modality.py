"""A modality of number sequences from a Gaussian, with the exact denoiser as its network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.conditioning import given
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.pipeline import Pipeline, Samples
from noiseloom.core.randomness import generator
from noiseloom.core.spaces import Euclidean, Space


@NETWORKS.register("test-gaussian")
class ExactGaussian(nn.Module):
    """E[x0 | x_t] of elements from N(mean, std^2) on the flow schedule; a condition ``level`` replaces the mean."""

    def __init__(self, mean: float = 1.0, std: float = 0.5) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor([mean])), nn.Parameter(torch.tensor([std]))

    def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Tensor | None = None) -> Tensor:
        t = t.to(x).reshape(-1, 1) if t.ndim < 2 else t.to(x)
        mean = torch.where(given(cond["level"]), cond["level"], self.mean)
        alpha, variance = 1 - t, self.std**2
        return mean + alpha * variance / (alpha**2 * variance + t**2) * (x - alpha * mean)


@dataclass
class Request:
    length: int | None = None
    level: float = float("nan")
    first: float | None = None  # the first number, known


@dataclass(frozen=True)
class Layout:
    start: Tensor
    space: Space
    cond: dict[str, Tensor]
    known: Tensor | None = None


class Numbers:
    """Sequences of 2 to 6 numbers; a sum above ``limit`` is a failed sample."""

    Request = Request

    def __init__(self, limit: float = 100.0) -> None:
        self.limit = limit
        self.evaluated = 0

    @property
    def config(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def sizes(self, request: Request, seeds: Sequence[int]) -> list[int]:
        return [request.length or int(torch.randint(2, 7, (), generator=generator(seed, 0))) for seed in seeds]

    def layout(self, request: Request, sizes: Sequence[int]) -> Layout:
        mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        start, known = torch.zeros(mask.shape), None
        if request.first is not None:
            known = torch.zeros_like(mask)
            known[:, 0], start[:, 0] = True, request.first
        level = torch.full((len(sizes), 1), request.level)
        return Layout(start, Euclidean(mask, known), {"mask": mask, "level": level}, known)

    def decode(self, x0: Tensor, layout: Layout) -> list[list[float] | None]:
        rows = [row[mask].tolist() for row, mask in zip(x0, layout.cond["mask"], strict=True)]
        return [row if sum(row) <= self.limit else None for row in rows]

    def evaluate(self, artifacts: Sequence[Any]) -> dict[str, float]:
        self.evaluated += 1
        return {"count": float(len(artifacts))}

    def save(self, artifacts: Sequence[Any], directory: Path, *, seeds: Sequence[int], report: Any) -> list[Path]:
        path = directory / "numbers.json"
        path.write_text(json.dumps({"numbers": list(artifacts), "seeds": list(seeds), "report": report}))
        return [path]


CONFIG = {
    "modality": {"name": "test-numbers", "limit": 100.0},
    "network": {"name": "test-gaussian", "mean": 1.0, "std": 0.5},
    "schedule": "flow",
    "prediction": "x0",
    "sigma_data": None,
    "sampling": {"sampler": "dpmpp_2m", "steps": 8},
}


def build(spec: Any) -> Numbers:
    """What ``MODALITIES.build`` would do."""
    return Numbers(**{key: value for key, value in spec.items() if key != "name"})


def pipeline(**changes: Any) -> Pipeline:
    config = {**CONFIG, **changes}
    denoiser = Denoiser(NETWORKS.build(config["network"]), config["schedule"], config["prediction"], None)
    return Pipeline(build(config["modality"]), denoiser, config)


def save_values(samples: Samples, directory: Path) -> None:
    """What ``Samples.save`` writes, without scores."""
    samples.save(directory)
