"""The options of ``noiseloom train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from noiseloom.core.training import TrainerConfig

from .schema import Named, named


@dataclass
class TrainConfig:
    """Train a recipe. The same command again goes on where a run was stopped.

    Attributes:
        recipe: what to train.
        run: the run's name.
        out: the run's folder.
        modality: the kind of data.
        component: instead of a modality: a part of one that is trained by itself, such as a vocoder.
        data: where the data is: data.source=FILE_OR_FOLDER; for a component also a list of them.
        network: the network.
        schedule: how signal becomes noise.
        objective: what is minimised.
        teacher: a checkpoint to distil, by name or folder; its modality, network and weights are the student's.
        method: how it is distilled: an objective that takes a teacher.
        paths: how many of the teacher's paths are made once and kept, for method=trajectory; 0: new ones every step.
        trainer: how long and how.
        sampling: the sample options that the checkpoint recommends, e.g. sampling.sampler=dpmpp_2m.
        half: store the finished weights as float16, half the size.
        preview: what the previews sample, e.g. preview.count=64.
    """

    recipe: str = MISSING
    run: str = "${recipe}"
    out: str = "runs/${run}"
    modality: Named = named()
    component: Named = named()
    data: dict[str, Any] = field(default_factory=dict)
    network: Named = named()
    schedule: Named = named("flow")
    objective: Named = named("denoising")
    teacher: str | None = None
    method: Named = named()
    paths: int = 0
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sampling: dict[str, Any] = field(default_factory=dict)
    half: bool = False
    preview: dict[str, Any] = field(default_factory=dict)
