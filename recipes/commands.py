"""The commands that take a configuration, and the dataclass of each."""

from __future__ import annotations

from .schema import DemoConfig, EmaConfig, EvaluateConfig, LikelihoodConfig, SampleConfig

COMMANDS = ("demo", "train", "sample", "evaluate", "likelihood", "ema")


def schema(command: str) -> type:
    """The dataclass of a command's configuration."""
    if command == "train":
        from .train_schema import TrainConfig  # with torch, which the others do without

        return TrainConfig
    return {
        "demo": DemoConfig,
        "sample": SampleConfig,
        "evaluate": EvaluateConfig,
        "likelihood": LikelihoodConfig,
        "ema": EmaConfig,
    }[command]
