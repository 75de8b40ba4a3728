"""The files that a run writes as it goes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from noiseloom.core.training import CheckpointError
from noiseloom.core.training.records import JsonLines, Window
from tests.core.training.toy import run


def test_a_file_can_be_cut_back_to_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.write({"step": 1, "loss": 0.5, "bad": float("nan")})
    size = lines.size()
    lines.write({"step": 2})
    lines.close()
    with path.open("a") as file:
        file.write('{"half')
    again = JsonLines(path)
    again.cut(size)
    again.write({"step": 3})
    again.cut(10_000)  # shorter than it was told: left as it is
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5, "bad": None},
        {"step": 3},
    ]


def test_other_processes_write_nothing() -> None:
    silent = JsonLines(None)
    silent.write({"step": 1})
    assert silent.size() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_is_noticed_at_once() -> None:
    lines = JsonLines(Path("/dev/full"))
    with pytest.raises(OSError) as error:
        lines.write({"step": 1})
    assert error.value.errno == errno.ENOSPC
    lines.close()


def test_metrics_on_a_full_disk_end_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = JsonLines.write

    def full(lines: JsonLines, values: dict) -> None:
        if values["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(lines, values)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "write", full)
        with pytest.raises(CheckpointError, match=r"is full; the checkpoint of step 3 is intact"):
            run(tmp_path)
    assert run(tmp_path).step == 6


def test_the_mean_of_a_window_survives_a_stop() -> None:
    window, whole = Window(), Window()
    for value in (0.1, 0.2, 0.7):
        whole.add({"loss": value})
    window.add({"loss": 0.1})
    window = Window(**json.loads(json.dumps(window.state())))
    window.add({"loss": 0.2})
    window.add({"loss": 0.7})
    assert window.means() == whole.means() == {"loss": (0.1 + 0.2 + 0.7) / 3}
    assert window.means() == {}
