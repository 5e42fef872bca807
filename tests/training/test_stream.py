"""Streams are trained in planned windows: each row once, the last window too, and a resumed run as if never stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset, IterableDataset
from forked_ranks import run_ranks
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import ContrastiveLoss, MultipleNegativesRankingLoss
from stream_job import BATCH, RANKS, ROWS, WINDOW, work

from gcbs_st import GCBSTrainingArguments
from gcbs_st.batches.checkpoint import STREAM_FILE
from gcbs_st.losses import EMC2Loss

B = 8

pytestmark = pytest.mark.usefixtures("one_thread")


class SortingTrainer(RecordingTrainer):
    """Plans rows by the first number of their anchors, so that every plan is known beforehand."""

    def plan_batches(self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: Any) -> np.ndarray:
        return np.argsort(anchors[:, 0], kind="stable")


def train(
    folder: Path,
    rows: Any,
    trainer_class: type[RecordingTrainer] = RecordingTrainer,
    *,
    resume: str | None = None,
    model: SentenceTransformer | None = None,
    loss: type[torch.nn.Module] = MultipleNegativesRankingLoss,
    **given: Any,
) -> Any:
    """A training of a static model, finished."""
    settings = {
        "per_device_train_batch_size": B, "max_steps": 40, "planning_window": 64, "save_steps": 5, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-2, "seed": 3,
    }  # fmt: skip
    model = model or make_static_model()
    args = GCBSTrainingArguments(str(folder), **{**settings, **given})
    trainer = trainer_class(model, args, rows, loss=loss(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def texts_of(trainer: Any) -> list[list[tuple[str, ...]]]:
    """The batches that were trained."""
    return [batch for _, batch in trainer.trained]


def test_each_row_once_in_batches_of_its_window(tmp_path):
    """203 rows are 26 steps: all windows whole, the last with what is left, and the rows that fill no batch."""
    pairs = make_pairs(203)
    ids = {tuple(row.values()): i for i, row in enumerate(pairs)}
    trainer = train(tmp_path, pairs.to_iterable_dataset(), max_steps=26)
    batches = [[ids[row] for row in batch] for batch in texts_of(trainer)]
    assert [B] * 25 + [3] == [len(batch) for batch in batches]
    assert list(range(203)) == sorted(row for batch in batches for row in batch)
    for number in range(4):
        assert set(range(64 * number, min(203, 64 * number + 64))) == {
            row for batch in batches[8 * number : 8 * number + 8] for row in batch
        }
    logged = [entry["gcbs/closed"] for entry in trainer.state.log_history if "gcbs/closed" in entry]
    assert 3 == len(logged), "the last window is a single batch, which needs no plan"
    assert min(logged) > 0.1


def test_a_window_is_planned_by_the_model_as_it_is(tmp_path):
    """Batches are blocks of what a plan of the window alone says; the second pass is planned anew."""
    pairs = make_pairs(128)
    ids = {tuple(row.values()): i for i, row in enumerate(pairs)}
    model = make_static_model()
    first = {tuple(row.values()): model.encode(row["anchor"], normalize_embeddings=True)[0] for row in pairs}
    trainer = train(
        tmp_path, pairs.to_iterable_dataset(), SortingTrainer, model=model, max_steps=32,
        planner_view="model", planner="bisect", learning_rate=0.0,
    )  # fmt: skip
    batches = texts_of(trainer)
    for start in range(0, 128, 64):
        window = [tuple(row.values()) for row in pairs.select(range(start, start + 64))]
        by_number = sorted(window, key=lambda row: first[row])
        blocks = {frozenset(ids[row] for row in by_number[at : at + B]) for at in range(0, 64, B)}
        for one_pass in (0, 16):
            drawn = {frozenset(ids[row] for row in batch) for batch in batches[one_pass + start // B :][:8]}
            assert blocks == drawn
    assert [set(batch) for batch in batches[:8]] != [set(batch) for batch in batches[16:24]], (
        "another order of batches"
    )


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("view", ["model", "initial"])
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path, shuffled, view):
    """In a window, at its end, at the end of a pass and in the next: the same batches and the same weights."""
    rows = make_pairs(200).to_iterable_dataset(num_shards=2)
    rows = rows.shuffle(seed=5, buffer_size=30) if shuffled else rows
    given = {"planner": "bisect", "planner_view": view}
    whole = train(tmp_path / "whole", rows, **given)
    for step in (5, 10, 15, 25, 30):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = train(tmp_path / "more", rows, resume=str(folder), save_strategy="no", **given)
        assert [entry for entry in whole.trained if entry[0] > step] == resumed.trained, step
        assert weights_hash(whole.model) == weights_hash(resumed.model), step


def test_gradient_accumulation_and_a_second_resume(tmp_path):
    """Two batches a step, stopped twice; the second checkpoint is of the resumed run."""
    rows, given = make_pairs(200).to_iterable_dataset(), {"gradient_accumulation_steps": 2, "max_steps": 18}
    whole = train(tmp_path / "whole", rows, **given)
    train(tmp_path / "more", rows, resume=str(tmp_path / "whole" / "checkpoint-5"), **given)
    resumed = train(tmp_path / "end", rows, resume=str(tmp_path / "more" / "checkpoint-10"), **given)
    assert [entry for entry in whole.trained if entry[0] > 10] == resumed.trained
    assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_another_stream_or_no_plan_is_told(tmp_path, caplog):
    """A run that is resumed on other rows, with another window or without its file goes on, and says so."""
    train(tmp_path, make_pairs(200).to_iterable_dataset(), max_steps=10)
    checkpoint = tmp_path / "checkpoint-10"
    given = {"resume": str(checkpoint), "max_steps": 14, "save_strategy": "no"}
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "a", make_pairs(200, seed=4).to_iterable_dataset(), **given)
        train(tmp_path / "b", make_pairs(200).to_iterable_dataset(), planning_window=80, **given)
        (checkpoint / STREAM_FILE).unlink()
        trainer = train(tmp_path / "c", make_pairs(200).to_iterable_dataset(), **given)
    messages = [record.getMessage() for record in caplog.records]
    assert 1 == sum("window 1, from row 64 on, has other rows" in message for message in messages)
    assert 1 == sum("its size is 64, but that of this run is 80" in message for message in messages)
    assert 1 == sum("gcbs_stream.npz" in message and "cannot be resumed" in message for message in messages)
    pairs = make_pairs(200)
    ids = {tuple(row.values()): i for i, row in enumerate(pairs)}
    assert {row for batch in texts_of(trainer) for row in map(ids.get, batch)} <= set(range(64, 128))


def test_rows_of_a_group_do_not_meet(tmp_path):
    """The group column is read from the stream and not trained."""
    pairs = make_pairs(128)
    rows = pairs.add_column("photo", [i % 32 for i in range(128)])
    group = {tuple(row.values()): i % 32 for i, row in enumerate(pairs)}
    trainer = train(tmp_path, rows.to_iterable_dataset(), group_column="photo", max_steps=16)
    for batch in texts_of(trainer):
        assert all(len(row) == 2 for row in batch)
        assert B == len({group[row] for row in batch})
    with pytest.raises(ValueError, match="no 'picture'"):
        train(tmp_path, rows.to_iterable_dataset(), group_column="picture")


def test_random_windows_while_warming_up(tmp_path):
    """A window that is read before the warm-up's end is not planned; the next one is."""
    rows = make_pairs(192).to_iterable_dataset()
    trainer = train(tmp_path, rows, max_steps=24, planner_warmup_steps=4)
    steps = [entry["step"] for entry in trainer.state.log_history if "gcbs/closed" in entry]
    assert [7, 15] == steps, "the loader reads one batch ahead"


