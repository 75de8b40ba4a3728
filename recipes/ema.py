"""``noiseloom ema``: a checkpoint of a finished run whose weights are averaged over another part of it."""

from __future__ import annotations

from pathlib import Path

import torch

import noiseloom
from noiseloom.core.training import reconstruct
from noiseloom.core.training.posthoc import FOLDER

from .items import FINISHED
from .schema import EmaConfig, UsageError


@torch.no_grad()
def run(config: EmaConfig) -> None:
    """Write the checkpoint, to be sampled and scored as any other."""
    directory = Path(config.run).expanduser()
    if not (directory / FINISHED).is_dir():
        raise UsageError(f"{directory} holds no finished run: there is no {FINISHED} in it")
    weights = reconstruct(directory / FOLDER, config.std, config.step)
    pipeline = noiseloom.load(directory / FINISHED)
    parameters = dict(pipeline.denoiser.named_parameters())
    if weights.keys() != parameters.keys():
        raise UsageError(f"the snapshots of {directory} are of another network than its {FINISHED}")
    for name, value in weights.items():
        parameters[name].copy_(value)
    told = {"ema_std": config.std} | ({} if config.step is None else {"ema_step": config.step})
    pipeline.config = {
        **{key: value for key, value in pipeline.config.items() if key != "metrics"},  # those of other weights
        "training": {**pipeline.config.get("training", {}), **told},
    }
    out = Path(config.out) if config.out else directory / f"{FOLDER}-{config.std:g}"
    folder = pipeline.save_pretrained(out)
    print(f"Averaged with a width of {config.std:g}. Sample it: noiseloom sample checkpoint={folder}")
