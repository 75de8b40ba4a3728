"""Videos longer than the network has learned: windows cover every frame, keep what is known, and finish in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.spaces import Euclidean
from noiseloom.modalities.modality import Layout
from noiseloom.modalities.video.windows import VideoLayout, starts, windows


@pytest.mark.parametrize("frames", [1, 8, 9, 10, 14, 20, 64])
@pytest.mark.parametrize("history", [1, 4, 8])
def test_windows_cover_every_frame_and_go_on_from_the_one_before(frames: int, history: int) -> None:
    window = 9
    begins = starts(frames, window, history)
    ends = [min(start + window, frames) for start in begins]
    assert begins[0] == 0
    assert ends[-1] == frames
    for before, start, end in zip(ends, begins[1:], ends[1:], strict=False):
        assert start <= before - history  # it knows as many as it should
        assert end > before  # and adds some
    assert len(begins) == 1 + max(-(-(frames - window) // (window - history)), 0)


class Fake:
    """A run whose latents are the frames: window k is filled with k + 1, and what it was told is kept."""

    def __init__(self, batch: int, frames: int, window: int, history: int, strength: float = 1.0) -> None:
        random = torch.Generator().manual_seed(0)
        self.frames = torch.rand(batch, frames, 2, 3, 1, generator=random)
        self.seen = torch.zeros(batch, frames, 2, 3, dtype=torch.bool)
        self.window, self.history, self.strength = window, history, strength
        self.calls: list[tuple[int, list[int], Layout]] = []

    def run(self, part: Layout, index: int, rows: Sequence[int]) -> Tensor:
        self.calls.append((index, list(rows), part))
        return torch.full_like(part.start, index + 1.0)  # type: ignore[arg-type]

    def pieces(self) -> list[tuple[Tensor, int]]:
        batch, frames = self.seen.shape[:2]
        start = torch.zeros(batch, min(frames, self.window), 2, 3, 1)
        own: dict[str, Any] = {"frames": self.frames, "seen": self.seen, "fps": 8.0, "values": [{}] * batch}
        own |= {"history": self.history, "strength": self.strength}
        layout = VideoLayout(start, Euclidean(), {"label": torch.arange(batch)}, **own)
        made = windows(
            layout,
            self.run,
            self.window,
            lambda x, known: {"given": torch.where(known[..., None], x, 0)},
            lambda x: x + 100,
            lambda latents, count: latents[:, :count],
        )
        return [(x.clone(), finished) for x, finished in made]


def test_each_window_is_told_what_the_one_before_made() -> None:
    fake = Fake(2, 15, window=7, history=3)
    pieces = fake.pieces()
    assert [finished for _, finished in pieces] == [7, 11, 15]
    whole = pieces[-1][0]
    assert whole[0, :, 0, 0, 0].tolist() == [1.0] * 7 + [2.0] * 4 + [3.0] * 4
    for k, (index, rows, part) in enumerate(fake.calls):
        assert (index, rows) == (k, [0, 1])
        assert part.cond["label"].tolist() == [0, 1]
        expected = torch.zeros(7)
        if k:
            expected[:3] = k
        assert torch.equal(part.cond["given"][0, :, 0, 0, 0], expected)
    for frames, finished in pieces:  # what is finished stays
        assert torch.equal(frames[:, :finished], whole[:, :finished])


def test_known_pixels_are_kept_to_the_bit() -> None:
    fake = Fake(2, 15, window=7, history=3)
    fake.seen[:, :, 0, 1:] = True
    fake.seen[1, [0, 12]] = True
    whole = fake.pieces()[-1][0]
    assert torch.equal(whole[fake.seen], fake.frames[fake.seen])
    assert (whole[~fake.seen] % 1 == 0).all()
    given = fake.calls[2][2].cond["given"]  # frames 8 to 14: known, made before (8 to 10), or neither
    assert torch.equal(given[1, 4], fake.frames[1, 12])
    assert given[1, 3, 0, 0] == 0
    assert torch.equal(given[:, 3, 0, 1:], fake.frames[:, 11, 0, 1:])


def test_what_is_known_is_not_sampled() -> None:
    fake = Fake(2, 15, window=7, history=3)
    fake.seen[0, :12] = True
    pieces = fake.pieces()
    assert [(index, rows) for index, rows, _ in fake.calls] == [(0, [1]), (1, [1]), (2, [0, 1])]
    assert [part.cond["label"].tolist() for _, _, part in fake.calls] == [[1], [1], [0, 1]]
    assert torch.equal(pieces[-1][0][0, :12], fake.frames[0, :12])
    fake.seen[:] = True
    fake.calls.clear()
    assert torch.equal(fake.pieces()[-1][0], fake.frames)
    assert fake.calls == []


def test_variations_start_from_their_own_frames() -> None:
    fake = Fake(1, 11, window=7, history=3, strength=0.5)
    fake.pieces()
    first, second = (part for _, _, part in fake.calls)
    assert first.strength == second.strength == 0.5
    assert torch.equal(first.start, fake.frames[:, :7] + 100)  # type: ignore[arg-type]
    assert torch.equal(second.start[:, 3:], fake.frames[:, 7:] + 100)  # type: ignore[index]
    assert (second.start[:, :3] == 101).all()  # type: ignore[index]


def test_a_short_video_is_one_window() -> None:
    fake = Fake(3, 4, window=7, history=3)
    ((frames, finished),) = fake.pieces()
    assert (frames.shape[1], finished) == (4, 4)
    assert fake.calls[0][2].start.shape[1] == 4  # type: ignore[union-attr]
