"""Tests of ``gcbs_st.training.sparse_trainer`` and ``gcbs_st.embeddings.views``: sparse embeddings are planned on, and never held."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, make_pairs, make_static_model
from datasets import Dataset
from other_models import (
    GROUPS,
    QUIET,
    B,
    Watching,
    batches_of_ids,
    blocks,
    grouped_rows,
    make_splade,
    make_word_counter,
    share_of_one_group,
    whole_and_resumed,
)
from sentence_transformers import SparseEncoder, SparseEncoderTrainingArguments
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sparse_encoder.losses import (
    CachedSpladeLoss,
    SparseMultipleNegativesRankingLoss,
    SpladeLoss,
)
from sentence_transformers.util import cos_sim, dot_score

from gcbs_st import GCBSSparseEncoderTrainer, GCBSSparseEncoderTrainingArguments, GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.embeddings.views import RandomProjection
from gcbs_st.planners.quality import plan_quality
from gcbs_st.rows.columns import text_columns
from gcbs_st.training.loss_facts import loss_scale
from gcbs_st.training.refusals import refuse_model

V = len(VOCABULARY)


pytestmark = pytest.mark.usefixtures("one_thread")


class SparseTrainer(Watching, GCBSSparseEncoderTrainer):
    """The trainer, watched."""


def splade_loss(model: SparseEncoder, kind: Any = SpladeLoss, **given: Any) -> SpladeLoss:
    """The host's default loss."""
    return kind(
        model, SparseMultipleNegativesRankingLoss(model), document_regularizer_weight=3e-3,
        **{"query_regularizer_weight": 5e-3, **given},
    )  # fmt: skip


def trained(
    folder: Path, model: SparseEncoder, rows: Dataset, loss: Any = None, resume: str | None = None, **given: Any
) -> SparseTrainer:
    """A trainer that has trained to the end."""
    args = GCBSSparseEncoderTrainingArguments(str(folder), **{**QUIET, "planner": "bisect", **given})
    trainer = SparseTrainer(model, args, rows, loss=loss or splade_loss(model))
    trainer.train(resume)
    return trainer


def dense(model: SparseEncoder, texts: Any) -> np.ndarray:
    """The whole embeddings, by the host's own `encode`."""
    return model.encode(list(texts), convert_to_sparse_tensor=False).numpy()


# ---------------------------------------------------------------- what is planned on


def test_batches_are_blocks_of_the_plan_and_the_planted_groups_are_found(tmp_path):
    """Texts of the same words train together, from a projection to fewer dimensions than there are words."""
    rows = grouped_rows()
    assert 48 < V
    planned = trained(tmp_path, make_word_counter(), rows, projection_dimensions=48, learning_rate=0.0)
    ((anchors, _, order),) = planned.plans
    assert (len(rows), 48) == anchors.shape
    assert blocks(order) == {frozenset(batch) for batch in batches_of_ids(planned, rows)}
    assert GROUPS == len(planned.trained)
    random = trained(tmp_path, make_word_counter(), rows, planner="random")
    assert share_of_one_group(random.trained) < 0.5
    assert share_of_one_group(planned.trained) > 0.9


def test_cosines_survive(tmp_path):
    """What is planned on has the cosines of the whole embeddings, as near as the number of dimensions promises."""
    rows, model = make_pairs(64), make_splade(tmp_path / "model")
    sides = [dense(model, rows[column]) for column in ("anchor", "positive")]
    exact = cos_sim(*sides).numpy()
    errors = {}
    for dimensions in (64, 4096):
        args = {"projection_dimensions": dimensions, "learning_rate": 0.0, "planner": "random"}
        ((anchors, positives, _),) = trained(tmp_path, model, rows, **args).plans
        np.testing.assert_allclose(np.linalg.norm(anchors, axis=1), 1, atol=1e-5)
        errors[dimensions] = np.abs(anchors @ positives.T - exact)
        # 64 times 64 cosines: none should be five standard errors off.
        assert errors[dimensions].max() < 5 * math.sqrt(2 / dimensions)
    assert errors[4096].mean() < errors[64].mean() / 4, "8 times better"


