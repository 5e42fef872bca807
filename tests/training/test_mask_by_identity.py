"""Training with losses that mask by identity: what each batch masked is what its texts say, wherever it came from."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from forked_ranks import run_ranks
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn

from gcbs_st import GCBSTrainingArguments
from gcbs_st.losses import CachedGuardedMultipleNegativesRankingLoss, GuardedMultipleNegativesRankingLoss

B = 8

pytestmark = pytest.mark.usefixtures("one_thread")


def known_rows(rows: int = 96, seed: int = 0) -> Dataset:
    """Pairs: some share an anchor or a group of four, and some list another row's positive."""
    pairs = make_pairs(rows, seed)
    anchors, positives = list(pairs["anchor"]), list(pairs["positive"])
    for row in range(0, rows, 6):
        anchors[row] = anchors[(row + 3) % rows]
    listed = [[positives[(row + 7) % rows]] if row % 3 == 0 else None for row in range(rows)]
    groups = [row // 6 if row % 3 else None for row in range(rows)]
    return Dataset.from_dict({"anchor": anchors, "positive": positives, "photo": groups, "answers": listed})


def expected_share(batch: list[tuple[str, ...]], rows: Dataset, own: int | None = None) -> float:
    """The share of negatives of the first `own` rows that are none, by the texts of all rows of a batch."""
    facts = {(row["anchor"], row["positive"]): row for row in rows}
    found = [facts[tuple(texts)] for texts in batch]

    def related(one: dict[str, Any], other: dict[str, Any]) -> bool:
        mine, theirs = ({row["anchor"], row["positive"]} for row in (one, other))
        listed = mine & {*(other["answers"] or ())} or theirs & {*(one["answers"] or ())}
        return bool(mine & theirs or listed or (one["photo"] is not None and one["photo"] == other["photo"]))

    count = len(found) if own is None else own
    pairs = [(i, j) for i in range(count) for j in range(len(found)) if i != j]
    return sum(related(found[i], found[j]) for i, j in pairs) / max(1, len(pairs))


def make_trainer(folder: Path, rows: Any, model: Any, loss: Any, **given: Any) -> RecordingTrainer:
    """A trainer that logs every step."""
    settings = {
        "per_device_train_batch_size": B, "num_train_epochs": 2, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-2, "logging_steps": 1, "planner": "bisect",
        "planner_view": "model", "group_column": "photo", "positives_column": "answers",
    }  # fmt: skip
    return RecordingTrainer(model, GCBSTrainingArguments(str(folder), **{**settings, **given}), rows, loss=loss)


def guarded(model: Any, kind: Any = GuardedMultipleNegativesRankingLoss, **options: Any) -> Any:
    """A loss that masks by identity alone."""
    return kind(model, **{"margin": None, "mask_by_identity": True, **options})


def shares(trainer: Any) -> list[float]:
    """What was logged."""
    return [entry["gcbs/identical"] for entry in trainer.state.log_history if "gcbs/identical" in entry]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"replan_steps": 2},
        {"gradient_accumulation_steps": 2},
        {"planner": "random"},
        {"dataloader_num_workers": 2},
    ],
    ids=["each epoch", "re-planned", "accumulation", "random", "workers"],
)
def test_each_batch_masks_what_its_texts_say(tmp_path, given):
    """And rows that are no negatives of each other meet: a full batch has no need to keep them apart."""
    rows, model = known_rows(), make_static_model()
    trainer = make_trainer(tmp_path, rows, model, guarded(model), **given)
    trainer.train()
    assert all(len(texts) == 2 for _, batch in trainer.trained for texts in batch), "facts were trained as texts"
    last = dict(trainer.trained)  # of the micro-batches of a step
    assert [expected_share(last[step], rows) for step in sorted(last)] == pytest.approx(shares(trainer))
    assert max(shares(trainer)) > 0, "such rows are kept apart"
    assert shares(trainer) == [entry["gcbs/masked"] for entry in trainer.state.log_history if "gcbs/masked" in entry]


