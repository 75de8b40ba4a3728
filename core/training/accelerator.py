"""accelerate, at the edge: processes, devices and trackers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .config import TrainerConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator(config: TrainerConfig, directory: Path) -> Accelerator:
    """An ``Accelerator`` for a run.

    Raises:
        ValueError: a tracker that is not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import DistributedDataParallelKwargs

    installed = [str(tracker.value) for tracker in get_available_trackers()]
    for name in config.trackers:  # accelerate would leave one that is not installed out in silence
        if name not in ("all", *installed):
            raise ValueError(f"tracker {name!r} is not installed. Installed: {', '.join(installed) or 'none'}")
    return Accelerator(
        cpu=config.device == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1,
        # Precision is the loop's own autocast: accelerate's is global and could not change between two runs.
        mixed_precision="no",
        log_with=config.trackers or None,
        project_dir=str(directory),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
