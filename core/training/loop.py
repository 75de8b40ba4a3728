"""The training loop of every recipe.

A run is a function of its configuration: the items, noise, dropout and learning rate of a step depend on (seed, step)
only, and everything else is in the checkpoint. So a run that was killed and started again ends with the same bits as
one that never stopped (on hardware whose kernels are deterministic; a CPU is).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..devices import compile_network, move
from ..objectives import Objective
from ..randomness import StepRandomness, mix
from ..samples import WHOLE
from . import checkpoint, posthoc
from .accelerator import accelerator
from .batches import Batches, TrainingData
from .checkpoint import CheckpointError
from .config import TrainerConfig, learning_rate
from .ema import EMA, fixed_rate, power_function
from .evaluation import held_out_sums
from .interrupts import Interrupted, Interrupts
from .optimizer import adamw, load_optimizer_tensors, optimizer_tensors
from .order import BatchOrder, held_out_batches
from .posthoc import Snapshots
from .records import JsonLines, Window

_DROPOUT = -4  # a key of generators apart from a step's


class TrainingDiverged(RuntimeError):
    """Too many consecutive steps whose loss or gradient was not finite."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        samples: training samples seen.
        skipped: steps left out because their loss or gradient was not finite.
        held_out: the last held-out losses, by name.
        best: the lowest held-out loss and its step: ``{"step", "loss"}``.
        directory: the run's folder.
    """

    step: int
    samples: int
    skipped: int
    held_out: dict[str, float]
    best: dict[str, float] | None
    directory: Path


Preview = Callable[[Any, int], Mapping[str, float] | None]
Finish = Callable[[Any, TrainResult], None]


def train(
    model: nn.Module,
    objective: Objective,
    data: TrainingData,
    config: TrainerConfig,
    directory: str | Path,
    *,
    valid: TrainingData | None = None,
    preview: Preview | None = None,
    finish: Finish | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train ``model``, or go on with the run that is in ``directory``.

    Writes ``checkpoints/``, ``metrics.jsonl`` (the same bits however often the run was stopped) and ``timings.jsonl``.
    Run under ``accelerate launch`` or ``torchrun``, each process takes its share of every batch.

    Args:
        model: with its initial weights: a denoiser, or whatever the objective trains.
        objective: what to minimise; its own parameters are trained too.
        data: the training items.
        config: the options.
        directory: the run's folder, made if needed.
        valid: held-out items.
        preview: called every ``preview_every`` steps, in every process, with the averaged weights in ``model``; the
            figures it returns are logged.
        finish: called once at the end, likewise, with the result.
        recipe: plain values that describe the data, network and objective; a run refuses to go on with others.

    Raises:
        CheckpointError: the disk is full, the run is of another configuration, or no checkpoint is intact.
        TrainingDiverged: ``max_bad_steps`` consecutive steps were not finite.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    run = _Run(model, objective, data, config, Path(directory), valid, dict(recipe or {}))
    try:
        return run.go(preview, finish)
    except OSError as error:
        raise (checkpoint.full_disk(run.root) if checkpoint.is_full(error) else error) from None
    finally:
        run.close()


class _Step(nn.Module):
    """Model and objective as one module, so that data-parallel wrapping sees one forward."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, example: Any, random: StepRandomness) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.objective(self.model, example, random)
        sums = {f"loss/{name}": part.detach().double().sum() for name, part in losses.parts.items() if name != WHOLE}
        return losses.total.sum(), {"loss": losses.total.detach().double().sum(), **sums}


