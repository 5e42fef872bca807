"""Tests of what shares of an epoch's steps several datasets get, and of batches that are made of sub-batches."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.batches.steps import StepBatches, WholeSteps
from gcbs_st.batches.weighted import WeightedBatches, shares_of, whole_steps_of

B = 4


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 2.0])
def test_a_power_of_the_sizes(power):
    """Against the definition, summed in plain Python."""
    steps = {"a": 3, "b": 50, "c": 1, "d": 700}
    total = sum(n**power for n in steps.values())
    expected = [n**power / total for n in steps.values()]
    assert expected == pytest.approx(shares_of(power, steps).tolist())


def test_weights_by_name_are_taken_by_name():
    """In whatever order they were given, of any size; nothing of a dataset with weight 0, and more than nothing else."""
    steps = {"a": 3, "b": 50, "none": 0}
    assert [0.2, 0.8, 0.0] == pytest.approx(shares_of({"none": 0, "b": 4e300, "a": 1e300}, steps).tolist())
    assert (shares_of({"a": 1e-320, "b": 1e300, "none": 0}, steps) > 0).tolist() == [True, True, False]
    assert (shares_of(1e6, {"a": 1, "b": 2}) > 0).all()


@pytest.mark.parametrize("weights", [1.0, 0.0, {"a": 1, "tiny": 0.1}])
def test_rows_for_no_step_are_refused(weights):
    """By name, unless nothing is wanted of them."""
    with pytest.raises(ValueError, match="^dataset_weights: got a share for 'tiny', whose rows do not fill"):
        shares_of(weights, {"a": 3, "tiny": 0})


def best_counts(shares, steps):
    """The whole numbers nearest to the exact ones by the sum of squares, of all that sum to the steps."""
    exact = [share * steps for share in shares]
    choices = itertools.product(range(steps + 1), repeat=len(shares) - 1)
    every = [(*counts, steps - sum(counts)) for counts in choices if sum(counts) <= steps]
    return min(sum((count - one) ** 2 for count, one in zip(counts, exact, strict=True)) for counts in every)


@settings(max_examples=60)
@given(st.lists(st.floats(1, 20), min_size=1, max_size=4), st.integers(4, 20))
def test_whole_steps_are_the_nearest(weights, steps):
    """Against all ways to give the steps away, wherever each dataset has a step by its share."""
    shares = np.array(weights) / sum(weights)
    counts = whole_steps_of(shares, steps)
    assert steps == counts.sum() and (counts > 0).all()
    if (shares * steps >= 1).all():
        assert (np.abs(counts - shares * steps) < 1).all()
        found = float(((counts - shares * steps) ** 2).sum())
        assert best_counts(shares, steps) == pytest.approx(found, abs=1e-6)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any), st.integers(6, 60))
def test_each_dataset_has_a_step(weights, steps):
    """If it is wanted at all; and one that is not has none."""
    counts = whole_steps_of(np.array(weights) / sum(weights), steps)
    assert steps == counts.sum()
    assert [weight > 0 for weight in weights] == (counts > 0).tolist()


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_power_one_gives_each_its_own_steps(steps):
    """To the step, so that no dataset starts over for a rounding error."""
    shares = shares_of(1.0, {str(i): count for i, count in enumerate(steps)})
    assert steps == whole_steps_of(shares, sum(steps)).tolist()


def test_fewer_steps_than_datasets_are_refused():
    """Each should have one."""
    with pytest.raises(ValueError, match="^steps: got 2 an epoch for 3 datasets"):
        whole_steps_of(np.full(3, 1 / 3), 2)


# ---------------------------------------------------------------- passes over the rows


@settings(max_examples=50)
@given(st.integers(B, 40), st.integers(1, 30), st.integers(0, 3))
def test_each_row_once_a_pass(rows, batches, epoch):
    """An epoch of any length: full batches, in each pass no row twice, and all but n % B rows in a whole one."""
    sampler = PlannedBatchSampler(make_pairs(rows), B, seed=1)
    sampler.draw_an_epoch(batches)
    sampler.begin_epoch(epoch)
    drawn = list(sampler)
    assert batches == len(sampler) == len(drawn) and {B} == set(map(len, drawn))
    a_pass = rows // B
    orders = []
    for number in range(sampler.passes):
        part = sampler.batches_of_pass(number)
        assert part == range(number * a_pass, min((number + 1) * a_pass, batches))
        order = [row for batch in drawn[part.start : part.stop] for row in batch]
        assert len(set(order)) == len(order)
        orders.append(tuple(order))
    assert batches == sum(len(order) for order in orders) // B
    if rows >= 12:
        assert len(set(orders)) == len(orders), "a pass repeats another"


def test_a_part_of_a_pass_is_of_other_rows_in_each_epoch():
    """And its first pass is that of a sampler which draws all."""
    whole, part = (PlannedBatchSampler(make_pairs(40), B, seed=1) for _ in range(2))
    part.draw_an_epoch(3)
    seen = set()
    for epoch in range(60):
        whole.begin_epoch(epoch)
        part.begin_epoch(epoch)
        assert list(whole)[:3] == list(part)
        seen |= {row for batch in part for row in batch}
    assert set(range(40)) == seen


def test_a_pass_is_of_whole_steps():
    """Of three batches each: the seventh batch's rows wait for another epoch."""
    sampler = PlannedBatchSampler(make_pairs(7 * B), B, seed=1)
    sampler.draw_an_epoch(15, 3)
    assert (6, 3) == (sampler.pass_batches, sampler.passes)
    for batches, step in ((14, 3), (0, 1), (8, 8)):
        with pytest.raises(ValueError, match="^batches: got"):
            sampler.draw_an_epoch(batches, step)


