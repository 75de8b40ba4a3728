"""Runs in processes of their own: killed at any moment, or two at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]


def toy(command: str, directory: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, "-m", "tests.core.training.toy", command, str(directory)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert "4 at random" in toy("crashes", tmp_path)


def test_two_processes_train_and_sample_as_one(tmp_path: Path) -> None:
    toy("ranks", tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("model", "ema", "objective"):
        first, second = (load_file(p / "checkpoints" / "step_00000012" / f"{name}.safetensors") for p in (one, two))
        for key in first:
            torch.testing.assert_close(first[key], second[key], atol=2e-5, rtol=1e-4)
    rows = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (one, two)]
    assert len(rows[0]) == len(rows[1])
    for first, second in zip(*rows, strict=True):
        assert first == pytest.approx(second, rel=1e-3)
    samples = [json.loads((p / "numbers.json").read_text()) for p in (one, two)]
    assert samples[0] == samples[1]
    assert len(samples[0]["numbers"]) == 10
