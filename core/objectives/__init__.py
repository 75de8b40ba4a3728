"""What training minimises."""

from .denoising import OBJECTIVES, Denoising, Example, Losses
from .times import TIME_DISTRIBUTIONS, TimeDistribution
from .weightings import WEIGHTINGS, Weighting

__all__ = [
    "OBJECTIVES",
    "TIME_DISTRIBUTIONS",
    "WEIGHTINGS",
    "Denoising",
    "Example",
    "Losses",
    "TimeDistribution",
    "Weighting",
]
