"""Tests of ``gcbs_st.training.multi_vector_trainer``: token vectors are planned on by their mean, as training passes them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from conftest import make_pairs
from datasets import Dataset
from other_models import (
    GROUPS,
    QUIET,
    Watching,
    batches_of_ids,
    blocks,
    grouped_rows,
    make_colbert,
    share_of_one_group,
    whole_and_resumed,
)
from transformers import HfArgumentParser

pytest.importorskip("sentence_transformers.multi_vector_encoder", reason="this host has no MultiVectorEncoder")
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainingArguments
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss,
    MultiVectorMultipleNegativesRankingLoss,
)

from gcbs_st import GCBSMultiVectorEncoderTrainer, GCBSMultiVectorEncoderTrainingArguments, GCBSTrainingArguments
from gcbs_st.embeddings.store import make_key
from gcbs_st.embeddings.views import RandomProjection, mean_of_tokens, sentence_embedding

pytestmark = pytest.mark.usefixtures("one_thread")


class MultiVectorTrainer(Watching, GCBSMultiVectorEncoderTrainer):
    """The trainer, watched."""


def trained(
    folder: Path, model: MultiVectorEncoder, rows: Dataset, loss: Any = None, resume: str | None = None, **given: Any
) -> MultiVectorTrainer:
    """A trainer that has trained to the end."""
    args = GCBSMultiVectorEncoderTrainingArguments(str(folder), **{**QUIET, "planner": "bisect", **given})
    loss = loss or MultiVectorMultipleNegativesRankingLoss(model)
    trainer = MultiVectorTrainer(model, args, rows, loss=loss)
    trainer.train(resume)
    return trainer


def means(model: MultiVectorEncoder, texts: Any, task: str, **given: Any) -> np.ndarray:
    """The unit means of the token vectors that the host's own `encode` gives, with another mean and norm."""
    matrices = model.encode(list(texts), task=task, convert_to_numpy=True, **given)
    return np.stack([matrix.sum(axis=0) / np.linalg.norm(matrix.sum(axis=0)) for matrix in matrices])


def test_batches_are_blocks_of_the_plan_and_the_planted_groups_are_found(tmp_path):
    """Texts of the same words train together."""
    rows = grouped_rows()
    planned = trained(tmp_path, make_colbert(tmp_path / "model"), rows, learning_rate=0.0)
    ((_, _, order),) = planned.plans
    assert blocks(order) == {frozenset(batch) for batch in batches_of_ids(planned, rows)}
    assert GROUPS == len(planned.trained)
    random = trained(tmp_path, make_colbert(tmp_path / "again"), rows, planner="random")
    assert share_of_one_group(random.trained) < 0.5
    assert share_of_one_group(planned.trained) > 0.9


def test_the_tokens_that_are_scored_are_planned_on(tmp_path):
    """Anchors as queries and positives as documents, whose skip list leaves a token out; in the order of the rows."""
    rows = make_pairs(40)
    rows = Dataset.from_dict({name: [f"{text} w59" for text in rows[name]] for name in rows.column_names})
    model = make_colbert(tmp_path / "model")
    ((anchors, positives, _),) = trained(tmp_path, model, rows, learning_rate=0.0).plans
    np.testing.assert_allclose(anchors, means(model, rows["anchor"], "query"), atol=1e-5)
    np.testing.assert_allclose(positives, means(model, rows["positive"], "document"), atol=1e-5)
    other = means(model, rows["positive"], "query")
    assert np.abs(other - positives).max() > 1e-3, "the skip list makes a difference"


TASKS = {
    "route": (
        {"router_mapping": {"anchor": "document", "positive": "query"}}, ("document", "query"), {},
    ),
    "planned the other way round": ({"planner_columns": ["positive", "anchor"]}, ("document", "query"), {}),
    "length": ({"max_length": 4}, ("query", "document"), {"max_length": 4}),
    "length by task": ({"max_length": {"document": 3}}, ("query", "document"), {"max_length": {"document": 3}}),
    "prompts": ({"prompts": {"anchor": "query : "}}, ("query", "document"), {}),
}  # fmt: skip


@pytest.mark.parametrize("source", ["encode", "harvest"])
@pytest.mark.parametrize("given, tasks, lengths", TASKS.values(), ids=TASKS)
def test_tasks_lengths_and_prompts_are_those_of_training(tmp_path, given, tasks, lengths, source):
    """Encoded and harvested rows are what the collator's features give, cut and routed as it says."""
    rows, model = make_pairs(40), make_colbert(tmp_path / "model")
    trainer = trained(tmp_path, model, rows, learning_rate=0.0, embedding_source=source, num_train_epochs=2, **given)
    names = given.get("planner_columns", ["anchor", "positive"])
    found = trainer.harvested if source == "harvest" else trainer.plans[0][:2]
    for array, name, task in zip(found, names, tasks, strict=True):
        assert task == trainer.data_collator.collator(rows.to_list())[f"{name}_task"]
        length = lengths.get("max_length")
        length = length.get(task) if isinstance(length, dict) else length
        texts = [given.get("prompts", {}).get(name, "") + text for text in rows[name]]
        options = {"processing_kwargs": {"text": {"max_length": length, "truncation": True}}} if length else {}
        np.testing.assert_allclose(array, means(model, texts, task, **options), atol=1e-5)
    if lengths:
        assert np.abs(found[1] - means(model, rows[names[1]], tasks[1])).max() > 1e-3, "nothing was cut"


