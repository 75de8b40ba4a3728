"""Trained models as people use them: load, sample, save, share."""

from ..training.checkpoint import CheckpointError
from .card import model_card
from .pipeline import Pipeline, SampledModality
from .pretrained import (
    COMPONENT,
    DENOISER,
    Pretrained,
    build_denoiser,
    find_pretrained,
    load_pretrained,
    save_pretrained,
)
from .samples import Samples

__all__ = [
    "COMPONENT",
    "DENOISER",
    "CheckpointError",
    "Pipeline",
    "Pretrained",
    "SampledModality",
    "Samples",
    "build_denoiser",
    "find_pretrained",
    "load_pretrained",
    "model_card",
    "save_pretrained",
]
