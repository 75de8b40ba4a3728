"""What one can ask of a sound, and how it is told what one cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noiseloom.core.pipeline import Pipeline
from noiseloom.modalities.audio.request import AudioRequest, spans

from .conftest import clip, write

pytestmark = pytest.mark.usefixtures("own_cache")


def test_spans_are_read_and_put_in_order() -> None:
    assert spans(["0.5-0.75", [0.1, 0.2]]) == [(0.1, 0.2), (0.5, 0.75)]
    assert spans("0.1-0.2") == spans([("0.1", 0.2)]) == [(0.1, 0.2)]
    assert spans(["0-1", "1-2"]) == [(0, 1), (1, 2)]
    assert spans([]) == []
    for wrong, message in (
        (["0.1"], "'0.1' is not a span in seconds such as 0.2-0.35"),
        ([0.1, 0.2], "0.1 is not a span"),
        (0.3, "0.3 is not a span"),
        (["0.3-0.1"], "0.3-0.1 s does not run forwards"),
        ([[-1, 1]], "does not run forwards from 0"),
        ([["nan", 1]], "does not run forwards"),
        (["0.1-0.3", "0.2-0.4"], "two spans overlap at 0.2 s"),
    ):
        with pytest.raises(ValueError, match=message):
            spans(wrong)


def test_what_is_asked_is_collected() -> None:
    request = AudioRequest(label=0, conditions={"voice": "theo", "pitch": None})
    assert request.asked() == {"label": 0, "voice": "theo"}
    assert AudioRequest(strength="0.5").strength == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 3}, "unknown label '3'. Choices: 0, 7"),
        ({"label": []}, "label is an empty list"),
        ({"voice": "theodor"}, "unknown voice 'theodor'. Did you mean 'theo'"),
        ({"conditions": {"loudness": 3}}, "unknown condition 'loudness'. Choices: label, voice, type, pitch, duration"),
        (
            {"vioce": "theo"},
            "no option 'vioce' to sample with. Did you mean 'voice'.*Choices: .*loop, voice, type, pitch",
        ),
        ({"text": "a bell"}, "unknown condition 'text'"),
        ({"duration": -1}, "duration must be positive, got -1"),
        ({"duration": 0}, "duration must be positive, got 0"),
        ({"duration": float("nan")}, "duration must be a finite number, got nan"),
        ({"duration": "1 s"}, "duration must be a finite number, got '1 s'"),
        ({"reference": "IN"}, "not trained with references"),
        ({"strength": 0.5}, "strength changes a sound: give it as input=FILE"),
        ({"extend": 0.5}, "extend or prepend changes a sound: give it as input=FILE"),
        ({"input": "IN"}, "say one thing to do with the input, not 0"),
        ({"input": "IN", "strength": 0.5, "inpaint": ["0-0.1"]}, "say one thing to do with the input, not 2"),
        ({"input": "IN", "strength": 1.5}, r"strength lies in \[0, 1\], got 1.5"),
        ({"input": "IN", "strength": "much"}, "strength must be a finite number, got 'much'"),
        ({"input": "IN", "extend": float("nan")}, "extend must be a finite number, got nan"),
        ({"input": "IN", "extend": -0.1}, "extend must be positive, got -0.1"),
        ({"input": "IN", "extend": 0}, "nothing to make"),
        ({"input": "IN", "inpaint": []}, "nothing to make"),
        ({"input": "IN", "inpaint": ["0.3-0.4"]}, "the span 0.3-0.4 s lies behind the end of the input, 0.3 s"),
        ({"input": "IN", "inpaint": "0.1"}, "'0.1' is not a span"),
        ({"input": "IN", "bandwidth": 1500}, "bandwidth needs frames of frequencies"),
        ({"input": "IN", "extend": 0.1, "duration": 1}, "leave out duration"),
        ({"input": "IN", "loop": True, "strength": 0.5}, "a loop is made from nothing"),
        ({"loop": "no"}, "loop is true or false, not 'no'"),
        ({"loop": True, "duration": 2}, "a loop has at most 0.6 s"),
        ({"input": "nowhere.wav", "strength": 0.5}, "No such file or directory: 'nowhere.wav'"),
        ({"input": "TEXT", "strength": 0.5}, "notes.wav: not a sound that can be read"),
        ({"input": "SILENT", "strength": 0.5}, "silent.wav: silent"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    model: Callable[..., Pipeline], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "notes.wav").write_text("do re mi")
    files = {
        "IN": write(tmp_path / "in.wav", clip(0.3)),
        "SILENT": write(tmp_path / "silent.wav", np.zeros(800)),
        "TEXT": str(tmp_path / "notes.wav"),
    }
    options = {key: files.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        model("wave").sample(1, progress=False, **options)
    assert "\n" not in str(error.value)


def test_bandwidth_lies_below_half_the_rate(model: Callable[..., Pipeline], tmp_path: Path) -> None:
    path = write(tmp_path / "in.wav", clip(0.3))
    for cutoff in (0, 4000):
        with pytest.raises(ValueError, match=f"bandwidth lies between 0 and 4000 Hz.*got {cutoff}"):
            model("mel").sample(1, input=path, bandwidth=cutoff, progress=False)


def test_a_missing_reference_is_named(model: Callable[..., Pipeline]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.wav"):
        model("wave", reference=True).sample(1, reference="nowhere.wav", progress=False)
