"""Distillation: a student that makes in a few calls what its teacher, any checkpoint, makes in many.

The student is the teacher's network with a second time, where a step ends, and begins with the teacher's weights. What
the teacher says has its guidance in it, so that the student needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import noiseloom
from noiseloom.core.backbones import NETWORKS
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.devices import compile_network
from noiseloom.core.objectives import OBJECTIVES
from noiseloom.core.objectives.distillation import Trajectory
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.predictions import Estimate
from noiseloom.core.samples import Cond, Sample, Time, parts
from noiseloom.core.training import TrainResult
from noiseloom.modalities.modality import Modality
from noiseloom.modalities.scale import weight_sums

from .catalogue import recipe_values
from .paths import TeacherPaths
from .recipe import Recipe
from .schema import UsageError
from .train_schema import TrainConfig

_SECOND_TIME = "network.duration."  # the only weights that a student has and its teacher has not


class Teacher:
    """A checkpoint's denoiser as it samples, guided and in its own precision: frozen, and not what is trained."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.denoiser = pipeline.denoiser.requires_grad_(False).eval()
        self.schedule = self.denoiser.schedule
        self._denoise = pipeline.guided()

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        device = next(iter(parts(x).values())).device
        if next(self.denoiser.parameters()).device != device:
            self.denoiser.to(device)
        told = {name: value for name, value in (cond or {}).items() if name != "target"}
        with torch.no_grad():
            return self._denoise(x, t, told, previous)


class Distillation(Recipe):
    """The recipe of a student. Options of ``modality`` and ``schedule`` are the teacher's; those of ``network`` may
    not be given; ``data`` is what the teacher's recipe reads unless another source is named."""

    def __init__(self, config: TrainConfig) -> None:
        for key in ("modality", "network"):
            if getattr(config, key):
                raise UsageError(f"a student has the {key} of its teacher: leave {key} out")
        self.pipeline = noiseloom.load(str(config.teacher), device="cpu")
        if not config.method:
            raise UsageError(f"no method to distil by: method=NAME. Choices: {', '.join(methods())}")
        if "teacher" not in OBJECTIVES.options(config.method["name"]):
            raise UsageError(f"{config.method['name']} takes no teacher. Methods: {', '.join(methods())}")
        config.objective = dict(config.method)
        config.data = _data(self.pipeline.config, config.data, str(config.teacher))
        super().__init__(config)

    def build_modality(self, data: Mapping[str, Any]) -> Modality:
        modality: Any = self.pipeline.modality  # fitted when the teacher was trained
        self.schedule = self.pipeline.config["schedule"]
        return modality

    def network_options(self) -> dict[str, Any]:
        name = self.pipeline.config["network"]["name"]
        if "two_times" not in NETWORKS.options(name):
            raise UsageError(f"network {name!r} knows one time only: it cannot learn where a step ends")
        return {**self.pipeline.config["network"], "two_times": True}

    def build_denoiser(self) -> Denoiser:
        student = super().build_denoiser()
        lacks = student.load_state_dict(self.pipeline.denoiser.state_dict(), strict=False)
        assert not lacks.unexpected_keys
        assert all(key.startswith(_SECOND_TIME) for key in lacks.missing_keys)
        return student

    def objective_options(self) -> dict[str, Any]:
        if self.config.trainer.compile:
            compile_network(self.pipeline.denoiser.network)
        return {**super().objective_options(), "teacher": Teacher(self.pipeline)}

    def data(self, split: str) -> Any:
        """Held-out items as they are; to train on, the teacher's paths where they are kept."""
        items = super().data(split)
        if split != "train" or not self.config.paths or items is None:
            return items
        if not isinstance(self.objective, Trajectory):
            raise UsageError("paths are kept for method=trajectory")
        device = torch.device(self.config.trainer.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        weights = weight_sums(self.pipeline.denoiser)
        made_of = {**self.fingerprint(), "objective": self.objective.paths.config}  # not how a student learns from them
        made_of |= {"weights": weights, "precision": self.config.trainer.precision}
        return TeacherPaths(
            items, self.objective, self.denoiser.schedule, self.config.paths, self.config.trainer.batch_size, device,
            made_of, self.config.trainer.seed,
        )  # fmt: skip

    def fingerprint(self) -> dict[str, Any]:
        taught = {"teacher": self.pipeline.config.get("recipe"), "sampling": self.pipeline.config.get("sampling")}
        taught["paths"] = self.config.paths
        return {**super().fingerprint(), **taught}

    def checkpoint_config(
        self, result: TrainResult | None = None, metrics: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The teacher's sampling settings but for its guidance, sampler and steps, under those of the recipe."""
        out = super().checkpoint_config(result, metrics)
        own = {"guidance", "sampler", "steps", "grid", "caching", "order", "schedule"}
        kept = {key: value for key, value in (self.pipeline.config.get("sampling") or {}).items() if key not in own}
        out["sampling"] = {**kept, **out["sampling"]}
        out["training"]["teacher"] = {"recipe": self.pipeline.config.get("recipe")}
        if "license" in self.pipeline.config:
            out["license"] = self.pipeline.config["license"]
        return out


def methods() -> list[str]:
    """The objectives that take a teacher."""
    return [name for name in OBJECTIVES if "teacher" in OBJECTIVES.options(name)]


def _data(config: Mapping[str, Any], asked: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """What to read: what is asked, over what the teacher's recipe reads where that is one of ours."""
    known = recipe_values(str(config.get("recipe")))
    data = {**((known or {}).get("data") or {}), **asked}
    if "source" not in data:
        raise UsageError(f"{teacher} does not say where its data is: data.source=FILE_OR_FOLDER")
    return data
