"""Windows of real files as latents in the cache, and the statistics of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from noiseloom.modalities.scale import moments
from noiseloom.modalities.video.autoencoder import VideoAutoencoder
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.data import Preparation, VideoSet, open_video
from noiseloom.modalities.video.latents import Latents, latents_of, scale_warnings, statistics
from noiseloom.modalities.video.representation import Latent, Pixels, Representation
from noiseloom.modalities.video.writing import write_mp4

pytest.importorskip("av", reason="needs the extra 'video'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def videos(tmp_path: Path) -> VideoSet:
    """Windows of 9, 5 and 1 frames, wide and tall."""
    random, folder = np.random.default_rng(0), tmp_path / "clips"
    for name, shape in (("a", (9, 16, 24)), ("b", (9, 24, 16)), ("c", (7, 16, 24)), ("d", (1, 16, 24))):
        for kind in ("still", "moving"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_mp4(folder / kind / f"{name}.mp4", Clip(random.integers(0, 256, (*shape, 1), np.uint8), 8.0))
    preparation = Preparation(sizes=((16, 24), (24, 16)), channels=1, frames=9, factor=4)
    return open_video(folder, "all", preparation=preparation)


def untrained() -> Latent:
    torch.manual_seed(0)
    return Latent(VideoAutoencoder(1, 4, (4, 4, 4), (1, 2, 2), (8, 8, 8), 1, 3))


@pytest.mark.parametrize("made", [lambda: Pixels(1, (4, 8, 8)), untrained])
def test_each_window_has_the_latents_that_it_has_alone(videos: VideoSet, made: Callable[[], Representation]) -> None:
    assert {tuple(shape) for shape in videos.shapes.tolist()} == {(9, 16, 24), (9, 24, 16), (5, 16, 24), (1, 16, 24)}
    representation = made()
    items = Latents.of(videos, representation)
    assert (items.stored is None) == isinstance(representation, Pixels)  # pixels are in the cache as they are
    assert len(items) == len(videos) == 10  # 7 frames are two windows of 5
    assert items.sizes == videos.sizes
    assert items.report is videos.report
    for index, (shape, window) in enumerate(zip(items.shapes.tolist(), videos.shapes.tolist(), strict=True)):
        assert tuple(shape) == representation.latent_shape(*window)
        item, frames = items[index], videos[index].frames
        alone = representation.encode(torch.tensor(frames)[None] / 127.5 - 1)[0]
        assert item.latents.shape == (*shape, representation.channels)
        np.testing.assert_allclose(item.latents, alone.numpy(), atol=1e-5)
        assert np.array_equal(item.clip.frames, frames)
        assert item.clip.values["label"] in ("still", "moving")


def test_latents_are_made_once_for_one_network(videos: VideoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = untrained()
    first = latents_of(videos, latent)
    calls: list[int] = []
    encode = latent.decoder.encode
    monkeypatch.setattr(latent.decoder, "encode", lambda x: calls.append(len(x)) or encode(x))
    again = latents_of(videos, latent)
    assert calls == []
    assert again.key == first.key
    half = latents_of(videos, latent, half=True)
    assert sum(calls) == len(videos)  # another entry
    assert half.data.dtype == np.float16
    assert np.abs(half.data - first.data).max() < 2e-3 * np.abs(first.data).max()
    with torch.no_grad():
        latent.decoder.moments.weight.add_(0.1)
    assert latents_of(videos, latent).key != first.key


def test_moments_are_those_of_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    data = (random.normal(size=(1000, 3)) * (1, 20, 1e-5) + (0, 1000, 0.5)).astype(np.float32)
    for block in (1, 300, 1 << 22):  # many blocks, the last one shorter; one
        monkeypatch.setattr("noiseloom.modalities.scale._BLOCK", block)
        mean, std = moments(data)
        exact = data.astype(np.float64)
        assert np.allclose(mean, exact.mean(0), atol=1e-6)
        assert np.allclose(std[:2], exact.std(0)[:2], atol=1e-6)
        assert std[2] == pytest.approx(np.mean(std[:2]), abs=1e-6)  # one that hardly changes has the others'
    assert moments(data[:, :1].astype(np.float16))[1][0] == pytest.approx(
        float(data[:, 0].astype(np.float16).astype(np.float64).std()), abs=1e-6
    )
    assert moments(np.ones((4, 2), np.float32)) == ([1.0, 1.0], [1e-4, 1e-4])


def test_pixels_of_a_colour_share_one_mean_and_one_deviation(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames = random.integers((0, 100, 250), (50, 200, 256), (5, 16, 16, 3)).astype(np.uint8)
    for index in range(3):
        write_mp4(tmp_path / f"{index}.mp4", Clip(np.roll(frames, index, 0), 8.0))
    preparation = Preparation(sizes=((16, 16),), channels=3, frames=5, factor=4)
    items = Latents.of(open_video(tmp_path, "all", preparation=preparation), Pixels(3, (4, 8, 8)))
    mean, std = statistics(items)
    assert len(mean) == len(std) == 4 * 8 * 8 * 3
    for colour in range(3):
        # A first frame counts as often as it stands in its position: four times.
        frames = np.concatenate([clip.frames[[0, 0, 0, 0, 1, 2, 3, 4], ..., colour] for clip in items.videos])
        pixels = frames / 127.5 - 1
        assert mean[colour::3] == pytest.approx([pixels.mean()] * 256, abs=1e-5)
        assert std[colour::3] == pytest.approx([pixels.std()] * 256, abs=1e-5)


def test_a_part_of_many_windows_is_measured(videos: VideoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    items = Latents.of(videos, Pixels(1, (4, 8, 8)))
    first = items[0].latents.size
    monkeypatch.setattr("noiseloom.modalities.video.latents._NUMBERS", 2 * first)
    ends = np.concatenate([items[i].latents.reshape(-1, 256) for i in (0, len(items) - 1)])
    assert np.array_equal(items.positions(), ends)


def test_odd_scales_are_told(videos: VideoSet) -> None:
    pixels = Pixels(1, (1, 8, 8))
    items = Latents.of(videos, pixels)
    mean, std = statistics(items)
    assert scale_warnings(items, mean, std) == []
    (line,) = scale_warnings(items, mean, [s / 10 for s in std])
    assert "latent positions deviate 10 times as much as the stored statistics say" in line
    (line,) = scale_warnings(items, [m + 5 * s for m, s in zip(mean, std, strict=True)], std)
    assert "their means lie 5 deviations off" in line
    latent = untrained()
    with torch.no_grad():
        latent.decoder.moments.weight[0], latent.decoder.moments.bias[0] = 0, 1
    coded = Latents.of(videos, latent)
    lines = scale_warnings(coded, *statistics(coded))
    assert "1 of 4 numbers of a latent position hardly change" in lines[0]
    latent.decoder.latent_std.fill_(1000.0)
    assert "the autoencoder's own training items did" in scale_warnings(coded, *statistics(coded))[-1]
