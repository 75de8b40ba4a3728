"""Closed forms: data whose exact denoiser, trajectory and likelihood are known, and samplers as exact linear maps."""

from .data import Gaussian, Mixture, exact_denoiser
from .linear import OneHotNoise, final_std

__all__ = ["Gaussian", "Mixture", "OneHotNoise", "exact_denoiser", "final_std"]
