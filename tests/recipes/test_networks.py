"""A recipe of sound or video trains another network when it is told one: nothing else of it changes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import noiseloom
from noiseloom.core.backbones import UNet
from noiseloom.recipes.catalogue import recipes
from noiseloom.recipes.cli import main
from noiseloom.recipes.registries import validate
from noiseloom.recipes.train_schema import TrainConfig

ONLY = ["trainer.steps=2", "trainer.batch_size=4", "trainer.checkpoint_every=2", "trainer.eval_every=4"]


def composed(name: str) -> Any:
    text = (files("noiseloom.recipes.conf") / "recipe" / f"{name}.yaml").read_text()
    return OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(text), {"recipe": name, "run": "x"})


@pytest.mark.parametrize("name", [name for name in recipes() if composed(name).network.get("name") == "dit"])
def test_every_recipe_of_a_dit_may_be_one_of_a_unet(name: str) -> None:
    validate(OmegaConf.to_object(OmegaConf.merge(composed(name), {"network": {"name": "unet"}})))


@pytest.mark.parametrize("name", ["audio/tiny", "video/tiny"])
def test_a_unet_is_trained_and_sampled(name: str, tmp_path: Path) -> None:
    extra = name.partition("/")[0]
    for needed in {"audio": ("torchaudio", "soundfile"), "video": ("av",)}[extra]:
        pytest.importorskip(needed, reason=f"needs the extra {extra!r}")
    small = ["network.width=16", "network.heads=2", "network.depth=2", "network.multipliers=[1,2]"]
    main(["train", f"recipe={name}", "network=unet", *small, *ONLY, f"out={tmp_path}"])
    pipe = noiseloom.load(tmp_path / "checkpoint")
    assert isinstance(pipe.denoiser.network, UNet)
    assert len(pipe.sample(2, steps=2, seed=1, progress=False)) == 2
