"""Tests of what users get wrong: each message says what was given, what was expected, and what to do."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from recorded import RecordingTrainer
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.batches.checkpoint import PLAN_FILE, last_whole_checkpoint, read_plan
from gcbs_st.training.refusals import refuse_unsupported

B = 8


pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(folder: Path, **given: Any) -> GCBSTrainingArguments:
    """Arguments of a quiet run of two epochs that saves every fifth step."""
    defaults = {
        "per_device_train_batch_size": B, "num_train_epochs": 2, "save_steps": 5, "replan_steps": 3,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return GCBSTrainingArguments(str(folder), **{**defaults, **given})


def make_trainer(folder: Path, rows: Any, trainer_class: type[GCBSTrainer] = RecordingTrainer, **given: Any) -> Any:
    """A trainer of a new static model."""
    model = make_static_model()
    return trainer_class(model, arguments(folder, **given), rows, loss=MultipleNegativesRankingLoss(model))


# ---------------------------------------------------------------- rows

ROWS = {
    "one text column": (
        lambda: make_pairs(32).remove_columns("positive"),
        ["['anchor']", "at least two (anchor and positive)", "give the same sentence twice"],
    ),
    "a text column and labels": (
        lambda: make_pairs(32).remove_columns("positive").add_column("label", [1.0] * 32),
        ["['anchor']", "at least two (anchor and positive)"],
    ),
    "no column of texts": (
        lambda: Dataset.from_dict({"label": [1.0] * 32}),
        ["['label']", "at least one that holds texts"],
    ),
    "a column of numbers": (
        lambda: make_pairs(32).add_column("year", [1999] * 32),
        ["column 'year' of the training set holds 1999", "remove_columns"],
    ),
    "ids before the texts": (
        lambda: make_pairs(32).add_column("id", [*range(32)]).select_columns(["id", "anchor", "positive"]),
        ["column 'id' of the training set holds 0", "embedded as text"],
    ),
}


@pytest.mark.parametrize("rows, parts", ROWS.values(), ids=ROWS)
def test_rows_that_make_no_batch(tmp_path, monkeypatch, rows, parts):
    """What no loss could take is refused before any row is embedded, trained or written."""
    embedded = []
    monkeypatch.setattr("gcbs_st.embeddings.row_encoder.encode_rows", lambda *args, **given: embedded.append(args))
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, rows()).train()
    assert [] == embedded
    assert [] == [part for part in parts if part not in str(error.value)], str(error.value)
    assert [] == [*tmp_path.glob("checkpoint-*")]


@pytest.mark.parametrize("count", [1, 7])
def test_fewer_rows_than_a_batch_are_trained_as_the_host_trains_them(tmp_path, caplog, count):
    """In one short batch per epoch, and the trainer says so."""
    trainer = make_trainer(tmp_path, make_pairs(count))
    trainer.train()
    assert [count, count] == [len(batch) for _, batch in trainer.trained]
    (warning,) = [record.getMessage() for record in caplog.records if "nothing to plan" in record.getMessage()]
    assert f"has {count} rows, fewer than the 8 of a batch" in warning


def test_a_small_dataset_beside_a_large_one_is_named(tmp_path, caplog):
    """The large one is planned; of the small one the host makes one short batch."""
    rows = DatasetDict(large=make_pairs(32), small=make_pairs(7))
    trainer = make_trainer(tmp_path, rows, num_train_epochs=1, multi_dataset_batch_sampler="proportional")
    trainer.train()
    assert [7, 8, 8, 8, 8] == sorted(len(batch) for _, batch in trainer.trained)
    assert ["large"] == list(trainer.planned_samplers)
    (warning,) = [record.getMessage() for record in caplog.records if "nothing to plan" in record.getMessage()]
    assert "The training set 'small' has 7 rows" in warning


def test_exactly_one_batch_is_enough(tmp_path):
    """As many rows as a batch takes are trained on."""
    assert 2 == make_trainer(tmp_path, make_pairs(B)).train().global_step


def test_streams_by_name_are_refused(tmp_path, pairs):
    """One stream is read in windows; of several nobody knows how they take turns."""
    with pytest.raises(TypeError) as error:
        make_trainer(tmp_path, {"a": pairs.to_iterable_dataset()})
    assert "got IterableDataset, expected datasets.Dataset" in str(error.value)
    assert "without streaming" in str(error.value)


def test_duplicates_that_no_batch_can_keep_apart(tmp_path, pairs):
    """A text in more rows than there are batches is refused: the message counts both and says what to do."""
    rows = Dataset.from_dict({"anchor": pairs["anchor"][:32], "positive": ["w1"] * 20 + pairs["positive"][20:32]})
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, rows, batch_sampler="no_duplicates").train()
    parts = ["the text 'w1' stands in 20 of the 32 rows", "only 4 full batches of 8", "De-duplicate the training set"]
    assert [] == [part for part in parts if part not in str(error.value)], str(error.value)


# ---------------------------------------------------------------- embeddings


def test_a_model_that_has_diverged(tmp_path, pairs):
    """NaN in training stops at the next plan, names a text, and leaves the earlier checkpoints whole."""

    class Diverging(RecordingTrainer):
        def training_step(self, model, inputs, *args):
            if self.state.global_step == 7:
                with torch.no_grad():
                    model[0].embedding.weight.fill_(float("nan"))
            return super().training_step(model, inputs, *args)

    trainer = make_trainer(tmp_path, pairs, Diverging)
    with pytest.raises(ValueError) as error:
        trainer.train()
    assert "all are zero, NaN or infinity, for example" in str(error.value)
    assert "lower the learning rate, or resume from an earlier checkpoint" in str(error.value)
    assert 9 == trainer.state.global_step
    assert str(tmp_path / "checkpoint-5") == last_whole_checkpoint(tmp_path)
    resumed = make_trainer(tmp_path, pairs)
    resumed.train(resume_from_checkpoint=True)
    assert trainer.trained[5:8] == resumed.trained[:3]


@pytest.mark.parametrize("source", ["encode", "harvest"])
@pytest.mark.parametrize("text", ["", "   ", "unheard of"])
def test_a_text_that_embeds_to_zero_is_trained(tmp_path, pairs, caplog, text, source):
    """As the host trains it; its row is not planned, but drawn once per epoch, and one warning names the text."""
    rows = Dataset.from_dict({"anchor": [*pairs["anchor"][:31], text], "positive": pairs["positive"][:32]})
    model = make_static_model()
    with torch.no_grad():
        model[0].embedding.weight[1] = 0  # the unknown word
    args = arguments(tmp_path, embedding_source=source, replan_steps=0, logging_steps=1)
    trainer = RecordingTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    assert 8 == trainer.state.global_step
    epochs = [trainer.trained[:4], trainer.trained[4:]]
    for epoch in epochs:
        assert sorted(rows["anchor"]) == sorted(texts[0] for _, batch in epoch for texts in batch)
    warnings = [record.getMessage() for record in caplog.records if "without an embedding" in record.getMessage()]
    if source == "encode":
        assert 1 == len(warnings)
        assert repr(text) in warnings[0] and "1 of 32 rows" in warnings[0] and "in row 31" in warnings[0]
    planned = [entry["gcbs/planned_rows"] for entry in trainer.state.log_history if "gcbs/planned_rows" in entry]
    assert 24 == planned[0]


@pytest.mark.parametrize("source", ["encode", "harvest"])
def test_a_model_that_embeds_nothing_at_all(tmp_path, pairs, source):
    """All rows NaN is an error, wherever embeddings come from."""
    model = make_static_model()
    with torch.no_grad():
        model[0].embedding.weight[:] = float("nan")
    args = arguments(tmp_path, embedding_source=source)
    with pytest.raises(
        ValueError, match="all are zero, NaN or infinity, for example that of 'w.*lower the learning rate"
    ):
        GCBSTrainer(model, args, pairs, loss=MultipleNegativesRankingLoss(model)).train()


# ---------------------------------------------------------------- planners


class DropsARow:
    """A planner that gives row 0 twice."""

    def plan(self, anchors, positives, batch_size, rng):
        return np.maximum(np.arange(len(anchors)) - 1, 0)

    def __repr__(self) -> str:
        return "DropsARow()"


class ReturnsFloats:
    """A planner whose order is no row numbers."""

    def plan(self, anchors, positives, batch_size, rng):
        return np.arange(len(anchors)) + 0.5

    def __repr__(self) -> str:
        return "ReturnsFloats()"


class TooShort:
    """A planner that leaves rows out."""

    def plan(self, anchors, positives, batch_size, rng):
        return np.arange(len(anchors) - 1)

    def __repr__(self) -> str:
        return "TooShort()"


ORDERS = {
    DropsARow: "planner DropsARow(): got int64 of shape (200,) with 199 distinct values, expected every row 0..199",
    ReturnsFloats: "planner ReturnsFloats(): got float64 of shape (200,) with 200 distinct values, expected every row",
    TooShort: "planner TooShort(): got int64 of shape (199,) with 199 distinct values, expected every row 0..199",
}


@pytest.mark.parametrize("planner, message", ORDERS.items(), ids=[planner.__name__ for planner in ORDERS])
def test_a_planner_that_returns_no_order(tmp_path, pairs, planner, message):
    """A planner must return every row once; the message names it and what it returned."""
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, pairs, planner=planner()).train()
    assert str(error.value).startswith(message)


SETTINGS = {
    "unknown planner": (
        {"planner": "gbcs"}, ValueError, ["planner: got 'gbcs', expected one of", "gcbs", "random"],
    ),
    "unknown option": (
        {"planner": "gcbs", "planner_options": {"quantil": 0.9}}, ValueError,
        ["planner_options of 'gcbs': got quantil, expected some of", "quantile"],
    ),
    "no planner": ({"planner": 3}, TypeError, ["planner: got 3, expected a name (", "or an object with plan()"]),
    "a class": ({"planner": DropsARow}, TypeError, ["or an object with plan()"]),
    "options of an object": (
        {"planner": DropsARow(), "planner_options": {"a": 1}}, ValueError, ["planner_options {'a': 1} go with a planner's name"],
    ),
    "a number in quotes": (
        {"replan_steps": "0.5"}, ValueError, ["replan_steps: got '0.5', expected a number", "in quotes"],
    ),
    "an age in quotes": (
        {"embedding_max_age": "12"}, ValueError, ["embedding_max_age: got '12', expected a number"],
    ),
    "a switch for a number": ({"planner_warmup_steps": True}, ValueError, ["got True, expected a number"]),
}  # fmt: skip


@pytest.mark.parametrize("given, kind, parts", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_planned_with(tmp_path, given, kind, parts):
    """Unknown names and options are refused when the arguments are made, with what is known."""
    with pytest.raises(kind) as error:
        arguments(tmp_path, **given)
    assert [] == [part for part in parts if part not in str(error.value)], str(error.value)


def test_group_by_label_is_refused_in_plain_arguments(tmp_path, static_model, pairs):
    """Arguments of the host's class are checked like ours."""
    plain = SentenceTransformerTrainingArguments(str(tmp_path), batch_sampler="group_by_label", report_to="none")
    with pytest.raises(ValueError, match="which rows share a batch is the planner's to decide"):
        GCBSTrainer(static_model, plain, pairs, loss=MultipleNegativesRankingLoss(static_model))


