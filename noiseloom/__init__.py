"""noiseloom: sound, video and 3D molecules by diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from noiseloom.core.pipeline import Pipeline

__version__ = "0.1.0"


def load(name: str | Path, *, revision: str | None = None, device: str | None = None) -> Pipeline:
    """A trained model, ready to sample: ``noiseloom.load("molecules-qm9").sample(16)``.

    Args:
        name: a bundled checkpoint, a folder, or a repository of the Hugging Face hub (``owner/name``).
        revision: a branch, tag or commit of the repository.
        device: by default the best there is.

    Raises:
        UnknownName: there is none of that name; the message lists the bundled ones.
        CheckpointError: the checkpoint is broken or refused; one line says why.
        MissingExtra: it needs a package that is not installed; the message names the command.
    """
    from functools import partial
    from pathlib import Path

    from noiseloom.core.pipeline import Pipeline
    from noiseloom.core.registry import UnknownName
    from noiseloom.recipes.catalogue import checkpoints
    from noiseloom.recipes.registries import modality, registry

    def build_modality(spec: Mapping[str, Any]) -> Any:
        modality(spec["name"])  # says what is missing
        return registry("modalities").build(spec)

    bundled = checkpoints()
    source = bundled.get(str(name), name)
    if not Path(source).expanduser().is_dir() and "/" not in str(source):
        choices = ", ".join(bundled) or "none"
        raise UnknownName(f"unknown checkpoint {str(name)!r}. Choices: {choices}, a folder, or owner/name on the hub")
    pipeline = Pipeline.from_pretrained(source, build_modality, revision=revision, device=device)
    pipeline.open = partial(load, device=device)
    return pipeline