class _Run:
    """One run: what train() holds between steps."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: TrainingData,
        config: TrainerConfig,
        directory: Path,
        valid: TrainingData | None,
        recipe: dict[str, Any],
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.accelerator = accelerator(config, directory)
        self.device = torch.device(config.device) if config.device else self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.config, self.directory, self.root = config, directory, directory / "checkpoints"
        self.plain_config = json.loads(json.dumps({"trainer": config.fixed(), "recipe": recipe}))
        shapes = getattr(data, "shapes", None)
        order = BatchOrder(data.sizes, len(data), config.batch_size, config.seed, shapes, config.tokens)
        self.batches = Batches(data, order, config.seed, self.rank, self.world, config.accumulate, config.steps)
        self.valid = valid
        self.model, self.objective = model.to(self.device), objective.to(self.device)
        step = _Step(model, objective)
        self.module = self.accelerator.prepare_model(step, device_placement=False)
        if config.compile:
            compile_network(model.network if isinstance(model, Denoiser) else model)
        self.parameters = {name: p for name, p in step.named_parameters() if p.requires_grad}
        self.optimizer = adamw(self.parameters, config, self.device)
        rate = power_function(config.ema_std) if config.ema_decay is None else fixed_rate(config.ema_decay)
        self.ema = EMA(model, rate)
        stds = config.ema_snapshot_stds if config.ema_snapshots else ()
        self.snapshots = Snapshots(model, stds, directory / posthoc.FOLDER)

        self.step = self.samples = self.skipped = self.streak = 0
        self.best: dict[str, float] | None = None
        self.held_out: dict[str, float] = {}
        self.window = Window()
        self.metrics = JsonLines(directory / "metrics.jsonl" if self.main else None)
        self.timings = JsonLines(directory / "timings.jsonl" if self.main else None)
        self.saved_at = -1

    def close(self) -> None:
        self.batches.close()
        self.metrics.close()
        self.timings.close()
        for tracker in self.accelerator.trackers:  # end_training() would end the process group too
            tracker.finish()

    # The loop

    def go(self, preview: Preview | None, finish: Finish | None) -> TrainResult:
        from tqdm.auto import tqdm

        config = self.config
        self._resume()
        if len(self.batches.order.buckets) > 1:
            self._say(f"batches of an epoch\n{self.batches.order}")
        if config.trackers:
            self.accelerator.init_trackers("noiseloom")
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not self.main, dynamic_ncols=True)
        with Interrupts() as interrupts, bar:
            if self.step == 0:
                self._save()  # the initial weights: a run killed early starts again from the same ones
            last = (time.perf_counter(), self.step)
            while self.step < config.steps:
                values, stop = self._advance(interrupts.received)
                bar.set_postfix(loss=f"{values['loss']:.4g}", lr=f"{values['lr']:.2e}", refresh=False)
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._log({**self.window.means(), "lr": values["lr"], "skipped": self.skipped})
                    now = (time.perf_counter(), self.step)
                    seconds = (now[0] - last[0]) / max(now[1] - last[1], 1)
                    self.timings.write({"step": self.step, "seconds_per_step": seconds, "time": time.time()})
                if self.main and self._due(config.ema_snapshots):
                    self.snapshots.store(self.step, self.step - self.skipped)
                improved = self._evaluate() if self.valid is not None and self._due(config.eval_every) else False
                if preview is not None and self._due(config.preview_every):
                    self._preview(preview)
                if self._due(config.checkpoint_every) or improved or stop:
                    self._save()
                if self.step % config.log_every == 0:
                    last = (time.perf_counter(), self.step)
                if stop and self.step < config.steps:
                    bar.close()
                    message = f"Stopped at step {self.step} of {config.steps}, saved in {self.directory}. "
                    message += "The same command goes on from there."
                    self._say(message)
                    raise Interrupted(message)
        result = TrainResult(self.step, self.samples, self.skipped, self.held_out, self.best, self.directory)
        if finish is not None:
            self.model.eval()
            with self.ema.swapped_in():
                finish(self.model, result)
        return result

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _advance(self, stop: bool) -> tuple[dict[str, float], bool]:
        """One optimizer step. Returns its figures, and whether any process was asked to stop."""
        config, step = self.config, self.step
        lr = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.module.train()
        torch.manual_seed(mix(config.seed, _DROPOUT, step, self.rank))
        sums: dict[str, Tensor] = {}
        pieces, count = self.batches.pieces(step)
        for k, (example, random) in enumerate(pieces):
            last = k == len(pieces) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                with self._autocast():
                    loss, figures = self.module(move(example, self.device), random)
                # Processes average their gradients: times world / batch it is the mean over the global batch.
                (loss * (self.world / count)).backward()
            for name, value in figures.items():
                sums[name] = sums[name] + value if name in sums else value
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.clip or math.inf)
        flag = torch.tensor(float(stop), dtype=torch.float64, device=self.device)
        reduced = self.accelerator.reduce(torch.stack([*sums.values(), flag]), "sum")
        *totals, stops, norm_value = torch.cat([reduced, norm.double()[None]]).tolist()  # the step's only sync
        values = {name: total / count for name, total in zip(sums, totals, strict=True)}
        values["grad_norm"] = norm_value
        self.step += 1
        self.samples += count
        if all(map(math.isfinite, values.values())):
            self.optimizer.step()
            self.streak = 0
            self.ema.update(self.step - self.skipped)
            self.snapshots.update(self.step - self.skipped)
            self.window.add(values)
        else:
            self.skipped += 1
            self.streak += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.streak >= config.max_bad_steps:
            saved = checkpoint.saved_steps(self.root)
            raise TrainingDiverged(
                f"the loss or its gradient was not finite in {self.streak} consecutive steps, up to step {self.step}. "
                f"The last checkpoint is of step {saved[-1] if saved else 0}. Check the data's scale (sigma_data), "
                "lower trainer.lr, or use precision fp32."
            )
        return {**values, "lr": lr}, stops > 0

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    # What is logged

    def _log(self, values: Mapping[str, Any]) -> None:
        row = {"step": self.step, "samples": self.samples, **values}
        self.metrics.write(row)
        if self.config.trackers:
            self.accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=self.step)

    def _evaluate(self) -> bool:
        """Log the held-out loss of the averaged weights; True if it is the lowest so far."""
        from accelerate.utils import gather_object

        assert self.valid is not None
        config = self.config
        parts = self.world * config.accumulate
        per_batch, budget = max(config.batch_size // parts, 1), config.tokens and max(config.tokens // parts, 1)
        shapes = getattr(self.valid, "shapes", None)
        batches = held_out_batches(
            self.valid.sizes, len(self.valid), per_batch, config.eval_samples, config.seed, shapes, budget
        )
        self.module.eval()
        with self.ema.swapped_in():
            mine = held_out_sums(
                self.model, self.objective, self.valid, batches[self.rank :: self.world], config.seed, self.device,
                self._autocast,
            )  # fmt: skip
        sums = Window()
        for part in gather_object([mine]):
            sums.add(part)
        count = sum(map(len, batches))
        self.held_out = {f"valid/{name}": total / count for name, total in sums.sums.items()}
        self._log(self.held_out)
        loss = self.held_out["valid/loss"]
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best = {"step": self.step, "loss": loss}
            return True
        return False

    def _preview(self, preview: Preview) -> None:
        self.model.eval()
        with self.ema.swapped_in():
            figures = preview(self.model, self.step)
        if figures:
            self._log({f"preview/{k}": v for k, v in figures.items()})

    def _say(self, message: str) -> None:
        if self.main:
            print(message, file=sys.stderr)

    # Checkpoints

    def _save(self) -> None:
        if self.saved_at == self.step:
            return
        if self.main:
            state = {
                "step": self.step,
                "samples": self.samples,
                "seed": self.config.seed,
                "skipped": self.skipped,
                "streak": self.streak,
                "best": self.best,
                "held_out": self.held_out,
                "window": self.window.state(),
                "metrics_bytes": self.metrics.size(),
            }
            tensors = {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                **({"snapshots": self.snapshots.state_dict()} if self.snapshots.averages else {}),
                "objective": self.objective.state_dict(),
                "optimizer": optimizer_tensors(self.optimizer, self.parameters),
            }
            checkpoint.save_checkpoint(self.root, self.step, tensors, state, self.plain_config)
            self._prune()
        self.accelerator.wait_for_everyone()
        self.saved_at = self.step

    def _prune(self) -> None:
        if self.main:
            checkpoint.prune(self.root, self.config.keep, int(self.best["step"]) if self.best else None)

    def _resume(self) -> None:
        if self.main:
            checkpoint.remove_unfinished(self.root)
            found = checkpoint.load_newest(self.root)
        self.accelerator.wait_for_everyone()
        if not self.main:  # a corrupt newest one is out of the way by now
            found = checkpoint.load_newest(self.root)
        if found is None:
            return
        self._refuse_changes(found)
        state = found.state
        checkpoint.load_exactly(self.model, found.tensors["model"], found.path / "model.safetensors")
        checkpoint.load_exactly(self.objective, found.tensors["objective"], found.path / "objective.safetensors")
        self.ema.load_state_dict(found.tensors["ema"])
        self.snapshots.load_state_dict(found.tensors.get("snapshots", {}))
        load_optimizer_tensors(self.optimizer, self.parameters, found.tensors["optimizer"], self.device)
        self.step = self.saved_at = state["step"]
        self.samples = state["samples"]
        self.skipped, self.streak = state["skipped"], state["streak"]
        self.best, self.held_out = state["best"], state["held_out"]
        self.window = Window(**state["window"])
        self.metrics.cut(state["metrics_bytes"])
        self._prune()
        self._say(f"Going on from step {self.step} of {self.config.steps} ({found.path})")

    def _refuse_changes(self, found: checkpoint.Checkpoint) -> None:
        changed = checkpoint.differing(found.config, self.plain_config)
        if changed:
            raise CheckpointError(
                f"{self.directory} holds a run of another configuration. Changed: {'; '.join(changed)}. "
                "Restore these values, or choose another directory."
            )
        if found.state["step"] > self.config.steps:
            raise CheckpointError(
                f"{self.directory} is at step {found.state['step']}, past trainer.steps={self.config.steps}"
            )
