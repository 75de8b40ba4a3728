"""Which items make up a batch."""

from __future__ import annotations

import pytest
import torch

from noiseloom.core.training import BatchOrder, held_out_batches

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
