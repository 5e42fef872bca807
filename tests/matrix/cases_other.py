"""The trainers of sparse and of late-interaction models."""

from __future__ import annotations

from typing import Any

import torch
from other_models import make_word_counter
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.losses import (
    CachedSpladeLoss,
    SparseMultipleNegativesRankingLoss,
    SpladeLoss,
)

from matrix.case import Case, Run
from matrix.cases_planning import aged
from matrix.materials import triplets, two_sets


def splade(place: Any) -> Any:
    """A SPLADE model with dropout."""
    return SparseEncoder(str(place.models / "splade"), device="cpu")


def colbert(place: Any) -> Any:
    """A late-interaction model with dropout."""
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(place.models / "colbert"), device="cpu")


def colbert_loss(model: Any) -> Any:
    """The host's default."""
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

    return MultiVectorMultipleNegativesRankingLoss(model)


def cached_colbert_loss(model: Any) -> Any:
    """The same in mini-batches."""
    from sentence_transformers.multi_vector_encoder.losses import CachedMultiVectorMultipleNegativesRankingLoss

    return CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=3)


def splade_loss(model: Any) -> Any:
    """The host's default."""
    return SpladeLoss(
        model, SparseMultipleNegativesRankingLoss(model), document_regularizer_weight=3e-3,
        query_regularizer_weight=5e-3,
    )  # fmt: skip


def cached_splade_loss(model: Any) -> Any:
    """The same in mini-batches."""
    return CachedSpladeLoss(
        model, SparseMultipleNegativesRankingLoss(model), document_regularizer_weight=3e-3,
        query_regularizer_weight=5e-3, mini_batch_size=3,
    )  # fmt: skip


def weights_rise(run: Run) -> None:
    """The host's callback has raised the weight of the regularizers from 0."""
    assert run.trainer.loss.document_regularizer_weight == 3e-3
    assert any("SpladeRegularizer" in type(one).__name__ for one in run.trainer.callback_handler.callbacks)


def sparse(output: dict[str, Any]) -> torch.Tensor:
    """The embedding, as wide as the vocabulary."""
    return output["sentence_embedding"].float().to_dense()


def mean_token(output: dict[str, Any]) -> torch.Tensor:
    """The mean of the token vectors that are scored."""
    mask = output["attention_mask"].unsqueeze(-1).float()
    return (output["token_embeddings"].float() * mask).sum(1) / mask.sum(1)


SPARSE: dict[str, Any] = {"trainer": "GCBSSparseEncoderTrainer", "model": splade, "represent": sparse}
MULTI: dict[str, Any] = {
    "trainer": "GCBSMultiVectorEncoderTrainer",
    "model": colbert,
    "represent": mean_token,
    "needs": "sentence_transformers.multi_vector_encoder",
}
HARVEST = {"embedding_source": "harvest", "first_plan": "encode"}

CASES = [
    Case(
        "`GCBSSparseEncoderTrainer`, SPLADE",
        loss=splade_loss, check=weights_rise, quick=True, **SPARSE,
    ),
    Case(
        "... with gradient caching, triplets, sparse",
        rows=triplets, loss=cached_splade_loss, check=weights_rise, **SPARSE,
    ),
    Case("... harvested, sparse", loss=splade_loss, arguments=HARVEST, check=aged, **SPARSE),
    Case(
        "... a static sparse model",
        loss=splade_loss, **{**SPARSE, "model": lambda place: make_word_counter()},
    ),
    Case(
        "... two datasets, sparse", rows=two_sets, loss=splade_loss, steps=(32, 14), save_at=(22, 10),
        arguments={"multi_dataset_batch_sampler": "proportional"}, **SPARSE,
    ),
    Case(
        "`GCBSMultiVectorEncoderTrainer`, ColBERT",
        loss=colbert_loss, quick=True, **MULTI,
    ),
    Case(
        "... with gradient caching, late interaction",
        rows=triplets, loss=cached_colbert_loss, **MULTI,
    ),
    Case(
        "... harvested, late interaction", loss=colbert_loss, arguments=HARVEST, check=aged, **MULTI,
    ),
]  # fmt: skip
