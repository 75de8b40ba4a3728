"""How samples are shared out: over batches, and over processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch


def cut(sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Samples of like size together. The cut does not depend on the number of processes, so neither do the samples."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def processes(device: torch.device) -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return state.process_index, state.num_processes


def gathered(made: dict[int, Any], counts: Counter[str], world: int) -> tuple[dict[int, Any], Counter[str]]:
    """The artifacts of all processes, and what they counted."""
    if world == 1:
        return made, counts
    from accelerate.utils import gather_object

    shares = gather_object([(made, counts)])
    everything = {index: artifact for part, _ in shares for index, artifact in part.items()}
    return everything, sum((counted for _, counted in shares), Counter())


def best_device() -> torch.device:
    """This process's GPU where there is one."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
