"""A variational autoencoder of sounds: waveform to a sequence of small vectors, and back.

The first layer and the last are fixed, a short-time Fourier transform and its exact inverse, so the networks in between
work at the rate of frames and are quick on any machine (as in Siuzdak 2024, there for the decoder alone). The spectrum
enters with its phase and its magnitude compressed, z |z|^-0.7. Blocks of convolutions and strides follow:

    encode: audio -> spectrum -> stages, each of a smaller rate -> mean, log-variance
    decode: latent -> stages, each of a larger rate -> magnitude, phase -> audio
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..component import COMPONENTS, Component
from ..report import Report, Row
from .convnext import ConvNeXtBlock, InverseSTFT, initialise, polar
from .mel import MelPreset
from .reconstruction import reconstruction_report, window_sizes
from .segments import AudioBatch, Segment, Segments, segments

KERNEL = 7  # frames that each convolution sees
_COMPRESSED = 0.3  # the power of magnitudes on the way in
_EPSILON = 1e-6  # of a magnitude
_LOG_VARIANCE = (-12.0, 4.0)  # its bounds
_MEASURED = 256  # clips that the statistics of latents are of
_MEL_WINDOW = 0.046  # s, of the spectrogram that training compares


@COMPONENTS.register("autoencoder")
class Autoencoder(Component):
    """Sounds (batch, channels, n) to latents (batch, frames, width) and back.

    Args:
        rate: samples a second.
        channels: 1 or 2.
        width: numbers of a latent frame.
        n_fft: samples of the transform's window; frames are a quarter of it apart.
        strides: by how much each stage but the first lowers the rate.
        widths: channels of each stage, one more than strides.
        depth: blocks of each stage.

    Attributes:
        hop: samples of a latent frame.
        context: latent frames on each side that a decoded sample depends on.
        latent_mean, latent_std: of each of the ``width`` numbers over training clips; what a generator scales by.
    """

    name = "autoencoder"
    latent_mean: Tensor
    latent_std: Tensor
    window: Tensor

    def __init__(
        self,
        rate: int = 22050,
        channels: int = 1,
        width: int = 32,
        n_fft: int = 512,
        strides: Sequence[int] = (2, 2),
        widths: Sequence[int] = (192, 256, 384),
        depth: int = 3,
    ) -> None:
        super().__init__()
        if len(widths) != len(strides) + 1:
            raise ValueError(f"an autoencoder has one width more than strides, not {len(widths)} and {len(strides)}")
        if channels not in (1, 2) or n_fft % 4:
            raise ValueError(f"1 or 2 channels and a window of a multiple of 4 samples, not {channels} and {n_fft}")
        self.rate, self.channels, self.width, self.n_fft = rate, channels, width, n_fft
        self.strides, self.widths, self.depth = list(strides), list(widths), depth
        self.frame = n_fft // 4
        self.hop = self.frame * prod(self.strides)
        before = (n_fft - self.frame) // 2
        self.margin = (before, n_fft - self.frame - before)
        bins = channels * (n_fft + 2)
        self.enter = nn.Conv1d(bins, widths[0], KERNEL, padding=KERNEL // 2)
        self.down = nn.ModuleList(nn.Conv1d(a, b, s, s) for (a, b), s in zip(pairwise(widths), strides, strict=True))
        self.encoder = nn.ModuleList(self._stage(w) for w in widths)
        self.moments = nn.Linear(widths[-1], 2 * width)
        self.leave = nn.Conv1d(width, widths[-1], KERNEL, padding=KERNEL // 2)
        self.decoder = nn.ModuleList(self._stage(w) for w in reversed(widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(b, a, s, s) for (a, b), s in reversed(list(zip(pairwise(widths), strides, strict=True)))
        )
        self.last = nn.LayerNorm(widths[0], eps=1e-6)
        self.head = nn.Linear(widths[0], bins)
        self.inverse = InverseSTFT(n_fft, self.frame, before)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("latent_mean", torch.zeros(width))
        self.register_buffer("latent_std", torch.ones(width))
        initialise(self)
        self.context = _context(self.strides, depth, n_fft // self.frame)
        (n_mel,) = window_sizes(rate, (_MEL_WINDOW,))
        self.mel = MelPreset("", rate, n_mel, n_mel // 4, 80, 0, rate / 2)

    def _stage(self, width: int) -> nn.Sequential:
        return nn.Sequential(*(ConvNeXtBlock(width, KERNEL, 3, 1 / self.depth) for _ in range(self.depth)))

    @property
    def config(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("rate", "channels", "width", "n_fft", "strides", "widths", "depth")}

    def encode(self, audio: Tensor, sample: bool = False) -> Tensor:
        """(batch, channels, n) to (batch, ceil(n / hop), width): the mean, or a sample around it."""
        mean, log_variance = self._moments(audio)
        return mean + torch.exp(log_variance / 2) * torch.randn_like(mean) if sample else mean

    def decode(self, latents: Tensor) -> Tensor:
        """(batch, frames, width) to (batch, channels, frames x hop), float32; any number of frames from 1."""
        x = self.leave(latents.mT).mT
        for stage, up in zip(self.decoder, [*self.up, None], strict=True):
            x = stage(x)
            x = x if up is None else up(x.mT).mT
        spectrum = self.head(self.last(x)).float().unflatten(2, (self.channels, -1)).transpose(1, 2)
        return self.inverse(polar(spectrum.flatten(0, 1))).unflatten(0, (-1, self.channels))

    def reconstruct(self, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sounds (batch, channels, n) made again, in training from sampled latents, and the divergence ``kl`` from the
        standard normal, per latent number."""
        mean, log_variance = self._moments(audio)
        latents = mean
        if self.training:
            latents = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        return self.decode(latents)[:, :, : audio.shape[2]], {"kl": kl}

    def _moments(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, float32."""
        x = self.enter(self._spectrum(audio)).mT
        for stage, down in zip(self.encoder, [*self.down, None], strict=True):
            x = stage(x)
            x = x if down is None else down(x.mT).mT
        mean, log_variance = self.moments(x).float().chunk(2, dim=2)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def _spectrum(self, audio: Tensor) -> Tensor:
        """The compressed spectrum of whole hops, (batch, channels x (n_fft + 2), frames)."""
        audio = F.pad(audio.float(), (0, -audio.shape[2] % self.hop))
        with torch.autocast(audio.device.type, enabled=False):
            padded = F.pad(audio, self.margin).flatten(0, 1)
            z = torch.stft(padded, self.n_fft, self.frame, window=self.window, center=False, return_complex=True)
            parts = torch.view_as_real(z)
            magnitude = torch.sqrt(parts.square().sum(3, keepdim=True) + _EPSILON**2)
            parts = parts * magnitude ** (_COMPRESSED - 1)
        return parts.permute(0, 3, 1, 2).flatten(1, 2).unflatten(0, (-1, self.channels)).flatten(1, 2)

    def dataset(self, sources: Sequence[str], split: str, seconds: float = 0.75, **data: Any) -> Segments:
        length = max(round(seconds * self.rate / self.hop), 1) * self.hop
        return Segments(self.rate, self.channels, sources, split, length, **data)

    def example(self, items: Sequence[Segment], generators: Sequence[Generator] | None = None) -> AudioBatch:
        return segments(items, generators)

    @torch.no_grad()
    def measure(self, train: Segments) -> None:
        """Measure ``latent_mean`` and ``latent_std``."""
        mean, std = latent_statistics(self, self._some(train))
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def _some(self, clips: Segments) -> Iterable[Tensor]:
        for index in range(0, len(clips), max(len(clips) // _MEASURED, 1)):
            yield torch.tensor(clips[index].wave.samples)

    def evaluate(self, held_out: Segments) -> Report:
        report = reconstruction_report(self, held_out)
        mean, std = latent_statistics(self, self._some(held_out))
        offset = ((mean - self.latent_mean.cpu()) / self.latent_std.cpu()).abs().mean()
        ratio = (std / self.latent_std.cpu()).log().mean().exp()
        n = report.rows[0].n
        rows = [
            Row("latent_offset", float(offset), n, "mean |difference of means|, in training deviations", better="real"),
            Row("latent_scale", float(ratio), n, "deviation of latents over that of training", real=1.0, better="real"),
        ]
        return Report(report.title, [*report.rows, *rows])


@torch.no_grad()
def latent_statistics(autoencoder: Autoencoder, clips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (width,) of the latents of clips (channels, n), over all their frames, on the CPU."""
    device = autoencoder.latent_mean.device
    latents = torch.cat([autoencoder.encode(clip[None].to(device))[0].double().cpu() for clip in clips])
    return latents.mean(0).float(), latents.std(0, correction=0).float()


def _context(strides: Sequence[int], depth: int, frames: int) -> int:
    """Latent frames that ``frames`` of the transform reach to, by way of the decoder's convolutions."""
    for stride in strides:
        frames = -(-(frames + depth * (KERNEL // 2)) // stride)
    return frames + (depth + 1) * (KERNEL // 2)
