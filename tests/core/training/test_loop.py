"""The training loop, in one process."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import Denoising, Example
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.samples import product
from noiseloom.core.spaces import Euclidean, Product
from noiseloom.core.training import BatchOrder, CheckpointError, Interrupted, TrainingDiverged, checkpoint, train
from noiseloom.core.training.optimizer import adamw
from tests.core.training.toy import Gaussian, Net, config, denoiser, files, run


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def final(directory: Path, step: int) -> checkpoint.Checkpoint:
    found = checkpoint.load_newest(directory / "checkpoints")
    assert found is not None
    assert found.state["step"] == step
    return found


def test_it_learns_the_best_loss_there_is(tmp_path: Path) -> None:
    """Velocity of N(m, s^2) data under the flow: the least error at t is s^2 / ((1 - t)^2 s^2 + t^2)."""
    wide = denoiser(width=64, dropout=0.0)
    options = config(
        steps=200, batch_size=64, lr=2e-2, warmup=20, eval_every=200, eval_samples=512, checkpoint_every=200
    )
    result = train(wide, Denoising(), Gaussian(4096, 0.0), options, tmp_path, valid=Gaussian(512))
    for u in (0.3125, 0.5625, 0.8125):
        best = 0.25 / ((1 - u) ** 2 * 0.25 + u**2)
        assert result.held_out[f"valid/loss/u{u:.4f}"] == pytest.approx(best, rel=0.15)
    assert result.step == 200
    assert result.samples == 200 * 64
    assert result.best == {"step": 200, "loss": result.held_out["valid/loss"]}


def test_metrics_are_means_over_the_steps_between_and_never_tell_the_time(tmp_path: Path) -> None:
    run(tmp_path / "each", log_every=1)
    run(tmp_path / "pairs", log_every=2)
    each = [row for row in rows(tmp_path / "each") if "loss" in row]
    pairs = [row for row in rows(tmp_path / "pairs") if "loss" in row]
    assert [row["step"] for row in pairs] == [2, 4, 6]
    for k, row in enumerate(pairs):
        assert row["loss"] == pytest.approx((each[2 * k]["loss"] + each[2 * k + 1]["loss"]) / 2)
        assert set(row) == {"step", "samples", "loss", "grad_norm", "lr", "skipped"}
        assert row["samples"] == 8 * row["step"]
    held_out = [row for row in rows(tmp_path / "each") if "valid/loss" in row]
    assert [row["step"] for row in held_out] == [3, 6]
    quantiles = [value for name, value in held_out[0].items() if name.startswith("valid/loss/u")]
    assert len(quantiles) == 8
    assert sum(quantiles) / 8 == pytest.approx(held_out[0]["valid/loss"])
    timings = [json.loads(line) for line in (tmp_path / "each" / "timings.jsonl").read_text().splitlines()]
    assert all(row["seconds_per_step"] > 0 for row in timings)


def test_stopping_and_going_on_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole", decay="constant", steps=7, eval_every=0)
    for steps in (3, 4, 7):
        run(tmp_path / "parts", decay="constant", steps=steps, eval_every=0, log_every=100)
    whole, parts = (final(tmp_path / name, 7).tensors for name in ("whole", "parts"))
    for name in ("model", "ema", "optimizer", "objective"):
        assert whole[name].keys() == parts[name].keys()
        assert all(torch.equal(whole[name][key], parts[name][key]) for key in whole[name])
    assert len(whole["optimizer"]) > 10


def test_accumulation_changes_rounding_only(tmp_path: Path) -> None:
    for parts in (1, 3):
        run(tmp_path / str(parts), accumulate=parts, dropout=0.0)
    one, three = (final(tmp_path / name, 6).tensors["model"] for name in ("1", "3"))
    assert all(torch.allclose(one[key], three[key], atol=1e-5) for key in one)


def test_the_gradient_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    """Its logged norm against one backward pass by hand over the global batch."""
    model = denoiser(dropout=0.0)
    order, random = BatchOrder(None, 64, 8, seed=0), StepRandomness(0, 0, range(8), 8)
    losses = Denoising()(model, Gaussian().example(order.batch(0), random.generators), random)
    losses.total.mean().backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    for accumulate in (1, 2):
        options = config(steps=1, accumulate=accumulate, log_every=1)
        train(denoiser(dropout=0.0), Denoising(), Gaussian(), options, tmp_path / str(accumulate))
        assert rows(tmp_path / str(accumulate))[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert rows(tmp_path / str(accumulate))[0]["loss"] == pytest.approx(losses.total.mean().item(), rel=1e-5)


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    """AdamW's first step is lr g / (|g| + 1e-8): nearly lr, unless g was clipped to far below 1e-8."""
    for clip, low, high in ((0.0, 0.9, 1.1), (1e-10, 0.0, 0.02)):
        model = denoiser(dropout=0.0)
        before = model.network.leave.weight.detach().clone()
        options = config(steps=1, warmup=0, clip=clip, weight_decay=0.0, decay="constant")
        train(model, Denoising(), Gaussian(), options, tmp_path / str(clip))
        moved = (model.network.leave.weight.detach() - before).abs() / 1e-2
        assert low <= moved.max().item() < high


