"""AdamW, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import TrainerConfig

Parameters = Mapping[str, nn.Parameter]


def adamw(parameters: Parameters, config: TrainerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=_fused(device)
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """The state as ``<parameter>.<key>``, e.g. ``network.head.weight.exp_avg``."""
    return {
        f"{name}.{key}": value for name, p in parameters.items() for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor], device: torch.device
) -> None:
    """The inverse of ``optimizer_tensors``."""
    for full, value in tensors.items():
        name, key = full.rsplit(".", 1)
        on = "cpu" if key == "step" and not _fused(device) else device  # where AdamW keeps its count of steps
        optimizer.state[parameters[name]][key] = value.to(on)


def _fused(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")
