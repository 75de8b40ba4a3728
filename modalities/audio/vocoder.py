"""A vocoder that predicts a spectrogram, magnitude and phase, at the rate of the frames, and inverts it exactly.

Siuzdak 2024 (Vocos): ConvNeXt blocks over the frames of a log-mel spectrogram, no upsampling, and a head whose output
(m, p) of each frame is the spectrum ``exp(m) (cos p + i sin p)``. The inverse transform with overlap-add does the rest:

    audio = sum_k window_k irfft(spectrum_k) / sum_k window_k^2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Generator, Tensor, nn

from noiseloom.core.registry import unknown

from ..component import COMPONENTS, Component
from ..report import Report
from .convnext import ConvNeXtBlock, InverseSTFT, initialise, polar
from .mel import PRESETS
from .reconstruction import reconstruction_report
from .segments import AudioBatch, Segment, Segments, segments

MEAN, STD = -5.0, 3.0  # of the natural log-mel spectrograms of normal sounds, roughly: brings the input to unit scale


@COMPONENTS.register("vocoder")
class Vocoder(Component):
    """Log-mel spectrograms of one preset to sound.

    Args:
        preset: of the spectrograms, a name of ``mel.PRESETS``.
        width: channels of the network.
        depth: its blocks.
        kernel: frames that each block's convolution sees.
        expansion: of the blocks' inner layer.

    Attributes:
        context: frames on each side that an output sample depends on, so that long sounds can be made in pieces.
    """

    name = "vocoder"

    def __init__(
        self, preset: str = "speech-8k", width: int = 256, depth: int = 6, kernel: int = 7, expansion: int = 3
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(unknown("mel preset", preset, PRESETS))
        if kernel % 2 == 0:
            raise ValueError(f"a vocoder's kernel is odd, got {kernel}")
        self.preset, self.width, self.depth, self.kernel, self.expansion = preset, width, depth, kernel, expansion
        self.mel = mel = PRESETS[preset]
        self.rate, self.hop, self.channels = mel.rate, mel.hop, 1
        self.enter = nn.Conv1d(mel.bands, width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, kernel, expansion, 1 / depth) for _ in range(depth))
        self.last = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, mel.n_fft + 2)
        self.inverse = InverseSTFT(mel.n_fft, mel.hop, mel.n_fft // 2 if mel.centred else (mel.n_fft - mel.hop) // 2)
        self.context = (depth + 1) * (kernel // 2) + mel.n_fft // mel.hop
        initialise(self)

    @property
    def config(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("preset", "width", "depth", "kernel", "expansion")}

    def forward(self, log_mel: Tensor) -> Tensor:
        """(batch, frames, bands) to (batch, frames x hop), float32; any number of frames from 1."""
        x = self.norm(self.enter(((log_mel - MEAN) / STD).mT).mT)
        for block in self.blocks:
            x = block(x)
        return self.inverse(polar(self.head(self.last(x)).float()))

    def reconstruct(self, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sounds (batch, 1, whole hops) by way of their spectrograms, and penalties (there are none)."""
        made = self(self.mel.log_mel(audio[:, 0]))
        return made[:, None, : audio.shape[2]], {}

    def dataset(self, sources: Sequence[str], split: str, seconds: float = 0.5, **data: Any) -> Segments:
        length = max(round(seconds * self.rate / self.hop), 1) * self.hop
        return Segments(self.rate, self.channels, sources, split, length, **data)

    def example(self, items: Sequence[Segment], generators: Sequence[Generator] | None = None) -> AudioBatch:
        return segments(items, generators)

    def evaluate(self, held_out: Segments) -> Report:
        return reconstruction_report(self, held_out)
