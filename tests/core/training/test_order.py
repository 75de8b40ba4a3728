"""Which items make up a batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from noiseloom.core.training import BatchOrder, held_out_batches
from noiseloom.core.training.batches import Batches

SIZES = torch.randint(3, 30, (103,), generator=torch.Generator().manual_seed(0)).tolist()


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    forward = BatchOrder(SIZES, 103, 10, seed=1)
    batches = [forward.batch(step) for step in range(40)]
    assert [BatchOrder(SIZES, 103, 10, seed=1).batch(step) for step in reversed(range(40))][::-1] == batches
    assert BatchOrder(SIZES, 103, 10, seed=2).batch(0) != batches[0]


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_no_item_occurs_twice_in_an_epoch_and_none_is_left_out_for_long(sizes: list[int] | None) -> None:
    order = BatchOrder(sizes, 103, 10, seed=0)
    assert order.per_epoch == 10
    epochs = [[item for step in range(e * 10, e * 10 + 10) for item in order.batch(step)] for e in range(8)]
    for epoch in epochs:
        assert len(set(epoch)) == 100
    assert epochs[0] != epochs[1]
    assert set().union(*epochs) == set(range(103))


def test_batches_hold_items_of_like_size_in_random_order() -> None:
    order = BatchOrder(SIZES, 103, 10, seed=0)
    batches = [[SIZES[i] for i in order.batch(step)] for step in range(10)]
    padding = sum(max(b) * len(b) - sum(b) for b in batches) / sum(map(sum, batches))
    shuffled = BatchOrder(None, 103, 10, seed=0)
    loose = [[SIZES[i] for i in shuffled.batch(step)] for step in range(10)]
    assert padding < 0.12
    assert sum(max(b) * len(b) - sum(b) for b in loose) / sum(map(sum, loose)) > 0.5
    assert [max(b) for b in batches] != sorted(max(b) for b in batches)
    # Neighbours in size do not always share a batch: ties and the items left out are random.
    assert sorted(order.batch(0)) not in [sorted(order.batch(step)) for step in range(10, 20)]


def test_equal_sizes_are_shuffled() -> None:
    order = BatchOrder([5] * 100, 100, 10, seed=0)
    assert {frozenset(order.batch(s)) for s in range(10)}.isdisjoint({frozenset(order.batch(s)) for s in range(10, 20)})


@pytest.mark.parametrize("sizes", [None, [5, 1, 3]])
def test_a_batch_larger_than_the_data_holds_each_item_equally_often(sizes: list[int] | None) -> None:
    order = BatchOrder(sizes, 3, 8, seed=0)
    batches = [order.batch(step) for step in range(20)]
    assert all(sorted(batch.count(item) for item in range(3)) == [2, 3, 3] for batch in batches)
    assert {batch.count(0) for batch in batches} == {2, 3}  # whose turn is left out changes
    assert [BatchOrder(sizes, 3, 8, seed=0).batch(step) for step in range(20)] == batches


def test_no_items_make_no_batch() -> None:
    with pytest.raises(ValueError, match="0 training items"):
        BatchOrder(None, 0, 4, seed=0)


def test_held_out_batches_are_always_the_same_items_and_drop_none() -> None:
    batches = held_out_batches(SIZES, 103, 8, 50, seed=0)
    assert batches == held_out_batches(SIZES, 103, 8, 50, seed=0)
    items = [item for batch in batches for item in batch]
    assert len(items) == len(set(items)) == 50
    assert [SIZES[i] for i in items] == sorted(SIZES[i] for i in items)
    assert sum(map(len, held_out_batches(None, 20, 8, 50, seed=0))) == 20
    # The cut into batches depends on the machine, the items do not.
    assert {i for b in held_out_batches(SIZES, 103, 3, 50, seed=0) for i in b} == set(items)


SHAPES = [(1, 8, 8)] * 50 + [(5, 8, 8)] * 23 + [(17, 8, 16)] * 7 + [(5, 4, 16)] * 12 + [(33, 64, 64)] * 2
SHAPES = [SHAPES[i] for i in torch.randperm(len(SHAPES), generator=torch.Generator().manual_seed(1)).tolist()]
TOKENS = 2000  # 31 images, 6 clips of 5 frames, 1 of 17; one of 33 although it is over the budget


def test_the_order_of_items_of_one_shape_has_not_changed() -> None:
    """Runs of earlier versions go on with the batches that they would have had."""
    assert BatchOrder(None, 20, 4, seed=3).batch(7) == [0, 8, 2, 16]
    assert BatchOrder(SIZES, 103, 5, seed=3).batch(25) == [37, 68, 0, 10, 79]
    same = BatchOrder(None, 20, 4, seed=3, shapes=[(2, 2)] * 20)
    assert [same.batch(step) for step in range(9)] == [BatchOrder(None, 20, 4, seed=3).batch(s) for s in range(9)]


@pytest.mark.parametrize("sizes", [None, [math.prod(shape) for shape in SHAPES]])
def test_a_batch_holds_one_shape_and_as_many_items_as_the_budget(sizes: list[int] | None) -> None:
    order = BatchOrder(sizes, len(SHAPES), 64, seed=0, shapes=SHAPES, tokens=TOKENS)
    most = {shape: max(TOKENS // math.prod(shape), 1) for shape in SHAPES}
    assert [most[s] for s in ((1, 8, 8), (5, 8, 8), (5, 4, 16), (17, 8, 16), (33, 64, 64))] == [31, 6, 6, 1, 1]
    assert order.per_epoch == 1 + 3 + 2 + 7 + 2
    epochs = []
    for epoch in range(12):
        batches = [order.batch(epoch * order.per_epoch + step) for step in range(order.per_epoch)]
        for batch in batches:
            (shape,) = {SHAPES[item] for item in batch}
            assert len(batch) == most[shape]
        items = [item for batch in batches for item in batch]
        assert len(set(items)) == len(items) == 31 + 18 + 12 + 7 + 2
        epochs.append(batches)
    assert set().union(*(batch for batches in epochs for batch in batches)) == set(range(len(SHAPES)))
    plans = {tuple(SHAPES[batch[0]] for batch in batches) for batches in epochs}
    assert len(plans) > 6  # shapes do not come in the same order
    again = BatchOrder(sizes, len(SHAPES), 64, seed=0, shapes=SHAPES, tokens=TOKENS)
    assert [again.batch(step) for step in (40, 3)] == [order.batch(step) for step in (40, 3)]
    assert "17x8x16: 7 items, 7 batches of 1" in str(order).splitlines()


def test_without_a_budget_batches_of_every_shape_are_as_large() -> None:
    order = BatchOrder(None, len(SHAPES), 5, seed=0, shapes=SHAPES)
    batches = [order.batch(step) for step in range(order.per_epoch)]
    assert {len(batch) for batch in batches} == {5}
    assert all(len({SHAPES[item] for item in batch}) == 1 for batch in batches)
    # A shape with fewer items than a batch is not left out: its items are repeated.
    (rare,) = [batch for batch in batches if SHAPES[batch[0]] == (33, 64, 64)]
    assert sorted(Counter(rare).values()) == [2, 3]


def test_processes_and_parts_divide_every_batch() -> None:
    class Data:
        sizes = None

        def __len__(self) -> int:
            return len(SHAPES)

        def example(self, indices: Any, generators: Any) -> list[int]:
            assert len(indices) == len(generators)
            return list(indices)

    shapes = [shape for shape in SHAPES if math.prod(shape) < 1000]
    order = BatchOrder(None, len(shapes), 64, 0, shapes, TOKENS)
    ranks = [Batches(Data(), order, 0, rank, 2, 3, order.per_epoch) for rank in (0, 1)]
    for step in range(order.per_epoch):
        shares = [batches.pieces(step) for batches in ranks]
        pieces = [example for share, _ in shares for example, _ in share]
        assert [item for piece in pieces for item in piece] == order.batch(step)
        assert all(pieces)
        assert {count for _, count in shares} == {len(order.batch(step))}
    for batches in ranks:
        batches.close()
    whole = BatchOrder(None, len(SHAPES), 64, 0, SHAPES, TOKENS)
    with pytest.raises(ValueError, match=r"1 items cannot be divided among 2 .*17x8x16.*trainer.tokens to 270336 or"):
        Batches(Data(), whole, 0, 0, 2, 1, 1)
    BatchOrder(None, len(SHAPES), 64, 0, SHAPES, 270336).check(2)
    with pytest.raises(ValueError, match=r"raise trainer.batch_size to 9 or more"):
        BatchOrder(None, 100, 8, 0).check(9)
    with pytest.raises(ValueError, match=r"trainer.tokens is for data that gives shapes"):
        BatchOrder(None, 100, 8, 0, tokens=50)


def test_held_out_batches_hold_one_shape_too() -> None:
    batches = held_out_batches(None, len(SHAPES), 64, 80, seed=0, shapes=SHAPES, tokens=TOKENS)
    assert all(len({SHAPES[item] for item in batch}) == 1 for batch in batches)
    assert max(len(batch) * math.prod(SHAPES[batch[0]]) for batch in batches if len(batch) > 1) <= TOKENS
    items = [item for batch in batches for item in batch]
    assert len(set(items)) == len(items) == 80
    assert {i for b in held_out_batches(None, len(SHAPES), 64, 80, seed=0) for i in b} == set(items)
