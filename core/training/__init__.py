"""Training: the loop, the order of the data, averaged weights, checkpoints of a run."""

from .batches import TrainingData
from .checkpoint import CheckpointError
from .config import TrainerConfig, learning_rate
from .ema import EMA, fixed_rate, power_function, power_function_exponent
from .interrupts import Interrupted
from .loop import TrainingDiverged, TrainResult, train
from .order import BatchOrder, held_out_batches
from .posthoc import reconstruct

__all__ = [
    "EMA",
    "BatchOrder",
    "CheckpointError",
    "Interrupted",
    "TrainResult",
    "TrainerConfig",
    "TrainingData",
    "TrainingDiverged",
    "fixed_rate",
    "held_out_batches",
    "learning_rate",
    "power_function",
    "power_function_exponent",
    "reconstruct",
    "train",
]
