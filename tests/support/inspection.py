"""What the tests of the batch inspector share: subjects, an oracle, a run that keeps its plans."""

from __future__ import annotations

import math

import numpy as np
from conftest import make_pairs, make_static_model
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.batches.plan_history import PlanHistory
from gcbs_st.reports.inspection.inspector import Subject

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1> & \u2028 \ud800 \u202e é 猫"


def unit_rows(rows, seed, dim=6):
    """Random unit rows."""
    values = np.random.default_rng(seed).normal(size=(rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def make_subject(rows=40, size=8, *, texts=None, **changes):
    """A subject of random rows in random batches."""
    texts = texts or [(f"anchor {i}", f"positive {i}") for i in range(rows)]
    order = np.random.default_rng(5).permutation(rows)[: rows // size * size]
    fields = {
        "title": "a title",
        "anchors": unit_rows(rows, 1),
        "positives": unit_rows(rows, 2),
        "batches": order.reshape(-1, size),
        "rows": np.arange(rows),
        "read_texts": lambda ids: [texts[i] for i in ids.tolist()],
        "model": "a model",
    }
    return Subject(**{**fields, **changes})


def oracle(anchors, positives, batch, scale):
    """Loss, mean hardest negative, false negatives a row and tainted share of one batch, in plain loops."""
    losses, hardest, wrong = [], [], []
    for i in batch:
        scores = {j: float(np.dot(anchors[i].astype(np.float64), positives[j])) for j in batch}
        losses.append(math.log(sum(math.exp(scale * score) for score in scores.values())) - scale * scores[i])
        negatives = [score for j, score in scores.items() if j != i]
        hardest.append(max(negatives, default=math.nan))
        wrong.append(sum(score > scores[i] for score in negatives))
    return np.mean(losses), np.mean(hardest), np.mean(wrong), np.mean(np.array(wrong) > 0)


def train(folder, model=None, *, checkpoint=None, rows=None, callbacks=(), **settings):
    """Trains a static model with the plans kept; the batches that were drawn, by step."""
    defaults = {
        "per_device_train_batch_size": 16, "num_train_epochs": 2, "planner": "gcbs", "learning_rate": 1e-2, "seed": 3,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_steps": 5, "logging_steps": 100,
    }  # fmt: skip
    args = GCBSTrainingArguments(str(folder), **{**defaults, **settings})
    model = model or make_static_model()
    trainer = GCBSTrainer(
        model, args, rows or make_pairs(), loss=MultipleNegativesRankingLoss(model), callbacks=list(callbacks)
    )
    trainer.add_callback(PlanHistory(folder / "plans", lambda: trainer.planned_samplers, "gcbs", {"quantile": 0.9}))
    drawn = []
    trainer.compute_loss = lambda m, inputs, *rest, **more: (
        drawn.append([sampler.order.copy() for sampler in trainer.planned_samplers.values()]),
        type(trainer).compute_loss(trainer, m, inputs, *rest, **more),
    )[1]
    trainer.train(resume_from_checkpoint=checkpoint)
    return drawn


def refused(capsys, words):
    """The last line on stderr, after the libraries' progress, is the one message; nothing is on stdout."""
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("gcbs-st inspect: error: ")), captured.err
    assert "Traceback" not in captured.err
    message = captured.err.rstrip("\n").split("gcbs-st inspect: error: ")[1]
    assert words in message
    assert "\n" not in message
