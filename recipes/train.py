"""``noiseloom train``: a recipe from data to a checkpoint that samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.training import TrainResult, train

from . import train_component
from .distill import Distillation
from .items import FINISHED, first_process
from .recipe import Recipe
from .train_schema import TrainConfig


def run(config: TrainConfig) -> None:
    """Train, preview, and write the finished checkpoint to ``<out>/checkpoint``; or so with a component."""
    if config.component:
        train_component.run(config)
        return
    recipe = Distillation(config) if config.teacher else Recipe(config)
    directory = Path(config.out)
    for split, dataset in recipe.datasets.items():
        print(f"{recipe.source} ({split})\n{dataset.report}\n", file=sys.stderr)
    items = recipe.data("train")
    if items is None:
        raise ValueError(f"{recipe.source} has no training items")
    recipe.check_scale()

    def preview(denoiser: Denoiser, step: int) -> Mapping[str, float]:
        return _preview(recipe, denoiser, directory / "previews" / f"step_{step:08d}")

    def finish(denoiser: Denoiser, result: TrainResult) -> None:
        if not first_process():
            return
        pipeline = Pipeline(recipe.modality, denoiser, recipe.checkpoint_config(result))
        folder = pipeline.save_pretrained(directory / FINISHED, name=config.run, half=config.half)
        print(f"Finished at step {result.step}. Sample it: noiseloom sample checkpoint={folder}", file=sys.stderr)

    train(
        recipe.denoiser,
        recipe.objective,
        items,
        config.trainer,
        directory,
        valid=recipe.data("valid"),
        preview=preview if config.trainer.preview_every else None,
        finish=finish,
        recipe=recipe.fingerprint(),
    )


def _preview(recipe: Recipe, denoiser: Denoiser, folder: Path) -> dict[str, float]:
    """Sample, save pictures and score; all processes sample, the first one writes."""
    pipeline = Pipeline(recipe.modality, denoiser, recipe.checkpoint_config())
    samples = pipeline.sample(**{"count": 64, "progress": False, **recipe.config.preview})
    samples.save(folder)
    return samples.report.values()
