"""What there is by name: the registries, and what is bundled. Quick to import: help pages and completion use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

# plural name: (module, registry)
REGISTRIES = {
    "schedules": ("noiseloom.core.schedules", "SCHEDULES"),
    "predictions": ("noiseloom.core.predictions", "PREDICTIONS"),
    "samplers": ("noiseloom.core.samplers", "SAMPLERS"),
    "grids": ("noiseloom.core.grids", "GRIDS"),
    "orders": ("noiseloom.core.orders", "ORDERS"),
    "guidance": ("noiseloom.core.guidance", "GUIDANCE"),
    "energies": ("noiseloom.core.guidance", "ENERGIES"),
    "caching": ("noiseloom.core.caching", "CACHING"),
    "posteriors": ("noiseloom.core.posterior", "POSTERIORS"),
    "measurements": ("noiseloom.core.measurements", "MEASUREMENTS"),
    "inpainting": ("noiseloom.core.editing", "INPAINTING"),
    "objectives": ("noiseloom.core.objectives", "OBJECTIVES"),
    "weightings": ("noiseloom.core.objectives", "WEIGHTINGS"),
    "times": ("noiseloom.core.objectives", "TIME_DISTRIBUTIONS"),
    "networks": ("noiseloom.core.backbones", "NETWORKS"),
    "modalities": ("noiseloom.modalities.modality", "MODALITIES"),
    "components": ("noiseloom.modalities.component", "COMPONENTS"),
}

KINDS = ("recipes", "checkpoints", *REGISTRIES)  # what `noiseloom list` takes


def recipes() -> dict[str, str]:
    """The recipes by name, and what the first line of each file says of it."""
    folder = _HERE / "conf" / "recipe"
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        comments = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
        about = next((line[2:] for line in comments if not line.startswith("# @")), "")
        found[path.relative_to(folder).with_suffix("").as_posix()] = about
    return found


def recipe_values(name: str) -> dict[str, Any] | None:
    """What the file of a recipe says; None where there is no such recipe."""
    from omegaconf import OmegaConf

    if name not in recipes():
        return None
    values: Any = OmegaConf.to_container(OmegaConf.load(_HERE / "conf" / "recipe" / f"{name}.yaml"))
    return dict(values)


def checkpoints() -> dict[str, Path]:
    """The bundled checkpoints, components too: name to folder."""
    return {path.parent.name: path.parent for path in sorted((_HERE / "weights").glob("*/config.json"))}


def components() -> dict[str, Path]:
    """The bundled components, parts of a modality that are used and not sampled: name to folder."""
    return {name: path for name, path in checkpoints().items() if _is_component(path)}


def _is_component(folder: Path) -> bool:
    return "component" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
