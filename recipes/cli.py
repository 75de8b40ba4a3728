"""The command line: ``noiseloom demo | train | sample | ... | list``, each with all of hydra underneath.

The dispatcher takes the command off the line and hands the rest to ``hydra.main``. Overrides are written as a person
says them and rewritten as hydra wants them (``override``). What goes wrong is told in one line, with the choices.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from importlib import import_module
from typing import Any

from noiseloom import __version__

from .commands import schema
from .schema import UsageError, options
from .usage import SUMMARY, command_help, complete, main_help

INTERRUPTED = 130  # as shells count it: 128 + SIGINT


@contextmanager
def told_in_one_line(command: str, status: int = 2) -> Iterator[None]:
    """Expected errors become one line and an exit status: 2 for what was asked, 1 for what happened later."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"noiseloom {command}: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("NOISELOOM_TRACEBACK"):
            raise
        from noiseloom.core.registry import UnknownName

        from .errors import explain, is_about_configuration, one_line

        if is_about_configuration(error):
            message, status = explain(command, error), 2
        elif isinstance(error, (UsageError, UnknownName)):
            message, status = one_line(error), 2
        elif isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith("noiseloom."):
            message = one_line(error)
        else:
            raise
        print(f"noiseloom {command}: {message}", file=sys.stderr)
        sys.exit(status)


def override(command: str, argument: str, sweep: bool = False) -> str:
    """One ``key=value`` as hydra wants it.

    ``sampler=ddim`` names something: ``++sampler.name=ddim``. ``sampler.eta=1`` and ``request.x=y`` add to a free
    mapping: ``++...``. What ``sample`` does not know is the modality's: ``atoms=18`` is ``++request.atoms=18``. A value
    that hydra's grammar cannot read, such as a SMILES, is quoted; so is one with a comma outside brackets and quotes,
    such as ``label=3,8``, unless it is to be a ``sweep`` over what the commas part.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    key, equals, value = argument.partition("=")
    if equals and value:
        try:
            read = OverridesParser.create().parse_override(argument).value()
            quoted = not sweep and isinstance(read, ChoiceSweep) and read.simple_form
        except HydraException:
            quoted = True
        if quoted:
            # Inside quotes a backslash escapes a quote, and itself in front of one.
            value = "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"
    if not equals or key.startswith(("+", "~", "hydra.")) or "/" in key or "@" in key:
        return key + equals + value
    known = {entry.key: entry for entry in options(schema(command))}
    head = key.partition(".")[0]
    top = {entry.name for entry in fields(schema(command))}
    if head not in top and "request" in top:
        return f"++request.{key}={value}"
    if head in known and known[head].free and key != head:
        return f"++{key}={value}"
    if key in known and known[key].registry and known[key].free:
        return f"++{key}.name={value}"
    return f"{key}={value}"


def hydra_line(command: str, arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """The arguments as hydra's parser takes them, flags first, and the keys that a sweep varies.

    Raises:
        UsageError: a flag that does not exist or may not be used.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UsageError(message)

    parser.error = refuse  # type: ignore[method-assign,assignment]
    parsed = parser.parse_intermixed_args(list(arguments))
    if parsed.experimental_rerun is not None:
        raise UsageError("--experimental-rerun unpickles a file, which could run anything: it is switched off")
    flags = [argument for argument in arguments if argument not in parsed.overrides]
    sweep = parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides
    overrides = [override(command, argument, sweep) for argument in parsed.overrides]
    swept = {o.get_key_element() for o in OverridesParser.create().parse_overrides(overrides) if o.is_sweep_override()}
    return [*flags, *overrides], swept


def task(command: str, swept: set[str]) -> Callable[[Any], None]:
    """The function that hydra calls with a composed configuration, once or once for each job of a sweep."""

    def run(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from .registries import validate

        with told_in_one_line(command):
            config: Any = OmegaConf.to_object(composed)
            if HydraConfig.get().mode == RunMode.MULTIRUN and config.out:
                mine = [o.lstrip("+") for o in HydraConfig.get().overrides.task if o.partition("=")[0] in swept]
                config.out = f"{config.out}/{','.join(mine).replace('/', '-')}"
            validate(config)
            program = import_module(f"noiseloom.recipes.{command}")
        with told_in_one_line(command, status=1):
            if status := program.run(config):
                sys.exit(status)

    return run


def compose_and_run(command: str, line: Sequence[str], swept: set[str]) -> None:
    """``hydra.main`` of a command on a line that ``hydra_line`` made."""
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(f"{command}_schema", schema(command))
    started_as = sys.argv
    sys.argv = [started_as[0], *line]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as they are; told_in_one_line shortens them
    try:
        hydra.main(version_base="1.3", config_path="pkg://noiseloom.recipes.conf", config_name=command)(
            task(command, swept)
        )()
    finally:
        sys.argv = started_as


def shell_completion(arguments: Sequence[str]) -> None:
    """``noiseloom -sc install=bash | query=bash | ...``: hydra's scripts, on a line without our command in it."""
    if not any(argument.startswith("query=") for argument in arguments):
        return compose_and_run("demo", arguments, set())
    line = os.environ.get("COMP_LINE", "")
    answer = complete(line)
    if isinstance(answer, str):
        os.environ["COMP_LINE"] = answer
        with redirect_stdout(io.StringIO()) as printed:
            compose_and_run(line.split()[1], arguments, set())
        words = printed.getvalue().split()
        plain = [word for word in words if word.partition("/")[0] != "recipe"]  # which is a group of hydra's
        answer = [word for word in plain if "hydra" in line or "hydra" not in word]
    return print("\n".join(answer))


def main(arguments: Sequence[str] | None = None) -> None:
    """The ``noiseloom`` program. Leaves through ``sys.exit`` when there is a status to tell."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(main_help())
    elif command == "--version":
        print(f"noiseloom {__version__}")
    elif command in ("-sc", "--shell-completion"):
        shell_completion([command, *rest])
    elif command not in SUMMARY:
        from noiseloom.core.registry import unknown

        print(f"noiseloom: {unknown('command', command, SUMMARY)}", file=sys.stderr)
        sys.exit(2)
    elif "-h" in rest or "--help" in rest:
        print(command_help(command))
    else:
        with told_in_one_line(command):
            if command == "list":
                from . import listing

                listing.run(rest)
            else:
                compose_and_run(command, *hydra_line(command, rest))


if __name__ == "__main__":
    main()