LOSSES = {
    "pairs": (MultiVectorMultipleNegativesRankingLoss, 2, {}),
    "triplets, one merged pass": (MultiVectorMultipleNegativesRankingLoss, 3, {}),
    "in small passes": (lambda model: MultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=3), 3, {}),
    "cached": (lambda model: CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=3), 2, {}),
    "accumulation and workers": (
        MultiVectorMultipleNegativesRankingLoss, 2, {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("loss, columns, given", LOSSES.values(), ids=LOSSES)
def test_harvested_rows_are_the_encoded_ones(tmp_path, loss, columns, given):
    """With a model that does not change, each row has the mean of its own text, however the loss passes it."""
    rows = make_pairs(48)
    if columns == 3:
        rows = rows.add_column("negative", make_pairs(48, seed=9)["anchor"])
    model = make_colbert(tmp_path / "model")
    trainer = trained(
        tmp_path, model, rows, loss(model), embedding_source="harvest", learning_rate=0.0, weight_decay=0.0,
        num_train_epochs=2, **given,
    )  # fmt: skip
    assert 48 == len(trainer.seen)
    for harvested, column, task in zip(trainer.harvested, ("anchor", "positive"), ("query", "document"), strict=True):
        np.testing.assert_allclose(harvested, means(model, rows[column], task), atol=1e-5)


@pytest.mark.parametrize("source", [pytest.param("encode", marks=pytest.mark.slow), "harvest"])
def test_a_resumed_run_is_bitwise_the_same(tmp_path, source):
    """Same batches and same weights, with dropout."""
    whole, resumed = whole_and_resumed(tmp_path, source, trained, make_colbert)
    assert whole == resumed


def test_mean_of_tokens():
    """Against NumPy: the mean of the vectors that the mask leaves; zeros where it leaves none; nothing of other models."""
    rng = np.random.default_rng(0)
    tokens, mask = rng.normal(size=(5, 7, 3)).astype(np.float32), rng.integers(0, 2, (5, 7))
    mask[2] = 0
    found = mean_of_tokens({"token_embeddings": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)})
    expected = [
        one[kept > 0].mean(axis=0) if kept.any() else np.zeros(3) for one, kept in zip(tokens, mask, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert mean_of_tokens({"sentence_embedding": torch.zeros(2, 3)}) is None


def test_the_hosts_arguments_are_taken(tmp_path):
    """Ours have their defaults then; arguments of dense models are refused by name. The host's loss is the default."""
    plain = MultiVectorEncoderTrainingArguments(str(tmp_path), max_length={"query": 8}, **QUIET)
    model = make_colbert(tmp_path / "model")
    trainer = MultiVectorTrainer(model, plain, grouped_rows())
    trainer.train()
    assert ("auto", {"query": 8}) == (trainer.args.planner, trainer.args.max_length)
    assert isinstance(trainer.loss, MultiVectorMultipleNegativesRankingLoss)
    assert 1 == len(trainer.plans)
    expected = "expected GCBSMultiVectorEncoderTrainingArguments or MultiVectorEncoderTrainingArguments"
    with pytest.raises(TypeError, match=f"got GCBSTrainingArguments, {expected}"):
        MultiVectorTrainer(model, GCBSTrainingArguments(str(tmp_path), **QUIET), grouped_rows())


def test_what_was_harvested_is_known_again_in_another_process():
    """The key of stored rows says what is kept of a pass, and nothing of where in memory that function lies."""
    other = FunctionType(mean_of_tokens.__code__, {}, mean_of_tokens.__name__)
    assert repr(other) != repr(mean_of_tokens)
    model = torch.nn.Linear(2, 2)
    views = (mean_of_tokens, other, sentence_embedding, RandomProjection(3, 1), RandomProjection(3, 2))
    keys = [make_key("a", "b", [], model, view) for view in views]
    assert keys[0] == keys[1]
    assert 4 == len(set(keys))


def test_lengths_come_from_the_command_line(tmp_path):
    """The host's own arguments cannot be parsed; a number or a mapping is taken, and nothing else."""
    parser = HfArgumentParser(GCBSMultiVectorEncoderTrainingArguments)
    line = ["--output_dir", str(tmp_path), "--report_to", "none"]
    for text, expected in (("32", 32), ('{"query": 8}', {"query": 8})):
        (args,) = parser.parse_args_into_dataclasses([*line, "--max_length", text])
        assert expected == args.max_length
    assert parser.parse_args_into_dataclasses(line)[0].max_length is None
    with pytest.raises(ValueError, match="^max_length: got 'long', expected a number of tokens, or a mapping"):
        parser.parse_args_into_dataclasses([*line, "--max_length", "long"])


def test_an_old_host_is_told_what_it_lacks(monkeypatch):
    """Who asks for this trainer is told what to install; no other module imports it."""
    monkeypatch.delattr(sentence_transformers, "MultiVectorEncoderTrainer")
    monkeypatch.delitem(sys.modules, "gcbs_st.training.multi_vector_trainer")
    expected = (
        r"^GCBSMultiVectorEncoderTrainer: got sentence-transformers .*, expected one with MultiVectorEncoder. Run: pip"
    )
    with pytest.raises(ImportError, match=expected):
        importlib.import_module("gcbs_st.training.multi_vector_trainer")