def test_weight_decay_spares_vectors() -> None:
    optimizer = adamw(dict(Net().named_parameters()), config(weight_decay=0.5), torch.device("cpu"))
    for group in optimizer.param_groups:
        assert {p.ndim for p in group["params"]} == ({2} if group["weight_decay"] == 0.5 else {1})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_bf16_trains_weights_that_a_first_estimate_used_without_gradient(tmp_path: Path) -> None:
    """Autocast keeps casts of weights: made without gradient for self-conditioning, they must not be used again."""
    model = denoiser(dropout=0.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, Denoising(self_condition=1.0), Gaussian(), config(precision="bf16"), tmp_path)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_parts_have_losses_of_their_own(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 3)

        def forward(self, x: Any, t: Any, cond: Any, previous: Any = None) -> Any:
            return product({"a": self.a(x["a"]), "b": self.b(x["b"])})

    class Pairs(Gaussian):
        def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Example:
            x = self.values[list(indices)]
            space = Product({"a": Euclidean(), "b": Euclidean()})
            return Example(product({"a": x.repeat(1, 2), "b": x.repeat(1, 3)}), space, {})

    objective = Denoising(part_weights={"a": 1.0, "b": 0.5})
    train(Denoiser(Pair()), objective, Pairs(), config(), tmp_path, valid=Pairs(16))
    for row in rows(tmp_path):
        for prefix in ("", "valid/"):
            if f"{prefix}loss" in row:
                parts = row[f"{prefix}loss/a"] + 0.5 * row[f"{prefix}loss/b"]
                assert row[f"{prefix}loss"] == pytest.approx(parts)