def test_without_the_mask_such_rows_are_kept_apart(tmp_path):
    """A plain loss, and a wrapper of the user's, which may add one; listed positives count as groups do."""

    class Both(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.loss, self.plain = guarded(model), MultipleNegativesRankingLoss(model)

        def forward(self, features: Any, labels: Any) -> torch.Tensor:
            features = list(features)
            return self.loss(features, labels) + self.plain([dict(one) for one in features], labels)

    rows = known_rows()
    for make in (MultipleNegativesRankingLoss, Both):
        model = make_static_model()
        trainer = make_trainer(tmp_path, rows, model, make(model))
        trainer.train()
        assert {0.0} == {expected_share(batch, rows) for _, batch in trainer.trained}


def test_no_duplicates_keeps_texts_apart_and_nothing_else(tmp_path):
    """No text twice in a batch, as was asked for; of a group the loss knows."""
    rows, model = known_rows(), make_static_model()
    trainer = make_trainer(tmp_path, rows, model, guarded(model), batch_sampler="no_duplicates")
    trainer.train()
    for _, batch in trainer.trained:
        texts = [text for row in batch for text in set(row)]
        assert len(texts) == len(set(texts))
    assert max(shares(trainer)) > 0


def test_the_planner_is_told_the_same(tmp_path):
    """What contradicts by the planner is what the loss masks, with and without a margin; not a shared negative."""
    rows = known_rows()
    rows = rows.add_column("negative", [rows["positive"][(row + 5) % 96] for row in range(96)])
    rows = rows.select_columns(["anchor", "positive", "negative", "photo", "answers"])
    for margin in (None, 0.9):
        model = make_static_model()
        trainer = make_trainer(tmp_path, rows, model, guarded(model, margin=margin), planner="best", max_steps=1)
        told = []
        plan = trainer.plan_batches
        trainer.plan_batches = lambda *args, t=trainer, p=plan: (told.append(t.planner.contradictions), p(*args))[1]  # noqa: B023
        trainer.train()
        (against,) = told
        assert margin == against.margin
        ids, nothing = np.arange(96), np.zeros((96, 96))
        met = against.among(ids, ids, nothing, np.ones(96))
        pairs = [(row["anchor"], row["positive"]) for row in rows]
        plain = rows.remove_columns("negative")
        expected = [[i != j and expected_share([pairs[i], pairs[j]], plain) > 0 for j in ids] for i in ids]
        assert expected == met.tolist()


def test_a_loss_for_each_dataset(tmp_path):
    """One masks by identity and lets rows meet; the other's rows are kept apart; one loss of two datasets knows both."""
    parts = DatasetDict(first=known_rows(), second=known_rows(48, seed=5))
    model = make_static_model()
    losses = {"first": guarded(model), "second": MultipleNegativesRankingLoss(model)}
    trainer = make_trainer(tmp_path, parts, model, losses)
    trainer.train()
    texts = {name: {(row["anchor"], row["positive"]) for row in part} for name, part in parts.items()}
    found = {name: [b for _, b in trainer.trained if tuple(b[0]) in rows] for name, rows in texts.items()}
    assert max(expected_share(batch, parts["first"]) for batch in found["first"]) > 0
    assert {0.0} == {expected_share(batch, parts["second"]) for batch in found["second"]}
    model = make_static_model()
    trainer = make_trainer(tmp_path, parts, model, guarded(model))
    trainer.train()
    expected = [
        expected_share(batch, parts["first" if tuple(batch[0]) in texts["first"] else "second"])
        for _, batch in trainer.trained
    ]
    assert expected == pytest.approx(shares(trainer))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cached_loss_and_a_wrapper_are_told(tmp_path, bert_folder, wrapped):
    """Gradient caching in mini-batches, and Matryoshka around it."""
    rows, model = known_rows(24), SentenceTransformer(bert_folder, device="cpu")
    base = guarded(model, CachedGuardedMultipleNegativesRankingLoss, mini_batch_size=3)
    found = []
    calculate = base.calculate_loss
    base.calculate_loss = lambda *args, **kwargs: (calculate(*args, **kwargs), found.append(base.last_identical))[0]
    loss = MatryoshkaLoss(model, base, [16, 8]) if wrapped else base
    trainer = make_trainer(tmp_path, rows, model, loss, num_train_epochs=1, planner="random")
    trainer.train()
    expected = [expected_share(batch, rows) for _, batch in trainer.trained]
    assert [share for share in expected for _ in range(1 + wrapped)] == pytest.approx(found)
    assert max(found) > 0


def test_fewer_rows_than_a_batch_are_masked_too(tmp_path):
    """They are not planned, and trained in the host's own batches."""
    rows, model = known_rows(6), make_static_model()
    trainer = make_trainer(tmp_path, rows, model, guarded(model))
    trainer.train()
    assert [expected_share(batch, rows) for _, batch in trainer.trained] == pytest.approx(shares(trainer))
    assert min(shares(trainer)) > 0


def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path):
    """In mid-epoch and at its end: the same batches, masks and weights, bit by bit."""
    rows, runs = known_rows(), {}
    for step in (None, 5, 12):
        model = make_static_model()
        trainer = make_trainer(
            tmp_path / ("whole" if step is None else f"more-{step}"), rows, model, guarded(model, margin=0.95),
            replan_steps=3, save_strategy="steps", save_steps=1,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=None if step is None else str(tmp_path / "whole" / f"checkpoint-{step}"))
        runs[step] = trainer
        whole = runs[None]
        assert [entry for entry in whole.trained if entry[0] > (step or 0)] == trainer.trained
        assert weights_hash(whole.model) == weights_hash(trainer.model)
        assert shares(whole) == shares(trainer)


