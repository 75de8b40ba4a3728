"""The autoencoder of videos: sizes, causality, coding piece by piece in bounded memory, and what it is trained by."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.randomness import StepRandomness
from noiseloom.modalities.component import load_component, save_component
from noiseloom.modalities.video.autoencoder import VideoAutoencoder, merge, split
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.reconstruction import VideoBatch, VideoReconstruction, reconstruction_report

SHAPES = [  # factors, patch, stages
    ((1, 8, 8), (1, 2, 2), 3),
    ((2, 4, 4), (1, 4, 4), 2),
    ((4, 8, 8), (1, 4, 4), 3),
    ((4, 8, 8), (2, 2, 2), 3),
    ((8, 16, 16), (1, 4, 4), 4),
    ((3, 2, 1), (3, 1, 1), 2),
    ((1, 1, 1), (1, 1, 1), 1),
]
EVERY = pytest.mark.parametrize(("factors", "patch", "stages"), SHAPES)


def tiny(**options: Any) -> VideoAutoencoder:
    """Small, of random weights: as it is made, nothing yet passes from frame to frame."""
    torch.manual_seed(0)
    small = {"colours": 1, "channels": 4, "factors": (4, 4, 4), "patch": (1, 2, 2), "widths": (8, 8, 8)}
    autoencoder = VideoAutoencoder(**{**small, "depth": 1, "kernel": 3, **options}).eval().requires_grad_(False)
    for parameter in autoencoder.parameters():
        parameter.normal_(std=0.5)
    return autoencoder


def video(frames: int, height: int = 8, width: int = 12, colours: int = 1) -> Tensor:
    return torch.rand(2, frames, height, width, colours, generator=torch.Generator().manual_seed(0)) * 2 - 1


def group(latent: int, ft: int) -> slice:
    """The frames of a latent one."""
    return slice(0, 1) if latent == 0 else slice(ft * (latent - 1) + 1, ft * latent + 1)


@EVERY
@pytest.mark.parametrize("colours", [1, 3])
def test_sizes(factors: tuple[int, int, int], patch: tuple[int, int, int], stages: int, colours: int) -> None:
    autoencoder = tiny(colours=colours, factors=factors, patch=patch, widths=(8,) * stages)
    ft, fh, fw = factors
    for k in (0, 2):  # one frame is a video
        x = video(ft * k + 1, 2 * fh, 3 * fw, colours)
        latents = autoencoder.encode(x)
        assert latents.shape == (2, k + 1, 2, 3, 4)
        assert autoencoder.decode(latents).shape == x.shape


@EVERY
def test_what_comes_later_changes_nothing_before(
    factors: tuple[int, int, int], patch: tuple[int, int, int], stages: int
) -> None:
    autoencoder, ft = tiny(factors=factors, patch=patch, widths=(8,) * stages), factors[0]
    x = video(3 * ft + 1, factors[1], factors[2])
    latents = autoencoder.encode(x)
    frames = autoencoder.decode(latents)
    for t in range(x.shape[1]):
        changed = x.clone()
        changed[:, t] = changed[:, t].flip(0) + 0.1
        own, again = -(-t // ft), autoencoder.encode(changed)
        assert torch.equal(again[:, :own], latents[:, :own])
        assert not torch.equal(again[:, own], latents[:, own])
    for k in range(4):
        changed = latents.clone()
        changed[:, k] += 1
        its, again = group(k, ft), autoencoder.decode(changed)
        assert torch.equal(again[:, : its.start], frames[:, : its.start])
        assert (again[:, its] != frames[:, its]).flatten(2).any(2).all()
    # and what came earlier does reach what is later
    assert not torch.equal(autoencoder.encode(x.index_fill(1, torch.tensor([0]), 0.0))[:, 1], latents[:, 1])


@EVERY
def test_piece_by_piece_is_as_all_at_once(
    factors: tuple[int, int, int], patch: tuple[int, int, int], stages: int
) -> None:
    autoencoder = tiny(factors=factors, patch=patch, widths=(8,) * stages)
    x = video(3 * factors[0] + 1, factors[1], 2 * factors[2])
    together = autoencoder.reconstruct(x)[0]  # in evaluation of the means
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 2, 2], [1, 5], [5, 1], [3, 1, 2], [6]])
def test_pieces_of_any_size_are_the_whole_to_the_bit(sizes: list[int]) -> None:
    autoencoder = tiny()
    latents = torch.randn(2, 6, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    pieces = list(autoencoder.decode_chunks(latents.split(sizes, dim=1)))
    starts = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    frames = [group(b - 1, 4).stop - group(a, 4).start for a, b in itertools.pairwise(starts)]
    assert [piece.shape[1] for piece in pieces] == frames
    assert torch.equal(torch.cat(pieces, 1), autoencoder.decode(latents))


def test_a_stream_keeps_no_more_the_longer_it_is() -> None:
    autoencoder = tiny()

    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(1, 1, 2, 3, 4)

    stream, kept = autoencoder.decode_chunks(endless()), []
    for count in range(6):
        assert next(stream).shape[1] == (4 if count else 1)
        past = inspect.getgeneratorlocals(stream)["past"]  # type: ignore[arg-type]
        kept.append(sum(one.untyped_storage().nbytes() for one in past))
    assert kept[0] > 0  # it does remember something
    assert len(set(kept[2:])) == 1


def test_training_samples_and_evaluation_does_not() -> None:
    autoencoder, x = tiny(), video(5)
    assert torch.equal(autoencoder.reconstruct(x)[0], autoencoder.reconstruct(x)[0])
    autoencoder.train()
    assert not torch.equal(autoencoder.reconstruct(x)[0], autoencoder.reconstruct(x)[0])
    assert torch.equal(autoencoder.encode(x), autoencoder.encode(x))


def test_the_divergence_in_closed_form() -> None:
    """With a mean of 2 and a variance of e everywhere it is (4 + e - 1 - 1) / 2 per number."""
    autoencoder = tiny()
    autoencoder.moments.weight.zero_()
    autoencoder.moments.bias.copy_(torch.tensor([2.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(autoencoder.reconstruct(video(9))[1], torch.full((2,), (4 + math.e - 2) / 2))


def test_the_loss_in_closed_form() -> None:
    class Off(nn.Module):
        name = "off"

        def reconstruct(self, videos: Tensor) -> tuple[Tensor, Tensor]:
            return videos + 0.5, torch.tensor([2.0, 4.0])

    objective = VideoReconstruction(Off(), l1=1.0, mse=2.0, kl=0.1)
    losses = objective(Off(), VideoBatch(video(5)), StepRandomness(0, 0, range(2), 2))
    torch.testing.assert_close(losses.parts["l1"], torch.full((2,), 0.5))
    torch.testing.assert_close(losses.parts["mse"], torch.full((2,), 0.25))
    torch.testing.assert_close(losses.total, torch.tensor([1.2, 1.4]))


def test_it_learns() -> None:
    torch.manual_seed(0)
    autoencoder = VideoAutoencoder(1, 8, (2, 4, 4), (1, 2, 2), (16, 16), 1, 3)
    objective = VideoReconstruction(autoencoder)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), 5e-3)
    wave = torch.linspace(0, 6, 16)[:, None, None] + torch.arange(5.0)[:, None, None, None]
    x, losses = wave.sin().expand(2, 5, 16, 16, 1), []
    for step in range(40):
        result = objective(autoencoder, VideoBatch(x), StepRandomness(0, step, range(2), 2))
        losses.append(result.total.mean().item())
        optimizer.zero_grad()
        result.total.mean().backward()
        optimizer.step()
    assert losses[-1] < 0.4 * losses[0]
    assert all(bool(parameter.grad.abs().any()) for parameter in autoencoder.parameters())  # type: ignore[union-attr]


def test_it_is_saved_with_what_it_measured(tmp_path: Path) -> None:
    autoencoder, random = tiny(), np.random.default_rng(0)
    clips = [Clip(random.integers(0, 256, (frames, 8, 12, 1), np.uint8), 8.0) for frames in (1, 5, 9)]
    autoencoder.measure(clips)  # type: ignore[arg-type]
    every = torch.cat([autoencoder.encode(autoencoder.example([clip]).frames).flatten(0, 3) for clip in clips])
    torch.testing.assert_close(autoencoder.latent_mean, every.mean(0))
    torch.testing.assert_close(autoencoder.latent_std, every.std(0, correction=0))
    again: Any = load_component(save_component(tmp_path / "vae", autoencoder))
    assert again.config == autoencoder.config
    assert torch.equal(again.latent_std, autoencoder.latent_std)
    assert torch.equal(again.encode(video(5)), autoencoder.encode(video(5)))


class Frozen(nn.Module):
    """An "autoencoder" that gives back the first frame, again and again; or, ``still`` False, all of them."""

    name = "frozen"

    def __init__(self, still: bool) -> None:
        super().__init__()
        self.still, self.weight = still, nn.Parameter(torch.zeros(1))

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return x[:, :1].expand_as(x) if self.still else x


def test_a_report_sees_that_nothing_moves() -> None:
    frames = np.zeros((5, 12, 12, 1), np.uint8)
    frames[np.arange(5), np.arange(5), 0] = 255  # a dot moves: 2 of 144 pixels change a frame
    clips = [Clip(frames, 8.0), Clip(frames[:1], 8.0), Clip(frames[:1].repeat(5, 0), 8.0)]
    same, still = (reconstruction_report(Frozen(still), clips).values() for still in (False, True))
    assert same == {"psnr": 100.0, "ssim": pytest.approx(1.0), "motion": 1.0, "temporal_error": 0.0}
    assert still["motion"] == 0
    assert still["temporal_error"] == pytest.approx(2 / 144 / 2)  # the mean of two clips, one of which stands still
    assert still["psnr"] < 80
    rows = {row.name: row for row in reconstruction_report(Frozen(True), clips[1:2]).rows}
    assert rows["psnr"].n == 1
    assert rows["motion"].value is None  # one frame does not move


def test_positions_are_merged_and_split() -> None:
    x = torch.arange(2 * 4 * 4 * 6 * 3.0).view(2, 4, 4, 6, 3)
    merged = merge(x, (2, 2, 3))
    assert merged.shape == (2, 2, 2, 2, 36)
    assert torch.equal(merged[0, 0, 0, 0].view(2, 2, 3, 3), x[0, :2, :2, :3])
    assert torch.equal(split(merged, (2, 2, 3)), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colours": 2}, "colours is 1 or 3, not 2"),
        ({"factors": (4, 12, 8), "patch": (1, 4, 4)}, r"must be patch \(1, 4, 4\) times powers of two"),
        ({"factors": (4, 2, 2), "patch": (1, 4, 4)}, "times powers of two"),
        ({"factors": (4, 4)}, r"for \(t, h, w\)"),
        ({"patch": (1, 0, 0)}, "times powers of two"),
        ({"widths": (8, 8)}, "need 3 widths, not 2"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("shape", [(4, 8, 8, 1), (5, 9, 8, 1), (5, 8, 10, 1), (5, 8, 8, 3)])
def test_videos_that_do_not_fit(shape: tuple[int, ...]) -> None:
    autoencoder = tiny()
    for call in (autoencoder.encode, autoencoder.reconstruct):
        with pytest.raises(ValueError, match=r"takes 4 k \+ 1 frames of 4 m x 4 n pixels with 1 colours, not"):
            call(torch.zeros(1, *shape))


def test_data_sets_have_lengths_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    from noiseloom.modalities.video.writing import write_mp4

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_mp4(tmp_path / "a.mp4", Clip(np.zeros((8, 16, 16, 1), np.uint8), 8.0))
    autoencoder = tiny()
    items = autoencoder.dataset([str(tmp_path / "a.mp4")], "all", sizes=[[8, 8]], frames=20)
    assert [len(items[i]) for i in range(len(items))] == [5, 5]
    example = autoencoder.example([items[0], items[1]])
    assert example.frames.shape == (2, 5, 8, 8, 1)
    assert torch.equal(example.frames, torch.full_like(example.frames, -1.0))
