"""Hardness that can be set: groups that never meet, and batches that grow harder over the run."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import DatasetDict
from recorded import RecordingTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainingArguments
from gcbs_st.planners.algorithms.clusters import clusters_at

B = 8
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}


pytestmark = pytest.mark.usefixtures("one_thread")


class ClusterPlanner:
    """Notes how many clusters make a batch at each plan, and keeps the rows in their order."""

    def __init__(self, clusters_per_batch: int = 1) -> None:
        """Takes the number at the end of a curriculum."""
        self.clusters_per_batch = clusters_per_batch
        self.seen: list[int] = []

    def plan(self, anchors, positives, batch_size, rng):
        """Returns the rows as they come."""
        self.seen.append(self.clusters_per_batch)
        return np.arange(len(anchors))


def make_trainer(tmp_path, model, dataset, **given):
    """A quiet trainer that records the texts of each batch."""
    args = GCBSTrainingArguments(
        str(tmp_path), **{"per_device_train_batch_size": B, "num_train_epochs": 2, "replan_steps": 3, **QUIET, **given}
    )
    return RecordingTrainer(model, args, dataset, loss=MultipleNegativesRankingLoss(model))


def trained_groups(trainer, pairs, groups):
    """The groups of the rows of each batch that was trained on."""
    row_of = {(row["anchor"], row["positive"]): i for i, row in enumerate(pairs)}
    assert len(pairs) == len(row_of)
    return [[int(groups[row_of[texts]]) for texts in batch] for _, batch in trainer.trained]


def test_rows_of_a_group_never_share_a_batch(tmp_path, static_model, pairs):
    """Groups of three are kept apart in each batch of each epoch, and their column is not trained on."""
    groups = np.arange(len(pairs)) // 3
    trainer = make_trainer(tmp_path, static_model, pairs.add_column("photo", groups.tolist()), group_column="photo")
    assert ["anchor", "positive"] == trainer.train_dataset.column_names
    trainer.train()
    batches = trained_groups(trainer, pairs, groups)
    assert len(batches) == 2 * (len(pairs) // B)
    assert [B] * len(batches) == [len(set(batch)) for batch in batches]


def test_without_the_column_groups_do_meet(tmp_path, static_model, pairs):
    """The test above can fail: neighbours meet if nothing forbids it."""
    trainer = make_trainer(tmp_path, static_model, pairs, planner=ClusterPlanner(), shuffle_planned_batches=False)
    trainer.train()
    groups = np.arange(len(pairs)) // 3
    assert min(len(set(batch)) for batch in trained_groups(trainer, pairs, groups)) < B


def test_groups_of_each_dataset_of_a_dict(tmp_path, static_model, pairs):
    """In a DatasetDict each part has its own groups."""
    parts = DatasetDict(
        a=pairs.add_column("g", [0] * 5 + list(range(5, len(pairs)))), b=pairs.add_column("g", list(range(len(pairs))))
    )
    trainer = make_trainer(tmp_path, static_model, parts, group_column="g", num_train_epochs=1)
    trainer.train()
    order = trainer.planned_samplers["a"].order.reshape(-1, B)
    assert max((batch < 5).sum() for batch in order) <= 1


def test_a_missing_group_column_is_refused(tmp_path, static_model, pairs):
    """The message names the column and those that are there."""
    with pytest.raises(ValueError, match="group_column: the training set has the columns .*'anchor'.* but no 'photo'"):
        make_trainer(tmp_path, static_model, pairs, group_column="photo")


def test_a_curriculum_goes_from_random_batches_to_the_planners_own(tmp_path, static_model, pairs):
    """Clusters a batch start at the batch size and halve in equal shares of the run."""
    planner = ClusterPlanner(clusters_per_batch=2)
    trainer = make_trainer(
        tmp_path, static_model, pairs, planner=planner, cluster_schedule="curriculum", replan_steps=1
    )
    trainer.train()
    assert {8, 4, 2} == set(planner.seen)
    assert sorted(planner.seen, reverse=True) == planner.seen
    shares = [planner.seen.count(clusters) / len(planner.seen) for clusters in (8, 4, 2)]
    assert max(abs(share - 1 / 3) for share in shares) < 0.1


@pytest.mark.parametrize(("share", "expected"), [(0.0, 64), (0.13, 64), (0.15, 32), (0.5, 8), (0.99, 1), (1.0, 1)])
def test_clusters_at_a_share_of_the_run(share, expected):
    """Seven stages from 64 clusters of one row to one cluster of 64."""
    assert expected == clusters_at(share, 64, 1)


def test_a_constant_schedule_leaves_the_planner_alone(tmp_path, static_model, pairs):
    """By default the planner's own number holds throughout."""
    planner = ClusterPlanner(clusters_per_batch=4)
    make_trainer(tmp_path, static_model, pairs, planner=planner).train()
    assert {4} == set(planner.seen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cluster_schedule": "bogus"}, "cluster_schedule: got 'bogus', expected constant or curriculum"),
        ({"cluster_schedule": "curriculum", "planner": "gcbs"}, "'gcbs' has no clusters_per_batch. Use best"),
    ],
)
def test_schedules_that_cannot_be_followed_are_refused(tmp_path, given, message):
    """A planner without clusters cannot follow a curriculum."""
    with pytest.raises(ValueError, match=message):
        GCBSTrainingArguments(str(tmp_path), **given)


class OverlappingPlanner:
    """Gives the same batch again and again."""

    covers_each_row_once = False

    def plan(self, anchors, positives, batch_size, rng):
        """Returns the first rows for each batch."""
        return np.tile(np.arange(batch_size), len(anchors) // batch_size)


def test_overlapping_batches_may_hold_a_row_again(tmp_path, static_model, pairs):
    """A planner that says so may leave rows out and repeat others, but not within a batch."""
    trainer = make_trainer(
        tmp_path, static_model, pairs, planner=OverlappingPlanner(), save_strategy="steps", save_steps=4
    )
    trainer.train()
    rows = trained_groups(trainer, pairs, np.arange(len(pairs)))
    assert [set(range(B))] * len(rows) == [set(batch) for batch in rows]
    assert len(rows) == 2 * (len(pairs) // B)
    again = make_trainer(
        tmp_path, static_model, pairs, planner=OverlappingPlanner(), save_strategy="steps", save_steps=4
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert rows[8:] == trained_groups(again, pairs, np.arange(len(pairs)))


def test_rows_of_a_group_stay_apart_in_overlapping_batches(tmp_path, static_model, pairs):
    """A row whose group is in the batch already is replaced by a random other one."""
    groups = [row // 4 for row in range(len(pairs))]
    trainer = make_trainer(
        tmp_path, static_model, pairs.add_column("photo", groups), planner=OverlappingPlanner(), group_column="photo"
    )
    trainer.train()
    batches = np.array(groups)[trainer.planned_samplers[""].order].reshape(-1, B)
    assert len(batches) * [B] == [len(set(batch)) for batch in batches.tolist()]
