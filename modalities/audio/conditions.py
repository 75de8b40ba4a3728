"""What a model of sounds can be told: classes, numbers, a text, a reference clip; and what it is told by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from noiseloom.core.conditioning import drop
from noiseloom.core.randomness import generator
from noiseloom.core.registry import unknown

from ..text import TEXT_ENCODERS, TextEncoder
from .request import DURATION, LABEL, REFERENCE, TEXT, number

CONTEXT = "context"  # what the network calls a text that is a sequence
_TAKEN = ("mask", "known", "spacing", CONTEXT, REFERENCE, TEXT, "all")  # names that no column can have
_ROWS = 1000  # training clips whose conditions are remembered
_ROW_KEY = -6  # a key of generators


@dataclass(frozen=True)
class Conditions:
    """The conditions of one model.

    Attributes:
        labels: the values of each kind of class.
        numbers: mean and std of each number; ``duration`` in seconds is always among them.
        rows: conditions of training clips, by name: what is not asked for is drawn from them.
        text: the spec of a text encoder, with the ``dim`` of its vectors; None: no texts.
        reference: the width of a reference's statistics; None: no references.
        drop: probability of leaving out each condition in training, and ``all`` of them; 0.1 where nothing is said.

    Raises:
        ValueError: a name that means something else, or a probability of what is no condition.
    """

    labels: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Mapping[str, float]]
    rows: Mapping[str, Sequence[Any]]
    text: Mapping[str, Any] | None = None
    reference: int | None = None
    drop: Mapping[str, float] | None = None

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
        seconds: Sequence[float],
        text: Mapping[str, Any] | str | None = None,
        reference: int | None = None,
        drop: Mapping[str, float] | None = None,
    ) -> Conditions:
        """The conditions that a training set's columns offer: strings are classes, numbers numbers.

        Args:
            columns: values of every clip by name; "" and NaN where a clip has none.
            seconds: its length.
            text: the encoder of the column ``text``; without one it is left out.

        Raises:
            ValueError: a text encoder, and no column ``text``.
        """
        columns = {**columns, DURATION: [round(float(s), 4) for s in seconds]}
        texts = columns.pop(TEXT, None)
        labels, numbers = {}, {}
        for name, values in columns.items():
            if all(isinstance(value, str) for value in values):
                labels[name] = sorted({value for value in values if value}, key=_natural)
            else:
                numbers[name] = _moments(values)
        labels = {LABEL: labels.pop(LABEL), **labels} if LABEL in labels else labels
        chosen = np.unique(np.linspace(0, len(seconds) - 1, min(len(seconds), _ROWS)).astype(int))
        rows = {name: [_plain(values[i]) for i in chosen] for name, values in columns.items()}
        spec: dict[str, Any] | None = None
        if text:
            if texts is None:
                raise ValueError(f"texts are asked for, but the clips have no column {TEXT!r}. Columns: {[*columns]}")
            spec = {"name": text} if isinstance(text, str) else dict(text)
            spec["dim"] = TEXT_ENCODERS.build(spec).dim
        return cls(labels, numbers, rows, spec, reference, drop)

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
        }

    def network_options(self) -> dict[str, Any]:
        """What the DiT must be told."""
        told: dict[str, Any] = {
            "labels": {name: len(values) for name, values in self.labels.items()},
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
        """Conditions of a batch from values by name; -1 and NaN where a sample has none."""
        cond: dict[str, Tensor] = {}
        for name, known in self.labels.items():
            place = {value: index for index, value in enumerate(known)}
            cond[name] = torch.tensor([place.get(_word(own.get(name)), -1) for own in values])
        for name in self.numbers:
            cond[name] = self.standardised(name, [own.get(name) for own in values])
        if self._encoder is not None:
            encoded = self._encoder.encode([str(own.get(TEXT) or "") for own in values])
            # Pooled ones have unit length: the numbers get unit variance.
            cond |= {TEXT: encoded * encoded.shape[-1] ** 0.5} if self._encoder.pooled else {CONTEXT: encoded}
        return cond

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
        """What is asked: classes as the words that they are, numbers as numbers.

        Raises:
            ValueError: a condition or class that the model does not know (the message lists the choices), or a value
                that is none.
        """
        values: dict[str, Any] = {}
        for name, value in asked.items():
            if name not in self.names:
                raise ValueError(unknown("condition", name, self.names))
            if name in self.labels:
                values[name] = _word(value)
                if values[name] not in self.labels[name]:
                    raise ValueError(unknown(name, values[name], self.labels[name]))
            elif name in self.numbers:
                values[name] = number(name, value)
                if name == DURATION and values[name] <= 0:
                    raise ValueError(f"{name} must be positive, got {value}")
            else:
                values[name] = str(value)
        return values

    def drawn(self, asked: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What is asked, and for the rest the values of one training clip that has the classes asked for.

        Where a text is asked for, classes that are not are left open: the text says what the sound is.

        Raises:
            ValueError: see ``checked``.
        """
        asked = self.checked(asked)
        rows = np.ones(len(self.rows[DURATION]), dtype=bool)
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
