"""``noiseloom train``: a recipe from data to a checkpoint that samples."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import OBJECTIVES, Example
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.samples import pick
from noiseloom.core.training import TrainResult, train
from noiseloom.modalities.modality import Dataset, Modality

from .registries import modality as modality_class
from .train_schema import TrainConfig

FINISHED = "checkpoint"  # the folder of a run that `noiseloom sample checkpoint=` takes


class Items:
    """A modality's data set as training data."""

    def __init__(self, modality: Modality, dataset: Dataset) -> None:
        self.modality, self.dataset, self.sizes = modality, dataset, dataset.sizes

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Example:
        return self.modality.encode([self.dataset[index] for index in indices], generators)


class Recipe:
    """Everything a training run is made of, built from its configuration."""

    def __init__(self, config: TrainConfig) -> None:
        data = dict(config.data)
        source = data.pop("source", None)
        if source is None:
            raise ValueError("no data: data.source=FILE_OR_FOLDER")
        options = dict(config.modality)
        cls = modality_class(options.pop("name", None) or "")
        self.config, self.source = config, str(source)
        self.modality: Modality = cls.fitted(self.source, data, **options)
        self.datasets = {split: self.modality.dataset(self.source, split, **data) for split in ("train", "valid")}
        self.network_spec = {**self.modality.network_options(), **config.network}
        torch.manual_seed(config.trainer.seed)
        network = NETWORKS.build(self.network_spec)
        self.denoiser = Denoiser(network, config.schedule, **self.modality.denoiser_options())
        self.objective = OBJECTIVES.build(config.objective, couple=self.modality.couple)

    def data(self, split: str) -> Items | None:
        """The items of a split; None where it is empty."""
        dataset = self.datasets[split]
        return Items(self.modality, dataset) if len(dataset) else None

    def fingerprint(self) -> dict[str, Any]:
        """What decides the weights beside the trainer's options."""
        config = self.config
        return {
            "modality": {"name": self.modality.name, **self.modality.config},
            "network": self.network_spec,
            "schedule": config.schedule,
            "objective": config.objective,
            "data": {"source": self.source, "items": len(self.datasets["train"])},
        }

    def checkpoint_config(
        self, result: TrainResult | None = None, metrics: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The configuration of a checkpoint (``core.pipeline.pretrained``)."""
        config, fingerprint = self.config, self.fingerprint()
        out = {
            "modality": fingerprint["modality"],
            "network": fingerprint["network"],
            "schedule": config.schedule,
            **self.modality.denoiser_options(),
            "recipe": config.recipe,
            "seed": config.trainer.seed,
            # A checkpoint is published: of a file's path only its name.
            "data": {**fingerprint["data"], "source": Path(self.source).name},
            "sampling": dict(config.sampling),
            "training": {"objective": config.objective, "trainer": config.trainer.fixed()},
        }
        if result is not None:
            out["training"] |= {"steps": result.step, "samples": result.samples, "skipped": result.skipped}
            out["metrics"] = {**result.held_out, **dict(metrics or {})}
        return out

    def check_scale(self) -> None:
        """Warn before step 0 where the data does not have the standard deviation that the network is told."""
        items = self.data("train")
        assert items is not None
        few = range(min(len(items), 64))
        example = items.example(list(few), None)
        sigma_data = self.modality.denoiser_options()["sigma_data"]
        squares = example.space.mean_square(example.x0)
        for part, square in squares.items() if isinstance(squares, Mapping) else [("", squares)]:
            measured, told = float(square.mean()) ** 0.5, pick(sigma_data, part)
            if told is not None and not told / 4 < measured < told * 4:
                name = f"the {part} of the data" if part else "the data"
                print(f"warning: {name} have a scale of {measured:.3g}, but sigma_data is {told:.3g}", file=sys.stderr)


def run(config: TrainConfig) -> None:
    """Train, preview, and write the finished checkpoint to ``<out>/checkpoint``."""
    recipe = Recipe(config)
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
        if not _first_process():
            return
        pipeline = Pipeline(recipe.modality, denoiser, recipe.checkpoint_config(result))
        folder = pipeline.save_pretrained(directory / FINISHED, name=config.run)
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


def _first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
