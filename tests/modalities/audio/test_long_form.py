"""Sounds longer than the network has learned: by windows, exact in length, in pieces as they finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from noiseloom.core.pipeline import Pipeline
from noiseloom.core.spaces import Euclidean
from noiseloom.modalities.audio.modality import _CHUNK
from noiseloom.modalities.audio.waveform import read
from noiseloom.modalities.audio.windows import windows
from noiseloom.modalities.modality import Layout

from .conftest import SPECS, clip, write

pytestmark = pytest.mark.usefixtures("own_cache")
EVERY = pytest.mark.parametrize("representation", list(SPECS))


def layout(sizes: Sequence[int], known: Tensor | None = None) -> Layout:
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    return Layout(torch.zeros(*mask.shape, 2), Euclidean(mask, known), {"mask": mask}, known)


def told(frames: Tensor) -> dict[str, Tensor]:
    return {"duration": frames.float()}


def test_windows_cover_every_frame_once_and_overlap_by_a_third() -> None:
    sizes, most, seen = [23, 9, 4, 15], 9, []

    def run(part: Layout, index: int, rows: Sequence[int]) -> Tensor:
        seen.append((index, list(rows), part.cond["mask"].sum(1).tolist(), part.cond["duration"].tolist()))
        known = torch.zeros(part.start.shape[:2], dtype=torch.bool) if part.known is None else part.known.all(-1)  # type: ignore[union-attr]
        assert part.start[known].ne(0).all()  # known frames are those made before
        made = part.start.clone()  # type: ignore[union-attr]
        made[~known] = index + 1.0
        return made

    *steps, (x, made) = [(x.clone(), made) for x, made in windows(layout(sizes), run, most, told)]
    assert made == 23
    assert [m for _, m in steps] == [9, 15, 21]
    assert [entry[:3] for entry in seen] == [
        (0, [0, 1, 2, 3], [9, 9, 4, 9]),
        (1, [0, 3], [9, 9]),
        (2, [0], [9]),
        (3, [0], [9]),  # the last window ends with the sound, and is a whole one
    ]
    assert all(entry[2] == entry[3] for entry in seen)  # a window is told its own duration
    assert x[0, :, 0].tolist() == [1.0] * 9 + [2.0] * 6 + [3.0] * 6 + [4.0] * 2
    assert x[3, :15, 0].tolist() == [1.0] * 9 + [2.0] * 6
    for before, number in steps:
        assert torch.equal(before[0, :number], x[0, :number])


def test_a_window_without_anything_to_make_is_left_out() -> None:
    known = torch.zeros(1, 23, 2, dtype=torch.bool)
    known[:, :17] = True
    indices = []

    def run(part: Layout, index: int, rows: Sequence[int]) -> Tensor:
        indices.append(index)
        return torch.ones_like(part.start)  # type: ignore[arg-type]

    assert len(list(windows(layout([23], known), run, 9, told))) == 4
    assert indices == [2, 3]


@EVERY
def test_a_long_sound_has_the_length_asked_for_in_any_batch(
    model: Callable[..., Pipeline], representation: str
) -> None:
    pipe = model(representation)
    samples = pipe.sample(3, duration=[0.3, 2.0001, 1.1], seed=3, progress=False)
    assert [wave.samples.shape[1] for wave in samples] == [2400, 16001, 8800]
    (alone,) = pipe.sample(1, duration=2.0001, seed=samples.seeds[1:2], progress=False)
    # The label of one alone is drawn from the same clip, so it is the same sound.
    assert alone.values == samples[1].values
    np.testing.assert_allclose(alone.samples, samples[1].samples, atol=2e-4)
    levels = [np.sqrt((part**2).mean()) for part in np.array_split(samples[1].samples[0], 5)]
    assert min(levels) > 0.2 * max(levels) > 0


@pytest.mark.parametrize("representation", ["mel", "vocoder"])
def test_windows_leave_no_seam(model: Callable[..., Pipeline], representation: str) -> None:
    """Steps of the wave where windows meet are among those within them."""
    pipe: Any = model(representation)
    (wave,) = pipe.sample(1, duration=2.0, progress=False)
    most, hop = pipe.modality.most, pipe.modality.representation.hop
    steps = np.abs(np.diff(wave.samples[0]))
    stride = most - most // 3
    borders = [most + k * stride for k in range(4) if most + k * stride < 250]
    assert len(borders) == 4
    for border in borders:
        assert steps[border * hop - 1 : border * hop + 1].max() < np.quantile(steps, 0.999)


@EVERY
@pytest.mark.parametrize("duration", [0.2, 0.6, 2.0001])
def test_pieces_of_a_stream_are_the_sample(
    model: Callable[..., Pipeline], representation: str, duration: float
) -> None:
    pipe = model(representation)
    (whole,) = pipe.sample(1, duration=duration, seed=2, progress=False)
    pieces = list(pipe.stream(duration=duration, seed=2))
    assert len(pieces) == 1 if duration <= 0.6 else len(pieces) > 3
    assert all(piece.values == whole.values for piece in pieces)
    np.testing.assert_allclose(np.concatenate([p.samples for p in pieces], 1), whole.samples, atol=1e-5)


def test_a_stream_begins_before_the_sound_is_made(model: Callable[..., Pipeline]) -> None:
    pipe, calls = model("wave"), []
    hook = pipe.denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = pipe.stream(duration=2.0, steps=2)
        assert next(stream).samples.shape == (1, 4800)
        assert len(calls) == 2
        assert sum(piece.samples.shape[1] for piece in stream) == 16000 - 4800
        assert len(calls) == 10  # 250 frames are 5 windows
    finally:
        hook.remove()


@EVERY
def test_a_long_edit_keeps_what_is_kept_and_streams_it(
    model: Callable[..., Pipeline], tmp_path: Path, representation: str
) -> None:
    pipe = model(representation)
    path = write(tmp_path / "in.wav", clip(1.5))
    (wave,) = pipe.sample(1, input=path, inpaint=["0.2-0.25", "0.55-0.8", "1.4-1.5"], progress=False)
    own, kept = read(path).samples, np.ones(12000, bool)
    for start, stop in ((1600, 2000), (4400, 6400), (11200, 12000)):
        kept[start:stop] = False
    np.testing.assert_array_equal(wave.samples[:, kept], own[:, kept])
    assert all(np.abs(wave.samples - own)[0, span].max() > 1e-3 for span in (slice(1600, 2000), slice(4400, 6400)))
    pieces = list(pipe.stream(input=path, extend=1.0))
    (wave,) = pipe.sample(1, input=path, extend=1.0, progress=False)
    np.testing.assert_array_equal(np.concatenate([p.samples for p in pieces], 1), wave.samples)
    np.testing.assert_array_equal(wave.samples[:, :12000], own)
    (same,) = pipe.sample(1, input=path, strength=0, progress=False)
    np.testing.assert_array_equal(same.samples, own)


def test_a_decoder_without_a_finite_context_streams_at_the_end(
    model: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = model("vocoder")
    monkeypatch.setattr(pipe.modality.representation, "context", None)
    (whole,) = pipe.sample(1, duration=1.5, progress=False)
    (piece,) = pipe.stream(duration=1.5)
    np.testing.assert_allclose(piece.samples, whole.samples, atol=1e-5)


def test_ten_minutes_are_made_in_windows_and_decoded_in_pieces(
    model: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network call sees more than a window, and no call of the decoder more than a chunk and its context."""
    pipe: Any = model("wave", window=20.0)
    seen: list[int] = []
    hook = pipe.denoiser.network.embed.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    decode, decoded = pipe.modality.representation._decode, []
    monkeypatch.setattr(
        pipe.modality.representation, "_decode", lambda frames: decoded.append(frames.shape[1]) or decode(frames)
    )
    (wave,) = pipe.sample(1, duration=600, steps=1, progress=False)
    hook.remove()
    assert wave.samples.shape == (1, 4_800_000)
    assert set(seen) == {2500}
    assert len(seen) == 45
    assert max(decoded) <= _CHUNK