def test_the_seed_and_nothing_else_decides_the_signs():
    """The same on every process and in every resumed run; other signs for another seed."""
    rows = {"sentence_embedding": torch.from_numpy(np.random.default_rng(0).random((5, 300)).astype(np.float32))}
    first = RandomProjection(32, seed=1)(rows)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(first, RandomProjection(32, seed=1)(rows))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.allclose(first, RandomProjection(32, seed=2)(rows))
    assert "RandomProjection(dimensions=32, seed=1)" == repr(RandomProjection(32, seed=1))


def test_inner_products_are_unbiased():
    """Over many seeds the mean of what comes out is what went in."""
    rng = np.random.default_rng(4)
    x, y = (torch.from_numpy(rng.random((1, 200)).astype(np.float32)) for _ in range(2))
    found = [
        float(p({"sentence_embedding": x}) @ p({"sentence_embedding": y}).T)
        for p in (RandomProjection(16, seed) for seed in range(600))
    ]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - float(x @ y.T)) < 4 * error
    # The variance of signs, which is below that of Gaussian numbers.
    square = lambda a: float((a * a).sum())  # noqa: E731
    variance = (square(x) * square(y) + float(x @ y.T) ** 2 - 2 * square(x * y)) / 16
    assert 0.85 < np.var(found) / variance < 1.15


