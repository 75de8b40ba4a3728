"""How samples are made unless told otherwise, and what callers may say instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Generator

from ..randomness import mix

DEFAULTS: dict[str, Any] = {
    "sampler": "dpmpp_2m",
    "steps": 50,
    "grid": "uniform",
    "order": None,
    "schedule": None,
    "guidance": None,
    "caching": None,
    "posterior": None,
    "measurement": None,
    "inpainting": "known",
    "inversion": None,
    "temperature": 1.0,
    "noise": "independent",
    "batch_size": 128,
    "precision": "fp32",
}


def known_settings(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings of a checkpoint.

    Raises:
        ValueError: a setting that does not exist.
    """
    if unknown := [key for key in sampling if key not in DEFAULTS]:
        raise ValueError(f"there is no sampling setting {', '.join(unknown)}. Choices: {', '.join(DEFAULTS)}")
    return dict(sampling)


def combined(own: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings asked for, over a checkpoint's own, over the defaults. Guidance by the same rule keeps what is not
    said of it: ``guidance=3`` changes the scale, not which conditions the weak estimate keeps."""
    settings, guidance, mine = {**DEFAULTS, **own, **asked}, asked.get("guidance"), own.get("guidance")
    if isinstance(guidance, int | float) and guidance != 1:
        guidance = {"name": "classifier_free", "scale": guidance}
    if isinstance(mine, Mapping) and isinstance(guidance, Mapping) and guidance.get("name") == mine.get("name"):
        settings["guidance"] = {**mine, **guidance}
    return settings


def either(name: str, value: Any, other: str, same: Any) -> Any:
    """An option that has two names."""
    if value is not None and same is not None:
        raise ValueError(f"{name} and {other} are the same option: give one of them")
    return same if value is None else value


def sample_seeds(
    seed: int | Sequence[int], count: int | None, generator: Generator | Sequence[Generator] | None
) -> list[int]:
    """One seed for each sample: those given, or those of one seed; ``generator`` says it in other words."""
    if generator is not None:
        seed = generator.initial_seed() if isinstance(generator, Generator) else [g.initial_seed() for g in generator]
    if isinstance(seed, int):
        count = 1 if count is None else count
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        return [mix(seed, index) >> 10 for index in range(count)]  # 53 bits: exact in JSON and in spreadsheets
    if count not in (None, len(seed)):
        raise ValueError(f"{count} samples need as many seeds, got {len(seed)}")
    return [int(one) for one in seed]
