"""Planning: every planner, where its embeddings come from, and when it plans."""

from __future__ import annotations

from typing import Any

import numpy as np

from gcbs_st.losses import GuardedMultipleNegativesRankingLoss
from matrix.case import Case, Run
from matrix.materials import ROWS, bert
from matrix.watching import passes


def planned_at(single: list[int], several: list[int]) -> Any:
    """Checks at which steps plans were made, in one process and in two."""

    def check(run: Run) -> None:
        expected = several if run.place.ranks > 1 else single
        assert expected == [plan["step"] for plan in run.plans]

    return check


def aged(run: Run) -> None:
    """Rows were planned on that had been harvested steps before."""
    if run.trainer.is_world_process_zero():
        assert max(run.logged("gcbs/embedding_age_max")) > 1


def aged_at_most(steps: int) -> Any:
    """Checks that from the second plan on no row was older, though without a limit some would have been."""

    def check(run: Run) -> None:
        if run.trainer.is_world_process_zero():
            assert max(run.logged("gcbs/embedding_age_max")[1:]) <= steps

    return check


def embedded_nothing(run: Run) -> None:
    """Hardly a text passed the model but in training (the model card's examples do), and no two epochs are alike."""
    assert sum(note["texts"] for note in run.watched if not note["training"]) < ROWS // 2
    first, second = ({frozenset(rows) for e, *_, rows in run.by_rank[0] if e == epoch} for epoch in (0, 1))
    assert not first & second


def measured(run: Run) -> None:
    """Random batches close next to nothing."""
    if run.trainer.is_world_process_zero():
        assert run.logged("gcbs/closed") and abs(np.mean(run.logged("gcbs/closed"))) < 0.2


def closes(run: Run) -> None:
    """A plan of a whole epoch is harder than random batches."""
    if run.trainer.is_world_process_zero():
        assert run.logged("gcbs/closed")[0] > 0.05, run.logged("gcbs/closed")


def unshuffled(run: Run) -> None:
    """The batches of a plan are drawn in its own order."""
    size, ranks = run.case.planned_size, run.place.ranks
    first = [row for plan in run.plans if plan["step"] == 0 for row in plan["rows"]]
    drawn = [row for step in list(zip(*run.by_rank, strict=True))[:4] for *_, rows in step for row in rows]
    assert first[: 4 * size * ranks] == drawn


