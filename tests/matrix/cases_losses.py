"""Losses: of the host, of ours, and of the user."""

from __future__ import annotations

import copy
from typing import Any

import torch
from conftest import make_static_model
from sentence_transformers.sentence_transformer import losses

from gcbs_st import EMC2Loss
from gcbs_st.losses import CachedGuardedMultipleNegativesRankingLoss, GuardedMultipleNegativesRankingLoss, SogCLRLoss
from matrix.case import Case, Run
from matrix.materials import OwnLoss, bert, labelled, scored, triplets, unlike_sets
from matrix.watching import calls, given_columns, inputs_of_loss, passes, widths

MNRL = losses.MultipleNegativesRankingLoss
CACHED = losses.CachedMultipleNegativesRankingLoss
ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
BOTH = ("query_to_doc", "doc_to_query")


def differs_from_plain(run: Run) -> None:
    """With the options the loss of the first batch is another one than without; the same as it was, with them."""
    features, labels, value, state = run.watched[0]
    model = make_static_model()
    model.load_state_dict(state)
    own, plain = run.trainer.loss, MNRL(model)
    own.model = model
    with torch.no_grad():
        again, without = float(own(features, labels)), float(plain(features, labels))
    assert abs(again - value) < 1e-5 * max(1, abs(value)), f"{again} is not {value}"
    assert abs(without - value) > 1e-3, f"{without}, as without the options"


def called_each_batch(times: int) -> Any:
    """Checks that the watched module is called so many times a batch."""

    def check(run: Run) -> None:
        batches = len(run.by_rank[0])
        assert times * batches == len(run.watched), f"{len(run.watched)} calls, {batches} batches"

    return check


def widths_are(expected: set[int]) -> Any:
    """Checks that the loss saw embeddings of these widths, each as often as the others."""

    def check(run: Run) -> None:
        assert expected == set(run.watched), f"widths {set(run.watched)}"
        counts = {width: run.watched.count(width) for width in expected}
        assert 1 == len(set(counts.values())), counts

    return check


def both_widths(run: Run) -> None:
    """The loss saw whole and cut embeddings."""
    assert {16, 8} == set(run.watched), f"widths {set(run.watched)}"


def in_mini_batches(run: Run) -> None:
    """Gradient caching: each text passes twice, without gradients and with them, in passes of a few texts."""
    training = [note for note in run.watched if note["training"]]
    assert {False, True} == {note["gradients"] for note in training}
    assert max(note["texts"] for note in training) < 2 * run.case.planned_size
    texts = {grad: sum(note["texts"] for note in training if note["gradients"] is grad) for grad in (False, True)}
    assert texts[False] == texts[True], texts


def both_losses(trainer: Any) -> dict[str, list[float]]:
    """What the losses of both datasets gave, in training."""
    noted: dict[str, list[float]] = {}
    for name, loss in trainer.loss.items():
        noted[name] = calls(lambda _, loss=loss: loss)(trainer)
    return noted


def each_its_own(run: Run) -> None:
    """Each dataset's loss was called for the batches of that dataset alone."""
    rank = int(torch.distributed.get_rank()) if run.place.ranks > 1 else 0
    names = [name for _, _, name, _ in run.by_rank[rank]]
    assert {name: names.count(name) for name in ("first", "second")} == {
        name: len(values) for name, values in run.watched.items()
    }


def masks(run: Run) -> None:
    """The share of masked negatives is logged, and at this margin some are masked and some are not."""
    shares = run.logged("gcbs/masked")
    assert shares and 0 < sum(shares) / len(shares) < 1, shares


def states_moved(run: Run) -> None:
    """The loss was told which rows it saw: the states of those rows, and of no other, changed."""
    state = run.trainer.loss.row_state()
    assert state, "the loss keeps no state"
    drawn = {row for batches in run.by_rank for *_, rows in batches for row in rows}
    assert len(drawn) > 80
    kept = [
        one.reshape(len(one), -1) for one in state.values() if one.ndim and len(one) == len(run.trainer.train_dataset)
    ]
    different = [len({tuple(one[row].tolist()) for row in drawn}) for one in kept]
    assert max(different) > len(drawn) // 2, f"{different} different states of {len(drawn)} rows"


def guide(model: Any) -> Any:
    """A model like this one with other word vectors, which says what is no negative."""
    other = copy.deepcopy(model)
    words = other[0].auto_model.embeddings.word_embeddings.weight
    words.data = torch.randn(words.shape, generator=torch.Generator().manual_seed(1))
    return other


LABELLED = given_columns(2, labels=True)
# Losses that contrast no rows of a batch: the host's own batches, no plan, and one warning that says so.
UNPLANNED = {"host_batches": True, "planned_from": None, "verify": False, "steps": (24, 10), "save_at": (16, 7)}

