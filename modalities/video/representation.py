"""What the network sees of a video: latents of an autoencoder, or the pixels themselves, a block of them at a time.

A representation turns clips (batch, T, H, W, colours) in [-1, 1] into latents (batch, t, h, w, channels), and back. The
first latent frame holds the first frame alone, each later one ``ft`` frames: ``T = ft k + 1`` frames are ``k + 1``
latent ones, and an image is a clip of one. Clips of other sizes are padded with their last frame, row and column, and
cropped to what is asked for on the way back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noiseloom.core.registry import Registry

from ..component import find_component
from .autoencoder import merge, split
from .vae_adapters import DiffusersAutoencoder

REPRESENTATIONS: Registry[Representation] = Registry("representation")


class Representation(nn.Module, ABC):
    """Clips as latents. Weights inside are frozen: they are trained by themselves, as components.

    Attributes:
        factors: (ft, fh, fw), frames, rows and columns of a latent position.
        channels: numbers of a latent position.
        colours: 1 for grey, 3 for RGB.
        decoder: the autoencoder, or None.
        kinds: how many of the numbers of a position differ in what they mean, those of each kind ``kinds`` apart.
        cached: whether latents take so long to make that they are worth keeping.
    """

    cached = True

    def __init__(self, factors: Sequence[int], channels: int, colours: int, decoder: Any = None) -> None:
        super().__init__()
        if len(factors) != 3 or min(factors) < 1:
            raise ValueError(f"factors are of time, height and width, each at least 1, not {factors}")
        if colours not in (1, 3):
            raise ValueError(f"videos are grey or RGB: colours is 1 or 3, not {colours}")
        self.factors = (int(factors[0]), int(factors[1]), int(factors[2]))
        self.channels, self.colours, self.kinds = channels, colours, channels
        self.decoder: Any = decoder
        self.requires_grad_(False).eval()

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values from which ``REPRESENTATIONS.build`` makes it again, but for its weights."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of a clip, padded where that must be."""
        ft, fh, fw = self.factors
        return -(-(frames - 1) // ft) + 1, -(-height // fh), -(-width // fw)

    def frames(self, latent_frames: int) -> int:
        """Frames of so many latent ones."""
        return self.factors[0] * (latent_frames - 1) + 1

    def check(self, frames: int, height: int, width: int) -> None:
        """Refuse sizes that would be padded.

        Raises:
            ValueError: the message names the nearest that fit.
        """
        wrong = []
        for what, size, factor, first in (
            ("frames", frames, self.factors[0], 1),
            ("height", height, self.factors[1], 0),
            ("width", width, self.factors[2], 0),
        ):
            below = (size - first) // factor * factor + first
            if below != size or size < 1:
                near = [fit for fit in (below, below + factor) if fit > 0]
                wrong.append(f"{what} {size}, but {' or '.join(map(str, near))}")
        if wrong:
            ft, fh, fw = self.factors
            raise ValueError(
                f"a clip of this size does not fit latents of {ft}x{fh}x{fw} pixels (frames: {ft} k + 1): "
                f"not {'; not '.join(wrong)}"
            )

    def encode(self, clips: Tensor) -> Tensor:
        """(batch, T, H, W, colours) in [-1, 1] to (batch, t, h, w, channels), float32.

        Raises:
            ValueError: other colours, or nothing to see.
        """
        if clips.ndim != 5 or clips.shape[-1] != self.colours or 0 in clips.shape:
            raise ValueError(f"clips are (batch, T, H, W, {self.colours}), not {tuple(clips.shape)}")
        shape = clips.shape[1:4]
        t, h, w = self.latent_shape(*shape)
        whole = (self.frames(t), h * self.factors[1], w * self.factors[2])
        x = clips.float()
        if whole != tuple(shape):
            after = [n for size, own in zip(whole[::-1], shape[::-1], strict=True) for n in (0, size - own)]
            x = F.pad(x.movedim(-1, 1), after, mode="replicate").movedim(1, -1)
        return self._encode(x).float()

    def decode(self, latents: Tensor, frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """(batch, t, h, w, channels) to (batch, T, H, W, colours) in [-1, 1], float32.

        Args:
            frames: how many to keep; by default all.
            size: (height, width) to keep; by default all.

        Raises:
            ValueError: more frames than there are.
        """
        return torch.cat(list(self.decode_chunks(latents, latents.shape[1], frames, size)), dim=1)

    def decode_chunks(
        self, latents: Tensor, chunk: int = 1, frames: int | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[Tensor]:
        """``decode`` in pieces (batch, n, H, W, colours) of ``chunk`` latent frames, as they finish; joined, they equal
        it bit by bit. What cannot stream comes in one piece.

        Raises:
            ValueError: more frames than there are, or a chunk below 1.
        """
        total = self.frames(latents.shape[1])
        left = total if frames is None else frames
        if not 0 < left <= total or chunk < 1:
            raise ValueError(f"{latents.shape[1]} latent frames hold 1 to {total} frames, not {left} (chunk {chunk})")
        height, width = size or (None, None)
        for piece in self._decode(latents.float(), chunk):
            yield piece[:, :left, :height, :width].float().clamp(-1, 1)
            left -= piece.shape[1]
            if left <= 0:
                return

    @abstractmethod
    def _encode(self, clips: Tensor) -> Tensor:
        """Clips of sizes that fit, as in ``encode``."""

    @abstractmethod
    def _decode(self, latents: Tensor, chunk: int) -> Iterator[Tensor]:
        """All frames in order, in pieces."""


@REPRESENTATIONS.register("pixels")
class Pixels(Representation):
    """Blocks of pixels, nothing lost. The first latent frame holds ``ft`` copies of the first frame.

    Args:
        colours: 1 for grey, 3 for RGB.
        factors: (ft, fh, fw) of a block.
    """

    cached = False

    def __init__(self, colours: int = 3, factors: Sequence[int] = (1, 4, 4)) -> None:
        super().__init__(factors, colours * factors[0] * factors[1] * factors[2], colours)
        self.kinds = colours

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "pixels", "colours": self.colours, "factors": list(self.factors)}

    def _encode(self, clips: Tensor) -> Tensor:
        copies = clips[:, :1].expand(-1, self.factors[0] - 1, -1, -1, -1)
        return merge(torch.cat((copies, clips), dim=1), self.factors)

    def _decode(self, latents: Tensor, chunk: int) -> Iterator[Tensor]:
        copies = split(latents[:, :1], self.factors)
        first = copies.double().mean(1, keepdim=True).float()  # exact, where they are equal
        for start in range(0, latents.shape[1], chunk):
            frames = split(latents[:, start : start + chunk], self.factors)
            yield frames if start else torch.cat((first, frames[:, self.factors[0] :]), dim=1)


@REPRESENTATIONS.register("latent")
class Latent(Representation):
    """The latents of an autoencoder of ours.

    Args:
        autoencoder: a component's name or folder, its {"name": ..., options}, or a module with factors, channels,
            colours, ``encode`` and ``decode_chunks`` like ``VideoAutoencoder``'s.

    Raises:
        ValueError: a component of another kind.
    """

    def __init__(self, autoencoder: str | Mapping[str, Any] | nn.Module) -> None:
        decoder: Any = find_component(autoencoder)  # type: ignore[arg-type]
        if not hasattr(decoder, "factors"):
            raise ValueError(f"a {type(decoder).__name__} is no autoencoder of videos")
        super().__init__(decoder.factors, decoder.channels, decoder.colours, decoder)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "latent", "autoencoder": self.decoder.spec()}

    def _encode(self, clips: Tensor) -> Tensor:
        return self.decoder.encode(clips)

    def _decode(self, latents: Tensor, chunk: int) -> Iterator[Tensor]:
        return self.decoder.decode_chunks(latents.split(chunk, dim=1))


@REPRESENTATIONS.register("diffusers")
class Diffusers(Representation):
    """The latents of an autoencoder of diffusers; see ``DiffusersAutoencoder`` for the options."""

    def __init__(
        self, vae: str | None = None, subfolder: str = "", architecture: Mapping[str, Any] | None = None
    ) -> None:
        decoder = DiffusersAutoencoder(vae, subfolder, architecture)
        super().__init__(decoder.factors, decoder.channels, decoder.colours, decoder)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "diffusers", "architecture": self.decoder.architecture}

    def _encode(self, clips: Tensor) -> Tensor:
        return self.decoder.encode(clips)

    def _decode(self, latents: Tensor, chunk: int) -> Iterator[Tensor]:
        yield self.decoder.decode(latents)
