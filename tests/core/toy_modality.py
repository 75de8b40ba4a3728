"""A modality of number sequences from a Gaussian, with the exact denoiser as its network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.conditioning import given
from noiseloom.core.denoiser import Denoiser, implied_noise
from noiseloom.core.pipeline import Pipeline, Samples
from noiseloom.core.predictions import Estimate
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
    window: int | None = None  # numbers sampled at a time
    strength: float = 1.0  # where to start from 7s
    up: float = 0.0  # added to every estimate
    conditions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    size: int


@dataclass(frozen=True)
class Layout:
    start: Tensor
    space: Space
    cond: dict[str, Tensor]
    known: Tensor | None = None
    strength: float = 1.0
    wrap: Any = None
    window: int | None = None


class Raised:
    """A denoiser around a denoiser: what it estimates, and ``up`` more."""

    def __init__(self, denoise: Any, up: float) -> None:
        self.denoise, self.schedule, self.up = denoise, denoise.schedule, up

    def __call__(self, x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        x0 = self.denoise(x, t, cond, previous).x0 + self.up
        return Estimate(x0, lambda: implied_noise(x, x0, t, self.schedule))


class Numbers:
    """Sequences of 2 to 6 numbers, times ``unit``; a sum above ``limit`` is a failed sample."""

    Request = Request
    conditions_named = ("level", "shift")

    def __init__(self, limit: float = 100.0) -> None:
        self.limit = limit
        self.evaluated = 0
        self.unit = torch.ones(1)

    @property
    def config(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def plans(self, request: Request, seeds: Sequence[int]) -> list[Plan]:
        sizes = [request.length or int(torch.randint(2, 7, (), generator=generator(seed, 0))) for seed in seeds]
        return [Plan(size) for size in sizes]

    def layout(self, request: Request, plans: Sequence[Plan]) -> Layout:
        sizes = [plan.size for plan in plans]
        mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        start, known = torch.full(mask.shape, 7.0) * mask, None
        if request.first is not None:
            known = torch.zeros_like(mask)
            known[:, 0], start[:, 0] = True, request.first
        level = torch.full((len(sizes), 1), request.level)
        cond, wrap = {"mask": mask, "level": level}, partial(Raised, up=request.up) if request.up else None
        return Layout(start, Euclidean(mask, known), cond, known, request.strength, wrap, request.window)

    def decode(self, x0: Tensor, layout: Layout) -> list[list[float] | None]:
        rows = [(row[mask] * self.unit).tolist() for row, mask in zip(x0, layout.cond["mask"], strict=True)]
        return [row if sum(row) <= self.limit else None for row in rows]

    def windows(self, layout: Layout, run: Any) -> Any:
        if layout.window is None:
            yield run(layout, 0, range(len(layout.start))), 0
            return
        x = layout.start.clone()
        for index, start in enumerate(range(0, x.shape[1], layout.window)):
            here = slice(start, start + layout.window)
            mask = layout.cond["mask"][:, here]
            part = Layout(x[:, here], Euclidean(mask), {**layout.cond, "mask": mask})
            x[:, here] = run(part, index, range(len(x)))
            yield x, min(start + layout.window, x.shape[1])

    def decode_part(self, x0: Tensor, layout: Layout, start: int, stop: int) -> list[list[float]]:
        return [(row[start:stop] * self.unit).tolist() for row in x0]

    def tensors(self) -> dict[str, Tensor]:
        return {"unit": self.unit}

    def load_tensors(self, tensors: Any) -> None:
        if tensors.keys() != {"unit"} or tensors["unit"].shape != (1,):
            raise ValueError(f"unit is one number, but there is\n{dict(tensors)}")
        self.unit = tensors["unit"]

    def report(self, artifacts: Sequence[Any]) -> dict[str, float]:
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
