"""Masks of known pixels in closed form, and how often training draws each."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from noiseloom.core.randomness import generator
from noiseloom.modalities.video import tasks
from noiseloom.modalities.video.tasks import SHARES, random_known


def test_frames_that_are_known() -> None:
    assert tasks.first(4).tolist() == [True, False, False, False]
    assert tasks.first_last(4).tolist() == [True, False, False, True]
    assert tasks.beginning(4, 3).tolist() == [True, True, True, False]
    assert tasks.every(7, 3).tolist() == [True, False, False, True, False, False, True]
    assert tasks.every(4, 9).tolist() == tasks.first(4).tolist()
    assert tasks.first_last(1).tolist() == [True]


def test_pixels_that_are_known() -> None:
    known = tasks.everywhere(tasks.first_last(3), 2, 5)
    assert known.shape == (3, 2, 5)
    assert known.flatten(1).all(1).tolist() == [True, False, True]
    assert known.sum() == 20
    inside = tasks.box((2, 4, 6), top=1, left=2, height=2, width=3, inside=True)
    assert torch.equal(inside[0], inside[1])
    assert inside[0].int().tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0] * 6]
    assert torch.equal(tasks.box((2, 4, 6), 1, 2, 2, 3, inside=False), ~inside)


def kind(known: Tensor) -> str:
    """The task that a drawn mask is of; predictions from one frame look like "image"."""
    if not known.any():
        return "nothing"
    whole = known.flatten(1).all(1)
    if not torch.equal(known.flatten(1).any(1), whole):  # part of a frame
        corners = known[0, [0, 0, -1, -1], [0, -1, 0, -1]]
        rows, columns = (int(known[0].any(axis).sum()) for axis in (1, 0))
        filled = int(known[0].sum()) == rows * columns  # a box is known, or all but a box
        return "outpaint" if filled and not corners.all() else "inpaint"
    places = torch.nonzero(whole).flatten()
    if len(places) == 1:
        return "image"
    steps = set(places.diff().tolist())
    if steps == {1}:
        return "predict"
    return "first_last" if places.tolist() == [0, len(known) - 1] else "interpolate"


def drawn(shape: tuple[int, int, int], rate: float, count: int = 2000) -> list[Tensor]:
    return [random_known(shape, generator(7, index), rate) for index in range(count)]


@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_tasks_are_drawn_as_often_as_they_should(rate: float) -> None:
    masks = drawn((9, 12, 12), rate)
    counts = Counter(map(kind, masks))
    expected = {name: rate * share for name, share in SHARES.items()} | {"nothing": 1 - rate}
    single = expected["predict"] / 14  # 1 of 8 lengths, half as often as those within
    expected["image"] += single
    expected["predict"] -= single
    for name, share in expected.items():
        deviation = (share * (1 - share) / len(masks)) ** 0.5
        assert abs(counts[name] / len(masks) - share) <= 4 * deviation, (name, counts)
    assert sum(SHARES.values()) == pytest.approx(1)
    lengths = {int(mask.flatten(1).all(1).sum()) for mask in masks if kind(mask) == "predict"}
    assert lengths == {2, 3, 4, 5, 6, 7, 8}
    strides = {int(torch.nonzero(m.flatten(1).all(1))[1]) for m in masks if kind(m) == "interpolate"}
    assert strides == {2, 3}
    sides = {int(m[0].any(1).sum()) for m in masks if kind(m) == "outpaint"}
    assert sides == set(range(3, 10))  # a quarter to three quarters


def test_nothing_and_always() -> None:
    assert not torch.stack(drawn((5, 4, 4), 0.0, 100)).any()
    assert torch.stack(drawn((5, 4, 4), 1.0, 100)).flatten(1).any(1).all()


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_something_is_always_left_to_make(frames: int) -> None:
    masks = drawn((frames, 4, 6), 1.0, 400)
    assert not torch.stack(masks).flatten(1).all(1).any()
    kinds = Counter(map(kind, masks))
    if frames == 1:  # an image has no frame to go on from
        assert kinds.keys() == {"inpaint", "outpaint"}
        assert 0.04 < kinds["outpaint"] / 400 < 0.16
    else:
        assert {"image", "inpaint", "outpaint"} < kinds.keys() | {"predict"}


def test_a_mask_is_its_generators_own() -> None:
    one, again, other = (random_known((9, 8, 8), generator(seed), 1.0) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_only_tasks_with_a_share_are_drawn() -> None:
    masks = [random_known((9, 12, 12), generator(7, i), 1.0, {"predict": 3.0, "inpaint": 1.0}) for i in range(400)]
    counts = Counter(map(kind, masks))
    assert counts.keys() <= {"predict", "image", "inpaint"}  # of which one known frame is as "image" has it
    assert 70 <= counts["inpaint"] <= 130
