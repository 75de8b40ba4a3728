"""The components of audio: importing this registers them, and the objectives that train them."""

from .autoencoder import Autoencoder
from .classifier import Classifier
from .vocoder import Vocoder

__all__ = ["Autoencoder", "Classifier", "Vocoder"]
