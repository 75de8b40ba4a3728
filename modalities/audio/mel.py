"""Log-mel spectrograms by named presets.

"100 mels at 24 kHz" means two incompatible things in the field (BigVGAN's and Vocos'), and a spectrogram of one is
noise to a vocoder of the other. So a preset has a name, the name is stored in the checkpoint, and a vocoder of another
preset is refused.

    log_mel = ln max(filters |STFT|, floor),    |STFT| = sqrt(re^2 + im^2 + epsilon)

Framing is the preset's own: HiFi-GAN's (no centring, reflected by (n_fft - hop) / 2, n / hop frames) or torchaudio's
(centred, n / hop + 1 frames). The sound is padded with silence to whole hops first, so every length is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MelPreset:
    """How a log-mel spectrogram is made.

    Attributes:
        name: what a checkpoint stores.
        rate: samples a second.
        n_fft: samples of the transform, and of its Hann window.
        hop: samples from frame to frame.
        bands: mel bands.
        fmin, fmax: their range in Hz.
        scale: "slaney" (linear below 1 kHz) or "htk".
        norm: "slaney": triangles of unit area; None: of unit height.
        epsilon: added to the power before the root.
        floor: the smallest magnitude before the logarithm.
        centred: torchaudio's framing instead of HiFi-GAN's.
    """

    name: str
    rate: int
    n_fft: int
    hop: int
    bands: int
    fmin: float
    fmax: float
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"
    epsilon: float = 1e-9
    floor: float = 1e-5
    centred: bool = False

    def frames(self, samples: int) -> int:
        """Frames of a sound of so many samples."""
        return -(-samples // self.hop) + self.centred

    def filters(self) -> Tensor:
        """The filter bank, (bands, n_fft / 2 + 1), float32."""
        return _filters(self.rate, self.n_fft, self.bands, self.fmin, self.fmax, self.scale, self.norm)

    def magnitude(self, audio: Tensor) -> Tensor:
        """The linear spectrogram, (..., n) to (..., frames, n_fft / 2 + 1).

        Raises:
            ValueError: there are no samples.
        """
        if audio.shape[-1] == 0:
            raise ValueError("a sound without samples has no spectrogram")
        flat = self._padded(audio.reshape(-1, audio.shape[-1]).float())
        window = torch.hann_window(self.n_fft, device=audio.device)
        spectrum = torch.stft(flat, self.n_fft, self.hop, window=window, center=False, return_complex=True)
        magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + self.epsilon)
        return magnitude.mT.reshape(*audio.shape[:-1], -1, self.n_fft // 2 + 1)

    def log_mel(self, audio: Tensor) -> Tensor:
        """(..., n) to (..., frames, bands), natural logarithm.

        Raises:
            ValueError: there are no samples.
        """
        mel = self.magnitude(audio) @ self.filters().to(audio.device).mT
        return mel.clamp(min=self.floor).log()

    def _padded(self, audio: Tensor) -> Tensor:
        """Whole hops, then the margin that the framing takes: reflected, or silent where there is too little to."""
        audio = F.pad(audio, (0, -audio.shape[-1] % self.hop))
        before = self.n_fft // 2 if self.centred else (self.n_fft - self.hop) // 2
        after = before if self.centred else self.n_fft - self.hop - before
        reflects = audio.shape[-1] > max(before, after)
        return F.pad(audio, (before, after), mode="reflect" if reflects else "constant")


@cache
def _filters(rate: int, n_fft: int, bands: int, fmin: float, fmax: float, scale: str, norm: str | None) -> Tensor:
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(n_fft // 2 + 1, fmin, fmax, bands, rate, norm=norm, mel_scale=scale).mT.contiguous()


PRESETS = {
    preset.name: preset
    for preset in (
        MelPreset("hifigan-22k", 22050, 1024, 256, 80, 0, 8000),
        MelPreset("bigvgan-24k", 24000, 1024, 256, 100, 0, 12000),
        MelPreset("bigvgan-44k", 44100, 2048, 512, 128, 0, 22050),
        MelPreset("vocos-24k", 24000, 1024, 256, 100, 0, 12000, "htk", None, 0.0, 1e-7, centred=True),
        MelPreset("audioldm-16k", 16000, 1024, 160, 64, 0, 8000, epsilon=0.0),
        MelPreset("music-16k", 16000, 1024, 256, 128, 30, 8000),
        MelPreset("speech-16k", 16000, 512, 128, 80, 0, 8000),
        MelPreset("speech-8k", 8000, 256, 64, 64, 0, 4000),
    )
}
