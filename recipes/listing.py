"""``noiseloom list``: what there is, from the registries and the folders themselves."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from noiseloom.core.registry import Registry, unknown

from .catalogue import KINDS, checkpoints, recipes
from .registries import configurable, load_modalities, registry
from .schema import UsageError
from .usage import columns

PAPER = re.compile(r"[A-Z][\w'-]+(?: et al\.| and [A-Z][\w'-]+)? \d{4}[a-z]?")
HEADS = {"samplers": f"{'order':<7}{'calls':<8}{'noise':<12}reference"}  # above the facts of a kind that has some


def first_line(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("``", "")
    return " ".join(paragraph.split())


def arguments(options: dict[str, Any]) -> str:
    """``name=default`` of each option; those without a default are left bare."""
    shown = [key if value is inspect.Parameter.empty else f"{key}={value}" for key, value in options.items()]
    return ", ".join(shown)


def reference(thing: Any) -> str:
    """The first paper that a docstring names."""
    named = PAPER.search(" ".join((inspect.getdoc(thing) or "").split()))
    return named[0] if named else "-"


def sampler_facts(found: Registry[Any], name: str) -> str:
    """Under ``HEADS``: a sampler's order, its calls of the denoiser a step, whether it draws noise, and its paper. A
    sampler that cannot be made without being told something has its paper only."""
    options = found.options(name)
    order = calls = noise = "-"
    if inspect.Parameter.empty not in options.values():
        made = found.build(name)
        order = str(made.order)
        calls = "varies" if made.calls_per_step is None else str(made.calls_per_step)
        noise = "yes" if made.stochastic else "if eta > 0" if "eta" in options else "no"
    return f"{order:<7}{calls:<8}{noise:<12}{reference(found[name])}"


def _checkpoint(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "component" in config:
        made = f"component {config['component']['name']}"
    else:
        made = f"{config['modality']['name']}, network {config['network']['name']}"
    return f"{made}, recipe {config['recipe']}" if config.get("recipe") else made


def rows(kind: str) -> list[tuple[str, str]]:
    """What there is of a kind: names and descriptions."""
    if kind == "recipes":
        return list(recipes().items())
    if kind == "checkpoints":
        return [(name, _checkpoint(folder)) for name, folder in checkpoints().items()]
    found = registry(kind)
    described = [(name, f"{first_line(found[name])}\n{arguments(configurable(found, name))}") for name in found]
    if kind == "samplers":
        described = [(name, f"{sampler_facts(found, name)}\n{text}") for name, text in described]
    if kind == "modalities":
        described += [(name, f"not installed: {reason}") for name, reason in load_modalities().items()]
    return described


def run(kinds: list[str]) -> None:
    """Print tables of the kinds, or the names of everything if none is given.

    Raises:
        UsageError: a kind that does not exist.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(unknown("list", kind, KINDS))
    if not kinds:
        print(columns((kind, ", ".join(name for name, _ in rows(kind)) or "none") for kind in KINDS))
        print("\nnoiseloom list KIND says more.")
    for kind in kinds:
        head = [("", HEADS[kind])] if kind in HEADS else []
        print(f"{kind}\n{columns([*head, *rows(kind)]) or '  none'}")
