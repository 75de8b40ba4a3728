"""Known pixels on the latent grid: where each one goes, and back."""

from __future__ import annotations

import pytest
import torch

from noiseloom.modalities.video.autoencoder import split
from noiseloom.modalities.video.known import given_cells, given_width


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 4, 4), (4, 8, 8), (3, 2, 5)])
@pytest.mark.parametrize("shape", [(1, 8, 10), (9, 16, 20), (5, 7, 9)])  # some of them fit, some do not
@pytest.mark.parametrize("colours", [1, 3])
def test_what_is_known_can_be_read_again_and_nothing_else(
    factors: tuple[int, int, int], shape: tuple[int, int, int], colours: int
) -> None:
    random = torch.Generator().manual_seed(0)
    frames = torch.rand(2, *shape, colours, generator=random) * 2 - 1
    known = torch.rand(2, *shape, generator=random) < 0.3
    cells = given_cells(frames, known, factors)
    ft, fh, fw = factors
    grid = (-(-(shape[0] - 1) // ft) + 1, -(-shape[1] // fh), -(-shape[2] // fw))
    width = given_width(factors, colours)
    assert cells.shape == (2, *grid, width)
    values, mask = (split(part, factors) for part in cells.split([width - ft * fh * fw, ft * fh * fw], dim=-1))
    place = (slice(None), slice(ft - 1, ft - 1 + shape[0]), slice(shape[1]), slice(shape[2]))
    assert torch.equal(mask[place][..., 0].bool(), known)
    assert torch.equal(values[place], torch.where(known[..., None], frames, 0))
    assert mask.sum() == known.sum()  # none beside the clip, or before it
    assert values.count_nonzero() == values[place].count_nonzero()


def test_places_in_a_position_are_in_the_order_of_time_height_width_colours() -> None:
    frames = torch.arange(5 * 2 * 2 * 3.0).view(1, 5, 2, 2, 3)
    cells = given_cells(frames, torch.ones(1, 5, 2, 2, dtype=torch.bool), (2, 2, 2))
    assert cells.shape == (1, 3, 1, 1, 32)
    first, second, _ = cells[0, :, 0, 0]
    assert first.tolist() == [0.0] * 12 + [*range(12)] + [0.0] * 4 + [1.0] * 4  # frame 0 alone, at the end
    assert second.tolist() == [*range(12, 36)] + [1.0] * 8


def test_nothing_known_is_zeros_whatever_the_frames_hold() -> None:
    frames = torch.full((1, 5, 8, 8, 1), torch.nan)
    assert not given_cells(frames, torch.zeros(1, 5, 8, 8, dtype=torch.bool), (4, 8, 8)).any()