def test_the_state_of_several_passes():
    """Goes into another sampler, and not into one whose passes are others; a row twice in a pass is damage."""
    sampler, other = (PlannedBatchSampler(make_pairs(11), B, seed=1) for _ in range(2))
    sampler.draw_an_epoch(5)
    sampler.begin_epoch(3)
    sampler.passes_planned = 2
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="its order is"):
        other.load_state_dict(state)
    other.draw_an_epoch(5)
    other.load_state_dict(state)
    assert list(sampler) == list(other) and 2 == other.passes_planned
    twice = state["order"].copy()
    twice[B * 2] = twice[B * 2 + 1]
    with pytest.raises(ValueError, match="holds a row twice"):
        other.load_state_dict({**state, "order": twice})


# ---------------------------------------------------------------- batches of several datasets

SIZES = [41, 22, 12]


def samplers(*kinds, ranks=1):
    """One for each dataset: planned, or the host's."""
    made, generator = [], torch.Generator()
    for number, (size, kind) in enumerate(zip(SIZES, kinds, strict=True)):
        rows = make_pairs(size, seed=number)
        options = {"batch_size": B, "drop_last": True, "valid_label_columns": [], "generator": generator, "seed": 1}
        if kind == "planned":
            made.append(PlannedBatchSampler(rows, B, seed=1))
        elif kind == "random":
            made.append(DefaultBatchSampler(RandomSampler(rows, generator=generator), **options))
        else:
            made.append(NoDuplicatesBatchSampler(rows, **options))
    return generator, [one if ranks == 1 else WholeSteps(one, ranks) for one in made]


def mixed(kinds, weights, ranks=1, sizes=SIZES):
    """The batches of the datasets by weights."""
    generator, made = samplers(*kinds, ranks=ranks)
    shares = shares_of(weights, {str(i): len(one) for i, one in enumerate(made)})
    return WeightedBatches(sizes, made, shares, seed=7, generator=generator)


def by_dataset(batches):
    """(dataset, rows in it) of each batch."""
    ends = np.cumsum(SIZES)
    found = []
    for batch in batches:
        of = {int(np.searchsorted(ends, row, side="right")) for row in batch}
        assert 1 == len(of), "a batch of two datasets"
        (index,) = of
        found.append((index, [row - int(ends[index]) + SIZES[index] for row in batch]))
    return found


