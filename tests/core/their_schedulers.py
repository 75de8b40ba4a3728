"""diffusers' schedulers, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def scheduler_of(config: Mapping[str, Any], steps: int, **options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra 'benchmarks'")
    theirs = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    theirs.set_timesteps(steps, **options)
    return theirs
