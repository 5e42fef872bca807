"""The rule: three lines for what experiments support, and "do not use this" where they do not."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import make_pairs

from gcbs_st.advice.dataset_facts import find_dataset_facts
from gcbs_st.advice.plan_figures import PlanFigures
from gcbs_st.advice.recommend import known_losses, recommend, refuse_early
from gcbs_st.training.loss_facts import WITHOUT_IN_BATCH_NEGATIVES

FACTS, _ = find_dataset_facts(make_pairs(200), ["anchor", "positive"], 8)


def figures(closed: float = 0.5, at_random: float = 0.01, planned: float = 0.08) -> dict[str, PlanFigures]:
    """Figures of a plan that closes so much, and what a guard would mask in random and in planned batches."""
    return {"random": PlanFigures(0.0, 0.5, at_random), "bisect": PlanFigures(closed, 4.0, planned)}


def advise(facts=FACTS, of=None, **given):
    """The rule's answer, by default for a transformer and batches of 8."""
    return recommend(facts, of or figures(), **{"batch_size": 8, "static": False, "group_column": None, **given})


def test_the_lines_are_a_script():
    """They are what the trainer takes, with the group column among the rows that it is given."""
    found = advise(group_column="image")
    assert found.use
    assert found.lines == (
        'args = GCBSTrainingArguments("out", planner="auto", per_device_train_batch_size=8, group_column="image")',
        "loss = MultipleNegativesRankingLoss(model)",
        'trainer = GCBSTrainer(model, args, dataset.select_columns(["anchor", "positive", "image"]), loss=loss)',
    )
    scope = {}
    exec("\n".join(found.imports), scope)
    assert {"GCBSTrainer", "GCBSTrainingArguments", "MultipleNegativesRankingLoss"} <= scope.keys()


@pytest.mark.parametrize(
    ("changes", "softer"),
    [
        ({}, True),
        ({"static": True}, False),
        ({"of": figures(at_random=0.3)}, False),  # a raw encoder is no judge
        ({"of": figures(planned=0.019)}, False),  # there is little to judge
        ({"of": figures(planned=0.02)}, True),
        ({"facts": dataclasses.replace(FACTS, columns=("a", "b", "c"))}, False),
        ({"loss": "CachedMultipleNegativesRankingLoss"}, True),
        ({"loss": "GISTEmbedLoss"}, False),
        ({"loss": "GuardedMultipleNegativesRankingLoss"}, False),
    ],
)
def test_who_takes_softer_batches(changes, softer):
    """A model that can judge, of pairs whose planned batches hold many negatives that look false, and nobody else."""
    found = advise(**changes)
    assert softer == found.why[1].startswith("Half as hard")
    assert softer == any("sees to that itself" in sentence for sentence in found.why)
    assert "planner_hardness" not in found.lines[0], "the trainer looks at all rows, and chooses by them"


@pytest.mark.parametrize("loss", ["CachedMultipleNegativesRankingLoss", "GISTEmbedLoss", "SogCLRLoss"])
def test_a_loss_of_ones_own_is_kept(loss):
    """With its import."""
    found = advise(loss=loss)
    assert f"loss = {loss}(model)  # with the options that it has now" == found.lines[1]
    scope = {}
    exec("\n".join(found.imports), scope)
    assert loss in scope


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        ({"label": "score"}, {}, "takes for labels"),
        ({}, {"loss": "CoSENTLoss"}, "contrasts no rows"),
        ({"one_text": True}, {}, "one text, of which dropout makes a pair"),
        ({"rows": 159}, {}, "159 rows are fewer than 20 batches of 8"),
    ],
)
def test_it_says_do_not_use_this(changes, given, words):
    """Labels, losses without in-batch negatives, one text, few rows: without looking at a model."""
    facts = dataclasses.replace(FACTS, **changes)
    assert words in refuse_early(facts, given.get("loss"), 8)[0]
    found = advise(facts, **given)
    assert (False, (), ()) == (found.use, found.lines, found.imports)
    assert words in found.why[0]


def test_labels_with_a_loss_that_contrasts():
    """Whoever names the loss knows what becomes of the labels."""
    assert advise(dataclasses.replace(FACTS, label="label"), loss="MultipleNegativesRankingLoss").use


def test_a_plan_that_closes_nothing():
    """To a model that tells no rows apart nothing can be composed."""
    found = advise(of=figures(closed=0.02))
    assert not found.use
    assert "close 0.02" in found.why[0]


def test_losses_are_known_by_name():
    """Those of the host and ours, those that plans help and those that they cannot."""
    known = set(known_losses())
    assert {"MultipleNegativesRankingLoss", "CoSENTLoss", "GuardedMultipleNegativesRankingLoss", "EMC2Loss"} <= known
    assert known & WITHOUT_IN_BATCH_NEGATIVES
