"""Names to classes: the only place where a string becomes code.

A configuration or a downloaded checkpoint holds names and plain values. A name is looked up here; what is not
registered cannot be built. Third parties register through the entry-point group ``noiseloom.extensions``.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class UnknownName(ValueError):
    """A name that is not registered; the message lists the choices."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> str:
    """The message for a name that does not exist: the closest choice, and all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Choices: {', '.join(choices) or 'none'}"


def named_options(kind: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """For a function whose optional keywords come from a configuration: one that it has not is refused by name."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        known = inspect.signature(function).parameters
        choices = [one.name for one in known.values() if one.kind is one.KEYWORD_ONLY and one.default is not one.empty]

        @wraps(function)
        def checked(*arguments: Any, **options: Any) -> T:
            if wrong := [name for name in options if name not in known]:
                raise ValueError(unknown(kind, wrong[0], choices))
            return function(*arguments, **options)

        return checked

    return decorate


class Registry(Generic[T]):
    """Named constructors of one kind, e.g. all samplers."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator: make a class or function buildable by ``name``."""

        def add(entry: Callable[..., T]) -> Callable[..., T]:
            if name in self._entries and self._entries[name] is not entry:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Callable[..., T]:
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownName(unknown(self.kind, name, self))
        return self._entries[name]

    def build(self, spec: str | Mapping[str, Any] | T, **defaults: Any) -> T:
        """Build from a name, from ``{"name": ..., **options}``, or pass an object through.

        Raises:
            UnknownName: the name is not registered.
            ValueError: an option that the entry does not have, or one it needs and was not given.
        """
        if isinstance(spec, str):
            name, options = spec, {}
        elif isinstance(spec, Mapping):
            options = {str(key): value for key, value in spec.items()}
            if "name" not in options:
                raise ValueError(f"a {self.kind} needs a 'name'. Choices: {', '.join(self)}")
            name = options.pop("name")
        else:
            return spec
        entry = self[name]
        accepted = self.options(name)
        unknown = [key for key in options if key not in accepted]
        if unknown:
            raise ValueError(
                f"{self.kind} {name!r} has no option {', '.join(map(repr, unknown))}. "
                f"Options: {', '.join(accepted) or 'none'}"
            )
        arguments = {key: value for key, value in defaults.items() if key in accepted} | options
        try:
            inspect.signature(entry).bind(**arguments)
        except TypeError as error:
            raise ValueError(f"{self.kind} {name!r}: {error}") from None
        return entry(**arguments)

    def options(self, name: str) -> dict[str, Any]:
        """The options of an entry and their defaults (``inspect.Parameter.empty`` where there is none)."""
        entry = self[name]
        if dataclasses.is_dataclass(entry):
            parameters = inspect.signature(entry.__init__).parameters  # type: ignore[misc]
        else:
            parameters = inspect.signature(entry).parameters
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {key: p.default for key, p in parameters.items() if p.kind in kinds and key != "self"}


def load_extensions() -> list[str]:
    """Import what installed packages offer under the entry-point group ``noiseloom.extensions``."""
    from importlib.metadata import entry_points

    return [point.name for point in entry_points(group="noiseloom.extensions") if point.load() is not None]
