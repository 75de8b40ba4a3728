"""The model card of a published checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .pretrained import WEIGHTS


def model_card(name: str, config: Mapping[str, Any], text: str = "") -> str:
    """README.md of a checkpoint: what it is, how to use it, and how it was made.

    Args:
        name: what ``noiseloom.load`` is to be given.
        config: the checkpoint's configuration.
        text: what else a reader should know, in Markdown.
    """
    modality, recipe = config["modality"]["name"], config.get("recipe")
    front = {
        "library_name": "noiseloom",
        "license": config.get("license", "other"),
        "tags": ["noiseloom", "diffusion", modality],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {name}", ""]
    if text:
        lines += [text.strip(), ""]
    lines += ["```python", "import noiseloom", "", f"pipe = noiseloom.load({json.dumps(name)})"]
    lines += ["samples = pipe.sample(16, seed=0)", 'samples.save("samples")', "```", ""]
    facts = {
        "modality": modality,
        "network": config["network"]["name"],
        "recipe": recipe,
        "data": config.get("data"),
        "licence": config.get("license"),
        "seed": config.get("seed"),
        "training": config.get("training"),
        "sampling": config.get("sampling"),
        "noiseloom": config.get("noiseloom"),
    }
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value is not None]
    if config.get("metrics"):
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in config["metrics"].items()]
    if recipe:
        lines += ["", f"Train it again: `noiseloom train recipe={recipe}`"]
    lines += ["", f"`{WEIGHTS}` holds the averaged weights; nothing in this folder is code.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