def halves(run: Run) -> None:
    """As many clusters a batch as rows in the first quarter of the run, half as many in each further one."""
    quarters = [4 * plan["step"] // run.trainer.state.max_steps for plan in run.plans]
    assert [8 // 2**quarter for quarter in quarters] == [plan["clusters"] for plan in run.plans]
    assert len(set(quarters)) >= 3


class OwnPlanner:
    """Rows by their first coordinate: an object in place of a name."""

    def plan(self, anchors: Any, positives: Any, batch_size: int, rng: Any) -> Any:
        return np.argsort(anchors[:, 0])


def by_first_coordinate(run: Run) -> None:
    """The planner in use is the object that was given."""
    assert isinstance(run.trainer.planner, OwnPlanner)


def aged_as_the_run(run: Run) -> None:
    """What is planned on is of the model that the run began with, in each plan, also that of the second epoch."""
    if run.trainer.is_world_process_zero():
        ages = run.logged("gcbs/embedding_age_max")
        assert [plan["step"] for plan in run.plans] == ages and max(ages) > 0, ages


def told_of_false_negatives(trainer: Any) -> list[Any]:
    """What each plan is told of rows that are no negatives of each other."""
    seen: list[Any] = []
    order = trainer.replanner._order

    def keep(pairs: Any, *rest: Any) -> Any:
        told = getattr(trainer.planner, "contradictions", None)
        seen.append(
            None if told is None else (told.margin, told.judge is not None and len(told.judge[0]) == len(pairs[0]))
        )
        return order(pairs, *rest)

    trainer.replanner._order = keep
    return seen


def by_the_losses_margin(run: Run) -> None:
    """The margin is that of the loss."""
    if run.trainer.is_world_process_zero():
        assert {(0.8, False)} == set(run.watched)


def by_a_reference(run: Run) -> None:
    """The margin is the user's, and goes by a reference's embeddings of the same rows."""
    if run.trainer.is_world_process_zero():
        assert {(0.7, True)} == set(run.watched)


def of_clusters(run: Run) -> None:
    """Batches are softer than the planner's own, and harder than random ones."""
    if run.trainer.is_world_process_zero():
        hard, closed = run.trainer.args.hardness.points, run.logged("gcbs/closed")
        assert all(value < 0.6 for value in closed) and max(closed) > 0, (hard, closed)


def risen(run: Run) -> None:
    """There was no plan before the schedule's second point, and one at each point behind it."""
    steps = [plan["step"] for plan in run.plans]
    points = sorted(run.trainer.args.hardness.steps(run.trainer.state.max_steps))
    assert min(steps) >= points[0] and set(points) <= set(steps), (points, steps)


def guarded(model: Any) -> Any:
    """A loss that masks what scores above four fifths of the positive."""
    return GuardedMultipleNegativesRankingLoss(model, margin=0.8)


def saved_model(place: Any) -> str:
    """The folder of a saved model."""
    return str(place.models / "model")


HARVEST = {"embedding_source": "harvest"}
SCHEDULE = [[0, 0], [0.25, 0], [0.25, 0.5], [0.75, 1]]

CASES = [
    *[
        Case(f"`{name}`", arguments={"planner": name}, check=check)
        for name, check in {
            "gcbs": lambda run: None, "tbs": closes, "random_walk": lambda run: None,
            "bisect": closes, "partition": closes, "best": closes, "hobit": closes,
        }.items()
    ],
    Case(
        "`random_walk`, overlapping batches",
        arguments={"planner": "random_walk", "planner_options": {"exact_cover": False}}, repeats=True,
    ),
    Case("`random`", arguments={"planner": "random"}, planned_from=None, watch=passes, check=embedded_nothing),
    Case("`random`, measured", arguments={"planner": "random", "planner_options": {"measure": True}}, check=measured),
    Case("a planner object of your own", arguments={"planner": OwnPlanner()}, check=by_first_coordinate),
    Case(
        "planning at epochs' starts alone",
        arguments={"replan_steps": 0}, check=planned_at([0, 11], [0, 5]),
    ),
    Case(
        "planning twice an epoch", arguments={"replan_steps": 0.5},
        check=planned_at([0, 6, 11, 17], [0, 3, 5, 8]),
    ),
    # The loader has drawn a batch ahead when the plan is made.
    Case("random batches first", arguments={"planner_warmup_steps": 4}, planned_from=(6, 6)),
    Case("random batches last", arguments={"planner_cooldown_steps": 4}, planned_until=(19, 7)),
    Case("batches in the order of the plan", arguments={"shuffle_planned_batches": False}, check=unshuffled),
    Case(
        "a curriculum of hardness", arguments={"cluster_schedule": "curriculum"}, check=halves,
    ),
    Case(
        "the view of the initial model", model=bert, arguments={"planner_view": "initial"}, verify=False,
        check=aged_as_the_run,
    ),
    Case("the view that our study supports (`auto`)", arguments={"planner_view": "auto"}, check=closes),
    Case("planner and view that our study supports (`auto`)", arguments={"planner": "auto"}, check=closes),
    Case(
        "the view of a reference model", arguments=lambda place: {"planner_view": saved_model(place)}, verify=False,
        check=closes,
    ),
    Case(
        "alike for the model, not alike for a reference",
        arguments=lambda place: {"planner": "best", "planner_view": ["model", saved_model(place)]},
    ),
    Case(
        "alike for the model, not alike before training, harvested", model=bert,
        arguments={**HARVEST, "first_plan": "encode", "planner": "best", "planner_view": ["model", "initial"]},
    ),
    Case("hardness 0.5", arguments={"planner_hardness": 0.5}, check=of_clusters),
    Case(
        "hardness 0.6, clusters that do not divide a batch, `gcbs`", arguments={"planner": "gcbs", "planner_hardness": 0.6},
        check=of_clusters,
    ),
    Case(
        "a schedule of hardness", arguments={"planner_hardness": SCHEDULE, "replan_steps": 0}, check=risen,
        planned_from=(8, 5),
    ),
    Case(
        "the planner is told what the loss masks", loss=guarded, arguments={"planner": "best"},
        watch=told_of_false_negatives, check=by_the_losses_margin,
    ),
    Case(
        "the planner is told what a reference takes for false",
        arguments=lambda place: {
            "planner": "best", "planner_margin": 0.7, "planner_reference": saved_model(place),
        },
        watch=told_of_false_negatives, check=by_a_reference,
    ),
    Case(
        "harvest, first epoch encoded",
        model=bert, arguments={**HARVEST, "first_plan": "encode"}, check=aged,
    ),
    Case("harvest, first epoch random", arguments=HARVEST, planned_from=(12, 6), check=aged),
    Case(
        "harvest, old rows encoded",
        arguments={**HARVEST, "first_plan": "encode", "embedding_max_age": 2}, check=aged_at_most(2),
    ),
    Case(
        "harvest, half precision, on disk",
        arguments={**HARVEST, "first_plan": "encode", "embedding_dtype": "float16", "embedding_storage": "disk"},
        check=aged,
    ),
]  # fmt: skip