@pytest.mark.parametrize("kinds", list(itertools.product(["planned", "random", "no duplicates"], repeat=3))[::5])
@pytest.mark.parametrize("weights", [1.0, 0.3, 0, {"0": 1, "1": 2, "2": 4}, {"0": 0, "1": 1, "2": 5}])
@pytest.mark.parametrize("ranks", [1, 2])
def test_shares_of_what_is_drawn(kinds, weights, ranks):
    """Counted of the batches themselves: each dataset its share to within a step, its rows once a pass, in two epochs."""
    mixer = mixed(kinds, weights, ranks)
    steps = [size // B // ranks for size in SIZES]
    given = [weights[str(i)] if isinstance(weights, dict) else n**weights for i, n in enumerate(steps)]
    sequences = []
    for epoch in (0, 1):
        mixer.begin_epoch(epoch)
        drawn = by_dataset(mixer)
        assert len(mixer) == len(drawn) == sum(steps)
        counted = Counter(index for index, _ in drawn)
        for index in range(3):
            exact = sum(steps) * given[index] / sum(given)
            assert abs(counted[index] - exact) < 1, (index, counted, exact)
            rows = [row for of, batch in drawn if of == index for row in batch]
            a_pass = steps[index] * ranks * B
            for start in range(0, len(rows), a_pass):
                assert len(set(rows[start : start + a_pass])) == len(rows[start : start + a_pass])
            passes = [tuple(rows[start : start + a_pass]) for start in range(0, len(rows) - a_pass + 1, a_pass)]
            assert len(set(passes)) == len(passes), "it starts over in the same order"
        shares = mixer.shares_until(5)
        assert [sum(of == index for of, _ in drawn[:5]) / 5 for index in range(3)] == pytest.approx(shares.tolist())
        assert drawn == by_dataset(mixer), "an epoch is replayed"
        sequences.append([of for of, _ in drawn])
    assert sequences[0] != sequences[1]


def test_the_order_is_of_seed_and_epoch_alone():
    """Whatever another run drew before, and whatever global seeds are."""
    kinds = ("planned", "random", "no duplicates")
    first, other = mixed(kinds, 0.5), mixed(kinds, 0.5)
    list(other)
    torch.manual_seed(99)
    for mixer in (first, other):
        mixer.begin_epoch(4)
    # The planned one's epoch is the trainer's to begin.
    assert list(first) == list(other)
    other.set_epoch(0)
    assert 4 == other.epoch


def test_a_sampler_that_yields_nothing_ends_no_training_silently():
    """The host's promise of batches that do not come."""

    class Empty(BatchSampler):
        def __iter__(self):
            return iter(())

    broken = Empty(SequentialSampler(range(8)), B, drop_last=True)
    mixer = WeightedBatches([8], [broken], np.ones(1), seed=0)
    with pytest.raises(RuntimeError, match="^Empty has 2 batches by its length, but yields none"):
        list(mixer)


# ---------------------------------------------------------------- sub-batches


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_sub_batches_of_one_step_are_of_the_same_datasets(ranks, parts):
    """On all ranks; each rank's rows of a sub-batch are its own, and all that is drawn is what the mixer drew."""
    mixer = mixed(("planned", "no duplicates", "random"), {"0": 1, "1": 1, "2": 2}, ranks)
    steps = by_dataset(mixer)
    batches = StepBatches(mixer, B, ranks, parts)
    drawn = list(batches)
    assert len(batches) == len(drawn) == len(steps) // parts * ranks
    assert {B * parts} == set(map(len, drawn)) and B * parts == batches.batch_size
    for step in range(len(drawn) // ranks):
        of_ranks = drawn[step * ranks : (step + 1) * ranks]
        for part in range(parts):
            cut = by_dataset(batch[part * B : (part + 1) * B] for batch in of_ranks)
            index, rows = steps[step * parts + part]
            assert [index] * ranks == [of for of, _ in cut]
            assert rows == [row for _, batch in cut for row in batch]
