"""Masks by identity: the oracle compares texts, groups and lists in plain loops; scores have no part in it but a margin's."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from forked_ranks import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from test_guarded import BOTH, HARDNESS, MODES, Table, embeddings, score, value_and_gradients
from torch import nn

from gcbs_st.losses import GuardedMultipleNegativesRankingLoss, identity
from gcbs_st.losses.identity import RowIdentities
from gcbs_st.rows.training_set import RowFacts
from gcbs_st.training.identities import KnownRows
from gcbs_st.training.loss_states import find_identity_losses

CPU = torch.device("cpu")
NAMES = ["anchor", "positive", "negative_1", "negative_2"]


class Rows:
    """Rows of few different texts, with groups and listed right answers."""

    def __init__(self, count: int, columns: int, seed: int = 0, words: int = 12) -> None:
        rng = np.random.default_rng(seed)
        self.texts = [[f"w{word}" for word in rng.integers(0, words, columns)] for _ in range(count)]
        self.groups = [None if rng.random() < 0.5 else int(rng.integers(0, 4)) for _ in range(count)]
        self.listed = [tuple(f"w{word}" for word in rng.integers(0, words, rng.integers(0, 3))) for _ in range(count)]

    def known_to(self, loss: Any) -> KnownRows:
        """Tells a loss what is known of these rows, as the trainer does."""
        by_column = dict(zip(NAMES, map(list, zip(*self.texts, strict=True)), strict=False))
        return KnownRows(loss, {"": Dataset.from_dict(by_column)}, {"": RowFacts(self.groups, self.listed)})

    def related(self, i: int, j: int) -> bool:
        """Whether two rows are no negatives of each other."""
        mine, theirs = set(self.texts[i][:2]), set(self.texts[j][:2])
        same_group = self.groups[i] is not None and self.groups[i] == self.groups[j]
        return bool(same_group or mine & theirs or mine & set(self.listed[j]) or theirs & set(self.listed[i]))

    def is_false(self, i: int, j: int, column: int) -> bool:
        """Whether a text of row j is no negative of row i."""
        if column < 2:
            return self.related(i, j)
        return self.texts[j][column] in {*self.texts[i][:2], *self.listed[i]}


def oracle(columns, rows, ids, mode, *, margin=None, spare=True, hardness=None, strength=0.0, scale=20.0):
    """(loss, share masked, share masked by identity): the definition, row by row and candidate by candidate."""
    losses, masked, identical, negatives = [], 0, 0, 0
    for i, (query, doc) in enumerate(zip(columns[0], columns[1], strict=True)):
        positive = score("cos", query, doc)
        pools = []
        for direction in mode[0]:
            pools.append([])
            source = query if direction.startswith("query") else doc
            for c in range(1, len(columns)) if direction.endswith("doc") else [0]:
                for j, text in enumerate(columns[c]):
                    if i == j and direction in ("query_to_query", "doc_to_doc"):
                        continue
                    value = score("cos", source, text)
                    logit = scale * value
                    if i != j or c > 1:
                        negatives += 1
                        known = rows.is_false(ids[i], ids[j], c) and (i != j or not spare)
                        passes = margin is not None and value.item() > positive.item() - (1 - margin) * abs(
                            positive.item()
                        )
                        identical += known
                        if known or (passes and (i != j or not spare)):
                            masked += 1
                            continue
                        weighted = {"in_batch_negatives": i != j, "hard_negatives": i == j, "all_negatives": True}
                        if direction == "query_to_doc" and weighted.get(hardness):
                            logit = logit + strength * value.detach()
                    pools[-1].append(logit)
        pools = [sum(pools, [])] if mode[1] == "joint" else pools
        losses.append(sum(torch.stack(pool).logsumexp(0) for pool in pools) / len(pools) - scale * positive)
    count = max(negatives, 1)
    return sum(losses) / len(losses), masked / count, identical / count


def assert_is_oracle(loss, rows, ids, columns, mode, **options):
    """The loss, its gradients and both shares are the oracle's; the share that is masked by identity."""
    expected, share, identical = oracle(columns, rows, ids, mode, **options)
    with rows.known_to(loss).telling(np.array(ids)):
        value, gradients = value_and_gradients(loss, columns)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-9)
    expected_gradients = torch.autograd.grad(expected, columns, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradients, list(expected_gradients), rtol=1e-8, atol=1e-9)
    assert (share, identical) == (loss.last_masked, loss.last_identical)
    return identical


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("spare", [True, False], ids=["spare", "guard"])
@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("margin", [None, 0.9])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join([*mode[0], mode[1]]))
def test_every_option_does_what_the_oracle_does(mode, margin, columns, spare, loss_class):
    """All directions, with negatives and without, spared or not, by identity alone or by scores as well."""
    more = {"mini_batch_size": 2} if loss_class is BOTH[1] else {}
    loss = loss_class(
        Table(), margin=margin, mask_by_identity=True, guard_hard_negatives=not spare, directions=mode[0],
        partition_mode=mode[1], **more,
    )  # fmt: skip
    rows, ids = Rows(20, columns, seed=3), [7, 2, 19, 0, 11]
    identical = assert_is_oracle(loss, rows, ids, embeddings(5, columns), mode, margin=margin, spare=spare)
    assert 0 < identical < 1
    assert margin is None or identical < loss.last_masked