CASES = [
    Case("MultipleNegativesRankingLoss", watch=calls(lambda t: t.loss), check=called_each_batch(1), quick=True),
    Case(
        "... all four directions, joint",
        loss=lambda model: MNRL(model, directions=ALL_DIRECTIONS),
        watch=inputs_of_loss, check=differs_from_plain,
    ),
    Case(
        "... two directions, each with its own softmax",
        loss=lambda model: MNRL(model, directions=BOTH, partition_mode="per_direction"),
        watch=inputs_of_loss, check=differs_from_plain,
    ),
    *[
        Case(
            f"... hardness_mode={mode}",
            rows=triplets, loss=lambda model, m=mode: MNRL(model, hardness_mode=m, hardness_strength=5.0),
            watch=inputs_of_loss, check=differs_from_plain,
        )
        for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
    ],
    Case(
        "MultipleNegativesSymmetricRankingLoss",
        loss=losses.MultipleNegativesSymmetricRankingLoss, watch=inputs_of_loss, check=differs_from_plain,
    ),
    Case(
        "CachedMultipleNegativesRankingLoss",
        model=bert, rows=triplets, loss=lambda model: CACHED(model, mini_batch_size=3),
        watch=passes, check=in_mini_batches, quick=True,
    ),
    Case(
        "CachedMultipleNegativesSymmetricRankingLoss",
        model=bert, loss=lambda model: losses.CachedMultipleNegativesSymmetricRankingLoss(model, mini_batch_size=3),
        watch=passes, check=in_mini_batches,
    ),
    Case(
        "GISTEmbedLoss",
        model=bert, loss=lambda model: losses.GISTEmbedLoss(model, guide(model)),
        watch=calls(lambda t: t.loss.guide), check=called_each_batch(2),
    ),
    Case(
        "CachedGISTEmbedLoss",
        model=bert, loss=lambda model: losses.CachedGISTEmbedLoss(model, guide(model), mini_batch_size=3),
        watch=passes, check=in_mini_batches,
    ),
    Case("CoSENTLoss, scored pairs", rows=scored, loss=losses.CoSENTLoss, **LABELLED, **UNPLANNED),
    Case("AnglELoss, scored pairs", rows=scored, loss=losses.AnglELoss, **LABELLED, **UNPLANNED),
    Case("CosineSimilarityLoss, scored pairs", rows=scored, loss=losses.CosineSimilarityLoss, **LABELLED, **UNPLANNED),
    Case(
        "MatryoshkaLoss",
        loss=lambda model: losses.MatryoshkaLoss(model, MNRL(model), [16, 8, 4]),
        watch=widths(lambda t: t.loss.loss), check=widths_are({16, 8, 4}), quick=True,
    ),
    Case(
        "MatryoshkaLoss around a cached loss",
        model=bert, loss=lambda model: losses.MatryoshkaLoss(model, CACHED(model, mini_batch_size=3), [16, 8]),
        watch=widths(lambda t: t.loss.loss), check=widths_are({16, 8}),
    ),
    Case(
        "AdaptiveLayerLoss",
        model=bert, loss=lambda model: losses.AdaptiveLayerLoss(model, MNRL(model)),
        watch=calls(lambda t: t.loss.loss), check=called_each_batch(2),
    ),
    Case(
        "Matryoshka2dLoss",
        model=bert, loss=lambda model: losses.Matryoshka2dLoss(model, MNRL(model), [16, 8]),
        watch=widths(lambda t: t.loss.loss.loss),
        check=both_widths,
    ),
    Case(
        "a loss for each dataset",
        rows=unlike_sets, loss=lambda model: {"first": MNRL(model), "second": losses.CoSENTLoss(model)},
        watch=both_losses, check=each_its_own, columns=("anchor", "positive"), steps=(24, 8), save_at=(14, 6),
        host_batches=True, arguments={"multi_dataset_batch_sampler": "round_robin"}, quick=True,
    ),
    Case(
        "GuardedMultipleNegativesRankingLoss",
        loss=lambda model: GuardedMultipleNegativesRankingLoss(model, margin=0.5), check=masks,
    ),
    Case(
        "CachedGuardedMultipleNegativesRankingLoss",
        model=bert,
        loss=lambda model: CachedGuardedMultipleNegativesRankingLoss(model, margin=0.98, mini_batch_size=3),
        watch=passes, check=lambda run: (masks(run), in_mini_batches(run)),
    ),
    Case("EMC2Loss", loss=EMC2Loss, check=states_moved),
    Case("SogCLRLoss", loss=SogCLRLoss, check=states_moved),
    Case("a loss of your own", loss=OwnLoss, watch=calls(lambda t: t.loss), check=called_each_batch(1)),
    Case("MegaBatchMarginLoss", model=bert, loss=lambda model: losses.MegaBatchMarginLoss(model, mini_batch_size=3)),
    Case("TripletLoss", rows=triplets, loss=losses.TripletLoss, **given_columns(3), **UNPLANNED),
    Case("ContrastiveLoss, labelled pairs", rows=labelled, loss=losses.ContrastiveLoss, **LABELLED, **UNPLANNED),
    Case("OnlineContrastiveLoss, labelled pairs", rows=labelled, loss=losses.OnlineContrastiveLoss, **LABELLED, **UNPLANNED),
]  # fmt: skip