class Poisoned(Gaussian):
    """Data whose batches are NaN at some steps."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Example:
        example = super().example(indices, generators)
        if self.calls in self.bad:
            example.x0.fill_(math.nan)
        self.calls += 1
        return example


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    model = denoiser(dropout=0.0)
    result = train(model, Denoising(), Poisoned({1, 2, 4}), config(max_bad_steps=3), tmp_path)
    assert result.skipped == 3
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert [row["skipped"] for row in rows(tmp_path)] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path))
    steps = final(tmp_path, 6).tensors["optimizer"]
    assert steps["model.network.leave.weight.step"].item() == 3


def test_a_skipped_step_does_not_count_for_the_average(tmp_path: Path) -> None:
    """The average starts at the first weights it sees, and the initial ones are none of them."""
    model = denoiser(dropout=0.0)
    train(model, Denoising(), Poisoned({0}), config(steps=2), tmp_path)
    averaged = final(tmp_path, 2).tensors["ema"]
    assert all(torch.equal(p, averaged[name]) for name, p in model.named_parameters())


def test_a_streak_of_bad_steps_ends_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    options = config(steps=20, checkpoint_every=2, max_bad_steps=3)
    with pytest.raises(TrainingDiverged, match=r"3 consecutive steps, up to step 6. The last checkpoint is of step 4"):
        train(denoiser(), Denoising(), Poisoned({3, 4, 5}), options, tmp_path)
    assert final(tmp_path, 4).state["streak"] == 1


def test_control_c_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = config(checkpoint_every=100, eval_every=0, steps=9)

    def go(name: str, preview_every: int = 0, signum: int = signal.SIGINT) -> None:
        objective = Denoising(self_condition=0.5, uncertainty=[""])
        stops = replace(options, preview_every=preview_every)
        train(
            denoiser(), objective, Gaussian(), stops, tmp_path / name, preview=lambda *_: os.kill(os.getpid(), signum)
        )

    go("whole")
    for preview_every, signum in ((4, signal.SIGINT), (6, signal.SIGTERM)):
        before = signal.getsignal(signum)
        with pytest.raises(Interrupted) as stopped:
            go("cut", preview_every, signum)
        assert stopped.value.code == 130
        assert signal.getsignal(signum) is before
        assert "The same command goes on" in capsys.readouterr().err
    go("cut")
    cut, whole = final(tmp_path / "cut", 9), final(tmp_path / "whole", 9)
    assert all(torch.equal(cut.tensors["ema"][key], value) for key, value in whole.tensors["ema"].items())
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_previews_and_the_end_see_averaged_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    def preview(model: Denoiser, step: int) -> dict[str, float]:
        assert not model.training
        seen.append((step, model.network.leave.weight.sum().item()))
        return {"sum": seen[-1][1]}

    def finish(model: Denoiser, result: Any) -> None:
        preview(model, result.step)

    model = denoiser()
    train(model, Denoising(), Gaussian(), config(preview_every=4), tmp_path, preview=preview, finish=finish)
    assert [step for step, _ in seen] == [4, 6, 6]
    averaged = final(tmp_path, 6).tensors["ema"]["network.leave.weight"].sum().item()
    assert seen[-1][1] == averaged != model.network.leave.weight.sum().item()
    assert [row["preview/sum"] for row in rows(tmp_path) if "preview/sum" in row] == [value for _, value in seen[:2]]


def test_the_last_and_the_best_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr("noiseloom.core.training.loop.held_out_sums", lambda *_: {"loss": 16 * next(losses)})
    result = train(
        denoiser(), Denoising(), Gaussian(), config(steps=12, eval_every=2, checkpoint_every=3, keep=2), tmp_path,
        valid=Gaussian(16),
    )  # fmt: skip
    assert result.best == {"step": 4, "loss": 1.0}
    assert checkpoint.saved_steps(tmp_path / "checkpoints") == [4, 9, 12]


def test_another_configuration_is_refused_by_key(tmp_path: Path) -> None:
    recipe = {"network": {"width": 16}, "data": ["a", 1]}
    train(denoiser(), Denoising(), Gaussian(), config(), tmp_path, recipe=recipe)
    with pytest.raises(CheckpointError, match=r"trainer.lr \(was 0.01, now 0.1\)") as changed:
        train(denoiser(), Denoising(), Gaussian(), config(lr=0.1, seed=1), tmp_path, recipe=recipe)
    assert "trainer.seed (was 0, now 1)" in str(changed.value)
    with pytest.raises(CheckpointError, match=r"recipe.network.width"):
        train(denoiser(), Denoising(), Gaussian(), config(), tmp_path, recipe={**recipe, "network": {"width": 8}})
    with pytest.raises(CheckpointError, match=r"is at step 6, past trainer.steps=3"):
        train(denoiser(), Denoising(), Gaussian(), config(steps=3), tmp_path, recipe=recipe)
    grown = train(denoiser(), Denoising(), Gaussian(), config(steps=8, accumulate=2), tmp_path, recipe=recipe)
    assert grown.step == 8


def test_another_network_is_refused_by_tensor(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"network.enter.weight is \(16, 3\), not \(8, 3\)"):
        train(Denoiser(Net(8)), Denoising(uncertainty=[""]), Gaussian(), config(), tmp_path)


def test_a_corrupt_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole", keep=3)
    for name, damage in (
        ("optimizer.safetensors", lambda content: content[: len(content) // 2]),
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("state.json", lambda content: b""),
        ("ema.safetensors", None),
    ):
        place = tmp_path / name
        run(place, keep=3)
        path = place / "checkpoints" / "step_00000006" / name
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))
        run(place, keep=3)
        message = capsys.readouterr().err
        assert "step_00000006 is corrupt" in message
        assert "Going on from step 4" in message
        again = files(place)
        assert {key: v for key, v in again.items() if "corrupt_" not in key} == files(tmp_path / "whole")
    for path in (tmp_path / "whole" / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact"):
        run(tmp_path / "whole")


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    litter = tmp_path / "checkpoints" / ".unfinished-step_00000006"
    litter.mkdir()
    (litter / "model.safetensors").write_bytes(b"half")
    run(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_full_disk_gives_one_line_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint._write

    def full(path: Path, content: bytes) -> str:
        if "step_00000004" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    run(tmp_path / "whole", eval_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(CheckpointError, match=r"is full; the checkpoint of step 2 is intact") as error:
            run(tmp_path / "full", eval_every=0)
    assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / "full" / "checkpoints").iterdir()] == ["step_00000002"]
    run(tmp_path / "full", eval_every=0)
    assert files(tmp_path / "full") == files(tmp_path / "whole")


def test_dropout_depends_on_the_step_only(tmp_path: Path) -> None:
    """What the global generator was used for before or between makes no difference."""
    run(tmp_path / "a")
    torch.manual_seed(99)
    objective = Denoising(self_condition=0.5, uncertainty=[""])
    model = denoiser(dropout=0.1)

    def disturb(_: Denoiser, step: int) -> None:
        torch.rand(step)

    options = config(preview_every=1)
    train(model, objective, Gaussian(), options, tmp_path / "b", valid=Gaussian(32), preview=disturb)
    a, b = (final(tmp_path / name, 6).tensors["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_failure_in_the_data_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(Gaussian):
        def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Example:
            raise KeyError("item 7 is broken")

    with pytest.raises(KeyError, match="item 7"):
        train(denoiser(), Denoising(), Broken(), config(), tmp_path)


def test_trackers_are_logged_to_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracker 'nowhere' is not installed. Installed: "):
        train(denoiser(), Denoising(), Gaussian(), config(trackers=["nowhere"]), tmp_path)
    pytest.importorskip("tensorboard", reason="needs the extra 'trackers'")
    train(denoiser(), Denoising(), Gaussian(), config(trackers=["tensorboard"]), tmp_path, valid=Gaussian(16))
    (events,) = (tmp_path / "noiseloom").glob("events.out.*")
    assert b"valid/loss" in events.read_bytes()
