"""What went wrong, in one line that names the choices."""

from __future__ import annotations

import re

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from noiseloom.core.registry import unknown

from .catalogue import recipes
from .commands import schema
from .schema import options

_COMMA = re.compile(r"[Vv]alue '[^'\n]*,")  # one with a comma, as OmegaConf tells it


def one_line(error: BaseException) -> str:
    """An error's own message on one line; its type where it has none."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = " ".join(str(error).split())
    return text or type(error).__name__


def _unknown_option(command: str, key: str) -> str:
    """Of a key that the schema lacks: what may stand in its place, and where else a key of that name stands."""
    keys = [entry.key for entry in options(schema(command))]
    parent, _, leaf = key.rpartition(".")
    depth = key.count(".") + 1
    prefix = f"{parent}." if parent else ""
    choices = list(dict.fromkeys(".".join(known.split(".")[:depth]) for known in keys if known.startswith(prefix)))
    elsewhere = [known for known in keys if known.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"unknown option {key!r}. Did you mean {elsewhere[0]!r}? Choices: {', '.join(choices)}"
    return unknown("option", key, choices)


def explain(command: str, error: Exception) -> str:
    """What hydra and OmegaConf mean, for a configuration of ``command`` that could not be composed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    full_key = str(getattr(cause, "full_key", None) or "")
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: options are written key=value"
    if isinstance(error, MissingConfigException) or "You must specify 'recipe'" in str(error):
        wanted = getattr(error, "missing_cfg_file", None) or ""
        if wanted.startswith("recipe/"):
            return unknown("recipe", wanted.removeprefix("recipe/"), recipes())
        if not wanted:
            return f"which recipe? recipe=NAME. Choices: {', '.join(recipes())}"
    if isinstance(cause, MissingMandatoryValue):
        missing = [entry for entry in options(schema(command)) if entry.default == "???"]
        needed = ", ".join(f"{entry.key}=... ({entry.help})" for entry in missing)
        return f"needs {needed}"
    if isinstance(cause, ValidationError):
        hint = "; to run each, add --multirun" if _COMMA.search(str(cause)) else ""
        return f"{full_key}: {str(cause).splitlines()[0]}{hint}"
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and full_key and not full_key.startswith("hydra."):
        return _unknown_option(command, full_key)
    return one_line(cause)


def is_about_configuration(error: BaseException) -> bool:
    """Whether hydra or OmegaConf raised it."""
    return isinstance(error, (HydraException, OmegaConfBaseException))
