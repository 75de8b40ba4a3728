"""Training on items of several shapes under a budget of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from noiseloom.core.objectives import Denoising, Example
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.training import BatchOrder, CheckpointError, TrainResult, train
from noiseloom.core.training.checkpoint import load_newest
from tests.core.training.toy import Gaussian, config, denoiser, files

TOKENS = 24


class Shaped(Gaussian):
    """Scalars that are told to have shapes; a batch of two shapes cannot be made."""

    def __init__(self, count: int = 64) -> None:
        super().__init__(count)
        self.shapes = [((1, 2), (3, 2), (4, 5))[i % 7 % 3] for i in range(count)]
        self.batches: list[int] = []

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Example:
        (shape,) = {self.shapes[index] for index in indices}
        assert len(indices) <= max(TOKENS // math.prod(shape), 1)
        self.batches.append(len(indices))
        return super().example(indices, generators)


def run(directory: Path, **options: Any) -> TrainResult:
    told = {"steps": 9, "tokens": TOKENS, "log_every": 3, "decay": "constant", **options}
    return train(denoiser(), Denoising(), Shaped(), config(**told), directory, valid=Shaped(32))


def test_a_run_is_the_same_however_often_it_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path / "whole")
    assert "3x2: 18 items, 4 batches of 4" in capsys.readouterr().err
    for steps in (2, 5, 9):
        run(tmp_path / "parts", steps=steps, eval_every=0, log_every=100)
    whole, parts = (load_newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    for name in ("model", "ema", "optimizer"):
        assert all(torch.equal(whole.tensors[name][key], parts.tensors[name][key]) for key in whole.tensors[name])
    order = BatchOrder(None, 64, 8, 0, Shaped().shapes, TOKENS)
    counts = [len(order.batch(step)) for step in range(9)]
    assert len(set(counts)) == 3
    assert result.samples == sum(counts) == whole.state["samples"] == parts.state["samples"]
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows if "loss" in row] == [sum(counts[:n]) for n in (3, 6, 9)]
    assert math.isfinite(result.held_out["valid/loss"])


def test_the_loss_is_the_mean_over_the_items_of_the_batch(tmp_path: Path) -> None:
    model, data = denoiser(dropout=0.0), Shaped()
    items = BatchOrder(None, 64, 8, 0, data.shapes, TOKENS).batch(0)
    random = StepRandomness(0, 0, range(len(items)), len(items))
    losses = Denoising()(model, data.example(items, random.generators), random)
    losses.total.mean().backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    options = config(steps=1, log_every=1, tokens=TOKENS)
    train(denoiser(dropout=0.0), Denoising(), Shaped(), options, tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["loss"] == pytest.approx(losses.total.mean().item(), rel=1e-5)
    assert row["samples"] == len(items)


def test_held_out_items_all_count_once(tmp_path: Path) -> None:
    valid = Shaped(32)
    options = config(steps=1, tokens=TOKENS, eval_every=1, eval_samples=20)
    train(denoiser(), Denoising(), Shaped(), options, tmp_path, valid=valid)
    assert sum(valid.batches) == 20


def test_a_budget_belongs_to_the_run_and_to_data_with_shapes(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2, eval_every=0)
    before = files(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"trainer.tokens"):
        run(tmp_path / "run", steps=3, tokens=30)
    assert files(tmp_path / "run") == before
    with pytest.raises(ValueError, match="for data that gives shapes"):
        train(denoiser(), Denoising(), Gaussian(), config(tokens=TOKENS), tmp_path / "plain")
    with pytest.raises(ValueError, match=r"raise trainer.tokens to 60 or more"):
        run(tmp_path / "parts", accumulate=3)
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        config(tokens=0)
