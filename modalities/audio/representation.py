"""What the network sees of a sound: frames of a mel spectrogram, of a latent, or of the wave itself.

A representation turns audio (batch, channels, n) into frames (batch, frames, width), and back into exactly as many
samples as asked for. Audio is padded with silence to whole frames. On the way back every sound is decoded from its own
frames only, so nothing of the padding of a batch is heard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from noiseloom.core.registry import Registry, UnknownName, unknown

from .mel import PRESETS
from .vocoder_adapters import VOCODERS

REPRESENTATIONS: Registry[Representation] = Registry("representation")


class Representation(nn.Module, ABC):
    """Sound as frames. Weights inside are frozen: they are trained by themselves, as components.

    Attributes:
        rate: samples a second.
        channels: 1 or 2.
        hop: samples a frame.
        width: numbers in a frame.
        context: frames to each side that a decoded sample depends on; None: all of them.
        period: a window of frames decodes as it does within the whole if it begins at a multiple of this.
        decoder: the vocoder or autoencoder, or None.
    """

    def __init__(self, rate: int, channels: int, hop: int, width: int, decoder: Any = None, extra: int = 0) -> None:
        super().__init__()
        if channels not in (1, 2):
            raise ValueError(f"audio has 1 or 2 channels, not {channels}")
        if min(rate, hop, width) < 1:
            raise ValueError(f"rate, hop and width are at least 1, not {rate}, {hop} and {width}")
        self.rate, self.channels, self.hop, self.width = rate, channels, hop, width
        self.decoder: Any = decoder
        self._extra = extra  # frames beyond the whole hops
        self.context: int | None = 0 if decoder is None else getattr(decoder, "context", None)
        self.period: int = getattr(decoder, "period", 1)
        self.requires_grad_(False).eval()

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values from which ``build_representation`` makes it again, but for its weights."""

    def frames(self, samples: int) -> int:
        """Frames of a sound of so many samples."""
        return -(-samples // self.hop) + self._extra

    def encode(self, audio: Tensor) -> Tensor:
        """(batch, channels, n) to (batch, frames, width).

        Raises:
            ValueError: other channels, or no samples.
        """
        if audio.ndim != 3 or audio.shape[1] != self.channels or audio.shape[2] == 0:
            raise ValueError(f"audio is (batch, {self.channels}, samples), not {tuple(audio.shape)}")
        return self._encode(F.pad(audio.float(), (0, -audio.shape[2] % self.hop)))

    def decode(self, frames: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """(batch, T, width) to one (channels, length) each. Frames beyond those of a length are not looked at.

        Raises:
            ValueError: a length for which there are too few frames.
        """
        counts = [self._count(length, frames) for length in lengths]
        if frames.ndim != 3 or len(counts) != len(frames):
            raise ValueError(f"{len(counts)} lengths for frames of shape {tuple(frames.shape)}")
        decoded: dict[int, Tensor] = {}
        for count in sorted(set(counts)):  # those of equal size in one pass
            items = [item for item, other in enumerate(counts) if other == count]
            decoded |= dict(zip(items, self._decode(frames[items, :count].float()), strict=True))
        return [decoded[item][:, :length] for item, length in enumerate(lengths)]

    def decode_chunks(
        self, frames: Tensor, length: int, chunk: int = 256, start: int = 0, stop: int | None = None
    ) -> Iterator[Tensor]:
        """The sound of (T, width) in pieces (channels, n) of ``chunk`` frames, the last one shorter, as they finish.

        Joined they equal ``decode``, to rounding. A decoder without a finite context is run once, on everything.

        Args:
            start, stop: frames whose samples are wanted; by default all.

        Raises:
            ValueError: a length for which there are too few frames, or a chunk below 1.
        """
        total, size = self._count(length, frames), chunk * self.hop
        if chunk < 1:
            raise ValueError(f"a chunk has at least 1 frame, not {chunk}")
        begin, end = start * self.hop, length if stop is None else min(stop * self.hop, length)
        if self.context is None:
            yield from self.decode(frames[None], [length])[0][:, begin:end].split(size, dim=-1)
            return
        for first in range(begin, end, size):
            own = max(first // self.hop - self.context, 0) // self.period * self.period
            beyond = min(first // self.hop + chunk + self.context, total)
            audio = self._decode(frames[None, own:beyond].float())[0]
            offset = own * self.hop
            yield audio[:, first - offset : min(first + size, end) - offset]

    def _count(self, length: int, frames: Tensor) -> int:
        """Frames of a length, where they are there."""
        count = self.frames(length)
        if length < 1 or count > frames.shape[-2]:
            most = max(frames.shape[-2] - self._extra, 0) * self.hop
            raise ValueError(f"{frames.shape[-2]} frames hold 1 to {most} samples, not {length}")
        return count

    @abstractmethod
    def _encode(self, audio: Tensor) -> Tensor:
        """Whole hops (batch, channels, n) to (batch, frames, width)."""

    @abstractmethod
    def _decode(self, frames: Tensor) -> Tensor:
        """(batch, T, width) to (batch, channels, n); the first sample is the first frame's; n covers the whole hops."""


@REPRESENTATIONS.register("mel")
class Mel(Representation):
    """Log-mel spectrograms, the bands of each channel in turn.

    Args:
        preset: a name of ``PRESETS``.
        channels: 1 or 2.
        vocoder: a name of ``VOCODERS`` or {"name": ..., options}; a component's folder, its {"name": ..., options}, or
            a module: ``vocoder(log_mel) -> audio``, each channel by itself.

    Raises:
        ValueError: a vocoder of another preset.
    """

    def __init__(
        self, preset: str, channels: int = 1, vocoder: str | Mapping[str, Any] | nn.Module = "griffin_lim"
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(unknown("mel preset", preset, PRESETS))
        mel, decoder = PRESETS[preset], build_vocoder(vocoder, preset)
        theirs = getattr(decoder, "preset", None)
        if theirs != preset:
            raise ValueError(f"the vocoder takes mels of preset {theirs!r}, but this representation's are {preset!r}")
        super().__init__(mel.rate, channels, mel.hop, mel.bands * channels, decoder, int(mel.centred))
        self.preset = mel

    @property
    def config(self) -> dict[str, Any]:
        return {
            "name": "mel",
            "preset": self.preset.name,
            "channels": self.channels,
            "vocoder": self.decoder.spec(),
        }

    def _encode(self, audio: Tensor) -> Tensor:
        return self.preset.log_mel(audio).transpose(1, 2).flatten(2)

    def _decode(self, frames: Tensor) -> Tensor:
        mels = frames.unflatten(2, (self.channels, -1)).transpose(1, 2)
        return self.decoder(mels.flatten(0, 1)).unflatten(0, (-1, self.channels))


@REPRESENTATIONS.register("latent")
class Latent(Representation):
    """The latents of an autoencoder.

    Args:
        autoencoder: a component's folder, its {"name": ..., options}, or a module with rate, channels, hop, width,
            ``encode`` and ``decode``.
    """

    def __init__(self, autoencoder: str | Mapping[str, Any] | nn.Module) -> None:
        decoder = build_component(autoencoder)
        super().__init__(decoder.rate, decoder.channels, decoder.hop, decoder.width, decoder)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "latent", "autoencoder": self.decoder.spec()}

    def _encode(self, audio: Tensor) -> Tensor:
        return self.decoder.encode(audio)

    def _decode(self, frames: Tensor) -> Tensor:
        return self.decoder.decode(frames)


@REPRESENTATIONS.register("wave")
class Wave(Representation):
    """Patches of the wave, the samples of each channel in turn.

    Args:
        rate: samples a second.
        channels: 1 or 2.
        patch: samples of a frame.
        lift: a factor on the samples, for sound that is quiet beside the noise of diffusion.
    """

    def __init__(self, rate: int, channels: int = 1, patch: int = 64, lift: float = 1.0) -> None:
        if lift <= 0:
            raise ValueError(f"lift is above 0, not {lift}")
        super().__init__(rate, channels, patch, patch * channels)
        self.lift = lift

    @property
    def config(self) -> dict[str, Any]:
        return {
            "name": "wave",
            "rate": self.rate,
            "channels": self.channels,
            "patch": self.hop,
            "lift": self.lift,
        }

    def _encode(self, audio: Tensor) -> Tensor:
        return (audio * self.lift).unflatten(2, (-1, self.hop)).transpose(1, 2).flatten(2)

    def _decode(self, frames: Tensor) -> Tensor:
        return frames.unflatten(2, (self.channels, self.hop)).transpose(1, 2).flatten(2) / self.lift


def build_representation(spec: Mapping[str, Any] | Representation) -> Representation:
    """A representation from ``{"name": "mel" | "latent" | "wave", **options}``.

    Raises:
        UnknownName: no such representation, vocoder or component.
        ValueError: an option it does not have, or values that do not fit.
    """
    return REPRESENTATIONS.build(spec)


def build_vocoder(spec: str | Mapping[str, Any] | nn.Module, preset: str) -> Any:
    """A vocoder of ``VOCODERS``, or a component; one whose options do not say a preset takes this one.

    Raises:
        UnknownName, ValueError: see ``build_representation``.
        CheckpointError: a folder that holds no component.
    """
    if isinstance(spec, str) and (spec in VOCODERS or not Path(spec).is_dir()):
        spec = {"name": spec}
    if isinstance(spec, Mapping):
        if spec.get("name") in VOCODERS:
            return VOCODERS.build(spec, preset=preset)  # type: ignore[arg-type]
        spec = {"preset": preset, **spec}
    return build_component(spec, VOCODERS)


def build_component(spec: str | Mapping[str, Any] | nn.Module, others: Iterable[str] = ()) -> Any:
    """A part that is trained by itself: its folder (with its weights), its options, or itself.

    Raises:
        UnknownName: its name is neither a component's nor one of the ``others``, which the message lists too.
    """
    if isinstance(spec, nn.Module):
        return spec
    from ..component import COMPONENTS, find_component
    from . import components  # noqa: F401  registers them

    if isinstance(spec, Mapping) and spec.get("name") not in COMPONENTS:
        raise UnknownName(unknown("component", spec.get("name"), [*others, *COMPONENTS]))
    return find_component(spec)
