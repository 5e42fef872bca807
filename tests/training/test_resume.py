"""Tests that a resumed run draws the batches, and ends in the weights, of one that was never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_and_resume
import numpy as np
import pytest
from conftest import make_static_model
from datasets import DatasetDict
from kill_and_resume import NAMED
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.trainer import TRAINER_STATE_NAME

from gcbs_st import GCBSTrainingArguments
from gcbs_st.batches.checkpoint import PLAN_FILE, last_whole_checkpoint, read_plan

SCRIPT = Path(kill_and_resume.__file__)
B = 8


pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder: Path, rows: Any, model: SentenceTransformer, resume: Any = None, **given: Any) -> RecordingTrainer:
    """Trains to the end, from the start or from a checkpoint."""
    defaults = {
        "per_device_train_batch_size": B, "num_train_epochs": 2, "learning_rate": 1e-3, "replan_steps": 3,
        "save_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    args = GCBSTrainingArguments(str(folder), **{**defaults, **given})
    trainer = RecordingTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def killed_and_resumed(*options: str) -> list[dict[str, Any]]:
    """The summaries of the script, which must not find a difference."""
    command = [sys.executable, str(SCRIPT), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, check=False)
    assert 0 == done.returncode, done.stderr[-3000:] + done.stdout[-3000:]
    return json.loads(done.stdout)


# ---------------------------------------------------------------- SIGKILL


@pytest.fixture(scope="module")
def summaries():
    """What became of two kill points of runs in one process, without and with workers, and of runs of two ranks."""
    settings = ("1 process", "1 process, workers", "2 ranks, workers, accumulation")
    return killed_and_resumed("--points", "2", "--fresh", "0", "--seed", "1", "--settings", *settings)


def test_killed_runs_resume_bitwise(summaries):
    """Runs that were sent SIGKILL, also while they saved, end as one that was never stopped; 0 and 2 workers."""
    assert [0, 2, 2] == [summary["workers"] for summary in summaries]
    for summary in summaries[:2]:
        assert [[], []] == [point["differences"] for point in summary["points"]]
        assert summary["resumed_from_a_checkpoint"] > 0


def test_runs_of_which_one_rank_was_killed_resume_bitwise(summaries):
    """Either rank, at any moment and while it saves: torchrun ends the others, and what is resumed is as if unbroken."""
    summary = summaries[2]
    assert 2 == summary["ranks"]
    assert [[], []] == [point["differences"] for point in summary["points"]]
    assert [("trained", 0), ("saving", 1)] == [(one["kill"], one["rank"]) for one in summary["points"]]
    assert summary["brought_down_seconds"] < 30, "the agent of torchrun had to send SIGKILL itself"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--accumulation", "2", "--persistent"),
        ("--no-duplicates",),
        ("--source", "harvest"),
        ("--loss", "EMC2Loss"),
    ],
    ids=["plain", "accumulation, persistent workers", "no duplicates", "harvest", "EMC2"],
)
def test_killed_at_ten_points_resumes_bitwise(options):
    """Ten random kill points for each number of workers, the first in new interpreters."""
    summaries = killed_and_resumed("--points", "10", *options)
    assert [0, 2] == [summary["workers"] for summary in summaries]
    assert [10, 10] == [len(summary["points"]) for summary in summaries]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if name[:2] == "2 " or "view" in name])
def test_ranks_and_datasets_killed_at_ten_points_resume_bitwise(name):
    """Ten random kill points for each setting with two ranks or two data sets, the first in new interpreters."""
    (summary,) = killed_and_resumed("--points", "10", "--settings", name)
    assert 10 == len(summary["points"])
    assert set(range(summary["ranks"])) == {point["rank"] for point in summary["points"]}


# ---------------------------------------------------------------- from every checkpoint

CASES = {
    "plain": ({}, range(1, 12)),
    "accumulation": ({"gradient_accumulation_steps": 2, "replan_steps": 2}, range(1, 6)),
    "no duplicates": ({"batch_sampler": "no_duplicates"}, (2, 3, 6)),
    "workers": ({"dataloader_num_workers": 2, "replan_steps": 2}, (1, 2, 6)),
    "persistent workers": ({"dataloader_num_workers": 1, "dataloader_persistent_workers": True}, (2, 6)),
    "cool-down": ({"planner_cooldown_steps": 4, "replan_steps": 2}, (7, 8, 9)),
    "warm-up": ({"planner_warmup_steps": 3, "replan_steps": 0}, (2, 3, 4)),
    "harvest": ({"embedding_source": "harvest"}, (2, 3, 6, 8, 9)),
    "harvest on disk, old rows encoded": (
        {
            "embedding_source": "harvest", "embedding_storage": "disk", "embedding_dtype": "float16",
            "embedding_max_age": 4, "embedding_budget": 8, "dataloader_num_workers": 1, "planner": "bisect",
        },
        (3, 6, 7),
    ),
    "harvest after word vectors, accumulation": (
        {"embedding_source": "harvest", "first_plan": "encode", "gradient_accumulation_steps": 2},
        (1, 3, 4),
    ),
    "user's order of batches": ({"shuffle_planned_batches": False}, (3, 4)),
}  # fmt: skip


# What differs least from the others runs on demand.
SLOW_CASES = {"persistent workers", "warm-up", "user's order of batches"}


@pytest.mark.parametrize(
    "given, checkpoints",
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW_CASES)) for name, case in CASES.items()],
)
def test_every_checkpoint_resumes_bitwise(tmp_path, bert_folder, pairs, given, checkpoints):
    """Before, at and after a plan in mid-epoch, and at the epoch's end: the same batches and weights, dropout on."""
    rows = pairs.select(range(53))  # 6 batches and 5 rows more

    def trained(folder, resume=None, **more):
        return run(folder, rows, SentenceTransformer(bert_folder, device="cpu"), resume, **given, **more)

    whole = trained(tmp_path / "whole")
    for step in checkpoints:
        resumed = trained(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{step}"), save_strategy="no")
        assert [batch for batch in whole.trained if batch[0] > step] == resumed.trained, step
        assert weights_hash(whole.model) == weights_hash(resumed.model), step


def test_every_checkpoint_of_two_datasets_resumes_bitwise(tmp_path, pairs):
    """Each dataset goes on with its own plan."""
    parts = DatasetDict(a=pairs.select(range(32)), b=pairs.select(range(32, 80)))
    given = {"multi_dataset_batch_sampler": "proportional"}
    whole = run(tmp_path / "whole", parts, make_static_model(), **given)
    for step in (3, 5, 10):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = run(tmp_path / "resumed", parts, make_static_model(), checkpoint, save_strategy="no", **given)
        assert [batch for batch in whole.trained if batch[0] > step] == resumed.trained
        assert weights_hash(whole.model) == weights_hash(resumed.model)


# ---------------------------------------------------------------- what is in a checkpoint


def test_a_checkpoint_holds_the_plan_in_force(tmp_path, static_model, pairs):
    """The order that is saved is the one that the rest of the epoch is drawn from."""
    rows = pairs.select(range(64))
    trainer = run(tmp_path, rows, static_model, num_train_epochs=1)
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    drawn = [ids[texts] for _, batch in trainer.trained for texts in batch]
    for step in range(6, 9):  # from the last plan on
        states, _ = read_plan(tmp_path / f"checkpoint-{step}")
        assert drawn == states[""]["order"].tolist()
    early = read_plan(tmp_path / "checkpoint-1")[0][""]["order"].tolist()
    assert drawn[: 4 * B] == early[: 4 * B]
    assert drawn != early


def test_ignore_data_skip_begins_the_epoch_anew(tmp_path, static_model, pairs, caplog):
    """With the host's `ignore_data_skip` no plan is taken over: the epoch of the checkpoint is planned anew, silently."""
    rows = pairs.select(range(64))
    run(tmp_path, rows, static_model)
    checkpoint = str(tmp_path / "checkpoint-5")
    resumed = run(tmp_path / "more", rows, make_static_model(), checkpoint, ignore_data_skip=True, save_strategy="no")
    planned = [entry["step"] for entry in resumed.state.log_history if "gcbs/gap" in entry and entry["step"] >= 5]
    assert 5 in planned
    assert 64 == len({texts for _, batch in resumed.trained[:8] for texts in batch})
    assert "cannot be resumed" not in caplog.text


def test_a_torn_checkpoint_is_passed_over(tmp_path, pairs, caplog):
    """A checkpoint whose state is missing or cut off is not resumed from; the newest whole one is."""
    rows = pairs.select(range(64))
    whole = run(tmp_path, rows, make_static_model())
    for step in range(11, 17):
        state = tmp_path / f"checkpoint-{step}" / TRAINER_STATE_NAME
        if step % 2:
            state.unlink()
        else:
            state.write_bytes(state.read_bytes()[:-20])
    assert str(tmp_path / "checkpoint-10") == last_whole_checkpoint(tmp_path)
    resumed = run(tmp_path, rows, make_static_model(), True)
    assert "checkpoint-16 was not written to its end and is passed over" in caplog.text
    assert [batch for batch in whole.trained if batch[0] > 10] == resumed.trained
    assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_a_checkpoint_is_torn_from_the_moment_it_is_written_to(tmp_path, monkeypatch, pairs):
    """A run that is killed while it writes over an older run's checkpoint does not leave it looking whole."""
    rows = pairs.select(range(64))
    run(tmp_path, rows, make_static_model(), save_steps=8)

    class Killed(BaseException):
        pass

    def save(self, *args, **kwargs):
        raise Killed

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", save)
    with pytest.raises(Killed):
        run(tmp_path, rows, make_static_model(1), save_steps=16)
    assert str(tmp_path / "checkpoint-8") == last_whole_checkpoint(tmp_path)


def test_save_only_model_writes_no_plan(tmp_path, static_model, pairs):
    """A checkpoint that cannot be resumed from holds no plan, and neither does a folder the user saves to."""
    trainer = run(tmp_path, pairs.select(range(32)), static_model, save_only_model=True)
    trainer.save_model(str(tmp_path / "final"))
    assert 8 == len([*tmp_path.glob("checkpoint-*")])
    assert [] == [*tmp_path.rglob(PLAN_FILE)]


def test_embeddings_of_another_training_set_are_not_taken(tmp_path, pairs, caplog):
    """A checkpoint whose embeddings are damaged or of other rows is resumed from all the same, with a warning."""
    rows, given = pairs.select(range(64)), {"embedding_source": "harvest"}
    run(tmp_path, rows, make_static_model(), **given)
    (tmp_path / "checkpoint-11" / "gcbs_embeddings" / "0" / "column-0.bin").write_bytes(b"1234")
    resumed = run(tmp_path, rows, make_static_model(), str(tmp_path / "checkpoint-11"), save_strategy="no", **given)
    assert 16 == resumed.state.global_step
    assert "The embeddings in the checkpoint cannot be resumed from" in caplog.text
    caplog.clear()
    run(tmp_path, pairs.select(range(64, 128)), make_static_model(), str(tmp_path / "checkpoint-12"), **given)
    assert "has the key" in caplog.text


def test_a_plan_is_small_and_leaves_no_temporary_file(tmp_path, static_model, pairs):
    """The plan of n rows is n integers, and nothing else is left in the checkpoint."""
    run(tmp_path, pairs, static_model, save_steps=25)
    host = {path.name for path in (tmp_path / "checkpoint-25").iterdir()}
    assert {PLAN_FILE} == {name for name in host if "gcbs" in name or "tmp" in name}
    assert (tmp_path / "checkpoint-25" / PLAN_FILE).stat().st_size < 8 * len(pairs) + 2000
    assert np.int64 == read_plan(tmp_path / "checkpoint-25")[0][""]["order"].dtype


def test_the_end_of_a_run_is_planned_only_for_a_longer_one(tmp_path, pairs):
    """No embeddings are made that nobody draws from; a run that goes on from the last checkpoint finds its plan there."""

    def planned_at(trainer: RecordingTrainer) -> list[int]:
        return [entry["step"] for entry in trainer.state.log_history if "gcbs/plan_seconds" in entry]

    alone = run(tmp_path / "a", pairs, make_static_model(), max_steps=6, save_strategy="no")
    assert [0, 3] == planned_at(alone)
    saved = run(tmp_path / "b", pairs, make_static_model(), max_steps=6)
    assert [0, 3, 6] == planned_at(saved)
    longer = run(tmp_path / "b", pairs, make_static_model(), resume=True, max_steps=10)
    whole = run(tmp_path / "c", pairs, make_static_model(), max_steps=10)
    assert [batch for step, batch in whole.trained if step > 6] == [batch for _, batch in longer.trained]
