"""Clips to latents and back: pixels to the bit, autoencoders by their shapes and conventions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.registry import UnknownName
from noiseloom.modalities.video.autoencoder import VideoAutoencoder
from noiseloom.modalities.video.representation import REPRESENTATIONS, Diffusers, Latent, Pixels, Representation

STATISTICS = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 1.0, 0.5, 4.0]}
WAN = {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | {
    "temperal_downsample": [False, True, True],
    **STATISTICS,
}
LTX = {"latent_channels": 8, "block_out_channels": [8] * 4, "layers_per_block": [1] * 5}
BLOCKS = {"block_out_channels": [8] * 4, "latent_channels": 4, "layers_per_block": 1}
DC = {
    f"{side}_{option}": value
    for side in ("encoder", "decoder")
    for option, value in (
        ("block_types", ["ResBlock", "EfficientViTBlock"]),
        ("block_out_channels", [8, 8]),
        ("layers_per_block", [1, 1]),
        ("qkv_multiscales", [[], [5]]),
    )
}
#: small ones of every class, and the factors that they should have
SMALL: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "wan": ({"name": "wan", **WAN}, (4, 8, 8)),
    "wan2.2": (
        {"name": "wan", **WAN, "decoder_base_dim": 3, "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
        | {"in_channels": 12, "out_channels": 12},
        (4, 16, 16),
    ),
    "cogvideox": (
        {"name": "cogvideox", **BLOCKS, "norm_num_groups": 2, "down_block_types": ["CogVideoXDownBlock3D"] * 4}
        | {"up_block_types": ["CogVideoXUpBlock3D"] * 4},
        (4, 8, 8),
    ),
    "ltx": (
        {"name": "ltx", **LTX, "decoder_block_out_channels": [8] * 4, "decoder_layers_per_block": [1] * 5}
        | {"decoder_inject_noise": [True, True, False, False, False], "timestep_conditioning": True},
        (8, 32, 32),
    ),
    "ltx2": (
        {"name": "ltx2", **LTX, "decoder_block_out_channels": [8, 16, 32], "decoder_layers_per_block": [1] * 4}
        | {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
        (8, 32, 32),
    ),
    "mochi": (
        {"name": "mochi", "latent_channels": 4, "encoder_block_out_channels": [32] * 4, **STATISTICS}
        | {"decoder_block_out_channels": [32] * 4, "layers_per_block": [1] * 5},
        (6, 8, 8),
    ),
    "hunyuan": ({"name": "hunyuan", **BLOCKS, "norm_num_groups": 4}, (4, 8, 8)),
    "hunyuan15": ({"name": "hunyuan15", **BLOCKS, "block_out_channels": [16] * 5}, (4, 16, 16)),
    "cosmos": (
        {"name": "cosmos", "latent_channels": 4, "encoder_block_out_channels": [8] * 4, "num_layers": 2}
        | {"decode_block_out_channels": [8] * 4, "attention_resolutions": [8], "resolution": 64}
        | {name: [value for value in values for _ in range(16)] for name, values in STATISTICS.items()},
        (8, 8, 8),
    ),
    "dc": ({"name": "dc", "latent_channels": 4, "attention_head_dim": 2, "scaling_factor": 0.5, **DC}, (1, 2, 2)),
    "kl": (
        {"name": "kl", "block_out_channels": [8, 16], "norm_num_groups": 4, "shift_factor": 0.1}
        | {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2},
        (1, 2, 2),
    ),
}


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def own(colours: int = 1) -> VideoAutoencoder:
    torch.manual_seed(0)
    return VideoAutoencoder(colours, 4, (4, 4, 4), (1, 2, 2), (8, 8, 8), 1, 3)


def small(kind: str) -> Diffusers:
    pytest.importorskip("diffusers", reason="needs the extra 'video-vae'")
    torch.manual_seed(0)
    return Diffusers(architecture=SMALL[kind][0])


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("factors", [(1, 4, 4), (4, 8, 8), (3, 2, 1), (1, 1, 1)])
def test_pixels_come_back_to_the_bit(colours: int, factors: tuple[int, int, int]) -> None:
    pixels = Pixels(colours, factors)
    for frames in (1, 2 * factors[0] + 1):
        x = clips(2, frames, 16, 24, colours)
        z = pixels.encode(x)
        assert z.shape == (2, *pixels.latent_shape(frames, 16, 24), pixels.channels)
        assert pixels.frames(z.shape[1]) == frames
        assert torch.equal(pixels.decode(z), x)
    assert pixels.channels == colours * factors[0] * factors[1] * factors[2]


def test_the_first_latent_frame_of_pixels_holds_the_first_frame_alone() -> None:
    pixels, x = Pixels(1, (4, 2, 2)), clips(1, 5, 2, 2, 1)
    first, second = pixels.encode(x)[0, :, 0, 0].unflatten(-1, (4, 4))
    assert torch.equal(first, x[0, :1].flatten(1).expand(4, -1))
    assert torch.equal(second, x[0, 1:].flatten(1))
    noisy = pixels.encode(x)
    noisy[0, 0, 0, 0, :4] += 0.4  # one of the four copies
    assert torch.allclose(pixels.decode(noisy)[0, 0], (x[0, 0] + 0.1).clamp(-1, 1), atol=1e-6)


def test_our_autoencoder_takes_and_gives_what_it_does_alone() -> None:
    autoencoder = own(3)
    latent, x = Latent(autoencoder), clips(2, 9, 8, 16, 3)
    assert (latent.factors, latent.channels, latent.colours) == ((4, 4, 4), 4, 3)
    z = latent.encode(x)
    assert z.shape == (2, *latent.latent_shape(9, 8, 16), 4) == (2, 3, 2, 4, 4)
    assert torch.equal(z, autoencoder.encode(x))
    assert torch.equal(latent.decode(z), autoencoder.decode(z).clamp(-1, 1))
    assert not any(parameter.requires_grad for parameter in latent.parameters())
    again = REPRESENTATIONS.build(json.loads(json.dumps(latent.config)))
    again.load_state_dict(latent.state_dict())
    assert torch.equal(again.encode(x), z)


def streaming() -> Iterator[Representation]:
    yield Pixels(1, (4, 2, 2))
    yield Pixels(3, (1, 2, 2))
    yield Latent(own())


@pytest.mark.parametrize("representation", streaming(), ids=str)
def test_chunks_joined_are_the_whole_to_the_bit(representation: Representation) -> None:
    z = representation.encode(clips(1, 17, 8, 8, representation.colours))
    whole = representation.decode(z)
    for chunk in (1, 2, 3, 100):
        pieces = list(representation.decode_chunks(z, chunk))
        assert len(pieces) == -(-z.shape[1] // chunk)
        assert torch.equal(torch.cat(pieces, 1), whole)
    some = list(representation.decode_chunks(z, 1, frames=6, size=(7, 5)))
    assert len(some) == representation.latent_shape(6, 8, 8)[0]  # no more than is needed
    assert torch.equal(torch.cat(some, 1), whole[:, :6, :7, :5])


def test_memory_of_a_stream_is_that_of_a_chunk() -> None:
    pixels = Pixels(1, (2, 2, 2))
    decoded = pixels.decode_chunks(pixels.encode(clips(1, 21, 4, 4, 1)), 2)
    assert [piece.shape[1] for piece in decoded] == [3, 4, 4, 4, 4, 2]


def test_odd_sizes_are_filled_up_and_cut_again() -> None:
    pixels, x = Pixels(1, (4, 4, 4)), clips(1, 6, 7, 9, 1)
    z = pixels.encode(x)
    assert z.shape[1:4] == pixels.latent_shape(6, 7, 9) == (3, 2, 3)
    assert torch.equal(pixels.decode(z, 6, (7, 9)), x)
    filled = pixels.decode(z)
    assert filled.shape == (1, 9, 8, 12, 1)
    assert torch.equal(filled[:, 6:, :7, :9], x[:, -1:].expand(-1, 3, -1, -1, -1))
    assert torch.equal(filled[:, :6, 7, :9], x[:, :, -1])
    assert torch.equal(filled[:, :6, :7, 11], x[:, :, :, -1])


def test_sizes_that_fit_are_named() -> None:
    pixels = Pixels(1, (4, 8, 16))
    pixels.check(17, 64, 64)
    pixels.check(1, 8, 16)
    for size, words in (
        ((18, 64, 64), "not frames 18, but 17 or 21$"),
        ((16, 64, 64), "not frames 16, but 13 or 17$"),
        ((17, 60, 70), "not height 60, but 56 or 64; not width 70, but 64 or 80$"),
        ((1, 5, 16), "not height 5, but 8$"),
        ((0, 8, 16), "not frames 0, but 1$"),
    ):
        with pytest.raises(ValueError, match=words):
            pixels.check(*size)


def test_what_cannot_be_coded_is_refused() -> None:
    pixels = Pixels(3, (4, 4, 4))
    for shape in ((1, 5, 8, 8, 1), (5, 8, 8, 3), (1, 0, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"clips are \(batch, T, H, W, 3\)"):
            pixels.encode(torch.zeros(shape))
    for frames in (0, 6):
        with pytest.raises(ValueError, match=f"2 latent frames hold 1 to 5 frames, not {frames}"):
            pixels.decode(torch.zeros(1, 2, 2, 2, 192), frames)
    with pytest.raises(ValueError, match="colours is 1 or 3, not 2"):
        Pixels(2)
    with pytest.raises(ValueError, match="factors"):
        Pixels(3, (0, 4, 4))
    with pytest.raises(UnknownName, match=r"unknown representation 'pixel'\. Did you mean 'pixels'"):
        REPRESENTATIONS.build("pixel")


@pytest.mark.parametrize("kind", SMALL)
def test_autoencoders_of_diffusers(kind: str) -> None:
    """Of each class: shapes at any number of frames, an image among them, and from a checkpoint the same again."""
    representation, (_, factors) = small(kind), SMALL[kind]
    channels = 8 if kind.startswith("ltx") else 4
    assert (representation.factors, representation.channels, representation.colours) == (factors, channels, 3)
    ft, fh, fw = factors
    for frames in (1, ft + 1, 2 * ft + 1, 3):  # an even and an odd number of latent frames, and one that does not fit
        x = clips(1, frames, 2 * fh - 1, 2 * fw, 3)
        z = representation.encode(x)
        assert z.shape == (1, *representation.latent_shape(frames, 2 * fh, 2 * fw), channels)
        y = representation.decode(z, frames, (2 * fh - 1, 2 * fw))
        assert y.shape == x.shape
        assert y.isfinite().all()
        assert y.std() > 0
    assert torch.equal(representation.decode(z, frames, (2 * fh - 1, 2 * fw)), y)  # LTX's noise is the same again
    assert not any(parameter.requires_grad for parameter in representation.parameters())
    torch.manual_seed(1)
    again = REPRESENTATIONS.build(json.loads(json.dumps(representation.config)))
    assert not torch.equal(again.encode(x), z)
    again.load_state_dict(representation.state_dict())
    assert torch.equal(again.encode(x), z)


@pytest.mark.parametrize("kind", ["wan", "mochi", "cosmos", "kl", "dc", "hunyuan"])
def test_latents_are_scaled_as_their_authors_do(kind: str) -> None:
    representation, (_, factors) = small(kind), SMALL[kind]
    x = clips(1, 1, 2 * factors[1], 2 * factors[2], 3)
    image = x.permute(0, 4, 1, 2, 3)
    encoded = representation.decoder.vae.encode(image[:, :, 0] if kind in ("kl", "dc") else image)
    raw = (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent).view(4, -1).T
    mean, std = (torch.tensor(STATISTICS[name]) for name in STATISTICS)
    scaled = {
        "kl": (raw - 0.1) * 0.18215,
        "dc": raw * 0.5,
        "hunyuan": raw * 0.476986,
    }.get(kind, (raw - mean) / std)
    z = representation.encode(x)
    assert torch.allclose(z.view(-1, 4), scaled, atol=1e-4)  # convolutions round by how memory is laid out
    raw = raw.T.reshape(1, 4, *z.shape[1:4])
    shown = representation.decoder.vae.decode(raw[:, :, 0] if kind in ("kl", "dc") else raw).sample
    assert torch.allclose(representation.decode(z).flatten(), shown.movedim(1, -1).flatten().clamp(-1, 1), atol=1e-4)


def saved(folder: Path, **changes: Any) -> Mapping[str, Tensor]:
    """A small autoencoder as diffusers stores it; its weights."""
    model = small("kl").decoder.vae
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return model.state_dict()


def test_a_folder_of_diffusers_is_read(tmp_path: Path) -> None:
    weights = saved(tmp_path / "vae")
    for options in ({"vae": str(tmp_path / "vae")}, {"vae": str(tmp_path), "subfolder": "vae"}):
        read = REPRESENTATIONS.build({"name": "diffusers", **options})
        assert read.config["architecture"].items() >= SMALL["kl"][0].items()
        assert not any(key.startswith("_") for key in read.config["architecture"])
        assert all(torch.equal(value, weights[key]) for key, value in read.decoder.vae.state_dict().items())


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "foreign", _class_name="os.system")
    with pytest.raises(UnknownName, match=r"unknown class of autoencoder 'os.system'.*AutoencoderKLWan"):
        Diffusers(str(tmp_path / "foreign"))
    saved(tmp_path / "pickled")
    weights = tmp_path / "pickled" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OSError, match="safetensors"):
        Diffusers(str(tmp_path / "pickled"))
    saved(tmp_path / "larger", block_out_channels=[8, 16, 16], down_block_types=["DownEncoderBlock2D"] * 3)
    with pytest.raises((ValueError, RuntimeError)):
        Diffusers(str(tmp_path / "larger"))
    with pytest.raises(OSError, match="nowhere"):
        Diffusers(str(tmp_path / "nowhere"))


def test_an_architecture_that_is_none_is_refused() -> None:
    pytest.importorskip("diffusers", reason="needs the extra 'video-vae'")
    with pytest.raises(UnknownName, match=r"unknown autoencoder of diffusers 'wann'\. Did you mean 'wan'"):
        Diffusers(architecture={"name": "wann"})
    with pytest.raises(ValueError, match=r"unknown option of AutoencoderKL 'latent_chanels'\. Did you mean"):
        Diffusers(architecture={"name": "kl", "latent_chanels": 4})
    with pytest.raises(ValueError, match="needs a vae"):
        Diffusers()


def test_diffusers_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"noiseloom\[video-vae\]"):
        Diffusers(architecture={"name": "wan"})


def test_a_component_that_is_no_autoencoder_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is no autoencoder of videos"):
        Latent(nn.Linear(1, 1))


def test_a_stand_in_for_an_autoencoder_is_enough() -> None:
    class Halves(nn.Module):
        factors, channels, colours = (1, 1, 2), 2, 1

        def encode(self, videos: Tensor) -> Tensor:
            return videos.unflatten(3, (-1, 2)).flatten(4)

        def decode_chunks(self, chunks: tuple[Tensor, ...]) -> Iterator[Tensor]:
            return (2 * chunk.unflatten(4, (2, 1)).flatten(3, 4) for chunk in chunks)

    latent, x = Latent(Halves()), clips(1, 3, 2, 4, 1)
    assert torch.equal(latent.decode(latent.encode(x)), (2 * x).clamp(-1, 1))
