"""What training minimises."""

from .denoising import OBJECTIVES, Denoising, Example
from .objective import Losses, Objective
from .times import TIME_DISTRIBUTIONS, TimeDistribution
from .weightings import WEIGHTINGS, Weighting

__all__ = [
    "OBJECTIVES",
    "TIME_DISTRIBUTIONS",
    "WEIGHTINGS",
    "Denoising",
    "Example",
    "Losses",
    "Objective",
    "TimeDistribution",
    "Weighting",
]
