"""Discriminators of sounds, small ones, and the losses of both sides.

Two views of a sound catch what a spectral distance does not: its samples folded by a period (Kong et al. 2020,
HiFi-GAN) and its complex spectrograms at several resolutions (Defossez et al. 2022, EnCodec). Least squares
(Mao et al. 2017) with feature matching (Kumar et al. 2019):

    discriminator:  (1 - D(real))^2 + D(made)^2
    generator:      (1 - D(made))^2 + mean |features(real) - features(made)|
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Judgement = tuple[Tensor, list[Tensor]]  # scores (batch, anything) and the features of each layer

_SLOPE = 0.1  # of the leaky rectifiers
_LEAST = 1e-3  # of the mean size of features, in relation to which they are matched


class PeriodDiscriminator(nn.Module):
    """A sound cut into rows of ``period`` samples, judged by convolutions down the columns."""

    def __init__(self, period: int, channels: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [channels, width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, audio: Tensor) -> Judgement:
        x = F.pad(audio, (0, -audio.shape[2] % self.period)).unflatten(2, (-1, self.period))
        return _judge(x, self.layers, self.head)


class SpectrumDiscriminator(nn.Module):
    """The real and imaginary parts of a spectrogram as an image."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int, width: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        widths = [2 * channels, width, width, 2 * width, 2 * width]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, (1, 2), 1) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, audio: Tensor) -> Judgement:
        """Audio (batch, channels, n); the image is (batch, 2 channels, frames, bins)."""
        with torch.autocast(audio.device.type, enabled=False):
            flat = audio.flatten(0, 1).float()
            spectrum = torch.stft(flat, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
            spectrum = spectrum * (2 / self.n_fft) ** 0.5
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1).unflatten(0, audio.shape[:2]).flatten(1, 2)
        return _judge(x, self.layers, self.head)


class Discriminators(nn.Module):
    """All of them.

    Args:
        channels: of the sounds.
        periods: of the period discriminators.
        n_ffts: of the spectrum discriminators.
        width: channels of the first layer of each.
    """

    def __init__(self, channels: int, periods: Sequence[int], n_ffts: Sequence[int], width: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList(PeriodDiscriminator(period, channels, width) for period in periods)
        self.judges.extend(SpectrumDiscriminator(n_fft, channels, width) for n_fft in n_ffts)

    def forward(self, audio: Tensor) -> list[Judgement]:
        return [judge(audio) for judge in self.judges]

    def losses(self, real: Tensor, made: Tensor) -> dict[str, Tensor]:
        """``discriminator``, ``generator`` and ``features``, each (batch,), for sounds (batch, channels, n).

        One backward pass serves both sides: the discriminators' loss stops at ``made``, and the generator's goes
        through the discriminators without reaching their parameters.
        """
        of_real, of_made = self(real), self(made.detach())
        fixed = {name: p.detach() for name, p in self.named_parameters()}
        through: list[Judgement] = functional_call(self, fixed, (made,))
        judged = torch.stack([_mean((1 - r) ** 2) + _mean(m**2) for (r, _), (m, _) in zip(of_real, of_made)])
        fooled = torch.stack([_mean((1 - m) ** 2) for m, _ in through])
        matched = torch.stack([_distance(r, m) for (_, r), (_, m) in zip(of_real, through)])
        return {"discriminator": judged.mean(0), "generator": fooled.mean(0), "features": matched.mean(0)}


def _judge(x: Tensor, layers: nn.ModuleList, head: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), _SLOPE)
        features.append(x)
    return head(x).flatten(1), features


def _mean(x: Tensor) -> Tensor:
    return x.float().flatten(1).mean(1)


def _distance(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """The mean absolute difference of features, in relation to their size (Defossez et al. 2022, eq. 2)."""
    relative = []
    for a, b in zip(real, made, strict=True):
        a = a.detach()
        relative.append(_mean((a - b).abs()) / _mean(a.abs()).mean().clamp(min=_LEAST))
    return torch.stack(relative).mean(0)
