"""Networks: ``network(x, t, cond, previous) -> x``-shaped output. A configuration names one of ``NETWORKS``."""

from torch import nn

from ..registry import Registry
from .dit import DiT
from .layers import (
    MLP,
    Attention,
    LabelEmbedding,
    ScalarEmbedding,
    TimeEmbedding,
    fourier_features,
    layer_norm,
    modulate,
)
from .positions import Rotary, grid_positions, rotary, rotate
from .unet import UNet

NETWORKS: Registry[nn.Module] = Registry("network")
NETWORKS.register("dit")(DiT)
NETWORKS.register("unet")(UNet)

__all__ = [
    "MLP",
    "NETWORKS",
    "Attention",
    "DiT",
    "LabelEmbedding",
    "Rotary",
    "ScalarEmbedding",
    "TimeEmbedding",
    "UNet",
    "fourier_features",
    "grid_positions",
    "layer_norm",
    "modulate",
    "rotary",
    "rotate",
]
