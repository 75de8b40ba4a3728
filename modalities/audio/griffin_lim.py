"""From a log-mel spectrogram to sound without any weights.

The mel filters are inverted by non-negative least squares, then the phase is found by the fast Griffin-Lim algorithm
(Perraudin, Balazs and Sondergaard, 2013): with P_a imposing the magnitudes a and P_c making a spectrogram consistent
(STFT of its inverse),

    t_n = P_c(P_a(c_{n-1})),    c_n = t_n + momentum (t_n - t_{n-1}).

Everything is deterministic, and local: a sample depends on at most ``context`` frames to each side.
"""

from __future__ import annotations

from functools import cache
from math import tau
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mel import PRESETS, MelPreset

PERIOD = 32  # frames after which the first phases repeat
TINY = 1e-12


class GriffinLim(nn.Module):
    """A vocoder without weights.

    Args:
        preset: a name of ``PRESETS``.
        iterations: more of them take longer and come closer to the spectrogram.
        momentum: 0 is the algorithm of Griffin and Lim (1984).

    Attributes:
        context: frames to each side that a sample depends on.
        period: a window of the spectrogram sounds as it does within the whole if it begins at a multiple of this.
    """

    period = PERIOD

    def __init__(self, preset: str, iterations: int = 32, momentum: float = 0.99) -> None:
        super().__init__()
        if iterations < 1 or not 0 <= momentum <= 1:
            raise ValueError(f"Griffin-Lim needs iterations >= 1 and momentum from 0 to 1: {iterations}, {momentum}")
        self.preset, self.iterations, self.momentum = preset, iterations, momentum
        overlap = -(-PRESETS[preset].n_fft // PRESETS[preset].hop)
        self.context = (iterations + 1) * overlap

    def spec(self) -> dict[str, Any]:
        """What ``VOCODERS.build`` makes it from again."""
        options = {"preset": self.preset, "iterations": self.iterations, "momentum": self.momentum}
        return {"name": "griffin_lim", **options}

    def forward(self, log_mel: Tensor) -> Tensor:
        """(batch, frames, bands) to (batch, samples): frames * hop, or a hop less in a centred preset."""
        preset = PRESETS[self.preset]
        return griffin_lim(linear_magnitude(log_mel, preset), preset, self.iterations, self.momentum)


def linear_magnitude(log_mel: Tensor, preset: MelPreset, iterations: int = 16) -> Tensor:
    """The spectrogram x >= 0 whose mels are nearest, (..., frames, bands) to (..., frames, n_fft / 2 + 1).

    The clipped pseudo-inverse, refined by multiplicative updates x <- x F'm / F'F x (Lee and Seung, 2001). What lies at
    the floor of the logarithm is silence.
    """
    filters = preset.filters().to(log_mel.device)
    mel = (log_mel.float().exp() - preset.floor).clamp(min=0)
    target = mel @ filters
    x = (mel @ _inverse(preset).to(log_mel.device)).clamp(min=0) + 1e-3 * target
    for _ in range(iterations):
        x = x * target / (x @ filters.mT @ filters).clamp(min=TINY)
    return x


@cache
def _inverse(preset: MelPreset) -> Tensor:
    return torch.linalg.pinv(preset.filters().double().mT).float()


def griffin_lim(magnitude: Tensor, preset: MelPreset, iterations: int = 32, momentum: float = 0.99) -> Tensor:
    """Sound with these magnitudes, (batch, frames, n_fft / 2 + 1) to (batch, samples): see ``GriffinLim``."""
    window = torch.hann_window(preset.n_fft, device=magnitude.device)
    spectrum, previous = torch.polar(torch.ones_like(magnitude), _first_phases(magnitude)), None
    for _ in range(iterations):
        audio = inverse_stft(magnitude * spectrum / spectrum.abs().clamp(min=TINY), window, preset.hop)
        consistent = torch.fft.rfft(audio.unfold(-1, preset.n_fft, preset.hop) * window)
        spectrum = consistent if previous is None else consistent + momentum * (consistent - previous)
        previous = consistent
    audio = inverse_stft(magnitude * spectrum / spectrum.abs().clamp(min=TINY), window, preset.hop)
    before = preset.n_fft // 2 if preset.centred else (preset.n_fft - preset.hop) // 2
    return audio[:, before : before + (magnitude.shape[1] - preset.centred) * preset.hop]


def _first_phases(magnitude: Tensor) -> Tensor:
    """Random but always the same, for any batch; they repeat after ``PERIOD`` frames."""
    table = tau * torch.rand(PERIOD, magnitude.shape[-1], generator=torch.Generator().manual_seed(0))
    rows = torch.arange(magnitude.shape[1]) % PERIOD
    return table[rows].to(magnitude).expand_as(magnitude)


def inverse_stft(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """The sound nearest to a spectrogram, (batch, frames, n_fft / 2 + 1) to (batch, (frames - 1) hop + n_fft).

    Unlike ``torch.istft`` it keeps the margins, where windows vanish: they are zero, and the framing cuts them off.
    """
    n_fft, (batch, count) = len(window), spectrum.shape[:2]
    size = (1, (count - 1) * hop + n_fft)
    frames = torch.fft.irfft(spectrum, n_fft) * window
    total = F.fold(frames.mT, size, (1, n_fft), stride=(1, hop))
    weight = F.fold((window**2).expand(1, count, n_fft).mT, size, (1, n_fft), stride=(1, hop))
    return (total / weight.clamp(min=1e-3)).reshape(batch, -1)
