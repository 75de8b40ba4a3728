"""Published checkpoints: a folder of ``config.json``, ``model.safetensors`` and a model card.

The folder may come from anyone, so nothing in it is code: ``config.json`` holds plain values and registered names, the
weights are safetensors, and no other file is opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones import NETWORKS
from ..denoiser import Denoiser
from ..training.checkpoint import CheckpointError, load_exactly, separate

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LARGEST_CONFIG = 4 << 20  # bytes
NEEDED = ("format", "modality", "network", "schedule", "prediction", "sigma_data")
OPTIONAL = ("sampling", "recipe", "seed", "metrics", "training", "data", "license", "noiseloom")
_BUILT = ("modality", "network", "schedule", "prediction", "sampling")  # what names are looked up in
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_PATH = re.compile(r"^(/|~|\\|[A-Za-z]:[\\/])|://|(^|[/\\])\.\.([/\\]|$)")


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint as it was read: ``config`` is checked, ``tensors`` are the averaged weights by name."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def save_pretrained(directory: str | Path, denoiser: Denoiser, config: Mapping[str, Any], card: str) -> Path:
    """Write a checkpoint; the weights are those in ``denoiser`` (swap the averaged ones in before).

    Args:
        directory: made if needed; files of these three names are replaced.
        denoiser: the weights.
        config: what ``build_denoiser`` and the modality need, and what a reader wants to know: the keys ``NEEDED``
            (``format`` is added) and any of ``OPTIONAL``.
        card: the text of README.md (``model_card`` writes one).
    """
    from safetensors.torch import save

    directory = Path(directory)
    config = json.loads(json.dumps({"format": FORMAT, **config}, allow_nan=False))
    check_config(config, directory / CONFIG)
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        WEIGHTS: save(separate(denoiser.state_dict()), metadata={"format": "pt"}),
        CARD: card.encode(),
        CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for name, content in files.items():
        unfinished = directory / f".{name}.unfinished"
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, directory / name)
        finally:
            unfinished.unlink(missing_ok=True)
    return directory


def find_pretrained(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded if it is a repository's name; only the three files are fetched.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(f"there is no checkpoint folder {source}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"there is no folder {source}, and no repository of that name could be read from the hub: {reason}"
        ) from None


def load_pretrained(directory: str | Path) -> Pretrained:
    """Read a checkpoint; nothing is built yet.

    Raises:
        CheckpointError: a file that is missing, too large, truncated or not what it should be; one line that names it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {directory}")
    weights = directory / WEIGHTS
    if not weights.is_file():
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
        why = f"; {', '.join(pickles)} could run code when opened, and is not" if pickles else ""
        raise CheckpointError(f"{directory} holds no {WEIGHTS}{why}")
    config = _read_config(directory / CONFIG)
    check_config(config, directory / CONFIG)
    return Pretrained(directory, config, read_tensors(weights))


def build_denoiser(pretrained: Pretrained) -> Denoiser:
    """The network of a checkpoint with its weights, in evaluation mode. The modules that register it must be imported.

    Raises:
        UnknownName: a name that is not registered; the message lists the choices.
        CheckpointError: weights that do not fit the network.
        ValueError: options that the network, schedule or prediction does not have.
    """
    config = pretrained.config
    network = NETWORKS.build(config["network"])
    denoiser = Denoiser(network, config["schedule"], config["prediction"], config["sigma_data"])
    load_exactly(denoiser, pretrained.tensors, pretrained.path / WEIGHTS)
    return denoiser.eval()


def check_config(config: Any, path: Path) -> None:
    """Refuse a configuration that is not plain values and names.

    Raises:
        CheckpointError: in one line, what is wrong in which file.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {config.get('format')!r}; this noiseloom reads format {FORMAT}. Update noiseloom?"
        )
    missing = [key for key in NEEDED if key not in config]
    unknown = [key for key in config if key not in NEEDED + OPTIONAL]
    if missing or unknown:
        problems = [f"no {key!r}" for key in missing] + [f"unknown key {key!r}" for key in unknown]
        raise CheckpointError(f"{path}: {', '.join(problems)}. Keys: {', '.join(NEEDED + OPTIONAL)}")
    for section in ("modality", "network"):
        if not isinstance(config[section], dict) or not isinstance(config[section].get("name"), str):
            raise CheckpointError(f"{path}: {section} needs a 'name'")
    for section in _BUILT:
        for key, value in _leaves(config.get(section), section):
            if key.rpartition(".")[2].startswith("_"):
                raise CheckpointError(f"{path}: refused the key {key!r}; a configuration holds names and plain values")
            if isinstance(value, str) and _PATH.search(value):
                raise CheckpointError(f"{path}: refused {key} = {value!r}; a checkpoint may not name a path or address")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value in nested mappings and sequences by its dotted key; a mapping's keys come as they are."""
    yield key, value
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, f"{key}.{name}")
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, key)


def _read_config(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no {path.name}")
    if path.stat().st_size > LARGEST_CONFIG:
        raise CheckpointError(
            f"{path} is {path.stat().st_size:,} bytes; a configuration has at most {LARGEST_CONFIG:,}"
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: it is truncated or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size:,} bytes) is truncated or no safetensors file: {error}") from None