def test_an_error_in_planning_loses_nothing(tmp_path, pairs):
    """When a planner fails in mid-epoch, the checkpoints before it are whole and training goes on from the last."""

    class FailsLater(RecordingTrainer):
        def plan_batches(self, anchors, positives, batch_size, rng):
            if self.state.global_step == 12:
                raise RuntimeError("out of luck")
            return super().plan_batches(anchors, positives, batch_size, rng)

    whole = make_trainer(tmp_path / "whole", pairs)
    whole.train()
    trainer = make_trainer(tmp_path / "fails", pairs, FailsLater)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert ["checkpoint-10", "checkpoint-5"] == sorted(
        path.name for path in (tmp_path / "fails").iterdir() if path.is_dir()
    )
    for step in (5, 10):
        expected, found = (read_plan(tmp_path / run / f"checkpoint-{step}")[0][""] for run in ("whole", "fails"))
        np.testing.assert_array_equal(expected.pop("order"), found.pop("order"))
        assert expected == found
    resumed = make_trainer(tmp_path / "fails", pairs)
    resumed.train(resume_from_checkpoint=True)
    assert whole.trained[10:] == resumed.trained


# ---------------------------------------------------------------- checkpoints


def test_resuming_without_a_checkpoint(tmp_path, pairs):
    """`resume_from_checkpoint=True` in an empty folder says that there is nothing to resume."""
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, pairs).train(resume_from_checkpoint=True)
    assert f"{tmp_path} holds no checkpoint that was written to its end. Start without resuming." in str(error.value)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 50 steps with a checkpoint at every fifth; tests take copies of it."""
    folder = tmp_path_factory.mktemp("stopped")
    make_trainer(folder, make_pairs()).train()
    return folder


def copy_of(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, folder / checkpoint.name))


def cut(plan: Path) -> None:
    """Leaves the first bytes."""
    plan.write_bytes(plan.read_bytes()[:200])


def overwrite(plan: Path) -> None:
    """Puts something else there."""
    plan.write_bytes(b"no plan at all")


def repeat_a_row(plan: Path) -> None:
    """Writes an order that is none."""
    content = dict(np.load(plan))
    content["order_0"][1] = content["order_0"][0]
    np.savez(plan, **content)


def forget_the_orders(plan: Path) -> None:
    """Writes the description alone."""
    np.savez(plan, state=np.load(plan)["state"])


def forget_a_field(plan: Path) -> None:
    """Writes a description that lacks a field."""
    content = dict(np.load(plan))
    content["state"] = np.array(str(content["state"]).replace("plan_count", "count"))
    np.savez(plan, **content)


DAMAGES = {
    "missing": (Path.unlink, "is not there"),
    "cut off": (cut, "is damaged"),
    "overwritten": (overwrite, "is damaged"),
    "empty": (lambda plan: plan.write_bytes(b""), "is damaged"),
    "a row twice": (repeat_a_row, "holds a row twice"),
    "without orders": (forget_the_orders, "is damaged"),
    "without a field": (forget_a_field, "plan_count"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_plan(tmp_path, pairs, stopped, caplog, damage, message):
    """It is told what is wrong, the epoch is planned anew, and training completes with full batches."""
    checkpoint = copy_of(stopped / "checkpoint-10", tmp_path)
    damage(checkpoint / PLAN_FILE)
    trainer = make_trainer(tmp_path / "more", pairs, save_strategy="no", logging_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be resumed" in record.getMessage()]
    assert message in warning
    assert "This epoch is planned anew" in warning
    assert 50 == trainer.state.global_step
    assert {B} == {len(batch) for _, batch in trainer.trained}
    assert 10 in [entry["step"] for entry in trainer.state.log_history if "gcbs/gap" in entry]


OTHERS = {
    "rows": ({}, lambda rows: rows.select(range(199, -1, -1)), "it was made for another training set"),
    "number of rows": ({}, lambda rows: rows.select(range(199)), "it was made for another training set"),
    "names": ({}, lambda rows: DatasetDict(a=rows), "it was made for another training set"),
    "batch size": ({"per_device_train_batch_size": 10}, lambda rows: rows, "its batch_size is 8, but this run has 10"),
    "seed": ({"seed": 5}, lambda rows: rows, "its seed is 42, but this run has 5"),
    "data seed": ({"data_seed": 6}, lambda rows: rows, "its seed is 42, but this run has 6"),
}


@pytest.mark.parametrize("step", [10, 25])
@pytest.mark.parametrize("given, change, message", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run(tmp_path, pairs, stopped, caplog, given, change, message, step):
    """Another training set, batch size or seed: it is told which, also at an epoch's end, and planned anew."""
    trainer = make_trainer(tmp_path, change(pairs), save_strategy="no", max_steps=step + 12, **given)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(stopped / f"checkpoint-{step}"))
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be resumed" in record.getMessage()]
    assert message in warning
    assert "planned anew" in warning
    assert step + 12 == trainer.state.global_step
    assert {given.get("per_device_train_batch_size", B)} == {len(batch) for _, batch in trainer.trained}


