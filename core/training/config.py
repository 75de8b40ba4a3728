"""What a training run is told, and the learning rate of a step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

DECAYS = ("cosine", "linear", "constant", "wsd")
PRECISIONS = ("fp32", "bf16")

# A run may go on with other values of these; all others decide its weights (beyond rounding) or its held-out loss.
FREE = (
    "steps", "accumulate", "compile", "checkpoint_every", "keep", "eval_every", "preview_every", "log_every",
    "max_bad_steps", "trackers", "device",
)  # fmt: skip


@dataclass
class TrainerConfig:
    """The options of ``train``.

    Attributes:
        steps: optimizer steps of the whole run; an existing run may be given more.
        batch_size: samples in a step, over all processes and accumulated parts.
        tokens: instead, for data of several shapes: a step has as many samples of one shape as this budget of elements
            holds, and one at least.
        accumulate: parts that each process cuts its share of a batch into, to save memory; changes rounding only.
        lr: the peak learning rate of AdamW.
        betas: AdamW's.
        weight_decay: AdamW's, on matrices only (not on biases, gains and other vectors).
        warmup: steps over which the learning rate rises from 0.
        decay: "cosine" or "linear" to 0 over the run, "constant", or "wsd": constant, then linear to 0.
        decay_fraction: the part of the run over which "wsd" falls.
        clip: the largest norm of the gradient; 0 does not clip.
        precision: "fp32", or "bf16": autocast, weights and optimizer in float32.
        compile: torch.compile the network (in place: its keys keep their names).
        seed: of the order, the noise and dropout.
        ema_std: relative width of the power-function average (EDM2).
        ema_decay: a fixed rate instead.
        ema_snapshots: steps between snapshots of further averages, from which ``noiseloom ema`` makes one of any width
            later; 0: none.
        ema_snapshot_stds: the widths of these averages.
        checkpoint_every: steps between checkpoints.
        keep: how many of the last checkpoints stay, beside the best by held-out loss.
        eval_every: steps between held-out losses; 0: none.
        eval_samples: held-out items used, the same each time.
        preview_every: steps between calls of ``preview``; 0: none.
        log_every: steps that one line of metrics.jsonl averages over.
        max_bad_steps: stop after so many consecutive steps whose loss or gradient is not finite.
        trackers: accelerate's: "tensorboard", "wandb", "trackio", ...
        device: "cpu", "cuda", ...; by default the best there is.
    """

    steps: int = 10_000
    batch_size: int = 64
    tokens: int | None = None
    accumulate: int = 1
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: int = 200
    decay: str = "cosine"
    decay_fraction: float = 0.2
    clip: float = 1.0
    precision: str = "fp32"
    compile: bool = False
    seed: int = 0
    ema_std: float = 0.1
    ema_decay: float | None = None
    ema_snapshots: int = 0
    ema_snapshot_stds: tuple[float, float] = (0.05, 0.1)
    checkpoint_every: int = 500
    keep: int = 2
    eval_every: int = 500
    eval_samples: int = 256
    preview_every: int = 0
    log_every: int = 20
    max_bad_steps: int = 20
    trackers: list[str] = field(default_factory=list)
    device: str | None = None

    def __post_init__(self) -> None:
        self.betas = (self.betas[0], self.betas[1])
        self.ema_snapshot_stds = (self.ema_snapshot_stds[0], self.ema_snapshot_stds[1])
        for key, choices in (("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"unknown {key} {getattr(self, key)!r}. Choices: {', '.join(choices)}")
        for key in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep", "log_every", "max_bad_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        for key in (
            "lr",
            "weight_decay",
            "warmup",
            "clip",
            "eval_every",
            "eval_samples",
            "preview_every",
            "ema_snapshots",
        ):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction lies in (0, 1], got {self.decay_fraction}")

    def fixed(self) -> dict[str, Any]:
        """The values that an existing run must keep, as plain JSON."""
        unused = () if self.ema_snapshots else ("ema_snapshots", "ema_snapshot_stds")
        given = {key: value for key, value in asdict(self).items() if key not in (*FREE, *unused)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}


def learning_rate(config: TrainerConfig, step: int) -> float:
    """The learning rate of ``step`` (from 0): a function of the step only."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    span = max(config.steps - config.warmup, 1)
    progress = min((step - config.warmup) / span, 1.0)
    if config.decay == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    if config.decay == "linear":
        return config.lr * (1 - progress)
    if config.decay == "wsd":
        return config.lr * min((1 - progress) / config.decay_fraction, 1.0)
    return config.lr
