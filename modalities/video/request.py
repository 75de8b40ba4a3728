"""What one can ask of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noiseloom.core.registry import unknown

from ..conditions import number

TASKS = ("generate", "image", "first_last", "predict", "interpolate", "inpaint", "outpaint", "vary")
_BOXED, _NEED_INPUT = ("inpaint", "outpaint"), TASKS[1:]


@dataclass
class VideoRequest:
    """What one can ask of a video. A list gives each sample its own value in turn: ``label=["3,8", "5"]``.

    Attributes:
        label: the class; "3,8" for several in one video. By default drawn as often as the training data has it.
        text: a description, where the checkpoint was trained on texts.
        conditions: values of the checkpoint's other conditions by name.
        frames: how many frames; by default those of the input, or as many as the model was trained on. More than that
            are made window by window, each going on from the one before.
        fps: frames a second; by default those of the input, which is resampled to others, or of the training data.
            Whatever they are, the model is told.
        size: [height, width]; by default that of the training data.
        task: what is kept of an input: "image" its first frame; "first_last" its first and its last; "predict" its
            beginning; "interpolate" all its frames, with new ones between them; "inpaint" all but a box; "outpaint"
            only a box; "vary" nothing, but what is made resembles it. "generate": there is none. By default
            "generate", with an input "predict".
        input: a video or an image; of several each sample has its own in turn, but two images for "first_last" are
            its ends: [first.png,last.png].
        known: for "predict", how many frames of the input are kept; by default all, and others are added.
        every: for "interpolate", how far apart the input's frames are in the result.
        box: for "inpaint" and "outpaint": [top, left, height, width] in pixels of the result.
        strength: for "vary": 0 returns the input, 1 forgets it.
        history: frames that a window takes over from those before it, where there are several; by default half.

    Raises:
        ValueError: a value of another kind, a task without what it needs.
    """

    label: Any = None
    text: Any = None
    conditions: dict[str, Any] = field(default_factory=dict)
    frames: int | None = None
    fps: float | None = None
    size: Any = None
    task: str | None = None
    input: Any = None
    known: int | None = None
    every: int | None = None
    box: Any = None
    strength: float | None = None
    history: int | None = None

    def __post_init__(self) -> None:
        self.task = self.task or ("generate" if self.input is None else "predict")
        if self.task not in TASKS:
            raise ValueError(unknown("task", self.task, TASKS))
        for name in ("frames", "known", "every", "history"):
            setattr(self, name, _whole(name, getattr(self, name)))
        for name in ("fps", "strength"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, number(name, value))
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps:g}")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ValueError(f"strength lies in [0, 1], got {self.strength:g}")
        self.size = _pixels("size", self.size, ("height", "width"), least=1)
        self.box = _pixels("box", self.box, ("top", "left", "height", "width"), least=0)
        if not isinstance(self.conditions, Mapping):
            raise ValueError(f"conditions are values by name, not {self.conditions!r}")
        self._check_task()

    def _check_task(self) -> None:
        if self.input is not None and self.task == "generate":
            raise ValueError(f"with an input say what to do with it: task={'|'.join(_NEED_INPUT)}")
        if not self.inputs and self.task in _NEED_INPUT:
            raise ValueError(f"task={self.task} needs an input: input=FILE")
        if self.task in _BOXED and self.box is None:
            raise ValueError(f"task={self.task} needs box=[top,left,height,width]")
        if self.task == "interpolate" and (self.every or 0) < 2:
            raise ValueError("task=interpolate needs every=2 or more: how far apart the input's frames will be")
        used = {"known": ("predict",), "every": ("interpolate",), "box": _BOXED, "strength": ("vary",)}
        for name, tasks in used.items():
            if getattr(self, name) is not None and self.task not in tasks:
                raise ValueError(f"{name} belongs to task={'|'.join(tasks)}, not to {self.task}")

    @property
    def inputs(self) -> list[str]:
        """The files of the inputs."""
        if self.input is None:
            return []
        several = isinstance(self.input, Sequence) and not isinstance(self.input, str)
        return [str(one) for one in self.input] if several else [str(self.input)]

    def asked(self) -> dict[str, Any]:
        """Conditions by name, as they were given."""
        return {
            name: value
            for name, value in {"label": self.label, "text": self.text, **self.conditions}.items()
            if value is not None
        }


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    found = number(name, value)
    if found < 1 or found % 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(found)


def _pixels(name: str, value: Any, parts: Sequence[str], least: int) -> list[int] | None:
    """Whole numbers of pixels; a single one is a square's size."""
    if value is None:
        return None
    if isinstance(value, int) and len(parts) == 2:
        value = [value, value]
    try:
        found = [int(one) for one in value]
        whole = all(float(a) == b for a, b in zip(value, found, strict=True))
    except (TypeError, ValueError):
        found, whole = [], False
    if not whole or len(found) != len(parts) or min(found) < least:
        raise ValueError(f"{name} is [{', '.join(parts)}] in pixels, got {value!r}")
    return found