@settings(max_examples=60)
@given(
    count=st.integers(1, 6),
    columns=st.integers(2, 4),
    words=st.integers(1, 30),
    mode=st.sampled_from(MODES),
    margin=st.sampled_from([None, 0.9]),
    hardness=st.sampled_from(HARDNESS),
    spare=st.booleans(),
    loss_class=st.sampled_from(BOTH),
    seed=st.integers(0, 1000),
)
def test_any_batch_is_as_the_oracle_says(count, columns, words, mode, margin, hardness, spare, loss_class, seed):
    """From rows of one and the same text to rows that share hardly any, in any order of any ids."""
    rows, ids = Rows(8, columns, seed, words), np.random.default_rng(seed).permutation(8)[:count].tolist()
    more = {"mini_batch_size": 3} if loss_class is BOTH[1] else {}
    loss = loss_class(
        Table(), margin=margin, mask_by_identity=True, guard_hard_negatives=not spare, directions=mode[0],
        partition_mode=mode[1], hardness_mode=hardness, hardness_strength=2.0, **more,
    )  # fmt: skip
    options = {"margin": margin, "spare": spare, "hardness": hardness, "strength": 2.0}
    assert_is_oracle(loss, rows, ids, embeddings(count, columns, seed=seed), mode, **options)


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), columns=st.integers(2, 4), margin=st.sampled_from([None, 0.9]))
def test_what_is_masked_moves_no_row(seed, columns, margin):
    """The loss of a row alone has no gradient for a text that is masked for it, and one for every other negative."""
    rows, ids = Rows(30, columns, seed), np.random.default_rng(seed).permutation(30)[:5].tolist()
    for i in range(5):
        # Row i's own loss: of a batch whose other rows contribute none, by weighting the per-row losses.
        loss = GuardedMultipleNegativesRankingLoss(Table(), margin=margin, mask_by_identity=True)
        batch = embeddings(5, columns, seed=seed)
        with rows.known_to(loss).telling(np.array(ids)), loss.guard.watch(MODES[0][0], columns - 1, 5, gathered=False):
            scores = loss.similarity_fct(batch[0], torch.cat(batch[1:]))[i]
        (scores[i] - (20 * scores).logsumexp(0)).backward()
        for c, j in itertools.product(range(1, columns), range(5)):
            moved = bool((batch[c].grad[j] != 0).any())
            spared = i == j
            if rows.is_false(ids[i], ids[j], c) and not spared:
                assert not moved, "it is masked"
            elif margin is None:
                assert moved, "it is a negative, or the row's own"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"anchor": "a", "positive": "p"}, {"anchor": "a", "positive": "q"}, True),
        ({"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "p"}, True),
        ({"anchor": "a", "positive": "p"}, {"anchor": "p", "positive": "q"}, True),
        ({"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "q"}, False),
        ({"anchor": "a", "positive": "p", "group": 7}, {"anchor": "b", "positive": "q", "group": 7}, True),
        ({"anchor": "a", "positive": "p", "group": 7}, {"anchor": "7", "positive": "q"}, False),
        ({"anchor": "a", "positive": "p", "group": None}, {"anchor": "b", "positive": "q", "group": None}, False),
        ({"anchor": "a", "positive": "p", "listed": ["q"]}, {"anchor": "b", "positive": "q"}, True),
        ({"anchor": "a", "positive": "p", "listed": ["b"]}, {"anchor": "b", "positive": "q"}, True),
        ({"anchor": "a", "positive": "p", "listed": ["x"]}, {"anchor": "b", "positive": "q", "listed": ["x"]}, False),
        ({"anchor": "", "positive": "p"}, {"anchor": "", "positive": "q"}, True),
    ],
    ids=[
        "anchor", "positive", "a chain", "nothing", "group", "a group is no text", "no group", "a listed positive",
        "a listed anchor", "both list a third", "empty texts",
    ],
)  # fmt: skip
def test_which_rows_are_no_negatives_of_each_other(first, second, expected):
    """By each fact alone, in both directions."""
    rows = Rows(2, 2)
    rows.texts = [[row["anchor"], row["positive"]] for row in (first, second)]
    rows.groups = [row.get("group") for row in (first, second)]
    rows.listed = [tuple(row.get("listed", ())) for row in (first, second)]
    loss = GuardedMultipleNegativesRankingLoss(nn.Identity(), margin=None, mask_by_identity=True)
    with rows.known_to(loss).telling(np.array([0, 1])):
        loss.compute_loss_from_embeddings(embeddings(2, 2), None)
    assert float(expected) == loss.last_masked == loss.last_identical
    assert expected == rows.related(0, 1)


def test_a_row_of_its_own_texts_is_trained():
    """Anchor and positive are one text, as in unsupervised training: the pair stays, alone and beside its copy."""
    rows = Rows(2, 2)
    rows.texts, rows.groups, rows.listed = [["a", "a"], ["a", "a"]], [1, 1], [("a",), ()]
    for ids in ([0], [0, 1]):
        loss = GuardedMultipleNegativesRankingLoss(nn.Identity(), margin=None, mask_by_identity=True)
        with rows.known_to(loss).telling(np.array(ids)):
            value, gradients = value_and_gradients(loss, embeddings(len(ids), 2))
        assert [0.0] * 3 == pytest.approx([value.item(), *(one.abs().max().item() for one in gradients)], abs=1e-9)


def test_pairs_are_found_in_pieces(monkeypatch):
    """A batch of one group has more pairs than are looked at once: nothing is left out at the seams."""
    rows = Rows(40, 3, words=4)
    loss = GuardedMultipleNegativesRankingLoss(nn.Identity(), mask_by_identity=True)
    rows.known_to(loss)
    batch = loss.guard.identities.of(np.arange(39, -1, -1))
    whole = batch.related(3, 40, CPU), batch.false_texts(3, 40, 1, CPU)
    expected = [[rows.related(39 - i, 39 - j) for j in range(40)] for i in range(3, 40)]
    assert expected == (whole[0] | torch.eye(40, dtype=torch.bool)[3:]).tolist()
    for pairs in (1, 2, 7, 100):
        monkeypatch.setattr(identity, "_PAIRS", pairs)
        assert torch.equal(whole[0], batch.related(3, 40, CPU))
        assert torch.equal(whole[1], batch.false_texts(3, 40, 1, CPU))


def test_rows_of_which_nothing_is_shared():
    """No rows, no entries, and values that nobody shares: nothing is masked, and ids out of range are refused."""
    none = np.zeros(0, np.int64)
    for identities in (
        RowIdentities(3, none, none, none),
        RowIdentities(3, np.arange(3), np.arange(3), np.zeros(3, int)),
    ):
        assert not identities.of(np.array([2, 0])).related(0, 2, CPU).any()
        assert not identities.of(np.array([2, 0])).false_texts(0, 2, 2, CPU).any()
    for wrong in ([0, 3], [-1]):
        with pytest.raises(ValueError, match="expected ids below 3"):
            identities.of(np.array(wrong))


@pytest.mark.parametrize("loss_class", BOTH)
def test_other_rows_or_columns_than_are_known_are_refused(loss_class):
    """Ids of another batch, and a collator that took a column of negatives away."""
    rows, loss = Rows(12, 4), loss_class(Table(), margin=None, mask_by_identity=True)
    with rows.known_to(loss).telling(np.arange(4)):
        with pytest.raises(ValueError, match="row_ids: got 4 ids for a batch of 5 rows"):
            value_and_gradients(loss, embeddings(5, 4))
        with pytest.raises(ValueError, match="embeddings of 1 columns of negatives, but the training set has 2"):
            value_and_gradients(loss, embeddings(4, 3))


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("margin", [None, 0.9])
def test_without_ids_it_says_so_once(loss_class, margin, caplog):
    """In training it warns, once, and masks by score alone; in evaluation it says nothing."""
    loss, plain = loss_class(Table(), margin=margin, mask_by_identity=True), loss_class(Table(), margin=margin)
    loss.model.eval()
    with caplog.at_level(logging.WARNING, "gcbs_st"):
        value_and_gradients(loss, embeddings(6, 2))
        assert not caplog.records
        loss.model.train()
        found = [value_and_gradients(loss, embeddings(6, 2)) for _ in range(2)]
    (record,) = caplog.records
    assert ("nothing is masked" if margin is None else "by score alone is masked") in record.message
    for one in found:
        torch.testing.assert_close(one, value_and_gradients(plain, embeddings(6, 2)), rtol=0, atol=0)
    assert plain.last_masked == loss.last_masked and 0.0 == loss.last_identical


def test_by_default_ids_change_nothing():
    """A loss that does not mask by identity is told nothing, and masks by score alone though it knows the rows."""
    rows, loss = Rows(12, 2), GuardedMultipleNegativesRankingLoss(Table(), margin=0.9)
    expected = value_and_gradients(loss, embeddings(6, 2))
    assert [] == find_identity_losses(loss) == rows.known_to(loss).losses
    other = GuardedMultipleNegativesRankingLoss(Table(), mask_by_identity=True)
    rows.known_to(other)
    loss.prepare(other.guard.identities)
    loss.set_rows(np.arange(6))
    torch.testing.assert_close(value_and_gradients(loss, embeddings(6, 2)), expected, rtol=0, atol=0)
    assert (False, True) == tuple(one.get_config_dict()["mask_by_identity"] for one in (loss, other))


@pytest.mark.parametrize("loss_class", BOTH)
def test_inside_matryoshka_all_dimensionalities_have_its_mask(loss_class):
    """The sum over dimensionalities of the loss of the cut embeddings, and the wrapper is looked into."""
    rows, ids, model = Rows(20, 2), [4, 8, 1, 0, 13], Table()
    features = [
        {"input_ids": torch.randint(0, 12, (5, 2), generator=torch.Generator().manual_seed(s))} for s in (0, 1)
    ]
    base = loss_class(model, margin=None, mask_by_identity=True)
    loss = MatryoshkaLoss(model, base, [6, 2], [1, 0.5])
    known = rows.known_to(loss)
    assert [base] == known.losses
    with known.telling(np.array(ids)):
        total = loss(features, None)
    columns = [Table()(one)["sentence_embedding"] for one in features]
    expected = sum(
        weight * oracle([column[:, :cut] for column in columns], rows, ids, MODES[0])[0]
        for cut, weight in ((6, 1), (2, 0.5))
    )
    assert expected.item() == pytest.approx(total.item(), rel=1e-9)
    assert base.last_identical > 0


def test_a_shared_loss_knows_the_rows_of_several_datasets():
    """Ids are those of the concatenated datasets; one whose loss does not ask is left out."""
    asking = GuardedMultipleNegativesRankingLoss(Table(), margin=None, mask_by_identity=True)
    other = GuardedMultipleNegativesRankingLoss(Table(), margin=None)
    texts = Dataset.from_dict({"anchor": ["a", "b", "a"], "positive": ["p", "q", "r"]})
    parts = {"first": texts, "second": texts, "third": texts}
    known = KnownRows({"first": asking, "second": other, "third": asking}, parts, {})
    assert [asking] == known.losses and 9 == len(asking.guard.identities)
    for ids, expected in (([0, 1, 2], 2 / 6), ([8, 7, 6], 2 / 6), ([3, 4, 5], 0.0)):
        with known.telling(np.array(ids)):
            asking.compute_loss_from_embeddings(embeddings(3, 2), None)
        assert expected == asking.last_masked
    known.close()
    assert asking.guard.identities is None and asking.guard.row_ids is None


# ---------------------------------------------------------------- two processes


GATHERED = [5, 0, 17, 9, 2, 11]


def gathered_cases(**options: Any) -> dict[str, tuple[Any, list[torch.Tensor]]]:
    """Losses by name, each with the six rows of a batch."""
    cases = {}
    for number, (mode, margin) in enumerate(itertools.product([MODES[0], MODES[7], MODES[9]], [None, 0.9])):
        modes = {
            "directions": mode[0],
            "partition_mode": mode[1],
            "margin": margin,
            "mask_by_identity": True,
            **options,
        }
        cases[f"plain{number}"] = (BOTH[0](Table(), **modes), embeddings(6, 3))
        cases[f"cached{number}"] = (BOTH[1](Table(), mini_batch_size=2, **modes), embeddings(6, 3))
    return cases


def one_rank(folder: Path) -> None:
    """What one of two processes does: the losses of its half of the rows, saved to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, results = torch.distributed.get_rank(), {}
    for case, (loss, columns) in gathered_cases(gather_across_devices=True).items():
        own = [column.detach()[rank * 3 : rank * 3 + 3].requires_grad_() for column in columns]
        with Rows(20, 3, seed=3).known_to(loss).telling(np.array(GATHERED[rank * 3 : rank * 3 + 3])):
            value, gradients = value_and_gradients(loss, own)
        results[case] = (value, gradients, loss.last_masked, loss.last_identical)
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_mask_as_one_does(tmp_path):
    """Ids are gathered in the order of the embeddings: the mean of both is the oracle of the whole batch."""
    run_ranks(one_rank, 2, tmp_path, folder=tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    rows = Rows(20, 3, seed=3)
    for case, (loss, columns) in gathered_cases().items():
        mode = (loss.directions, loss.partition_mode)
        expected, share, identical = oracle(columns, rows, GATHERED, mode, margin=loss.margin)
        first, second = (rank[case] for rank in ranks)
        torch.testing.assert_close((first[0] + second[0]) / 2, expected.detach(), rtol=1e-9, atol=1e-9)
        gradients = torch.autograd.grad(expected, columns, allow_unused=True, materialize_grads=True)
        found = [torch.cat(halves) / 2 for halves in zip(first[1], second[1], strict=True)]
        torch.testing.assert_close(found, list(gradients), rtol=1e-8, atol=1e-9)
        shares = [(one + other) / 2 for one, other in zip(first[2:], second[2:], strict=True)]
        assert [share, identical] == pytest.approx(shares)
        assert identical > 0
