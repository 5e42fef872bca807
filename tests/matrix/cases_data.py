"""Data: columns, several datasets, prompts, routes, and what users put between the rows and the model."""

from __future__ import annotations

import math
from typing import Any

from conftest import VOCABULARY

from matrix.case import Case, Run
from matrix.materials import (
    GROUPS_OF_ROWS,
    REPEATED,
    OwnCollator,
    bert,
    grouped,
    negatives,
    pairs,
    repeated,
    router,
    score_first,
    transformed,
    triplets,
    twice,
    two_sets,
)
from matrix.oracles import check_texts_apart
from matrix.watching import given_columns, passes, routes

QUERY, PASSAGE = VOCABULARY["query"], VOCABULARY["passage"]
ROUTES = {"anchor": "query", "positive": "document"}
# Without it DDP fails on a Router in the host's own trainer too: each pass uses the weights of one route.
EACH_PASS_ITS_OWN = {"ddp_find_unused_parameters": False}


def prompted(*expected: int) -> Any:
    """Checks that training and plans put these words, and no other prompt, before the texts."""

    def check(run: Run) -> None:
        for training in (True, False):
            words = set().union(*[note["words"] for note in run.watched if note["training"] is training])
            assert set(expected) == words & {QUERY, PASSAGE}, f"in training {training}: {words & {QUERY, PASSAGE}}"

    return check


def both_routes(run: Run) -> None:
    """Queries and documents went their own way, in training and for plans, and both learnt."""
    planning = {True, False} if run.trainer.is_world_process_zero() else {True}
    assert all(planning <= used for used in run.watched.values()), run.watched
    assert {"query", "document"} == set(run.watched)
    after = run.model.state_dict()
    assert all((value != after[name]).any() for name, value in run.before.items()), "a route was not trained"


def both_sets(run: Run) -> None:
    """Batches of both, and a plan of each."""
    for batches in run.by_rank:
        assert {"first", "second"} == {name for _, _, name, _ in batches}
    assert {"first", "second"} == {plan["name"] for plan in run.plans}


def counts(first: tuple[int, int], second: tuple[int, int]) -> Any:
    """Checks how many steps each dataset had, in one process and in two."""

    def check(run: Run) -> None:
        both_sets(run)
        several = run.place.ranks > 1
        names = [name for _, _, name, _ in run.by_rank[0]]
        assert (first[several], second[several]) == (names.count("first"), names.count("second"))

    return check


def evaluated(run: Run) -> None:
    """The loss of the rows to be evaluated was logged twice or more."""
    values = run.logged("eval_loss")
    assert len(values) >= 2 and all(map(math.isfinite, values)), values


def collated(run: Run) -> None:
    """All batches went through the collator of the user's own."""
    own = run.trainer.data_collator.collator
    assert isinstance(own, OwnCollator)
    assert own.collated >= sum(len(rows) for *_, rows in run.by_rank[0])


ROUND_ROBIN = {"multi_dataset_batch_sampler": "round_robin"}
RR_STEPS: dict[str, Any] = {"steps": (20, 8), "save_at": (14, 6), "arguments": ROUND_ROBIN}
PROPORTIONAL = {"multi_dataset_batch_sampler": "proportional"}
PROPORTIONAL_STEPS: dict[str, Any] = {"steps": (32, 14), "save_at": (22, 10), "arguments": PROPORTIONAL}

CASES = [
    Case("pairs", **given_columns(2)),
    Case("triplets", rows=triplets, **given_columns(3)),
    Case("n-tuples with three negatives", rows=lambda: negatives(3), **given_columns(5)),
    Case(
        "... planned on two other columns (`planner_columns`)",
        rows=lambda: negatives(3), columns=("anchor", "negative_2"),
        arguments={"planner_columns": ["anchor", "negative_2"]}, quick=True, **given_columns(5),
    ),
    Case(
        "... planned on one column, of which rows are to be alike",
        rows=lambda: negatives(3), columns=("anchor",), arguments={"planner_columns": ["anchor"]}, **given_columns(5),
    ),
    Case("unsupervised: each sentence twice", model=bert, rows=twice),
    Case("a score before the texts", rows=score_first, **given_columns(2, labels=True)),
    Case("two datasets, round robin", rows=two_sets, check=counts((10, 4), (10, 4)), **RR_STEPS),
    Case(
        "two datasets, proportional",
        rows=two_sets, check=counts((22, 10), (10, 4)), quick=True, **PROPORTIONAL_STEPS,
    ),
    Case(
        "two datasets by weights, the smaller starts over (`dataset_weights`)",
        rows=two_sets, check=counts((16, 8), (16, 6)), repeats=True, steps=(32, 14), save_at=(22, 10),
        arguments={"dataset_weights": {"first": 1, "second": 1}},
    ),
    Case("a dict of datasets", rows=lambda: dict(two_sets()), check=both_sets, **PROPORTIONAL_STEPS),
    Case(
        "a prompt for all texts",
        arguments={"prompts": "query: "}, watch=passes, check=prompted(QUERY), model=bert,
    ),
    Case(
        "a prompt for each column",
        arguments={"prompts": {"anchor": "query: ", "positive": "passage: "}},
        watch=passes, check=prompted(QUERY, PASSAGE), model=bert, quick=True,
    ),
    Case(
        "a prompt for each dataset",
        rows=two_sets, watch=passes, check=prompted(QUERY, PASSAGE),
        **{
            **PROPORTIONAL_STEPS,
            "arguments": {**PROPORTIONAL, "prompts": {"first": "query: ", "second": "passage: "}},
        },
    ),
    Case(
        "a prompt for each column of each dataset",
        rows=two_sets, watch=passes, check=prompted(QUERY),
        **{**PROPORTIONAL_STEPS, "arguments": {**PROPORTIONAL, "prompts": {"first": {"anchor": "query: "}}}},
    ),
    Case(
        "routes, `router_mapping` (DDP: `ddp_find_unused_parameters=False`)",
        model=router, arguments={"router_mapping": ROUTES, **EACH_PASS_ITS_OWN}, watch=routes, check=both_routes,
        quick=True,
    ),
    Case(
        "routes for each dataset",
        model=router, rows=two_sets, watch=routes, check=both_routes,
        **{
            **PROPORTIONAL_STEPS,
            "arguments": {
                **PROPORTIONAL, **EACH_PASS_ITS_OWN, "router_mapping": {"first": ROUTES, "second": ROUTES},
            },
        },
    ),
    Case(
        "a collator of your own",
        given=lambda place, model: {"data_collator": OwnCollator(preprocess_fn=model.preprocess)}, check=collated,
    ),
    Case("a transform on the rows", rows=transformed),
    Case(
        "`group_column`",
        rows=grouped, arguments={"group_column": "photo"},
        check=lambda run: check_texts_apart(run, GROUPS_OF_ROWS),
    ),
    Case(
        "`no_duplicates`",
        rows=repeated, arguments={"batch_sampler": "no_duplicates"},
        check=lambda run: check_texts_apart(run, REPEATED),
    ),
    Case(
        "an evaluation dataset",
        given=lambda place, model: {"eval_dataset": pairs(24, seed=9)},
        arguments={"eval_strategy": "steps", "eval_steps": 4}, check=evaluated,
    ),
]  # fmt: skip
