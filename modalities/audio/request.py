"""What one can ask of a sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..conditions import LABEL, TEXT, number

DURATION = "duration"  # the condition in seconds that every sound has


@dataclass
class AudioRequest:
    """What one can ask of a sound. A list gives each sample its own value in turn: ``label=[0,1,2]``.

    Attributes:
        label: the class; by default drawn as often as the training data has it.
        text: a description, where the checkpoint was trained on texts.
        duration: seconds; by default drawn from the training data. Longer than the model's window is made window by
            window.
        reference: a file whose sound to follow, where the checkpoint was trained with references.
        conditions: values of the checkpoint's other conditions by name, such as voice or pitch; voice=theo is short for
            conditions.voice=theo.
        input: a file to change; the options below say how. What is not asked of it is left open.
        strength: how far to vary the input: 0 returns it, 1 forgets it.
        inpaint: spans of the input to make anew, in seconds: ["0.2-0.35", ...] or [[0.2, 0.35], ...].
        extend: seconds to add after the input.
        prepend: seconds to add before it.
        bandwidth: frequency in Hz up to which the input is kept; what lies above is made anew.
        loop: make a sound that can be repeated without a seam.

    Raises:
        ValueError: a value of another kind.
    """

    label: Any = None
    text: Any = None
    duration: Any = None
    reference: str | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    input: str | None = None
    strength: float | None = None
    inpaint: Any = None
    extend: float | None = None
    prepend: float | None = None
    bandwidth: float | None = None
    loop: bool = False

    def __post_init__(self) -> None:
        for name in ("strength", "extend", "prepend", "bandwidth"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, number(name, value))
        for name in ("input", "reference"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, str(value))
        if not isinstance(self.loop, bool):
            raise ValueError(f"loop is true or false, not {self.loop!r}")
        if not isinstance(self.conditions, Mapping):
            raise ValueError(f"conditions are values by name, not {self.conditions!r}")

    def asked(self) -> dict[str, Any]:
        """Conditions by name, as they were given."""
        named = {LABEL: self.label, TEXT: self.text, DURATION: self.duration}
        return {name: value for name, value in {**named, **self.conditions}.items() if value is not None}


def spans(values: Any) -> list[tuple[float, float]]:
    """Spans in seconds from "0.2-0.35" or [0.2, 0.35], in order.

    Raises:
        ValueError: not a span, or two that overlap.
    """
    found = []
    for value in values if isinstance(values, Sequence) and not isinstance(values, str) else [values]:
        try:
            start, stop = (float(v) for v in (value.split("-") if isinstance(value, str) else value))
        except (TypeError, ValueError):
            raise ValueError(f"{value!r} is not a span in seconds such as 0.2-0.35") from None
        if not 0 <= start < stop:
            raise ValueError(f"the span {start:g}-{stop:g} s does not run forwards from 0 or later")
        found.append((start, stop))
    found.sort()
    for (_, stop), (start, _) in pairwise(found):
        if start < stop:
            raise ValueError(f"two spans overlap at {start:g} s")
    return found
