"""``noiseloom train`` of a component: a part of a modality that is trained by itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from noiseloom.core.objectives import OBJECTIVES, Denoising
from noiseloom.core.training import TrainResult, train
from noiseloom.modalities.component import Component, save_component

from .items import FINISHED, Items, first_process
from .registries import registry
from .train_schema import TrainConfig


def run(config: TrainConfig) -> None:
    """Train, measure, score on held-out items and publish to ``<out>/checkpoint``.

    Raises:
        ValueError: no data, or an objective that trains no component.
    """
    data = dict(config.data)
    source = data.pop("source", None)
    sources = [str(source)] if isinstance(source, str) else [str(one) for one in source or []]
    if not sources:
        raise ValueError("no data: data.source=FILE_OR_FOLDER")
    options = dict(config.component)
    cls = registry("components")[options.pop("name")]
    torch.manual_seed(config.trainer.seed)
    component: Component = cls.fitted(sources, data, **options)  # type: ignore[attr-defined]
    objective = OBJECTIVES.build(config.objective, component=component)
    if isinstance(objective, Denoising):
        raise ValueError("a component is not trained by denoising: objective=reconstruction, classification, ...")
    datasets = {split: component.dataset(sources, split, **data) for split in ("train", "valid")}
    for split, dataset in datasets.items():
        print(f"{', '.join(sources)} ({split})\n{dataset.report}\n", file=sys.stderr)
    if not len(datasets["train"]):
        raise ValueError(f"{', '.join(sources)} has no training items")
    fingerprint = {
        "component": component.spec(),
        "objective": config.objective,
        "data": {"source": sources, **data, "items": len(datasets["train"])},
    }

    def finish(trained: Component, result: TrainResult) -> None:
        if not first_process():
            return
        trained.measure(datasets["train"])
        test = trained.dataset(sources, "test", **data)
        report = trained.evaluate(test if len(test) else datasets["valid"])
        print(report, file=sys.stderr)
        facts = _facts(config, fingerprint, result, report.values())
        folder = save_component(Path(config.out) / FINISHED, trained, facts, half=config.half)
        print(f"Finished at step {result.step}: {folder}", file=sys.stderr)

    train(
        component,
        objective,
        Items(component.example, datasets["train"]),
        config.trainer,
        config.out,
        valid=Items(component.example, datasets["valid"]) if len(datasets["valid"]) else None,
        finish=finish,
        recipe=fingerprint,
    )


def _facts(
    config: TrainConfig, fingerprint: Mapping[str, Any], result: TrainResult, scores: Mapping[str, float]
) -> dict[str, Any]:
    """What a reader of the published component wants to know; of a file's path only its name."""
    data = fingerprint["data"]
    return {
        "recipe": config.recipe,
        "seed": config.trainer.seed,
        "data": {**data, "source": [Path(source).name for source in data["source"]]},
        "training": {
            "objective": config.objective,
            "trainer": config.trainer.fixed(),
            "steps": result.step,
            "samples": result.samples,
            "skipped": result.skipped,
        },
        "metrics": {**result.held_out, **scores},
    }
