"""Components: parts of a modality that are trained by themselves, by the same loop, and published like any checkpoint.

A vocoder, an autoencoder, a classifier: a network with a data set, an objective and scores of its own, that a modality
then uses as it is. Third parties register theirs with ``@COMPONENTS.register("name")``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Generator, nn

from noiseloom.core.pipeline.pretrained import (
    COMPONENT,
    WEIGHTS,
    find_pretrained,
    load_pretrained,
    save_pretrained,
)
from noiseloom.core.registry import Registry, UnknownName, unknown
from noiseloom.core.training.checkpoint import load_exactly

from .modality import Dataset
from .report import Report

COMPONENTS: Registry[Component] = Registry("component")
BUNDLED: dict[str, Path] = {}  # folders of the components that ship with the program, by name; it fills them in


class Component(nn.Module, ABC):
    """A part that is trained by itself. Its constructor takes plain values only, and ``config`` gives them back."""

    #: the registered name
    name: ClassVar[str]
    #: published scores on real items, by the name of a row
    figures: Mapping[str, float] = {}

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON values: stored with its weights."""

    @classmethod
    def fitted(cls, sources: Sequence[str], data: Mapping[str, Any], **options: Any) -> Component:
        """A component with what it must know of the training sources before it is built (a vocabulary).

        Args:
            sources: names or paths; ``data`` are options of reading them.
            options: the constructor's.
        """
        return cls(**options)

    @abstractmethod
    def dataset(self, sources: Sequence[str], split: str, **data: Any) -> Dataset:
        """The items of the sources together: ``train``, ``valid`` or ``test``."""

    @abstractmethod
    def example(self, items: Sequence[Any], generators: Sequence[Generator] | None = None) -> Any:
        """A batch of items, as the objective takes it: a dataclass of CPU tensors. With ``generators`` (training) it
        augments; without (held out) it is deterministic."""

    def measure(self, train: Any) -> None:
        """Measure on the training ``dataset`` what the trained component is to carry (statistics), into its buffers."""
        return

    @abstractmethod
    def evaluate(self, held_out: Any) -> Report:
        """Its scores on a ``dataset`` that it was not trained on."""

    def spec(self) -> dict[str, Any]:
        """What ``COMPONENTS.build`` makes it from again."""
        return {"name": self.name, **self.config}


def save_component(
    directory: str | Path, component: Component, facts: Mapping[str, Any] | None = None, *, half: bool = False
) -> Path:
    """Publish a component as ``config.json``, ``model.safetensors`` and a card.

    Args:
        directory: made if needed; files of these three names are replaced.
        component: with the weights to publish.
        facts: what a reader wants to know: ``recipe``, ``seed``, ``metrics``, ``training``, ``data``, ``license``.
        half: store float16 numbers, half the size; they are float32 again once loaded.
    """
    config = {"component": component.spec(), **(facts or {})}
    return save_pretrained(directory, component, config, _card(Path(directory).name, config), COMPONENT, half=half)


def load_component(directory: str | Path) -> Component:
    """A published component, in evaluation mode. The module that registers it must be imported.

    Raises:
        CheckpointError: it is missing, broken or refused; one line says why.
        UnknownName: its name is not registered; the message lists the choices.
    """
    pretrained = load_pretrained(directory, COMPONENT)
    component = COMPONENTS.build(pretrained.config["component"])
    load_exactly(component, pretrained.tensors, pretrained.path / WEIGHTS)
    published = pretrained.config.get("metrics") or {}
    component.figures = {name: float(value) for name, value in published.items() if isinstance(value, int | float)}
    return component.eval()


def component_folder(name: str | Path) -> Path:
    """The folder of a component: of a bundled one by its name, the folder itself, or of a repository of the hub.

    Raises:
        UnknownName: it is none of these; the message lists the bundled ones.
        CheckpointError: the repository cannot be read.
    """
    if str(name) in BUNDLED:
        return BUNDLED[str(name)]
    if "/" not in str(name) and not Path(name).is_dir():
        raise UnknownName(unknown("component", str(name), [*BUNDLED, "a folder", "owner/name on the hub"]))
    return find_pretrained(name)


def find_component(spec: str | Path | Mapping[str, Any] | Component) -> Component:
    """A component from its name or folder (with its weights), from ``{"name": ..., options}`` (without), or itself."""
    if isinstance(spec, str | Path):
        return load_component(component_folder(spec))
    return COMPONENTS.build(spec).eval()


def _card(name: str, config: Mapping[str, Any]) -> str:
    """README.md of a component."""
    front = {
        "library_name": "noiseloom",
        "license": config.get("license", "other"),
        "tags": ["noiseloom", config["component"]["name"]],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {name}", ""]
    lines += ["| | |", "|---|---|"]
    facts = {key: config[key] for key in ("component", "recipe", "data", "seed", "training") if config.get(key)}
    lines += [f"| {key} | {_cell(value)} |" for key, value in facts.items()]
    if config.get("metrics"):
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in config["metrics"].items()]
    if config.get("recipe"):
        lines += ["", f"Train it again: `noiseloom train recipe={config['recipe']}`"]
    lines += ["", f"`{WEIGHTS}` holds the averaged weights; nothing in this folder is code.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")