def test_precision_and_layout_of_a_pass_do_not_matter():
    """Under autocast, from half precision and from sparse tensors the projection is computed in full."""
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (6, 300)).astype(np.float32))
    expected = RandomProjection(32, seed=1)({"sentence_embedding": x})
    view = RandomProjection(32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = [view({"sentence_embedding": one}) for one in (x, x.bfloat16(), x.to_sparse())]
    for one in found:
        assert torch.float32 == one.dtype
        assert torch.equal(expected, one)
    assert view({"token_embeddings": x}) is None


def test_texts_without_any_term_have_a_direction():
    """A text whose embedding is zero is no reason to stop: all such texts lie in one direction, and no other moves."""
    x = torch.zeros((4, 300))
    x[1, 5], x[3, 7] = 1.0, 2.0
    found = RandomProjection(256, seed=0)({"sentence_embedding": x}).numpy()
    assert found[0].any()
    assert found[0].tolist() == found[2].tolist()
    units = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert abs(units[0] @ units[1]) < 0.3
    np.testing.assert_allclose(np.linalg.norm(found[[1, 3]], axis=1), [1, 2], atol=1e-4)


# ---------------------------------------------------------------- encode and harvest

LOSSES = {
    "pairs": (lambda model: splade_loss(model), 2, {}),
    "triplets": (lambda model: splade_loss(model), 3, {}),
    "all are documents, one merged pass": (
        lambda model: splade_loss(model, use_document_regularizer_only=True, query_regularizer_weight=None), 3, {},
    ),
    "cached": (lambda model: splade_loss(model, CachedSpladeLoss, mini_batch_size=3), 2, {}),
    "accumulation and workers": (
        lambda model: splade_loss(model), 2, {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
    ),
    "half precision": (lambda model: splade_loss(model), 2, {"bf16": True}),
}  # fmt: skip


@pytest.mark.parametrize("loss, columns, given", LOSSES.values(), ids=LOSSES)
def test_harvested_rows_are_the_encoded_ones(tmp_path, loss, columns, given):
    """With a model that does not change, each row has the projection of its own text, however the loss passes it."""
    rows = make_pairs(48)
    if columns == 3:
        rows = rows.add_column("negative", make_pairs(48, seed=9)["anchor"])
    model = make_splade(tmp_path / "model")
    trainer = trained(
        tmp_path, model, rows, loss(model), embedding_source="harvest", learning_rate=0.0, weight_decay=0.0,
        num_train_epochs=2, projection_dimensions=40, **given,
    )  # fmt: skip
    assert 48 == len(trainer.seen)
    ours = encode_rows(
        model, rows, trainer.seen, text_columns(rows), batch_size=16, view=RandomProjection(40, trainer.args.seed)
    )
    for harvested, encoded, column in zip(trainer.harvested, ours, ("anchor", "positive"), strict=True):
        # The trained model's forward stays under autocast, whose sums go by the shape of the batch on some CPUs.
        atol = 2e-2 if "bf16" in given else 1e-5
        np.testing.assert_allclose(harvested, encoded, atol=atol)
        # Against the host's own `encode`, with the signs written out.
        signs = np.random.default_rng([42, 40]).integers(0, 2, (V + 1, 40), dtype=np.int8)[:-1] * 2.0 - 1
        expected = dense(model, rows[column]) @ signs
        np.testing.assert_allclose(
            encoded, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=max(atol, 1e-4)
        )


@pytest.mark.parametrize("source", ["encode", "harvest"])
def test_queries_without_inference(tmp_path, source):
    """Each column goes the route that training sends it: queries by a table of weights, documents by the transformer."""
    rows, splade = make_pairs(48), make_splade(tmp_path / "model")
    router = Router.for_query_document(list(make_word_counter()), list(splade))
    model = SparseEncoder(modules=[router], device="cpu")
    mapping = {"anchor": "query", "positive": "document"}
    trainer = trained(
        tmp_path, model, rows, embedding_source=source, learning_rate=0.0, num_train_epochs=2, router_mapping=mapping
    )
    found = trainer.harvested if source == "harvest" else trainer.plans[0][:2]
    view = RandomProjection(512, trainer.args.seed)
    for array, by, column in zip(found, (make_word_counter(), splade), rows.column_names, strict=True):
        expected = view({"sentence_embedding": torch.from_numpy(dense(by, rows[column]))}).numpy()
        np.testing.assert_allclose(array, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("source", ["encode", "harvest"])
def test_whole_embeddings_are_never_held(tmp_path, monkeypatch, source):
    """Of the embeddings of 320 texts no more are alive at any time than those of two batches."""
    alive, most = [], []
    project = RandomProjection.__call__

    def watched(self, output):
        found = project(self, output)
        alive.append(weakref.ref(output["sentence_embedding"]))
        most.append(sum(len(one) for ref in alive if (one := ref()) is not None))
        return found

    monkeypatch.setattr(RandomProjection, "__call__", watched)
    gc.collect()
    trained(
        tmp_path, make_splade(tmp_path / "model"), make_pairs(160), embedding_source=source, num_train_epochs=2,
        embedding_batch_size=16,
    )  # fmt: skip
    assert len(alive) > 20
    assert max(most) <= 4 * B


# ---------------------------------------------------------------- the host's loop


@pytest.mark.parametrize("source", [pytest.param("encode", marks=pytest.mark.slow), "harvest"])
def test_a_resumed_run_is_bitwise_the_same(tmp_path, source):
    """Same batches, same weights, with dropout and the schedule of the regularizer."""
    whole, resumed = whole_and_resumed(tmp_path, source, trained, make_splade)
    assert whole == resumed


def test_the_regularizers_schedule_runs_as_in_the_host(tmp_path):
    """The host's callback finds its place before ours: the weights grow from nothing over a third of the steps."""
    seen = []

    class Noting(SpladeLoss):
        def forward(self, features, labels=None):
            seen.append((self.document_regularizer_weight, self.query_regularizer_weight))
            return super().forward(features, labels)

    model = make_splade(tmp_path / "model")
    trained(tmp_path, model, make_pairs(96), splade_loss(model, Noting))
    shares = np.array([min(1, step / 4) ** 2 for step in range(12)])
    np.testing.assert_allclose(seen, np.stack([3e-3 * shares, 5e-3 * shares], axis=1))


def test_the_default_loss_is_the_hosts(tmp_path):
    """Without a loss the host's own is taken, and planned for."""
    model = make_splade(tmp_path / "model")
    args = GCBSSparseEncoderTrainingArguments(str(tmp_path), planner="bisect", **QUIET)
    trainer = SparseTrainer(model, args, make_pairs(32))
    trainer.train()
    assert isinstance(trainer.loss, SpladeLoss)
    assert 1 == len(trainer.plans)


def test_quality_is_measured_as_the_loss_scores(tmp_path):
    """Dot products of embeddings of any norm: cosines, times the scale and the mean squared norm of the rows."""
    model, rows = make_splade(tmp_path / "model"), make_pairs(64)
    trainer = trained(tmp_path, model, rows, learning_rate=0.0)
    ((anchors, positives, order),) = trainer.plans
    norms = [np.linalg.norm(dense(model, rows[column]), axis=1) for column in ("anchor", "positive")]
    assert np.square(norms).mean() > 2, "far from 1"
    expected = plan_quality(anchors, positives, order, B, scale=np.square(norms).mean())
    (entry,) = [entry for entry in trainer.state.log_history if "gcbs/gap" in entry]
    assert expected.gap == pytest.approx(entry["gcbs/gap"], rel=0.02)
    assert json.dumps(entry)


def test_scales_of_losses():
    """The mean squared norm counts where dot products are scored, also inside of other losses."""
    model = make_word_counter()
    assert 9.0 == loss_scale(splade_loss(model), 9.0)
    assert 1.0 == loss_scale(splade_loss(model))
    assert 20.0 == loss_scale(SparseMultipleNegativesRankingLoss(model, scale=20.0, similarity_fct=cos_sim), 9.0)
    assert 18.0 == loss_scale(SparseMultipleNegativesRankingLoss(model, scale=2.0, similarity_fct=dot_score), 9.0)
    assert 20.0 == loss_scale(MultipleNegativesRankingLoss(model), 9.0)


# ---------------------------------------------------------------- arguments


def test_the_hosts_arguments_are_taken(tmp_path):
    """Ours have their defaults then; arguments of dense models are refused by name."""
    plain = SparseEncoderTrainingArguments(str(tmp_path), **QUIET)
    model = make_word_counter()
    trainer = SparseTrainer(model, plain, grouped_rows(), loss=splade_loss(model))
    trainer.train()
    assert ("auto", 512) == (trainer.args.planner, trainer.args.projection_dimensions)
    assert SparseEncoderTrainingArguments is type(plain)
    with pytest.raises(
        TypeError,
        match="got GCBSTrainingArguments, expected GCBSSparseEncoderTrainingArguments or SparseEncoderTraining",
    ):
        SparseTrainer(model, GCBSTrainingArguments(str(tmp_path), **QUIET), grouped_rows())


def test_models_of_other_trainers_are_refused(tmp_path):
    """With the name of the trainer that is theirs; nothing is said of what is no model of the host's."""
    sparse, dense_model = make_word_counter(), make_static_model()
    with pytest.raises(ValueError, match="got a SparseEncoder in GCBSTrainer, .* Use GCBSSparseEncoderTrainer"):
        GCBSTrainer(sparse, GCBSTrainingArguments(str(tmp_path), **QUIET), grouped_rows())
    with pytest.raises(ValueError, match="got a SentenceTransformer in SparseTrainer, .* Use GCBSTrainer"):
        SparseTrainer(dense_model, GCBSSparseEncoderTrainingArguments(str(tmp_path), **QUIET), grouped_rows())
    cross = type("CrossEncoder", (torch.nn.Module,), {})()
    with pytest.raises(ValueError, match="got a CrossEncoder in GCBSTrainer, .* It embeds no text"):
        GCBSTrainer(cross, GCBSTrainingArguments(str(tmp_path), **QUIET), grouped_rows())
    refuse_model(None, GCBSTrainer)
    refuse_model(torch.nn.Identity(), GCBSTrainer)
    refuse_model(dense_model, type("Own", (GCBSTrainer,), {}))


@pytest.mark.parametrize("given", [0, -5])
def test_a_projection_to_nothing_is_refused(tmp_path, given):
    """As every field out of its range."""
    with pytest.raises(ValueError, match=f"^projection_dimensions: got {given}, expected at least 1"):
        GCBSSparseEncoderTrainingArguments(str(tmp_path), projection_dimensions=given, **QUIET)
