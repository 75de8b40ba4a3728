"""What vocoder and autoencoder are made of: convolutions over frames, and an exact way from spectra to sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOUDEST = 1e2  # of the magnitudes of a spectrum


class ConvNeXtBlock(nn.Module):
    """A depth-wise convolution over the frames and a gated residual two-layer network in each (Liu et al. 2022).

    Args:
        width: channels; the block maps (batch, frames, width) to the same.
        kernel: frames that the convolution sees, odd.
        expansion: of the inner layer.
        scale: what the residual branch is multiplied by at first.
    """

    def __init__(self, width: int, kernel: int, expansion: int, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.enter, self.leave = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm(self.mix(x.mT).mT)
        return x + self.scale * self.leave(F.gelu(self.enter(mixed)))


class InverseSTFT(nn.Module):
    """The inverse of ``torch.stft`` with a Hann window in a preset's framing; every number of frames is accepted.

    Args:
        n_fft: samples of the transform and its window.
        hop: samples from frame to frame.
        before: samples of the first frame that lie before the sound.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, before: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.before = n_fft, hop, before
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        """(batch, frames, n_fft / 2 + 1) complex to (batch, frames x hop)."""
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=2) * self.window
        squares = (self.window**2).expand(1, frames.shape[1], -1)
        audio, envelope = self._overlap_add(frames), self._overlap_add(squares)
        kept = slice(self.before, self.before + frames.shape[1] * self.hop)
        return audio[:, kept] / envelope[:, kept]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(batch, frames, n_fft) to (batch, n)."""
        length = (frames.shape[1] - 1) * self.hop + self.n_fft
        added = F.fold(frames.mT, (1, length), kernel_size=(1, self.n_fft), stride=(1, self.hop))
        return added[:, 0, 0]


def polar(head: Tensor) -> Tensor:
    """The spectrum ``exp(m) (cos p + i sin p)`` of (batch, frames, 2 bins) float32 outputs m and p, complex."""
    magnitude, phase = head.chunk(2, dim=2)
    return torch.polar(torch.exp(magnitude).clamp(max=LOUDEST), phase)


def initialise(network: nn.Module) -> None:
    """Small random weights and no biases, for every convolution and linear layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
