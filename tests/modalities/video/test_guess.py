"""What is known of a clip, held or moved on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noiseloom.modalities.video.guess import drift, held, moved


def moving(step: tuple[int, int], frames: int = 12, size: tuple[int, int] = (48, 64)) -> Tensor:
    """(1, frames, *size, 1): a part of a larger smooth picture, which moves by so many pixels a frame."""
    noise = torch.rand(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.avg_pool2d(noise, 9, 1, 4)[0, 0] * 4 - 2
    (down, right), (height, width) = step, size
    cuts = [picture[70 - down * t :, 60 - right * t :][:height, :width] for t in range(frames)]
    return torch.stack(cuts)[None, ..., None]


def first(count: int, frames: Tensor) -> Tensor:
    return (torch.arange(frames.shape[1]) < count).view(1, -1, 1, 1).expand(frames.shape[:4])


def test_unknown_pixels_hold_what_is_known_at_the_nearest_time() -> None:
    frames = torch.arange(1.0, 7).view(1, 6, 1, 1, 1).expand(1, 6, 1, 2, 1)
    known = torch.zeros(1, 6, 1, 2, dtype=torch.bool)
    known[0, [1, 4], 0, 0] = True
    assert held(frames, known)[0, :, 0, :, 0].tolist() == [[2, 0], [2, 0], [2, 0], [5, 0], [5, 0], [5, 0]]


@pytest.mark.parametrize("step", [(0, 0), (2, -1), (-1, 3), (0, 4)])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_drift_of_known_frames(step: tuple[int, int], count: int) -> None:
    frames = moving(step)
    assert drift(frames, first(count, frames))[0].tolist() == pytest.approx(step, abs=0.26)


def test_what_moves_goes_on_moving() -> None:
    frames = moving((2, -1))
    known = first(6, frames)
    guess = moved(frames, known)
    assert torch.equal(guess[:, :6], frames[:, :6])
    inner = slice(14, -14)  # what has come in since is not known
    assert torch.allclose(guess[:, 6:, inner, inner], frames[:, 6:, inner, inner], atol=2e-3)
    error, still = ((g - frames)[:, 6:].square().mean() for g in (guess, held(frames, known)))
    assert error < still / 5


def test_clips_of_a_batch_move_by_themselves_and_ahead_of_what_is_known_too() -> None:
    frames = torch.cat((moving((1, 2)), moving((0, -3))))
    known = (torch.arange(12) >= 6).view(1, -1, 1, 1).expand(frames.shape[:4])
    both = moved(frames, known)
    for clip in (0, 1):
        assert torch.allclose(both[clip], moved(frames[clip : clip + 1], known[:1])[0], atol=1e-6)
    assert torch.allclose(both[:, :6, 20:-20, 20:-20], frames[:, :6, 20:-20, 20:-20], atol=2e-3)


def test_what_says_nothing_of_motion_is_held() -> None:
    frames = moving((2, 2))
    part = torch.zeros(frames.shape[:4], dtype=torch.bool)
    part[:, :, 10:20, 10:20] = True
    for known in (first(1, frames), first(0, frames), part):
        assert torch.equal(moved(frames, known), held(frames, known))
    blank = torch.zeros_like(frames)
    assert torch.equal(moved(blank, first(6, frames)), blank)
