"""Rows that are embedded for advice: as many as fit, and the same as embedding them at once."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_pairs, make_static_model
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from gcbs_st.advice import sample as sampling
from gcbs_st.advice.sample import embed_sample
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.rows.columns import TextColumn

SIDES = [TextColumn("anchor"), TextColumn("positive", "query: ")]


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each pass of a model takes a second per 256 rows."""
    now = [0.0]
    real = encode_rows

    def slow(model, dataset, rows, columns, **options):
        now[0] += len(rows) / 256
        return real(model, dataset, rows, columns, **options)

    monkeypatch.setattr(sampling, "encode_rows", slow)
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(("seconds", "rows"), [(0, 512), (3, 512), (4, 1024), (9, 2048), (1000, 3000)])
def test_a_power_of_two_that_fits(clock, seconds, rows):
    """From 512 up, doubled while the doubling fits, and all rows at most."""
    found = embed_sample(make_static_model(), make_pairs(3000), SIDES, seconds=seconds)
    assert (rows, 256.0) == (len(found.rows), pytest.approx(found.rows_per_second))
    assert (np.diff(found.rows) > 0).all()


def test_embeddings_are_those_of_the_rows():
    """Whatever the chunks, with each side's prompt."""
    model, pairs = make_static_model(), make_pairs(700)
    found = embed_sample(model, pairs, SIDES, seconds=30, row_count=600)
    anchors, positives = encode_rows(model, pairs, found.rows, SIDES, batch_size=600)
    np.testing.assert_allclose(found.anchors, anchors, atol=1e-6)
    np.testing.assert_allclose(found.positives, positives, atol=1e-6)
    one = embed_sample(model, pairs, SIDES[:1], seconds=30, row_count=100)
    assert one.anchors is one.positives


@pytest.mark.parametrize(("seconds", "length", "seen"), [(1, 40, {32, 8}), (1, 1, {32}), (100, 40, {32})])
def test_long_texts_are_cut_where_time_is_short(clock, monkeypatch, bert_folder, seconds, length, seen):
    """And only there; the model reads as much as before afterwards."""
    monkeypatch.setattr(sampling, "CUT_TOKENS", 8)
    limits, timed = set(), sampling.encode_rows

    def watched(model, *rest, **options):
        limits.add(model.max_seq_length)
        return timed(model, *rest, **options)

    monkeypatch.setattr(sampling, "encode_rows", watched)
    words = make_pairs(1500)["anchor"]
    rows = Dataset.from_dict({"anchor": [" ".join([text[:8].strip()] * length) for text in words]})
    found = embed_sample(SentenceTransformer(bert_folder, device="cpu"), rows, SIDES[:1], seconds=seconds)
    assert (seen, len(seen) == 2) == (limits, found.cut)
    model = SentenceTransformer(bert_folder, device="cpu")
    embed_sample(model, rows, SIDES[:1], seconds=seconds)
    assert 32 == model.max_seq_length


def test_rows_without_direction_are_dropped():
    """A row whose text the model makes nothing of is counted; nothing but such rows is an error."""
    rows = {"anchor": ["w1 w2", "", "w3"], "positive": ["w1", "w2", "w5"]}
    found = embed_sample(make_static_model(), Dataset.from_dict(rows), SIDES, seconds=1)
    assert ([0, 2], 1) == (found.rows.tolist(), found.dropped)
    with pytest.raises(ValueError, match="1 of 2 rows"):
        embed_sample(make_static_model(), Dataset.from_dict({"anchor": ["", "w1"]}), SIDES[:1], seconds=1)