def test_evaluation_needs_no_ids(tmp_path, caplog):
    """Facts are no texts there either; what is evaluated is the plain loss, and nothing is warned of."""
    rows, values = known_rows(), []
    for make in (guarded, MultipleNegativesRankingLoss):
        model = make_static_model()
        trainer = make_trainer(tmp_path, rows, model, make(model), max_steps=4, learning_rate=0.0)
        with caplog.at_level(logging.WARNING, "gcbs_st"):
            trainer.train()
            values.append(trainer.evaluate(rows.select(range(16)))["eval_loss"])
    assert values[0] == values[1]
    assert not [record for record in caplog.records if "mask_by_identity" in record.message]


def test_the_hosts_own_trainer_is_warned_of(tmp_path, caplog):
    """Once: it tells nobody which rows are in a batch."""
    model = make_static_model()
    loss = guarded(model)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), per_device_train_batch_size=B, max_steps=3, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "gcbs_st"):
        SentenceTransformerTrainer(model, args, make_pairs(32), loss=loss).train()
    (record,) = [record for record in caplog.records if "mask_by_identity" in record.message]
    assert "nothing is masked. Train with a trainer of gcbs_st" in record.message


def test_what_cannot_work_is_refused(tmp_path):
    """A stream, a column that is not there, other things than lists of texts, and one column for both."""
    rows, model = known_rows(), make_static_model()
    with pytest.raises(ValueError, match="mask_by_identity: got True with an IterableDataset, expected False"):
        make_trainer(tmp_path, rows.to_iterable_dataset(), model, guarded(model), max_steps=2)
    with pytest.raises(ValueError, match="positives_column: the training set has the columns .* but no 'answer'"):
        make_trainer(tmp_path, rows, model, guarded(model), positives_column="answer")
    for wrong in ([[7]] * 96, ["text"] * 96):
        other = rows.remove_columns("answers").add_column("answers", wrong)
        with pytest.raises(ValueError, match="positives_column: row 0 .* expected a list of texts"):
            make_trainer(tmp_path, other, model, guarded(model))
    with pytest.raises(ValueError, match="positives_column: got 'photo', which is the group_column as well"):
        make_trainer(tmp_path, rows, model, guarded(model), positives_column="photo")


def test_a_stream_keeps_them_apart(tmp_path):
    """With a plain loss, listed positives and groups in each window; neither is trained as a text."""
    rows, model = known_rows(), make_static_model()
    trainer = make_trainer(
        tmp_path, rows.to_iterable_dataset(), model, MultipleNegativesRankingLoss(model), max_steps=12,
        planning_window=96,
    )  # fmt: skip
    trainer.train()
    assert {0.0} == {expected_share(batch, rows) for _, batch in trainer.trained}


def test_facts_of_rows_with_a_transform(tmp_path):
    """Both columns are made by a transform, and are no text."""
    rows = known_rows().with_transform(lambda block: dict(block))
    model = make_static_model()
    trainer = make_trainer(tmp_path, rows, model, guarded(model))
    assert trainer.train_dataset is not rows
    trainer.train()
    assert all(len(texts) == 2 for _, batch in trainer.trained for texts in batch)
    assert [expected_share(batch, rows) for _, batch in trainer.trained] == pytest.approx(shares(trainer))


# ---------------------------------------------------------------- two processes


def one_rank(folder: Path, resume: str | None) -> None:
    """What one of two processes does: trains with gathered negatives, from the start or a checkpoint."""
    torch.set_num_threads(1)
    model = make_static_model()
    loss, found = guarded(model, gather_across_devices=True), []
    compute = loss.compute_loss_from_embeddings
    loss.compute_loss_from_embeddings = lambda *args: (compute(*args), found.append(loss.last_identical))[0]
    name = "whole" if resume is None else "more"
    trainer = make_trainer(folder / name, known_rows(), model, loss, save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=resume)
    seen = {"trained": trainer.trained, "found": found, "weights": weights_hash(trainer.model)}
    (folder / f"{name}_{os.environ['RANK']}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_mask_by_the_rows_of_both(tmp_path):
    """Each of its own rows against the rows of both; a resumed run is as the one that was not stopped."""
    rows = known_rows()
    run_ranks(one_rank, 2, tmp_path, None, folder=tmp_path)
    whole = [json.loads((tmp_path / f"whole_{rank}.json").read_text()) for rank in range(2)]
    steps = list(zip(whole[0]["trained"], whole[1]["trained"], strict=True))
    for rank in range(2):
        expected = [expected_share([*of_ranks[rank][1], *of_ranks[1 - rank][1]], rows, own=B) for of_ranks in steps]
        assert expected == pytest.approx(whole[rank]["found"])
    across = [expected_share([*first, *second], rows) for (_, first), (_, second) in steps]
    assert max(across) > 0, "such rows are kept apart"
    run_ranks(one_rank, 2, tmp_path, str(tmp_path / "whole" / "checkpoint-4"), folder=tmp_path)
    for rank in range(2):
        more = json.loads((tmp_path / f"more_{rank}.json").read_text())
        assert [entry for entry in whole[rank]["trained"] if entry[0] > 4] == more["trained"]
        assert whole[rank]["weights"] == more["weights"]
