"""What one can ask of a video, and what is told of what one cannot."""

from __future__ import annotations

from typing import Any

import pytest

from noiseloom.modalities.video.request import TASKS, VideoRequest


def test_the_task_follows_from_the_input() -> None:
    assert VideoRequest().task == "generate"
    assert VideoRequest(input="a.mp4").task == "predict"
    assert VideoRequest().inputs == []
    assert VideoRequest(input="a.mp4").inputs == ["a.mp4"]
    assert VideoRequest(input=["a.mp4", "b, c.mp4"]).inputs == ["a.mp4", "b, c.mp4"]


def test_every_task_can_be_asked() -> None:
    needs: dict[str, dict[str, Any]] = {"generate": {}, "interpolate": {"every": 2}}
    needs |= {name: {"box": [0, 0, 8, 8]} for name in ("inpaint", "outpaint")}
    for task in TASKS:
        own = needs.get(task, {}) if task == "generate" else {"input": "a.mp4", **needs.get(task, {})}
        assert VideoRequest(task=task, **own).task == task


def test_values_become_plain() -> None:
    request = VideoRequest(frames=8.0, fps="12.5", size=64, history="4", label=["3,8", 5])  # type: ignore[arg-type]
    assert (request.frames, request.fps, request.size, request.history) == (8, 12.5, [64, 64], 4)
    assert request.asked() == {"label": ["3,8", 5]}
    request = VideoRequest(size=(48, 64), text="a ball", conditions={"coverage": 0.5})
    assert request.size == [48, 64]
    assert request.asked() == {"text": "a ball", "coverage": 0.5}
    assert VideoRequest(input="a", task="inpaint", box=[0, 1.0, 2, 3]).box == [0, 1, 2, 3]
    assert VideoRequest(input="a", task="vary", strength=0).strength == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "prediction"}, "unknown task 'prediction'. Did you mean 'predict'.*Choices: generate, image"),
        ({"task": "predict"}, "task=predict needs an input: input=FILE"),
        ({"task": "predict", "input": []}, "task=predict needs an input"),
        ({"input": "a", "task": "generate"}, r"say what to do with it: task=image\|first_last\|predict"),
        ({"input": "a", "task": "inpaint"}, r"task=inpaint needs box=\[top,left,height,width\]"),
        ({"input": "a", "task": "interpolate"}, "needs every=2 or more"),
        ({"input": "a", "task": "interpolate", "every": 1}, "needs every=2 or more"),
        ({"known": 4}, "known belongs to task=predict, not to generate"),
        ({"input": "a", "task": "image", "known": 4}, "known belongs to task=predict, not to image"),
        ({"input": "a", "every": 2}, "every belongs to task=interpolate, not to predict"),
        ({"input": "a", "strength": 0.5}, "strength belongs to task=vary, not to predict"),
        ({"input": "a", "box": [0, 0, 1, 1]}, r"box belongs to task=inpaint\|outpaint, not to predict"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"frames": 2.5}, "frames must be a whole number"),
        ({"frames": "many"}, "frames must be a finite number, got 'many'"),
        ({"frames": True}, "frames must be a finite number"),
        ({"history": 0}, "history must be a whole number of at least 1"),
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"fps": "nan"}, "fps must be a finite number"),
        ({"input": "a", "task": "vary", "strength": 1.5}, r"strength lies in \[0, 1\], got 1.5"),
        ({"size": [64]}, r"size is \[height, width\] in pixels, got \[64\]"),
        ({"size": [64, 0]}, r"size is \[height, width\]"),
        ({"size": [64, 64.5]}, r"size is \[height, width\]"),
        ({"size": "large"}, r"size is \[height, width\] in pixels, got 'large'"),
        ({"input": "a", "task": "inpaint", "box": [0, 0, -1, 1]}, r"box is \[top, left, height, width\]"),
        ({"input": "a", "task": "inpaint", "box": 8}, r"box is \[top, left, height, width\]"),
        ({"conditions": "digit"}, "conditions are values by name"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VideoRequest(**options)
    assert "\n" not in str(error.value)