def test_rows_of_one_text_stay_random(tmp_path, caplog):
    """As of a training set that is no stream, `auto` leaves them to chance and embeds nothing."""
    texts = make_pairs(128)["anchor"]
    rows = Dataset.from_dict({"anchor": texts, "positive": texts}).to_iterable_dataset()
    with caplog.at_level(logging.INFO):
        trainer = train(tmp_path, rows, max_steps=16)
    assert any(
        "auto leaves the batches of the training set random" in record.getMessage() for record in caplog.records
    )
    assert not any("gcbs/closed" in entry for entry in trainer.state.log_history)


def test_a_loss_that_contrasts_nothing_streams_as_the_host_does(tmp_path):
    """Rows come in the stream's own order."""
    pairs = make_pairs(64).add_column("label", [1.0] * 64)
    # By default accelerate cuts what the host's loader has read anew, which it cannot do with a static model's features.
    trainer = train(
        tmp_path, pairs.to_iterable_dataset(), loss=ContrastiveLoss, max_steps=8,
        accelerator_config={"dispatch_batches": False},
    )  # fmt: skip
    assert trainer.feed is None
    assert [tuple(row.values())[:2] for row in pairs] == [row for batch in texts_of(trainer) for row in batch]


REFUSED = {
    "harvest": ({"embedding_source": "harvest"}, "embedding_source: got harvest with an IterableDataset, expected encode"),
    "replan_steps": ({"planning_window": None, "replan_steps": 3}, "replan_steps: got 3 with an IterableDataset"),
    "workers": ({"dataloader_num_workers": 2}, "dataloader_num_workers: got 2 with an IterableDataset, expected 0"),
    "a loss that keeps rows": ({"loss": EMC2Loss}, "loss: got EMC2Loss with an IterableDataset"),
    "both": ({"replan_steps": 3}, "planning_window: got 64 together with replan_steps=3"),
    "no window": ({"planning_window": 0}, "planning_window: got 0, expected at least 1 row"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_a_stream_cannot_do_is_refused(tmp_path, what):
    """Before anything is read or embedded."""
    given, message = REFUSED[what]
    read = []

    class Read(IterableDataset):
        def __iter__(self):
            read.append(1)
            yield from super().__iter__()

    stream = make_pairs(64).to_iterable_dataset()
    stream.__class__ = Read
    with pytest.raises(ValueError) as error:
        train(tmp_path, stream, **given)
    assert message in str(error.value)
    assert [] == read


@pytest.mark.parametrize("count", [1, 7])
def test_a_stream_that_ends_in_its_first_batch(tmp_path, count):
    """The rows that there were, and what a batch takes."""
    with pytest.raises(ValueError, match=f"ended after {count} rows, but a batch of 1 process takes 8"):
        train(tmp_path, make_pairs(count).to_iterable_dataset())


def test_windows_of_rows_that_can_be_counted(tmp_path):
    """Each row once an epoch, batches planned within a window that is embedded right before it is drawn."""
    pairs = make_pairs(200)
    ids = {tuple(row.values()): i for i, row in enumerate(pairs)}
    trainer = train(tmp_path, pairs, max_steps=-1, num_train_epochs=2, planner="bisect", planner_view="initial")
    batches = [[ids[row] for row in batch] for batch in texts_of(trainer)]
    for epoch in (batches[:25], batches[25:]):
        assert list(range(200)) == sorted(row for batch in epoch for row in batch)
    plans = [entry for entry in trainer.state.log_history if "gcbs/closed" in entry]
    assert [0, 8, 16, 25, 33, 41] == [entry["step"] for entry in plans], "a last batch alone is no window"
    assert [64, 64, 64] * 2 == [entry["gcbs/planned_rows"] for entry in plans]
    assert min(entry["gcbs/closed"] for entry in plans) > 0.1
    resumed = train(
        tmp_path / "more", pairs, resume=str(tmp_path / "checkpoint-20"), max_steps=-1, num_train_epochs=2,
        planner="bisect", planner_view="initial",
    )  # fmt: skip
    assert [entry for entry in trainer.trained if entry[0] > 20] == resumed.trained


@pytest.mark.parametrize("schedule", [None, [[0, 1], [0.3, 1]]])  # with a plan in the middle of a window, or without
def test_a_window_of_recurring_rows_embeds_its_own_alone(tmp_path, monkeypatch, schedule):
    """A planner that draws rows again draws those of the window, and not all rows, which nobody asked to embed."""
    from gcbs_st.embeddings import row_encoder

    asked: list[np.ndarray] = []
    encode_rows = row_encoder.encode_rows

    def noting(model, dataset, rows, columns, **given):
        asked.append(rows)
        return encode_rows(model, dataset, rows, columns, **given)

    monkeypatch.setattr(row_encoder, "encode_rows", noting)
    pairs = make_pairs(400)
    ids = {tuple(row.values()): i for i, row in enumerate(pairs)}
    walk = {"candidates": 60, "neighbors": 6, "exact_cover": False}
    trainer = train(
        tmp_path, pairs, max_steps=30, planner="random_walk", planner_options=walk, planner_hardness=schedule,
        save_strategy="no",
    )  # fmt: skip
    batches = [[ids[row] for row in batch] for batch in texts_of(trainer)]
    plans = [0, 8, 16, 24] if schedule is None else [0, 8, 9, 16, 24]
    assert [64] * len(plans) == [len(np.unique(rows)) for rows in asked]
    ahead = [0, *(step + 1 for step in plans[1:]), 30]  # the loader reads one batch ahead
    for rows, start, stop in zip(asked, ahead[:-1], ahead[1:], strict=True):
        assert {row for batch in batches[start : min(stop, start + 8)] for row in batch} <= set(rows.tolist())
    assert all(len(set(batch)) == B for batch in batches)


def test_two_processes_train_and_resume(tmp_path):
    """Each rank trains on its block of each step; over all of them each row once, and resumed as not stopped."""
    run_ranks(work, RANKS, tmp_path, folder=tmp_path)
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(RANKS)]
    steps = list(zip(*[rank["whole"]["trained"] for rank in ranks], strict=True))
    in_a_pass = ROWS // (RANKS * BATCH)
    for start in (0, in_a_pass):
        rows = [row for step in steps[start : start + in_a_pass] for _, batch in step for row in batch]
        assert list(range(ROWS)) == sorted(rows)
        for number in range(0, ROWS, WINDOW):
            of_window = rows[number : number + WINDOW]
            assert set(of_window) == set(range(number, min(ROWS, number + WINDOW)))
    assert np.mean(ranks[0]["closed"]) > 0.15
    for rank in ranks:
        for step, resumed in rank["resumed"].items():
            assert [entry for entry in rank["whole"]["trained"] if entry[0] > int(step)] == resumed["trained"], step
            assert rank["whole"]["weights"] == resumed["weights"], step
    assert "has other rows on this process than on the main one" in ranks[1]["differing"]
    assert "reading the training stream failed on rank 1" in ranks[0]["differing"]
