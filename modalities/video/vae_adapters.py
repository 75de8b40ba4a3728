"""Autoencoders of images and videos from diffusers, behind the one interface of our own.

An adapter is built from plain values: with ``vae`` it takes the architecture and the weights (safetensors only) of a
folder or of a repository of the hub; with ``architecture`` it has that shape and waits for a state dict, as when a
checkpoint of ours that contains it is loaded. The class that a configuration names is compared, never imported.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noiseloom.core.registry import UnknownName, unknown

from ..extras import require

CLASSES = {
    "wan": "AutoencoderKLWan",
    "cogvideox": "AutoencoderKLCogVideoX",
    "ltx": "AutoencoderKLLTXVideo",
    "ltx2": "AutoencoderKLLTX2Video",
    "mochi": "AutoencoderKLMochi",
    "hunyuan": "AutoencoderKLHunyuanVideo",
    "hunyuan15": "AutoencoderKLHunyuanVideo15",
    "cosmos": "AutoencoderKLCosmos",
    "dc": "AutoencoderDC",
    "kl": "AutoencoderKL",
}
_OF_IMAGES = ("dc", "kl")  # these see one frame at a time


class DiffusersAutoencoder(nn.Module):
    """Videos (batch, time, height, width, colours) to latents (batch, t, h, w, channels), the mode of the posterior,
    scaled as its own diffusion model has them, and back. ``time`` is ``ft k + 1`` for ``k + 1`` latent frames.

    Args:
        vae: a folder, or a repository of the hub.
        subfolder: where in it; in those of whole pipelines "vae".
        architecture: {"name": one of ``CLASSES``, options of that class} instead, for weights that come later.

    Attributes:
        factors: (ft, fh, fw), frames, rows and columns of a latent position.

    Raises:
        MissingExtra: diffusers is not installed.
        UnknownName: it is of another class.
        OSError: the folder or repository cannot be read.
        ValueError: options that the class does not have, or weights that do not fit.
    """

    def __init__(
        self, vae: str | None = None, subfolder: str = "", architecture: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if (vae is None) == (architecture is None):
            raise ValueError("an autoencoder of diffusers needs a vae (a folder or a repository) or an architecture")
        if vae is not None:
            self.kind, self.vae = _loaded(vae, subfolder or None)
        else:
            options = dict(architecture or {})
            self.kind = str(options.pop("name", None))
            self.vae = _built(self.kind, options)
        config = self.vae.config
        self.channels = int(config.get("latent_channels") or config["z_dim"])
        colours = int(config.get("out_channels") or config["in_channels"])
        # Wan's counts the pixels of a patch as channels.
        self.colours = colours // (config.get("patch_size") or 1) ** 2 if self.kind == "wan" else colours
        self.factors = _factors(self.kind, self.vae)
        self.requires_grad_(False).eval()

    @property
    def architecture(self) -> dict[str, Any]:
        """Plain values that make it again, but for its weights."""
        options = list(inspect.signature(type(self.vae).__init__).parameters)[1:]
        return {"name": self.kind, **json.loads(json.dumps({key: self.vae.config[key] for key in options}))}

    def encode(self, videos: Tensor) -> Tensor:
        x, batch = videos.movedim(-1, 2), len(videos)
        found = self.vae.encode(x.flatten(0, 1) if self.kind in _OF_IMAGES else x.transpose(1, 2))
        z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        z = z.unflatten(0, (batch, -1)) if self.kind in _OF_IMAGES else z.transpose(1, 2)
        shift, scale = self._scale()
        return (z.movedim(2, -1) - shift) * scale

    def decode(self, latents: Tensor) -> Tensor:
        shift, scale = self._scale()
        z, (batch, frames) = (latents / scale + shift).movedim(-1, 2), latents.shape[:2]
        if self.kind in _OF_IMAGES:
            return self.vae.decode(z.flatten(0, 1)).sample.unflatten(0, (batch, frames)).movedim(2, -1)
        if self.kind == "cogvideox" and frames % 2 == 0:  # it takes an even number for the middle of a longer video
            z = torch.cat((z, z[:, -1:]), dim=1)
        z = z.transpose(1, 2)
        if not self.kind.startswith("ltx"):
            return self._shown(self.vae.decode(z).sample, frames)
        time = z.new_zeros(batch) if self.vae.config.timestep_conditioning else None
        with torch.random.fork_rng():  # some of its layers add noise: always the same
            torch.manual_seed(0)
            return self._shown(self.vae.decode(z, time).sample, frames)

    def _shown(self, x: Tensor, latent_frames: int) -> Tensor:
        """(batch, colours, at least the frames of so many latent ones, height, width) as videos of as many."""
        return x[:, :, : self.factors[0] * (latent_frames - 1) + 1].permute(0, 2, 3, 4, 1)

    def _scale(self) -> tuple[Tensor, Tensor]:
        """What is subtracted from latents and what they are multiplied with, each a number or (channels,)."""
        config, device = self.vae.config, next(self.vae.parameters()).device
        factor = torch.tensor(float(config.get("scaling_factor") or 1.0), device=device)
        told = [_told(self.vae, name) for name in ("latents_mean", "latents_std")]
        if told[0] is None or told[1] is None:
            return torch.tensor(float(config.get("shift_factor") or 0.0), device=device), factor
        # Those of Cosmos are of each latent frame too.
        mean, std = (torch.as_tensor(v, device=device).float().reshape(self.channels, -1).mean(1) for v in told)
        return mean, factor / std


def _told(vae: Any, *names: str) -> Any:
    """The first of these that an autoencoder says: in its configuration, or of itself."""
    places = (vae.config, vars(vae), dict(vae.named_buffers(recurse=False)))
    return next((place[name] for name in names for place in places if place.get(name) is not None), None)


def _factors(kind: str, vae: Any) -> tuple[int, int, int]:
    space = int(
        _told(vae, "spatial_compression_ratio", "scale_factor_spatial")
        or 2 ** (len(vae.config["block_out_channels"]) - 1)
    )
    time = 1 if kind in _OF_IMAGES else int(_told(vae, "temporal_compression_ratio", "scale_factor_temporal"))
    return time, space, space


def _class(kind: str) -> Any:
    """A class of diffusers, which is named here."""
    if kind not in CLASSES:
        raise UnknownName(unknown("autoencoder of diffusers", kind, CLASSES))
    diffusers = require("diffusers", "video-vae")
    if (found := getattr(diffusers, CLASSES[kind], None)) is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {CLASSES[kind]}: a newer one is needed")
    return found


def _built(kind: str, options: Mapping[str, Any]) -> Any:
    entry = _class(kind)
    accepted = list(inspect.signature(entry.__init__).parameters)[1:]
    if wrong := [name for name in options if name not in accepted]:
        raise ValueError(unknown(f"option of {CLASSES[kind]}", wrong[0], accepted))
    return entry(**options)


def _loaded(source: str, subfolder: str | None) -> tuple[str, Any]:
    """The kind of a folder's or repository's autoencoder, and that with its weights."""
    stated = _class("kl").load_config(source, subfolder=subfolder).get("_class_name")
    kinds = {name: kind for kind, name in CLASSES.items()}
    if stated not in kinds:
        raise UnknownName(unknown("class of autoencoder", stated, kinds))
    model, told = _class(kinds[stated]).from_pretrained(
        source, subfolder=subfolder, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
    )
    if told["missing_keys"] or told["mismatched_keys"]:
        lacking = [*told["missing_keys"], *(str(key) for key in told["mismatched_keys"])]
        raise ValueError(f"the weights of {source} lack {', '.join(lacking[:3])}, or have them in another shape")
    return kinds[stated], model
