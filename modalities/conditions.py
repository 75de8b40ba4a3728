"""What a model can be told: classes, sets of classes, numbers, a text, a reference; and what it is told by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from noiseloom.core.conditioning import drop
from noiseloom.core.randomness import generator
from noiseloom.core.registry import unknown

from .text import TEXT_ENCODERS, TextEncoder

LABEL, TEXT, REFERENCE = "label", "text", "reference"  # conditions that have their own option
CONTEXT = "context"  # what the network calls a text that is a sequence
_TAKEN = ("mask", "known", "given", "spacing", CONTEXT, REFERENCE, TEXT, "all")  # names that no column can have
_ROWS = 1000  # training items whose conditions are remembered
_ROW_KEY = -6  # a key of generators


@dataclass(frozen=True)
class Conditions:
    """The conditions of one model.

    Attributes:
        labels: the classes of each kind.
        numbers: mean and std of each number.
        rows: conditions of training items, by name: what is not asked for is drawn from them.
        text: the spec of a text encoder, with the ``dim`` of its vectors; None: no texts.
        reference: the width of a reference's vector; None: no references.
        drop: probability of leaving out each condition in training, and ``all`` of them; 0.1 where nothing is said.
        slots: the most classes that one item has, for the kinds of which it may have several. Such a value is written
            "3,8", in the order of the classes, with repetition.
        positive: numbers that are above 0, such as a duration: the modality says so, it is not part of ``config``.

    Raises:
        ValueError: a name that means something else, or a probability of what is no condition.
    """

    labels: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Mapping[str, float]]
    rows: Mapping[str, Sequence[Any]]
    text: Mapping[str, Any] | None = None
    reference: int | None = None
    drop: Mapping[str, float] | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    positive: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in (*self.labels, *self.numbers):
            if name in _TAKEN or name.endswith("_mask"):
                raise ValueError(f"no condition can be called {name!r}: give that column another name (data.columns)")
        choices = ["all", *self.names, *([REFERENCE] if self.reference else [])]
        for name, rate in (self.drop or {}).items():
            if name not in choices:
                raise ValueError(unknown("condition to drop", name, choices))
            if not 0 <= rate <= 1:
                raise ValueError(f"drop.{name} is a probability, not {rate}")

    @classmethod
    def fitted(
        cls,
        columns: Mapping[str, Sequence[Any]],
        text: Mapping[str, Any] | str | None = None,
        reference: int | None = None,
        drop: Mapping[str, float] | None = None,
    ) -> Conditions:
        """The conditions that a training set's columns offer: strings are classes, numbers numbers.

        Strings of classes between commas, such as "3,8", are sets of them: where each of these also occurs alone, or
        where they recur, so that there are fewer of them than sets.

        Args:
            columns: values of every item by name, of equal length; "" and NaN where an item has none.
            text: the encoder of the column ``text``; without one it is left out.

        Raises:
            ValueError: a text encoder, and no column ``text``.
        """
        columns = dict(columns)
        texts = columns.pop(TEXT, None)
        labels: dict[str, list[str]] = {}
        numbers, slots = {}, {}
        for name, values in columns.items():
            if not all(isinstance(value, str) for value in values):
                numbers[name] = _moments(values)
                continue
            words = {value for value in values if value}
            several = {value: _members(value) for value in words if "," in value}
            alone, members = words - several.keys(), {part for parts in several.values() for part in parts}
            if several and (members <= alone or len(members) < len(several)):
                words, slots[name] = alone | members, max(len(parts) for parts in several.values())
            labels[name] = sorted(words, key=_natural)
            if name in slots:
                columns[name] = [_joined(_members(value), labels[name]) if value else "" for value in values]
        labels = {LABEL: labels.pop(LABEL), **labels} if LABEL in labels else labels
        count = len(next(iter(columns.values()), ()))
        chosen = np.unique(np.linspace(0, count - 1, min(count, _ROWS)).astype(int))
        rows = {name: [_plain(values[i]) for i in chosen] for name, values in columns.items()}
        spec: dict[str, Any] | None = None
        if text:
            if texts is None:
                raise ValueError(f"texts are asked for, but the data has no column {TEXT!r}. Columns: {[*columns]}")
            spec = {"name": text} if isinstance(text, str) else dict(text)
            spec["dim"] = TEXT_ENCODERS.build(spec).dim
        return cls(labels, numbers, rows, spec, reference, drop, slots)

    @property
    def config(self) -> dict[str, Any]:
        """Plain values that make them again."""
        return {
            "labels": {name: list(values) for name, values in self.labels.items()},
            "numbers": {name: dict(entry) for name, entry in self.numbers.items()},
            "rows": {name: list(values) for name, values in self.rows.items()},
            "text": None if self.text is None else dict(self.text),
            "reference": self.reference,
            "drop": None if self.drop is None else dict(self.drop),
            "slots": dict(self.slots),
        }

    def network_options(self) -> dict[str, Any]:
        """What the DiT must be told. Of a set's classes the last is "nothing", in the slots that are not used."""
        told: dict[str, Any] = {
            "labels": {name: len(values) + (name in self.slots) for name, values in self.labels.items()},
            "scalars": list(self.numbers),
            "vectors": {} if self.reference is None else {REFERENCE: self.reference},
        }
        if self._encoder is None:
            return told
        dim = int((self.text or {})["dim"])
        if self._encoder.pooled:
            return {**told, "vectors": {TEXT: dim, **told["vectors"]}}
        return {**told, "context_dim": dim}

    def tensors(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Conditions of a batch from values by name; -1 and NaN where a sample has none. Classes are (batch,) indices,
        sets of them (batch, slots)."""
        cond: dict[str, Tensor] = {}
        for name, known in self.labels.items():
            place = {value: index for index, value in enumerate(known)}
            if name in self.slots:
                cond[name] = torch.tensor([self._filled(place, own.get(name), self.slots[name]) for own in values])
            else:
                cond[name] = torch.tensor([place.get(_word(own.get(name)), -1) for own in values])
        for name in self.numbers:
            cond[name] = self.standardised(name, [own.get(name) for own in values])
        if self._encoder is not None:
            encoded = self._encoder.encode([str(own.get(TEXT) or "") for own in values])
            # Pooled ones have unit length: the numbers get unit variance.
            cond |= {TEXT: encoded * encoded.shape[-1] ** 0.5} if self._encoder.pooled else {CONTEXT: encoded}
        return cond

    @staticmethod
    def _filled(place: Mapping[str, int], value: Any, slots: int) -> list[int]:
        """The classes of a set, sorted, then nothing; all -1 where there is none, or one that cannot be told."""
        found = sorted(place.get(word, -1) for word in _members(value))
        if found[0] < 0 or len(found) > slots:
            return [-1] * slots
        return found + [len(place)] * (slots - len(found))

    def standardised(self, name: str, values: Sequence[Any]) -> Tensor:
        """A number of a batch as the network is told it; NaN for None."""
        raw = torch.tensor([float("nan") if value is None else float(value) for value in values], dtype=torch.float64)
        return ((raw - self.numbers[name]["mean"]) / self.numbers[name]["std"]).float()

    def dropped(self, cond: Mapping[str, Any], generators: Sequence[Generator]) -> dict[str, Any]:
        """Conditions left out at random, for guidance."""
        rates = dict(self.drop or {})
        told = {name: TEXT if name == CONTEXT else name for name in cond if name != "mask"}
        return drop(
            cond,
            {"all": rates.get("all", 0.1), **{name: rates.get(own, 0.1) for name, own in told.items()}},
            generators,
        )

    @property
    def names(self) -> list[str]:
        """What a sample can be told by a value."""
        return [*self.labels, *self.numbers, *([TEXT] if self.text is not None else [])]

    def checked(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked: classes as the words that they are, numbers as numbers. A set of classes may be "8,3", [3, 8]
        or one of them; it becomes "3,8".

        Raises:
            ValueError: a condition or class that the model does not know (the message lists the choices), more classes
                than it has slots for, or a value that is none.
        """
        values: dict[str, Any] = {}
        for name, value in asked.items():
            if name not in self.names:
                raise ValueError(unknown("condition", name, self.names))
            if name in self.labels:
                words = _members(value) if name in self.slots else [_word(value)]
                for word in words:
                    if word not in self.labels[name]:
                        raise ValueError(unknown(name, word, self.labels[name]))
                if len(words) > (most := self.slots.get(name, 1)):
                    raise ValueError(f"{name} holds at most {most} classes, not {len(words)}: {value!r}")
                values[name] = _joined(words, self.labels[name])
            elif name in self.numbers:
                values[name] = number(name, value)
                if name in self.positive and values[name] <= 0:
                    raise ValueError(f"{name} must be positive, got {value}")
            else:
                values[name] = str(value)
        return values

    def drawn(self, asked: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What is asked, and for the rest the values of one training item that has the classes asked for.

        Where a text is asked for, classes that are not are left open: the text says what it is.

        Raises:
            ValueError: see ``checked``.
        """
        asked = self.checked(asked)
        if not self.rows:
            return asked
        rows = np.ones(len(next(iter(self.rows.values()))), dtype=bool)
        for name in self.labels:
            if name in asked:
                same = np.array([value == asked[name] for value in self.rows[name]])
                rows &= same if (rows & same).any() else True
        candidates = np.flatnonzero(rows)
        row = int(candidates[int(torch.randint(len(candidates), (), generator=generator(seed, _ROW_KEY)))])
        values = {name: column[row] for name, column in self.rows.items()}
        if TEXT in asked:
            values = {name: value for name, value in values.items() if name not in self.labels}
        return {name: value for name, value in {**values, **asked}.items() if value not in ("", None)}

    @cached_property
    def _encoder(self) -> TextEncoder | None:
        if self.text is None:
            return None
        return TEXT_ENCODERS.build({key: value for key, value in self.text.items() if key != "dim"})


def number(name: str, value: Any) -> float:
    """A value that must be a finite number.

    Raises:
        ValueError: it is none.
    """
    try:
        found = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        found = float("nan")
    if not isfinite(found):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return found


def each(name: str, value: Any, index: int) -> Any:
    """The value of a sample: a list is walked through in turn."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError(f"{name} is an empty list")
        return value[index % len(value)]
    return value


def _moments(values: Sequence[Any]) -> dict[str, float]:
    """Mean and standard deviation; of numbers that hardly differ, a hundredth of the mean."""
    known = np.array([float(v) for v in values if v is not None and np.isfinite(v)] or [0.0])
    mean = float(known.mean())
    return {"mean": round(mean, 6), "std": round(max(float(known.std()), abs(mean) / 100, 1e-3), 6)}


def _word(value: Any) -> str:
    """A class as its name: 7, 7.0 and "7" are one; "" for None."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _members(value: Any) -> list[str]:
    """The classes of a set, at least one: of "3,8", [3, 8] or a class alone."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_word(part) for part in value] or [""]
    return [part.strip() for part in _word(value).split(",")]


def _joined(words: Sequence[str], known: Sequence[str]) -> str:
    """A set as one word, in the order of all classes."""
    return ",".join(sorted(words, key=known.index))


def _plain(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    return round(float(value), 4) if np.isfinite(value) else None


def _natural(value: str) -> tuple[float, str]:
    """Numbers first, by their size; then words."""
    try:
        size = float(value)
    except ValueError:
        size = float("inf")
    return size if size == size else float("inf"), value
