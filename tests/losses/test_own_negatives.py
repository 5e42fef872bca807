"""Tests of the ranking loss over a row's own negatives alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_static_model
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import pairwise_dot_score

from gcbs_st.losses import OwnNegativesRankingLoss
from gcbs_st.training.loss_facts import contrasts_rows, loss_scale


def slow_loss(columns, scale):
    """Row by row, candidate by candidate, as the paper writes it."""
    losses = []
    for row in range(len(columns[0])):
        anchor = columns[0][row].tolist()
        scores = []
        for column in columns[1:]:
            text = column[row].tolist()
            product = sum(a * t for a, t in zip(anchor, text, strict=True))
            norms = math.sqrt(sum(a * a for a in anchor)) * math.sqrt(sum(t * t for t in text))
            scores.append(scale * product / norms)
        losses.append(-math.log(math.exp(scores[0]) / sum(map(math.exp, scores))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("negatives", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_it_is_the_papers(negatives, scale):
    """Of any number of negatives, against a loop over rows and candidates."""
    rng = np.random.default_rng(negatives)
    columns = [torch.tensor(rng.normal(size=(7, 4))) for _ in range(2 + negatives)]
    found = OwnNegativesRankingLoss(make_static_model(), scale).compute_loss_from_embeddings(columns)
    assert slow_loss(columns, scale) == pytest.approx(found.item(), rel=1e-9)


def test_of_one_row_it_is_the_hosts():
    """Which has no other negatives then; the gradients are the same, too."""
    texts = [["w1 w2"], ["w2 w3"], ["w4 w5"], ["w6"]]
    gradients = []
    for kind in (MultipleNegativesRankingLoss, OwnNegativesRankingLoss):
        model = make_static_model()
        features = [model.preprocess(column) for column in texts]
        kind(model)(features, None).backward()
        gradients.append(next(model.parameters()).grad.to_dense())
    torch.testing.assert_close(*gradients)


def test_other_rows_make_no_difference():
    """A row's gradient is that of the row alone, divided by the rows of the batch."""
    rng = np.random.default_rng(0)
    columns = [torch.tensor(rng.normal(size=(6, 4)), requires_grad=True) for _ in range(3)]
    loss = OwnNegativesRankingLoss(make_static_model())
    whole = torch.autograd.grad(loss.compute_loss_from_embeddings(columns), columns)
    for row in range(6):
        alone = torch.autograd.grad(
            loss.compute_loss_from_embeddings([one[row : row + 1] for one in columns]), columns
        )
        for together, own in zip(whole, alone, strict=True):
            torch.testing.assert_close(own[row] / 6, together[row])


def test_another_similarity():
    """Dot products in place of cosines."""
    anchor, positive, negative = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]], [[0.0, 2.0]]])
    loss = OwnNegativesRankingLoss(None, scale=1.0, similarity_fct=pairwise_dot_score)
    found = loss.compute_loss_from_embeddings([anchor, positive, negative])
    assert math.log1p(math.exp(4.0 - 3.0)) == pytest.approx(found.item())
    assert "pairwise_dot_score" == loss.get_config_dict()["similarity_fct"]


def test_what_cannot_be_is_refused():
    """Rows without negatives, and a scale that turns the loss around."""
    pairs = [torch.ones(2, 3), torch.ones(2, 3)]
    with pytest.raises(
        ValueError, match="^OwnNegativesRankingLoss: got 2 text columns, expected anchor, positive and"
    ):
        OwnNegativesRankingLoss(None).compute_loss_from_embeddings(pairs)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="^scale: got"):
            OwnNegativesRankingLoss(None, scale=scale)


def test_composing_batches_cannot_help_it():
    """So the trainers leave its datasets alone, as they do with the host's losses of single rows."""
    model = make_static_model()
    assert not contrasts_rows(OwnNegativesRankingLoss(model))
    assert contrasts_rows(MultipleNegativesRankingLoss(model)) and not contrasts_rows(CosineSimilarityLoss(model))
    assert 30.0 == loss_scale(OwnNegativesRankingLoss(model, scale=30.0))
