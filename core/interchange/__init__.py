"""Interchange with diffusers: scheduler configurations both ways, weights of its DiT, foreign networks as denoisers.

Configurations are plain dictionaries and weights are state dicts: diffusers itself is not needed.
"""

from .networks import from_sigma, from_timestep
from .schedulers import Scheduling, from_diffusers, to_diffusers
from .transformer import dit_from_diffusers, dit_options

__all__ = [
    "Scheduling",
    "dit_from_diffusers",
    "dit_options",
    "from_diffusers",
    "from_sigma",
    "from_timestep",
    "to_diffusers",
]
