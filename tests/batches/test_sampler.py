"""The sampler's promises: full batches, each row at most once an epoch, whatever is swapped in meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import batches_with_a_value_twice
from torch.utils.data import DataLoader

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.batches.shared_values import SharedValues


class Rows:
    """Stands for a dataset of which only the length counts."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


def make_sampler(n: int = 23, batch_size: int = 4, **options: Any) -> PlannedBatchSampler:
    """A sampler over n rows."""
    return PlannedBatchSampler(Rows(n), batch_size, **options)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), n=st.integers(1, 120), seed=st.integers(0, 2**32 - 1))
def test_each_row_at_most_once_an_epoch(data: st.DataObject, n: int, seed: int) -> None:
    """Over epochs with any number of re-plans at any time, all batches are full and no row comes twice."""
    batch_size = data.draw(st.integers(1, n), label="batch_size")
    epochs = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3), label="epochs")
    sampler = make_sampler(n, batch_size, seed=seed)
    rng = np.random.default_rng(seed)
    for epoch in epochs:
        sampler.begin_epoch(epoch)
        replans = data.draw(st.sets(st.integers(0, n // batch_size)), label="re-plan after batches")
        drawn: list[list[int]] = []
        batches = iter(sampler)
        while True:
            if len(drawn) in replans:
                # Re-plans may keep some of the next batches in their place, as the ranks' remainder is kept.
                start = int(rng.integers(len(drawn), len(sampler) + 1))
                before = [list(batch) for batch in drawn]
                sampler.replace_tail(rng.permutation(sampler.order[start * batch_size :]), start)
                assert before == sampler.order[: len(drawn) * batch_size].reshape(-1, batch_size).tolist()
            batch = next(batches, None)
            if batch is None:
                break
            drawn.append(batch)
            assert len(drawn) == sampler.cursor
        rows = [row for batch in drawn for row in batch]
        assert [batch_size] * (n // batch_size) == [len(batch) for batch in drawn]
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(range(n))
        assert n // batch_size == len(sampler)


@given(n=st.integers(1, 60), batch_size=st.integers(1, 60), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 9))
def test_same_seed_and_epoch_draw_the_same(n: int, batch_size: int, seed: int, epoch: int) -> None:
    """The random order follows from seed and epoch alone, not from the epochs before or a generator."""
    batch_size = min(batch_size, n)
    first = make_sampler(n, batch_size, seed=seed)
    second = make_sampler(n, batch_size, seed=seed, generator=torch.Generator().manual_seed(3))
    second.begin_epoch(epoch + 1)
    list(second)
    first.begin_epoch(epoch)
    second.begin_epoch(epoch)
    assert list(first) == list(second)


def test_seed_and_epoch_matter() -> None:
    """Another seed or another epoch draws another order."""
    orders = set()
    for seed in range(3):
        sampler = make_sampler(100, 10, seed=seed)
        for epoch in range(3):
            sampler.begin_epoch(epoch)
            orders.add(tuple(sampler.order.tolist()))
    assert 9 == len(orders)


def test_remainder_differs_between_epochs() -> None:
    """The rows that fill no batch are others in other epochs, so that none is left out for good."""
    sampler = make_sampler(23, 4)
    left_out = []
    for epoch in range(30):
        sampler.begin_epoch(epoch)
        drawn = {row for batch in sampler for row in batch}
        left_out.append(set(range(23)) - drawn)
    assert [3] * 30 == [len(rows) for rows in left_out]
    assert 20 < len({frozenset(rows) for rows in left_out})
    assert set(range(23)) == set().union(*left_out)
    assert set() == set.intersection(*left_out)


def test_shared_generator_is_not_drawn_from() -> None:
    """The generator that all samplers of a run share, and all global ones, stay as they are."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = generator.get_state().tolist(), torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002
    sampler = make_sampler(generator=generator)
    sampler.begin_epoch(1)
    list(sampler)
    sampler.rng(1).random()
    after = generator.get_state().tolist(), torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002
    assert before == after


def test_iter_has_no_effect_before_the_first_batch() -> None:
    """Making an iterator changes nothing; the cursor moves when a batch is asked for."""
    sampler = make_sampler()
    first = iter(sampler)
    next(first)
    next(first)
    other = iter(sampler)
    assert 2 == sampler.cursor
    next(first)
    assert 3 == sampler.cursor
    assert sampler.order[:4].tolist() == next(other)
    assert 1 == sampler.cursor


def test_order_is_read_when_a_batch_is_asked_for() -> None:
    """A tail that is swapped in takes effect with the very next batch, drawn ones keep their place."""
    sampler = make_sampler(12, 4)
    batches = iter(sampler)
    first = next(batches)
    tail = sampler.order[4:][::-1].copy()
    sampler.replace_tail(tail, 1)
    assert [tail[:4].tolist(), tail[4:].tolist()] == list(batches)
    assert first == sampler.order[:4].tolist()


def test_iterating_again_restarts() -> None:
    """A second pass hands out the same batches from the first on, also after a broken-off one."""
    sampler = make_sampler()
    expected = list(sampler)
    next(iter(sampler))
    assert expected == list(sampler)
    assert 5 == len(expected)


def test_batches_are_lists_of_ints() -> None:
    """What the host's loaders and the accelerator expect."""
    batch = next(iter(make_sampler()))
    assert [list] + [int] * 4 == [type(batch), *map(type, batch)]


def test_set_epoch_does_nothing() -> None:
    """The host's call, which may come late or not at all, changes neither order nor epoch."""
    sampler = make_sampler()
    sampler.begin_epoch(2)
    next(batches := iter(sampler))
    before = sampler.order.tolist(), sampler.epoch, sampler.cursor
    sampler.set_epoch(7)
    assert before == (sampler.order.tolist(), sampler.epoch, sampler.cursor)
    assert 4 == len(list(batches))


def test_drawn_batches_are_not_replaced() -> None:
    """Replacing what was already drawn raises, and changes nothing."""
    sampler = make_sampler(12, 4)
    batches = iter(sampler)
    next(batches), next(batches)
    before = sampler.order.tolist()
    with pytest.raises(ValueError, match="start: got batch 1, but 2 batches are already drawn"):
        sampler.replace_tail(sampler.order[4:], 1)
    assert before == sampler.order.tolist()
    assert 0 == sampler.plan_count


@pytest.mark.parametrize(
    "change",
    [
        lambda tail: tail[:-1],
        lambda tail: np.append(tail, 0),
        lambda tail: np.append(tail[:-1], tail[0]),
        lambda tail: np.append(tail[:-1], 12),
        lambda tail: np.append(tail[:-1], -1),
    ],
    ids=["fewer", "more", "twice", "unknown", "negative"],
)
def test_foreign_rows_are_refused(change: Any) -> None:
    """A tail of other rows than those that stand there raises, and changes nothing."""
    sampler = make_sampler(12, 4)
    before = sampler.order.tolist()
    with pytest.raises(ValueError, match=r"order: \d rows that are not the 8 rows behind batch 1"):
        sampler.replace_tail(change(sampler.order[4:].copy()), 1)
    assert before == sampler.order.tolist()


def test_rows_of_the_remainder_are_foreign() -> None:
    """A row that was left out of the epoch may not come in by a plan."""
    sampler = make_sampler(13, 4)
    left_out = (set(range(13)) - set(sampler.order.tolist())).pop()
    tail = sampler.order[4:].copy()
    tail[0] = left_out
    with pytest.raises(ValueError, match="order: 8 rows that are not the 8 rows behind batch 1"):
        sampler.replace_tail(tail, 1)


def test_plans_are_counted_within_the_epoch() -> None:
    """plan_count counts the tails of this epoch."""
    sampler = make_sampler()
    for expected in (1, 2):
        sampler.replace_tail(sampler.order[::-1].copy(), 0)
        assert expected == sampler.plan_count
    sampler.begin_epoch(1)
    assert (0, 1, 0) == (sampler.plan_count, sampler.epoch, sampler.cursor)


def test_tail_is_copied() -> None:
    """What the caller does with his array afterwards changes no plan."""
    sampler = make_sampler()
    tail = sampler.order[::-1].copy()
    expected = tail.tolist()
    sampler.replace_tail(tail, 0)
    tail[:] = 0
    assert expected == sampler.order.tolist()


def test_rng_follows_seed_epoch_and_purpose() -> None:
    """The same numbers for the same seed, epoch and purpose; others for any other."""

    def draw(seed: int, epoch: int, *purpose: int) -> float:
        sampler = make_sampler(seed=seed)
        sampler.begin_epoch(epoch)
        return sampler.rng(*purpose).random()

    assert draw(1, 2, 3, 4) == draw(1, 2, 3, 4)
    assert 5 == len({draw(1, 2, 3, 4), draw(0, 2, 3, 4), draw(1, 0, 3, 4), draw(1, 2, 0, 4), draw(1, 2, 3, 0)})


# ------------------------------------------------------------------ state


@given(cursor=st.integers(0, 5), epoch=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_state_round_trip(cursor: int, epoch: int, seed: int) -> None:
    """A new sampler with the state draws the same batches from the epoch's start, and plans on alike."""
    sampler = make_sampler(seed=seed)
    sampler.begin_epoch(epoch)
    batches = iter(sampler)
    drawn = [next(batches) for _ in range(cursor)]
    sampler.replace_tail(np.random.default_rng(seed).permutation(sampler.order[4 * cursor :]), cursor)
    state = sampler.state_dict()
    drawn += list(batches)
    resumed = make_sampler(seed=seed)
    resumed.load_state_dict(state)
    assert (epoch, 1, 0) == (resumed.epoch, resumed.plan_count, resumed.cursor)
    assert drawn == list(resumed)
    assert sampler.rng(0, 1).random() == resumed.rng(0, 1).random()


def test_state_is_a_copy() -> None:
    """Later plans change neither a state that was taken nor one that was loaded from."""
    sampler = make_sampler()
    state = sampler.state_dict()
    expected = state["order"].tolist()
    resumed = make_sampler()
    resumed.load_state_dict(state)
    for changed in (sampler, resumed):
        changed.replace_tail(changed.order[::-1].copy(), 0)
    assert expected == state["order"].tolist()


ORDER = make_sampler().order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 24}, "its rows is 24, but this run has 23"),
        ({"batch_size": 5}, "its batch_size is 5, but this run has 4"),
        ({"seed": 1}, "its seed is 1, but this run has 0"),
        ({"order": ORDER[:-1]}, r"its order is int64 of shape \(19,\), expected int64 of \(20,\)"),
        ({"order": ORDER.reshape(5, 4)}, r"its order is int64 of shape \(5, 4\)"),
        ({"order": ORDER.astype(float)}, r"its order is float64 of shape"),
        ({"order": np.append(ORDER[:-1], ORDER[0])}, r"its order holds a row twice or a row outside 0\.\.22"),
        ({"order": np.append(ORDER[:-1], 23)}, r"its order holds a row twice or a row outside 0\.\.22"),
        ({"order": np.append(ORDER[:-1], -1)}, r"its order holds a row twice or a row outside 0\.\.22"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_state_of_another_run_is_refused(change: dict[str, Any], message: str) -> None:
    """A state of other rows, batch size or seed, or with a damaged order, raises and changes nothing."""
    sampler = make_sampler()
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**before, "epoch": 3, **change})
    after = sampler.state_dict()
    assert before.pop("order").tolist() == after.pop("order").tolist()
    assert before == after


@pytest.mark.parametrize("key", ["order", "epoch", "plan_count", "batch_size", "rows", "seed"])
def test_state_without_a_part_is_refused(key: str) -> None:
    """A state that lacks something raises ValueError like any other that cannot be taken, and changes nothing."""
    sampler = make_sampler()
    before = sampler.state_dict()
    state = {**before, "epoch": 3}
    del state[key]
    with pytest.raises(ValueError, match=f"it has no {key}"):
        sampler.load_state_dict(state)
    assert (0, before["order"].tolist()) == (sampler.epoch, sampler.order.tolist())


# ------------------------------------------------------------------ construction


def test_fewer_rows_than_a_batch_are_refused() -> None:
    """The message says how many rows there are and what to do."""
    with pytest.raises(ValueError, match=r"has 3 rows but a batch takes 4.*per_device_train_batch_size to 3 or less"):
        make_sampler(3, 4)
    assert [[0, 1, 2]] == [sorted(batch) for batch in make_sampler(3, 3)]


def test_shared_values_are_kept_apart_in_every_epoch() -> None:
    """With shared values no batch holds one twice, and batches stay full."""
    values = np.arange(40) // 2
    sampler = make_sampler(40, 6, shared_values=SharedValues(np.arange(40), values))
    for epoch in range(20):
        sampler.begin_epoch(epoch)
        for batch in sampler:
            assert 6 == len({int(values[row]) for row in batch})


def test_rows_that_are_hard_to_separate_are_separated_in_every_epoch() -> None:
    """No random order of these is separated by single exchanges alone."""
    pairs = [[4, 7], [8, 2], [5, 8], [6, 6], [0, 3], [5, 5], [1, 0], [6, 5], [8, 1], [3, 7], [4, 2], [2, 3]]
    sampler = make_sampler(12, 4, shared_values=SharedValues(np.repeat(np.arange(12), 2), np.array(pairs).ravel()))
    for epoch in range(60):
        sampler.begin_epoch(epoch)
        assert [] == batches_with_a_value_twice(np.array(pairs), sampler.order, 4)
        assert list(range(12)) == sorted(sampler.order.tolist())


def test_rows_that_no_batches_keep_apart_are_drawn_all_the_same() -> None:
    """Each row once per epoch; who minds is told by the trainer."""
    sampler = make_sampler(10, 2, shared_values=SharedValues(np.arange(10), np.zeros(10, int)))
    assert list(range(10)) == sorted(sampler.order.tolist())


# ------------------------------------------------------------------ loader


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_draws_batches_in_order(workers: int) -> None:
    """Under torch's DataLoader the rows come in the sampler's batches and order, epoch after epoch."""
    rows = Dataset.from_dict({"row": list(range(23))})
    sampler = PlannedBatchSampler(rows, 4)
    loader = DataLoader(rows, batch_sampler=sampler, num_workers=workers)
    assert 5 == len(loader)
    for epoch in range(2):
        sampler.begin_epoch(epoch)
        sampler.set_epoch(9)
        sampler.replace_tail(np.random.default_rng(epoch).permutation(sampler.order), 0)
        expected = sampler.order.reshape(5, 4).tolist()
        assert expected == [batch["row"].tolist() for batch in loader]


def test_workers_do_not_draw_replaced_batches() -> None:
    """What workers fetched ahead counts as drawn: a tail behind the cursor reaches the loader whole."""
    rows = Dataset.from_dict({"row": list(range(60))})
    sampler = PlannedBatchSampler(rows, 4)
    drawn = []
    for batch in DataLoader(rows, batch_sampler=sampler, num_workers=2, prefetch_factor=2):
        drawn.append(batch["row"].tolist())
        if len(drawn) == 3:
            assert len(drawn) <= sampler.cursor < len(sampler)
            tail = np.random.default_rng(0).permutation(sampler.order[4 * sampler.cursor :])
            sampler.replace_tail(tail, sampler.cursor)
    assert sampler.order.reshape(15, 4).tolist() == drawn
