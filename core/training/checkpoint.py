"""Checkpoints of a run: whole or not there.

``<run>/checkpoints/step_00001000/`` holds safetensors files, ``config.json`` and ``state.json``, which has a digest of
every other file. It is written under a temporary name, flushed to the disk and renamed, so a process killed at any
moment leaves the checkpoint before it intact.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_TEMPORARY = ".unfinished-"
_CORRUPT = "corrupt_"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: tensors by file (without suffix) and name, the loop's state, the run's config."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    config: dict[str, Any]


def step_directory(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step_{step:08d}"


def saved_steps(root: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    names = [p.name.removeprefix("step_") for p in root.glob("step_*") if p.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], config: dict[str, Any]
) -> Path:
    """Write the checkpoint of ``step``; an older one of the same step is replaced.

    Raises:
        OSError: the disk is full; what was written is removed and earlier checkpoints are untouched.
    """
    from safetensors.torch import save

    final, unfinished = step_directory(root, step), root / f"{_TEMPORARY}step_{step:08d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        digests = {}
        for name, content in tensors.items():
            digests[f"{name}.safetensors"] = _write(unfinished / f"{name}.safetensors", save(separate(content)))
        digests["config.json"] = _write(unfinished / "config.json", _json(config))
        _write(unfinished / "state.json", _json({**state, "sha256": digests}))
        sync_directory(unfinished)
        discard(final)
        os.rename(unfinished, final)
        sync_directory(root)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return final


def is_full(error: OSError) -> bool:
    """Whether the disk, or one's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(root: Path) -> CheckpointError:
    """What to say when the disk is full."""
    steps = saved_steps(root)
    kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no checkpoint yet"
    return CheckpointError(
        f"the disk that holds {root} is full; {kept}. Free some space and run the same command to go on."
    )


def load_newest(root: Path) -> Checkpoint | None:
    """The newest intact checkpoint, or None where there is none. A corrupt one is set aside and said so on stderr.

    Raises:
        CheckpointError: there are checkpoints and none is intact.
    """
    steps = saved_steps(root)
    for step in reversed(steps):
        path = step_directory(root, step)
        try:
            return _load(path)
        except (OSError, ValueError, KeyError) as error:
            aside = root / f"{_CORRUPT}{path.name}"
            discard(aside)
            os.rename(path, aside)
            print(f"{path} is corrupt ({error}): renamed {aside.name}, going back to the one before", file=sys.stderr)
    if steps:
        raise CheckpointError(f"no checkpoint in {root} is intact. Remove the folder to start the run anew.")
    return None


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, none sharing memory with another (tied weights)."""
    seen: set[int] = set()
    plain = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        plain[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return plain


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors``, read from ``path``, into a module that must have just these.

    Raises:
        CheckpointError: tensors that are missing, unexpected or of another shape, by name.
    """
    wanted = module.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} does not fit this network: {'; '.join(problems[:5])}{more}")
    module.load_state_dict(dict(tensors))


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys whose values differ, with both values."""
    changed = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += differing(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key} (was {before!r}, now {after!r})")
    return changed


def remove_unfinished(root: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(root: Path, keep: int, best: int | None) -> None:
    """Keep the last ``keep`` checkpoints and that of step ``best``."""
    for step in saved_steps(root)[:-keep]:
        if step != best:
            discard(step_directory(root, step))


def discard(path: Path) -> None:
    """Remove a folder such that it is there whole or, under its name, not at all."""
    if path.exists():
        trash = path.with_name(f"{_TEMPORARY}discarded-{path.name}")
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(path, trash)
        shutil.rmtree(trash, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, content: bytes) -> str:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _load(path: Path) -> Checkpoint:
    from safetensors.torch import load

    state = json.loads((path / "state.json").read_bytes())
    contents = {}
    for name, digest in state.pop("sha256").items():
        contents[name] = (path / name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise ValueError(f"{name} is not what was written")
    config = json.loads(contents.pop("config.json"))
    tensors = {name.removesuffix(".safetensors"): load(content) for name, content in contents.items()}
    return Checkpoint(path, tensors, state, config)
