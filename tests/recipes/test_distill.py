"""``recipe=distill``: a checkpoint becomes one of few calls, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import noiseloom
from noiseloom.recipes.cli import main

TEACHERS = {
    "audio/tiny": ["network.width=24", "network.depth=1", "network.heads=2"],
    "molecules/qm9-tiny": ["network.width=16", "network.layers=1", "network.heads=2", "network.irreps=4x1o"],
}
QUICK = ["trainer.batch_size=4", "trainer.eval_samples=4", "trainer.warmup=1", "trainer.device=cpu"]
SMALL = ["recipe=distill", *QUICK, "trainer.compile=false", "trainer.precision=fp32"]
TRAJECTORY = ["method=trajectory", "method.calls=[1,2]", "method.steps=4", "method.jumps=2"]


@pytest.fixture(scope="module", params=TEACHERS)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    main(["train", f"recipe={request.param}", *TEACHERS[request.param], *QUICK, "trainer.steps=2", f"out={out}"])
    return out / "checkpoint"


def test_a_student_samples_in_few_calls_without_guidance(teacher: Path, tmp_path: Path) -> None:
    main(["train", *SMALL, *TRAJECTORY, f"teacher={teacher}", "trainer.steps=3", f"out={tmp_path}"])
    student = noiseloom.load(tmp_path / "checkpoint")
    assert student.config["network"]["two_times"]
    assert student.config["sampling"]["sampler"] == "flow_map"
    assert "guidance" not in student.config["sampling"]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    student.denoiser.network.register_forward_pre_hook(count)
    student.sample(2, steps=2, progress=False)
    assert calls == 2


def test_a_student_begins_as_its_teacher(teacher: Path, tmp_path: Path) -> None:
    main(["train", *SMALL, *TRAJECTORY, f"teacher={teacher}", "trainer.steps=1", "trainer.lr=0", f"out={tmp_path}"])
    one, other = (noiseloom.load(path).denoiser.state_dict() for path in (teacher, tmp_path / "checkpoint"))
    assert set(one) < set(other)
    assert all(torch.equal(other[name].half(), value.half()) for name, value in one.items())


def test_stored_paths_are_the_teachers_and_a_run_goes_on_where_it_was(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = [
        "train",
        *SMALL,
        *TRAJECTORY,
        f"teacher={teacher}",
        "paths=6",
        "trainer.checkpoint_every=2",
        "trainer.decay=constant",
        "trainer.log_every=1",
    ]
    main([*line, "trainer.steps=4", f"out={tmp_path / 'whole'}"])
    main([*line, "trainer.steps=2", f"out={tmp_path / 'cut'}"])
    main([*line, "trainer.steps=4", f"out={tmp_path / 'cut'}"])
    rows = [
        [json.loads(row) for row in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    last = [[row["loss"] for row in each if row["step"] == 4 and "loss" in row] for each in rows]
    assert last[0] == last[1] != []
    assert len(list((tmp_path / "cache" / "noiseloom" / "paths").iterdir())) == 1


@pytest.mark.parametrize("method", ["meanflow", "shortcut", "consistency", "reflow"])
def test_every_method_takes_a_teacher(teacher: Path, tmp_path: Path, method: str) -> None:
    steps = ["method.steps=2"] if method == "reflow" else []
    main(["train", *SMALL, f"method={method}", *steps, f"teacher={teacher}", "trainer.steps=2", f"out={tmp_path}"])
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] == row["loss"] for row in rows if "loss" in row)


@pytest.mark.parametrize(
    "line, told",
    [
        (["method=trajectory", "network=dit"], "a student has the network of its teacher: leave network out"),
        ([], "no method to distil by: method=NAME. Choices: "),
        (["method=denoising"], "denoising takes no teacher. Methods: "),
        (["method=trajectori"], "Did you mean 'trajectory'?"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(line: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "recipe=distill", "teacher=audio-digits", *line])
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
