"""What training minimises."""

from . import consistency, distillation, matching, mean_flow, self_consistency, variance
from .denoising import OBJECTIVES, Denoising, Example
from .derivatives import derivative_along
from .objective import Losses, Objective
from .pairings import PAIRINGS
from .times import TIME_DISTRIBUTIONS, TimeDistribution
from .weightings import WEIGHTINGS, Weighting

__all__ = [
    "OBJECTIVES",
    "PAIRINGS",
    "TIME_DISTRIBUTIONS",
    "WEIGHTINGS",
    "Denoising",
    "Example",
    "Losses",
    "Objective",
    "TimeDistribution",
    "Weighting",
    "consistency",
    "derivative_along",
    "distillation",
    "matching",
    "mean_flow",
    "self_consistency",
    "variance",
]
