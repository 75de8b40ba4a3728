"""A training run as its configuration describes it: data, modality, network and objective."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import OBJECTIVES
from noiseloom.core.samples import pick
from noiseloom.core.training import TrainResult, held_out_batches
from noiseloom.modalities.modality import Modality

from .items import Items
from .registries import modality as modality_class
from .train_schema import TrainConfig

_CHECKED = 64  # items whose scale is measured


class Recipe:
    """Everything a training run is made of, built from its configuration."""

    def __init__(self, config: TrainConfig) -> None:
        data = dict(config.data)
        source = data.pop("source", None)
        if source is None:
            raise ValueError("no data: data.source=FILE_OR_FOLDER")
        self.config, self.source, self.schedule = config, str(source), config.schedule
        self.modality: Modality = self.build_modality(data)
        self.datasets = {split: self.modality.dataset(self.source, split, **data) for split in ("train", "valid")}
        self.network_spec = self.network_options()
        torch.manual_seed(config.trainer.seed)
        self.denoiser = self.build_denoiser()
        self.objective: Any = OBJECTIVES.build(config.objective, **self.objective_options())

    def build_modality(self, data: Mapping[str, Any]) -> Modality:
        """Fitted to the data; ``data`` are the options of reading it."""
        options = dict(self.config.modality)
        return modality_class(options.pop("name", None) or "").fitted(self.source, data, **options)

    def network_options(self) -> dict[str, Any]:
        """The network and all its options: what the data dictates, and what was chosen."""
        return {**self.modality.network_options(), **self.config.network}

    def build_denoiser(self) -> Denoiser:
        """The denoiser with its first weights."""
        network = NETWORKS.build(self.network_spec)
        return Denoiser(network, self.schedule, **self.modality.denoiser_options())

    def objective_options(self) -> dict[str, Any]:
        """What an objective is given beside its own options, where it asks for it."""
        return {"couple": self.modality.couple}

    def data(self, split: str) -> Items | None:
        """The items of a split; None where it is empty."""
        dataset = self.datasets[split]
        return Items(self.modality.encode, dataset) if len(dataset) else None

    def fingerprint(self) -> dict[str, Any]:
        """What decides the weights beside the trainer's options."""
        config = self.config
        return {
            "modality": {"name": self.modality.name, **self.modality.config},
            "network": self.network_spec,
            "schedule": self.schedule,
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
            "schedule": fingerprint["schedule"],
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
        """Warn before step 0 of data whose scale is not what the network is told, or that the modality finds odd."""
        dataset, squares = self.datasets["train"], dict[str, list[torch.Tensor]]()
        shapes = getattr(dataset, "shapes", None)  # items of different ones cannot be encoded together
        for chosen in held_out_batches(None, len(dataset), _CHECKED, _CHECKED, 0, shapes):
            example = self.modality.encode([dataset[index] for index in chosen])
            measured = example.space.mean_square(example.x0)
            for part, square in measured.items() if isinstance(measured, Mapping) else [("", measured)]:
                squares.setdefault(part, []).append(square)
        options = self.modality.denoiser_options()
        lines = self.modality.warnings(dataset)
        for part, some in squares.items():
            scale, told = float(torch.cat(some).mean()) ** 0.5, pick(options["sigma_data"], part)
            if told is not None and not told / 4 < scale < told * 4:
                name = f"the {part} of the data" if part else "the data"
                lines.append(f"{name} have a scale of {scale:.3g}, but sigma_data is {told:.3g}")
        # A network cannot say noise that does not fit through it: its samples would keep some, whatever the loss.
        numbers, width = getattr(self.denoiser.network, "token_numbers", 0), getattr(self.denoiser.network, "width", 0)
        if numbers > width and options["prediction"] != "x0":
            lines.append(
                f"a token has {numbers} numbers, the network is {width} wide and is to predict {options['prediction']},"
                " which holds noise: samples will stay noisy. A wider network.width, a smaller network.patch or a "
                "prediction of x0 mends it"
            )
        for line in lines:
            print(f"warning: {line}", file=sys.stderr)
