"""Planning: every planner, where its embeddings come from, and when it plans."""

from __future__ import annotations

from typing import Any

import numpy as np

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


HARVEST = {"embedding_source": "harvest"}

CASES = [
    *[
        Case(f"`{name}`", arguments={"planner": name}, check=check)
        for name, check in {
            "gcbs": lambda run: None, "tbs": closes, "random_walk": lambda run: None,
            "bisect": closes, "partition": closes, "best": closes,
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