def test_the_right_checkpoint_raises_no_warning(tmp_path, pairs, stopped, caplog):
    """What the tests above look for is not there when everything fits."""
    for step in (10, 25):
        trainer = make_trainer(tmp_path, pairs, save_strategy="no")
        with caplog.at_level(logging.WARNING):
            trainer.train(resume_from_checkpoint=str(stopped / f"checkpoint-{step}"))
    assert "cannot be resumed" not in caplog.text


# ---------------------------------------------------------------- ways of training that plans do not reach


def test_dispatched_batches_are_refused(tmp_path, static_model, pairs):
    """Batches that are cut anew after planning are no planned batches."""
    args = GCBSTrainingArguments(
        str(tmp_path),
        accelerator_config={"dispatch_batches": True},
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    with pytest.raises(ValueError, match=r"dispatch_batches: got .* Leave it at None"):
        GCBSTrainer(static_model, args, pairs, loss=MultipleNegativesRankingLoss(static_model))


@pytest.mark.parametrize(
    ("what", "given", "match"),
    [("split", {"split_batches": True, "ranks": 2}, "split_batches: .* rows of one process")],
)
def test_cut_batches_are_refused(what, given, match):
    """What a process would not train on as planned is refused with what to do instead; see also ``test_sharding.py``."""

    def trainer(split_batches=False, ranks=1):
        plugin = SimpleNamespace(zero_stage=2)
        accelerator = SimpleNamespace(
            state=SimpleNamespace(deepspeed_plugin=plugin), dispatch_batches=None, split_batches=split_batches
        )
        args = SimpleNamespace(world_size=ranks)
        return SimpleNamespace(accelerator=accelerator, is_fsdp_enabled=False, args=args)

    refuse_unsupported(trainer())
    refuse_unsupported(trainer(split_batches=True))
    with pytest.raises(ValueError, match=match):
        refuse_unsupported(trainer(**given))
