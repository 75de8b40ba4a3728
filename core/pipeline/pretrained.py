"""Published checkpoints: a folder of ``config.json``, ``model.safetensors`` and a model card.

There are two kinds: a denoiser with its modality (``DENOISER``), and a part that is trained by itself (``COMPONENT``).
The folder may come from anyone, so nothing in it is code: ``config.json`` holds plain values and registered names, the
weights are safetensors, and no other file is opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import NETWORKS
from ..denoiser import Denoiser
from ..training.checkpoint import CheckpointError, load_exactly, separate

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LARGEST_CONFIG = 4 << 20  # bytes
_MODALITY = "modality."  # how the names of the modality's weights begin
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_PATH = re.compile(r"^(/|~|\\|[A-Za-z]:[\\/])|://|(^|[/\\])\.\.([/\\]|$)")


@dataclass(frozen=True)
class Kind:
    """What the configuration of a kind of checkpoint holds.

    Attributes:
        needed: keys that must be there.
        named: those of them that are ``{"name": ..., options}``.
        built: the keys whose names are looked up and whose options build something.
        optional: keys that a reader wants to know.
    """

    needed: tuple[str, ...]
    named: tuple[str, ...]
    built: tuple[str, ...]
    optional: tuple[str, ...] = ("recipe", "seed", "metrics", "training", "data", "license", "noiseloom")

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that there may be."""
        return ("format", *dict.fromkeys((*self.needed, *self.built, *self.optional)))


DENOISER = Kind(
    needed=("modality", "network", "schedule", "prediction", "sigma_data"),
    named=("modality", "network"),
    built=("modality", "network", "schedule", "prediction", "sampling"),
)
COMPONENT = Kind(needed=("component",), named=("component",), built=("component",))


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint as it was read.

    Attributes:
        path: its folder.
        config: checked.
        tensors: the averaged weights by name.
        modality_tensors: the weights of what the modality decodes with, by name.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    modality_tensors: dict[str, Tensor] = field(default_factory=dict)


def save_pretrained(
    directory: str | Path,
    model: nn.Module,
    config: Mapping[str, Any],
    card: str,
    kind: Kind = DENOISER,
    *,
    modality_tensors: Mapping[str, Tensor] | None = None,
    half: bool = False,
) -> Path:
    """Write a checkpoint; the weights are those in ``model`` (swap the averaged ones in before).

    Args:
        directory: made if needed; files of these three names are replaced.
        model: the weights.
        config: what it is built from, and what a reader wants to know: the keys of ``kind`` (``format`` is added).
        card: the text of README.md (``model_card`` writes one).
        kind: what is saved.
        modality_tensors: weights of what the modality decodes with, stored in the same file.
        half: store float16 numbers instead of float32.
    """
    from safetensors.torch import save

    directory = Path(directory)
    config = json.loads(json.dumps({"format": FORMAT, **config}, allow_nan=False))
    check_config(config, directory / CONFIG, kind)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {**model.state_dict(), **{_MODALITY + name: value for name, value in (modality_tensors or {}).items()}}
    if half:
        tensors = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
    files = {
        WEIGHTS: save(separate(tensors), metadata={"format": "pt"}),
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


def load_pretrained(directory: str | Path, kind: Kind = DENOISER) -> Pretrained:
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
    check_config(config, directory / CONFIG, kind)
    tensors = {name: v.float() if v.dtype == torch.float16 else v for name, v in read_tensors(weights).items()}
    own = {name.removeprefix(_MODALITY): tensors.pop(name) for name in list(tensors) if name.startswith(_MODALITY)}
    return Pretrained(directory, config, tensors, own)


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


def check_config(config: Any, path: Path, kind: Kind = DENOISER) -> None:
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
    problems = [f"no {key!r}" for key in kind.needed if key not in config]
    problems += [f"unknown key {key!r}" for key in config if key not in kind.keys]
    if problems:
        raise CheckpointError(f"{path}: {', '.join(problems)}. Keys: {', '.join(kind.keys)}")
    for section in kind.named:
        if not isinstance(config[section], dict) or not isinstance(config[section].get("name"), str):
            raise CheckpointError(f"{path}: {section} needs a 'name'")
    for section in kind.built:
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
