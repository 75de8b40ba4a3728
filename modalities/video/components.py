"""The components of video: importing this registers them, and the objectives that train them."""

from .autoencoder import VideoAutoencoder
from .judge import VideoJudge
from .judgement import Judgement

__all__ = ["Judgement", "VideoAutoencoder", "VideoJudge"]
