"""Samplers: ``sample`` is the loop, ``SAMPLERS`` the solvers by name, ``generate`` runs one to its end."""

from . import ancestral, exponential, langevin, runge_kutta
from .loop import Step, default_space, generate, noised, sample, trajectory
from .sampler import SAMPLERS, LinearSampler, Move, Sampler, Stage, State, combine

__all__ = [
    "SAMPLERS",
    "LinearSampler",
    "Move",
    "Sampler",
    "Stage",
    "State",
    "Step",
    "ancestral",
    "combine",
    "default_space",
    "exponential",
    "generate",
    "langevin",
    "noised",
    "runge_kutta",
    "sample",
    "trajectory",
]
