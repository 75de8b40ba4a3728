"""Every registry by its plural name, filled: what ``noiseloom list`` shows and what a configuration may name."""

from __future__ import annotations

import inspect
import pkgutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import noiseloom.modalities
from noiseloom.core.registry import Registry, UnknownName, load_extensions
from noiseloom.modalities.component import BUNDLED
from noiseloom.modalities.extras import MissingExtra

from .catalogue import REGISTRIES, components
from .schema import options

# arguments that no configuration holds
GIVEN_BY_THE_RUN = {
    "denoise",
    "network",
    "component",
    "measurement",
    "modality",
    "source",
    "sources",
    "data",
    "y",
    "load",
}


@cache
def load_modalities() -> dict[str, str]:
    """Import every modality, ours and those of installed packages, so that their names are registered.

    Returns:
        What could not be imported because an optional package is missing: the modality's name to the reason.
    """
    BUNDLED.update(components())
    missing = {}
    for module in pkgutil.iter_modules(noiseloom.modalities.__path__):
        for room in ("networks", "components", "modality"):
            name = f"{noiseloom.modalities.__name__}.{module.name}.{room}"
            try:
                if module.ispkg and find_spec(name):
                    import_module(name)
            except MissingExtra as error:
                missing[module.name] = str(error)
    load_extensions()
    return missing


def registry(kind: str) -> Registry[Any]:
    """The registry called ``kind``, with everything in it that is installed."""
    module, name = REGISTRIES[kind]
    home = import_module(module)
    for room in pkgutil.iter_modules(getattr(home, "__path__", [])):
        import_module(f"{module}.{room.name}")
    if kind in ("networks", "modalities", "components", "objectives", "energies"):
        load_modalities()
    return getattr(home, name)


def configurable(found: Registry[Any], name: str) -> dict[str, Any]:
    """The options of a registered name that a configuration may hold, and their defaults: its constructor's, and those
    of ``fitted`` where it is measured on data first."""
    accepted = found.options(name)
    if fitted := getattr(found[name], "fitted", None):
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(fitted).parameters.items()
        accepted = accepted | {key: p.default for key, p in parameters if p.kind in keywords}
    return {key: default for key, default in accepted.items() if key not in GIVEN_BY_THE_RUN}


def modality(name: str) -> Any:
    """A modality's class by its name.

    Raises:
        MissingExtra: it needs a package that is not installed.
        UnknownName: there is none of that name.
    """
    missing = load_modalities()
    if name in missing:
        raise MissingExtra(f"modality {name!r}: {missing[name]}")
    return registry("modalities")[name]


def validate(config: Any) -> None:
    """Look up every name of a command's configuration, and the options it gives to what it names.

    Raises:
        UnknownName: a name that is not registered, or an option that the named thing does not have.
    """
    for entry in options(type(config)):
        if entry.registry is None:
            continue
        spec = getattr(config, entry.key)
        name, given = (spec.get("name"), spec) if entry.free else (spec, {})
        found = registry(entry.registry)
        if name is None:
            if set(given) - {"name"}:
                raise UnknownName(f"{entry.key} has options but no name: {entry.key}=NAME. Choices: {', '.join(found)}")
            continue
        accepted = configurable(found, name)
        for key in given:
            if key != "name" and key not in accepted:
                choices = ", ".join(f"{entry.key}.{known}" for known in accepted) or "none"
                raise UnknownName(f"{found.kind} {name!r} has no option {key!r}. Choices: {choices}")
