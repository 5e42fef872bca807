"""What a user hands us is trained as the host would train it, planned as it is trained, or refused, or warned of once."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert, make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import dot_score
from torch import nn

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.losses import CachedGuardedMultipleNegativesRankingLoss, GuardedMultipleNegativesRankingLoss
from gcbs_st.planners import available
from gcbs_st.planners.quality import plan_quality

B = 8
MNRL = losses.MultipleNegativesRankingLoss

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(folder: Path, **given: Any) -> GCBSTrainingArguments:
    """Arguments of a quiet run of one epoch with batches by `bisect`."""
    defaults = {
        "per_device_train_batch_size": B, "num_train_epochs": 1, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "planner": "bisect",
    }  # fmt: skip
    return GCBSTrainingArguments(str(folder), **{**defaults, **given})


class Planning(RecordingTrainer):
    """Keeps what is planned on, and the planner that was asked."""

    def plan_batches(self, anchors, positives, batch_size, rng):
        self.__dict__.setdefault("asked", []).append((np.array(anchors), np.array(positives), self.planner))
        return super().plan_batches(anchors, positives, batch_size, rng)


def warnings_of(caplog: Any, words: str) -> list[str]:
    """The messages that hold some words."""
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


# ------------------------------------------------------------------ the same text twice in one batch


def mined(questions: int = 40, negatives: int = 3) -> Dataset:
    """Triplets as `mine_hard_negatives` gives them: each question and its answer once for each negative."""
    pairs = make_pairs(questions)
    rows = [
        (q, p, f"w{i} w{j} w{n}")
        for i, (q, p) in enumerate(zip(pairs["anchor"], pairs["positive"], strict=True))
        for j, n in [(k, (7 * i + k) % 60) for k in range(negatives)]
    ]
    return Dataset.from_dict(
        dict(zip(("anchor", "positive", "negative"), map(list, zip(*rows, strict=True)), strict=True))
    )


@pytest.mark.parametrize("planner", available())
def test_no_planner_repeats_a_question_in_a_batch(tmp_path, planner):
    """By default, with every row once per epoch and every batch full."""
    options = {"random_walk": {"neighbors": 10, "candidates": 50}}.get(planner)
    rows, model = mined(), make_static_model()
    args = arguments(tmp_path, planner=planner, planner_options=options, num_train_epochs=2, replan_steps=5)
    trainer = RecordingTrainer(model, args, rows, loss=MNRL(model))
    trainer.train()
    assert 30 == len(trainer.trained)
    for _, batch in trainer.trained:
        assert B == len(batch) == len({question for question, *_ in batch})
    assert Counter({1: 120}) == Counter(Counter(row for _, batch in trainer.trained[:15] for row in batch).values())


def test_a_negative_that_is_anothers_positive_is_kept_apart(tmp_path):
    """In the other's batch it would be pushed away from its own question."""
    pairs = make_pairs(64)
    rows = pairs.add_column("negative", [pairs["positive"][(i + 1) % 64] for i in range(64)])
    model = make_static_model()
    trainer = RecordingTrainer(model, arguments(tmp_path, planner="best"), rows, loss=MNRL(model))
    trainer.train()
    for _, batch in trainer.trained:
        assert not {positive for _, positive, _ in batch} & {negative for *_, negative in batch}


def test_a_text_in_more_rows_than_there_are_batches(tmp_path, caplog):
    """It is spread evenly, all rows are trained, and one warning says how many rows, and which text."""
    pairs = make_pairs(96)
    rows = Dataset.from_dict({"anchor": ["w1 w2"] * 30 + pairs["anchor"][30:], "positive": pairs["positive"]})
    model = make_static_model()
    args = arguments(tmp_path, num_train_epochs=2, replan_steps=3)
    trainer = RecordingTrainer(model, args, rows, loss=MNRL(model))
    trainer.train()
    assert {2, 3} >= {sum(anchor == "w1 w2" for anchor, _ in batch) for _, batch in trainer.trained[:12]}
    (warning,) = warnings_of(caplog, "share a text")
    assert (
        "of the rows of the training set share" in warning
        and "'w1 w2' stands in 30 of 96 rows" in warning
        and "12 batches" in warning
    )


def test_the_explicit_no_duplicates_refuses_and_names_the_text(tmp_path):
    """One negative in 20 of 192 rows at batch 16, which the host trains, and so do we by default."""
    rows = make_pairs(192).add_column("negative", ["w3 w4"] * 20 + [f"w{i % 60} w{i // 60} w9" for i in range(172)])
    model = make_static_model()
    given = {"per_device_train_batch_size": 16}
    assert 12 == GCBSTrainer(model, arguments(tmp_path, **given), rows, loss=MNRL(model)).train().global_step
    trainer = GCBSTrainer(model, arguments(tmp_path, batch_sampler="no_duplicates", **given), rows, loss=MNRL(model))
    with pytest.raises(ValueError, match="no_duplicates: the text 'w3 w4' stands in 20 of the 192 rows"):
        trainer.train()


def test_rows_without_a_group_are_in_no_group(tmp_path, caplog):
    """None and NaN are no value that rows could share."""
    for missing in (None, float("nan")):
        caplog.clear()
        rows = make_pairs(64).add_column("group", [missing] * 60 + [1.0, 1.0, 2.0, 2.0])
        model = make_static_model()
        trainer = GCBSTrainer(model, arguments(tmp_path, group_column="group"), rows, loss=MNRL(model))
        assert 8 == trainer.train().global_step
        assert [] == warnings_of(caplog, "share a text or group")


# ------------------------------------------------------------------ what is planned is what is trained


@pytest.mark.parametrize("source", ["encode", "harvest"])
def test_truncated_dimensions_are_those_of_inference(tmp_path, source):
    """Training uses whole embeddings, so plans do; the model truncates as before afterwards."""
    rows, model = make_pairs(64), make_static_model()
    whole = model.encode(rows["anchor"], normalize_embeddings=True)
    model.truncate_dim = 4
    args = arguments(tmp_path, embedding_source=source, first_plan="encode", num_train_epochs=2, learning_rate=0.0)
    trainer = Planning(model, args, rows, loss=MNRL(model))
    trainer.train()
    assert [16, 16] == [anchors.shape[1] for anchors, *_ in trainer.asked]
    np.testing.assert_allclose(whole, trainer.asked[0][0], atol=1e-6)
    assert 4 == model.truncate_dim == model.encode("w1").shape[0]


def resolved(rows: Dataset) -> Dataset:
    """Ids that a transform resolves to texts when rows are read, as the host's `resolve_ids` does."""
    texts = {"q": list(rows["anchor"]), "p": list(rows["positive"])}
    ids = Dataset.from_dict({"query_id": range(len(rows)), "passage_id": range(len(rows)), "year": [1] * len(rows)})
    ids.set_transform(
        lambda block: {
            "query": [texts["q"][i] for i in block["query_id"]],
            "passage": [texts["p"][i] for i in block["passage_id"]],
        }
    )
    return ids


@pytest.mark.parametrize(
    "given, expected", [({}, ("anchor", "positive")), ({"planner_columns": ["passage"]}, ("positive",) * 2)]
)
def test_columns_that_a_transform_makes(tmp_path, given, expected):
    """Names come from a row as the loader sees it, also those of `planner_columns`."""
    pairs, model = make_pairs(64), make_static_model()
    trainer = Planning(model, arguments(tmp_path, learning_rate=0.0, **given), resolved(pairs), loss=MNRL(model))
    trainer.train()
    ((*arrays, _),) = trainer.asked
    for array, name in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(model.encode(pairs[name], normalize_embeddings=True), array, atol=1e-6)
    assert {(a, p) for a, p in zip(pairs["anchor"], pairs["positive"], strict=True)} == {
        row for _, batch in trainer.trained for row in batch
    }


def test_a_single_column_is_planned_on(tmp_path):
    """With a loss that contrasts its rows."""
    rows, model = make_pairs(64).select_columns("anchor"), make_static_model()
    loss = losses.ContrastiveTensionLossInBatchNegatives(model)
    trainer = Planning(model, arguments(tmp_path, learning_rate=0.0), rows, loss=loss)
    trainer.train()
    ((anchors, positives, _),) = trainer.asked
    np.testing.assert_allclose(
        make_static_model().encode(rows["anchor"], normalize_embeddings=True), anchors, atol=1e-6
    )
    np.testing.assert_array_equal(anchors, positives)


class Shouting:
    """A collator of the user's that changes texts: each is preceded by a word."""

    def __init__(self, collator: Any) -> None:
        self.collator, self.valid_label_columns = collator, collator.valid_label_columns

    def __call__(self, rows: list[dict[str, str]]) -> Any:
        return self.collator([{name: f"w59 {text}" for name, text in row.items()} for row in rows])


@pytest.mark.parametrize("static", [True, False])
def test_a_collator_that_changes_texts_is_planned_through(tmp_path, static):
    """Plans are made of what the collator makes of the rows, in the order of the rows."""
    rows = make_pairs(64)
    make = (lambda: make_static_model()) if static else (lambda: SentenceTransformer(folder, device="cpu"))
    folder = None if static else make_bert(tmp_path)
    model = make()
    trainer = GCBSTrainer(model, arguments(tmp_path, learning_rate=0.0), rows, loss=MNRL(model))
    trainer.data_collator = Shouting(trainer.data_collator)
    seen = []
    plan = trainer.planner.plan
    trainer.plan_batches = lambda *pairs: seen.append(pairs[:2]) or plan(*pairs)
    trainer.train()
    for array, name in zip(seen[0], rows.column_names, strict=True):
        texts = [f"w59 {text}" for text in rows[name]]
        np.testing.assert_allclose(make().encode(texts, normalize_embeddings=True), array, atol=1e-5)


def test_texts_of_other_libraries_models_are_encoded_without_a_route(tmp_path):
    """An `encode` that knows no `task`, as PyLate's, is called without one."""
    rows, model = make_pairs(32), make_static_model()
    encode = model.encode

    def without_task(sentences, prompt=None, batch_size=32, convert_to_numpy=True, show_progress_bar=False):
        return encode(sentences, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar)

    model.encode = without_task
    assert 4 == GCBSTrainer(model, arguments(tmp_path), rows, loss=MNRL(model)).train().global_step


def test_a_stochastic_transform_leaves_dropout_alone(tmp_path):
    """What it draws while rows are embedded is not missing in training."""
    folder = make_bert(tmp_path)

    def hashes(planner: str) -> str:
        torch.manual_seed(3)
        rows = make_pairs(32)
        rows.set_transform(
            lambda block: {**block, "anchor": [f"{t} w{int(torch.randint(60, ()))}" for t in block["anchor"]]}
        )
        model = SentenceTransformer(folder, device="cpu")
        args = arguments(
            tmp_path, planner="random", planner_options={"measure": planner == "measured"}, learning_rate=1e-3
        )
        GCBSTrainer(model, args, rows, loss=MNRL(model)).train()
        return weights_hash(model)

    assert hashes("random") == hashes("measured")


# ------------------------------------------------------------------ the group column


@pytest.mark.parametrize("kind", [str, int])
def test_the_group_column_is_no_text_in_evaluation_either(tmp_path, kind):
    """Eval losses are those of rows without it, whoever hands them over."""
    rows = make_pairs(64).add_column("photo", [kind(i // 2) for i in range(64)])
    model = make_static_model()
    args = arguments(tmp_path, group_column="photo", eval_strategy="epoch", learning_rate=0.0)
    trainer = GCBSTrainer(model, args, rows, eval_dataset=rows, loss=MNRL(model))
    trainer.train()
    plain = SentenceTransformerTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=B
    )
    host = SentenceTransformerTrainer(model, plain, eval_dataset=rows.remove_columns("photo"), loss=MNRL(model))
    expected = host.evaluate()["eval_loss"]
    assert expected == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)
    assert expected == pytest.approx(trainer.evaluate(rows)["eval_loss"], abs=1e-6)
    assert [expected] == pytest.approx(
        [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e][:1], abs=1e-4
    )
    assert expected == pytest.approx(trainer.predict(rows).metrics["test_loss"], abs=1e-6)


def test_a_trainer_that_only_evaluates(tmp_path):
    """There need not be a training set."""
    rows, model = make_pairs(32).add_column("photo", [i // 2 for i in range(32)]), make_static_model()
    trainer = GCBSTrainer(model, arguments(tmp_path, group_column="photo"), eval_dataset=rows, loss=MNRL(model))
    assert 0 < trainer.evaluate()["eval_loss"]


def test_a_group_column_of_some_datasets_only(tmp_path):
    """The other datasets have no groups."""
    rows = DatasetDict(a=make_pairs(32).add_column("photo", [i // 2 for i in range(32)]), b=make_pairs(32, seed=1))
    model = make_static_model()
    trainer = RecordingTrainer(model, arguments(tmp_path, group_column="photo"), rows, loss=MNRL(model))
    assert 8 == trainer.train().global_step
    assert {2} == {len(row) for _, batch in trainer.trained for row in batch}
    photos = {tuple(pair): i // 2 for i, pair in enumerate(zip(*make_pairs(32).to_dict().values(), strict=True))}
    for _, batch in trainer.trained:
        groups = [photos[row] for row in batch if row in photos]
        assert len(groups) == len(set(groups))


def test_groups_of_rows_with_a_transform(tmp_path):
    """They are read as they are stored or as the transform makes them, and are no text in either case."""
    pairs = make_pairs(32)
    stored = pairs.add_column("photo", [i // 2 for i in range(32)])
    made = pairs.add_column("i", range(32))
    stored.set_transform(lambda block: {"anchor": block["anchor"], "positive": block["positive"]})
    passed = pairs.add_column("photo", [i // 2 for i in range(32)])
    passed.set_transform(lambda block: dict(block))
    made.set_transform(lambda b: {"anchor": b["anchor"], "positive": b["positive"], "photo": [i // 2 for i in b["i"]]})
    photos = {text: i // 2 for i, text in enumerate(pairs["anchor"])}
    for rows in (stored, passed, made):
        model = make_static_model()
        trainer = RecordingTrainer(model, arguments(tmp_path, group_column="photo"), rows, loss=MNRL(model))
        trainer.train()
        for _, batch in trainer.trained:
            assert {2} == {len(row) for row in batch}
            assert B == len({photos[row[0]] for row in batch})
    lacking = pairs.with_transform(lambda block: dict(block))
    with pytest.raises(ValueError, match="but no 'photo'. Its transform makes none of that name either"):
        GCBSTrainer(model, arguments(tmp_path, group_column="photo"), lacking, loss=MNRL(model))


def test_another_training_set_is_another(tmp_path):
    """Groups, fingerprint and columns are those of the set that is assigned."""
    first = make_pairs(64).add_column("photo", [i // 2 for i in range(64)])
    second = make_pairs(48, seed=1).add_column("photo", [i % 24 for i in range(48)])
    model = make_static_model()
    trainer = RecordingTrainer(model, arguments(tmp_path, group_column="photo"), first, loss=MNRL(model))
    trainer.train()
    before = trainer.training_set_fingerprint()
    trainer.trained.clear()
    trainer.train_dataset = second
    trainer.train()
    assert before != trainer.training_set_fingerprint()
    photos = {text: i % 24 for i, text in enumerate(second["anchor"])}
    assert 6 == len(trainer.trained)
    for _, batch in trainer.trained:
        assert {2} == {len(row) for row in batch}
        assert B == len({photos[anchor] for anchor, _ in batch})


# ------------------------------------------------------------------ columns, before anything is embedded


def test_string_ids_are_trained_as_the_host_trains_them_after_its_warning(tmp_path, caplog, monkeypatch):
    """The host's own warning comes before the pass over all rows."""
    rows = (
        make_pairs(32)
        .add_column("doc_id", [f"w{i}" for i in range(32)])
        .select_columns(["doc_id", "anchor", "positive"])
    )
    before = []
    from gcbs_st.embeddings import row_encoder

    def noting(*args: Any, **given: Any) -> Any:
        before.extend(warnings_of(caplog, "look like ID columns"))
        return encode_rows(*args, **given)

    monkeypatch.setattr(row_encoder, "encode_rows", noting)
    logging.getLogger("sentence_transformers").propagate = True
    logging.getLogger("transformers").propagate = True
    monkeypatch.setattr(
        "sentence_transformers.base.data_collator.logger.warning_once",
        lambda message, *a: logging.getLogger("host").warning(message),
        raising=False,
    )
    model = make_static_model()
    trainer = RecordingTrainer(model, arguments(tmp_path), rows, loss=MNRL(model))
    trainer.train()
    assert before and "doc_id" in before[0]
    assert {3} == {len(row) for _, batch in trainer.trained for row in batch}


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize(
    "options, loss, expected",
    [
        (None, lambda model: MNRL(model, scale=10), 10),
        ({"scale": 35.0}, lambda model: MNRL(model, scale=10), 35),
        (None, lambda model: losses.GISTEmbedLoss(model, make_guide(), temperature=0.1), 10),
        (None, lambda model: losses.MatryoshkaLoss(model, MNRL(model, scale=40), [16, 8]), 40),
        (None, lambda model: Learnt(model), 12.5),
    ],
    ids=["scale", "the planner's own", "temperature", "wrapped", "a learnt one"],
)
def test_planners_plan_for_the_scale_of_the_loss(tmp_path, options, loss, expected):
    """Unless their own is given; outside of the plan the planner is as it was."""
    from gcbs_st.experiments.baselines import with_transformers_tokenizers

    model = make_static_model()
    with with_transformers_tokenizers(model):
        made = loss(model)
    args = arguments(tmp_path, planner="best", planner_options=options)
    trainer = Planning(model, args, make_pairs(64), loss=made)
    trainer.train()
    assert [pytest.approx(expected)] == [planner.scale for *_, planner in trainer.asked]
    assert (options or {}).get("scale") == trainer.planner.scale


def make_guide() -> SentenceTransformer:
    """Another model, with a tokenizer of transformers' class, which GISTEmbedLoss asks for."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    guide = make_static_model(seed=1)
    if isinstance(guide.tokenizer, Tokenizer):
        guide[0].tokenizer = PreTrainedTokenizerFast(tokenizer_object=guide.tokenizer)
    return guide


class Learnt(MNRL):
    """A loss whose scale is trained."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__(model)
        self.scale = nn.Parameter(torch.tensor(12.5))


def test_dot_products_are_said_and_measured_as_if_of_one_norm(tmp_path, caplog):
    """The log's gap is that of cosines times the mean squared norm."""
    rows, model = make_pairs(96), make_static_model()
    trainer = Planning(
        model, arguments(tmp_path, learning_rate=0.0), rows, loss=MNRL(model, scale=1.0, similarity_fct=dot_score)
    )
    trainer.train()
    norms = np.concatenate([np.linalg.norm(model.encode(rows[name]), axis=1) for name in rows.column_names])
    (entry,) = [entry for entry in trainer.state.log_history if "gcbs/gap" in entry]
    ((anchors, positives, planner),) = trainer.asked
    order = np.concatenate([np.array(batch) for batch in ids_of(trainer.trained, rows)])
    expected = plan_quality(anchors, positives, order, B, scale=float((norms**2).mean()))
    assert expected.gap == pytest.approx(entry["gcbs/gap"], rel=0.1)
    assert 1 == len(warnings_of(caplog, "scores with dot products, but plans go by cosines"))


def ids_of(trained: list[tuple[int, list[tuple[str, ...]]]], rows: Dataset) -> list[list[int]]:
    """The rows of each batch."""
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    return [[ids[texts] for texts in batch] for _, batch in trained]


UNHELPED = {
    "MSELoss": (
        losses.MSELoss,
        lambda: make_pairs(30).remove_columns("positive").add_column("label", [[0.5] * 16] * 30),
    ),
    "MarginMSELoss": (
        losses.MarginMSELoss,
        lambda: make_pairs(30).add_column("negative", make_pairs(30, 1)["anchor"]).add_column("score", [0.5] * 30),
    ),
    "CosineSimilarityLoss": (losses.CosineSimilarityLoss, lambda: make_pairs(30).add_column("score", [0.5] * 30)),
    "CoSENTLoss": (losses.CoSENTLoss, lambda: make_pairs(30).add_column("score", [i / 30 for i in range(30)])),
    "SoftmaxLoss": (
        lambda m: losses.SoftmaxLoss(m, 16, 3),
        lambda: make_pairs(30).add_column("label", [i % 3 for i in range(30)]),
    ),
    "ContrastiveLoss": (
        losses.ContrastiveLoss,
        lambda: make_pairs(30).add_column("label", [i % 2 for i in range(30)]),
    ),
    "DistillKLDivLoss": (
        losses.DistillKLDivLoss,
        lambda: (
            make_pairs(30).add_column("negative", make_pairs(30, 1)["anchor"]).add_column("label", [[0.7, 0.3]] * 30)
        ),
    ),
    "BatchAllTripletLoss": (
        losses.BatchAllTripletLoss,
        lambda: make_pairs(30).remove_columns("positive").add_column("label", [i % 3 for i in range(30)]),
    ),
}


@pytest.mark.parametrize("name", UNHELPED)
def test_a_loss_that_no_composition_can_help_is_trained_as_by_the_host(tmp_path, caplog, monkeypatch, name):
    """Batches and weights are the host's to the last bit; nothing is embedded or logged; one warning says why."""
    loss, rows = UNHELPED[name]
    monkeypatch.setattr(
        "gcbs_st.embeddings.row_encoder.encode_rows", lambda *args, **given: pytest.fail("rows were embedded")
    )
    weights = []
    for trainer_class, args in (
        (SentenceTransformerTrainer, SentenceTransformerTrainingArguments),
        (GCBSTrainer, GCBSTrainingArguments),
    ):
        torch.manual_seed(1)
        model = make_static_model()
        given = args(
            str(tmp_path), per_device_train_batch_size=B, num_train_epochs=2, report_to="none", disable_tqdm=True,
            use_cpu=True, save_strategy="no", logging_steps=1, learning_rate=1e-2,
        )  # fmt: skip
        trainer = trainer_class(model, given, rows(), loss=loss(model))
        trainer.train()
        weights.append(weights_hash(model))
        steps = trainer.state.global_step
    assert 8 == steps, "the last batch of an epoch is short"
    assert weights[0] == weights[1]
    assert not any(key.startswith("gcbs/") for entry in trainer.state.log_history for key in entry)
    (warning,) = warnings_of(caplog, "composing batches cannot help it")
    assert warning.startswith(name)


def test_one_warning_per_loss_names_all_its_datasets(tmp_path, caplog):
    """A wrapped loss is named with what it wraps."""
    rows = DatasetDict({name: make_pairs(32, seed).add_column("score", [0.5] * 32) for seed, name in enumerate("abc")})
    model = make_static_model()
    cosent = losses.MatryoshkaLoss(model, losses.CoSENTLoss(model), [16, 8])
    loss = {"a": cosent, "b": cosent, "c": MNRL(model)}
    trainer = GCBSTrainer(model, arguments(tmp_path), rows, loss=loss)
    trainer.train()
    assert ["c"] == list(trainer.planned_samplers)
    (warning,) = warnings_of(caplog, "composing batches cannot help it")
    assert "MatryoshkaLoss(CoSENTLoss) contrasts no rows" in warning and "the training sets ['a', 'b'] are" in warning


def test_batches_by_label_stay_the_hosts(tmp_path):
    """A loss of triplets within a batch needs the host's own sampler, which we do not stand in for."""
    rows = make_pairs(32).remove_columns("positive").add_column("label", [i % 4 for i in range(32)])
    model = make_static_model()
    args = arguments(tmp_path, batch_sampler="group_by_label")
    trainer = GCBSTrainer(model, args, rows, loss=losses.BatchHardTripletLoss(model))
    assert 4 == trainer.train().global_step
    with pytest.raises(ValueError, match="batch_sampler: got .*GROUP_BY_LABEL.* is the planner's to decide"):
        GCBSTrainer(model, args, make_pairs(32), loss=MNRL(model))


def test_rows_with_label_zero_are_no_pairs(tmp_path):
    """What is logged of a plan is of the rows whose texts belong together."""
    rows = make_pairs(64).add_column("label", [1] * 32 + [0] * 32)
    model = make_static_model()

    class Own(MNRL):
        """A loss of the user's."""

    trainer = Planning(model, arguments(tmp_path, learning_rate=0.0), rows, loss=Own(model))
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "gcbs/gap" in entry]
    ((anchors, positives, _),) = trainer.asked
    (batches,) = [
        np.array(ids_of([(s, [t[:2] for t in b]) for s, b in trainer.trained], rows.remove_columns("label")))
    ]
    scores = 20 * anchors @ positives.T
    false = [(scores[i, batch] > scores[i, i]).sum() for batch in batches for i in batch if i < 32]
    assert np.mean(false) == pytest.approx(entry["gcbs/false_negatives"], abs=1e-6)


# ------------------------------------------------------------------ what is logged


def test_one_line_per_plan_and_the_share_of_the_whole_run(tmp_path, caplog):
    """Which planner, how many rows, on what, how long and how good; and at the end what it all took."""
    model = make_static_model()
    with caplog.at_level(logging.INFO, logger="gcbs_st"):
        trainer = GCBSTrainer(model, arguments(tmp_path, num_train_epochs=2), make_pairs(64), loss=MNRL(model))
        trainer.train()
    lines = warnings_of(caplog, "Planned 64 rows of the training set with bisect on anchor and positive")
    assert 2 == len(lines) and "closed 0." in lines[0]
    last = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    assert 1 == len(last) and 0 < last[0]["gcbs/time_share"] < 1


@pytest.mark.parametrize(
    "length, given, expected",
    [(32, {}, 128), (512, {}, 128), (8192, {}, 8), (None, {}, 1024), (32, {"embedding_batch_size": 5}, 5)],
)
def test_how_many_texts_are_embedded_at_a_time(tmp_path, length, given, expected):
    """Not as many as an evaluation batch happens to have, and fewer of long texts."""
    model = make_static_model() if length is None else SentenceTransformer(make_bert(tmp_path), device="cpu")
    if length is not None:
        model.max_seq_length = length
    args = arguments(tmp_path, per_device_eval_batch_size=2, **given)
    trainer = GCBSTrainer(model, args, make_pairs(32), loss=MNRL(model))
    assert expected == trainer.row_memory._source_options(tmp_path).batch_size


def test_our_arguments_in_the_hosts_trainer_are_said_to_do_nothing(tmp_path, caplog):
    """Before the first step; in ours they are silent."""
    for trainer_class, expected in ((SentenceTransformerTrainer, 1), (GCBSTrainer, 0)):
        caplog.clear()
        model = make_static_model()
        trainer_class(model, arguments(tmp_path), make_pairs(32), loss=MNRL(model)).train()
        assert expected == len(warnings_of(caplog, "in a trainer that plans no batches: they are random"))


def test_a_bare_column_name_on_a_command_line():
    """`--planner_columns anchor` needs no JSON."""
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(GCBSTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "out", "--planner_columns", "anchor", "--report_to", "none", "--use_cpu", "True"]
    )
    assert ["anchor"] == args.planner_columns


@pytest.mark.parametrize(
    ("loss", "options", "warned"),
    [
        (GuardedMultipleNegativesRankingLoss, {"planner": "bisect", "planner_view": "initial"}, True),
        (GuardedMultipleNegativesRankingLoss, {"planner": "bisect"}, True),
        (CachedGuardedMultipleNegativesRankingLoss, {"planner": "random"}, True),
        (GuardedMultipleNegativesRankingLoss, {"planner": "bisect", "planner_view": "REFERENCE"}, False),
        (MNRL, {"planner": "bisect"}, False),
    ],
)
def test_a_guard_of_a_model_that_finds_all_texts_alike_is_warned_of(tmp_path, caplog, loss, options, warned):
    """A raw encoder's scores are all near 1, so that a guard would mask what is not false; said once for a run."""
    model = SentenceTransformer(make_bert(tmp_path / "bert", seed=1), device="cpu")
    rows = make_pairs(96)
    texts = (
        model.encode(rows["anchor"], normalize_embeddings=True)
        @ model.encode(rows["positive"], normalize_embeddings=True).T
    )
    share = (texts > 0.8 * texts.diagonal()[:, None]).mean()
    assert share > 0.2  # the case that this test is about
    if "REFERENCE" in options.values():
        options = {**options, "planner_view": make_static_model()}
    trainer = GCBSTrainer(
        model,
        arguments(tmp_path / "run", max_steps=4, **options),
        rows,
        loss=loss(model) if loss is MNRL else loss(model, margin=0.8),
    )
    trainer.train()
    found = warnings_of(caplog, "% of the negatives of random batches")
    assert int(warned) == len(found), found


def test_a_guard_of_a_model_that_tells_texts_apart_is_no_matter(tmp_path, caplog):
    """Unlike texts score low: no warning, planned or not."""
    for planner in ("bisect", "random"):
        model = make_static_model()
        with torch.no_grad():  # all words unlike each other
            weights = model[0].embedding.weight
            weights.copy_(
                torch.nn.functional.normalize(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
            )
        loss = GuardedMultipleNegativesRankingLoss(model, margin=1.0)
        rows = Dataset.from_dict(
            {"anchor": [f"w{i}" for i in range(40)], "positive": [f"w{i} w{i + 50}" for i in range(40)]}
        )
        GCBSTrainer(model, arguments(tmp_path / planner, planner=planner), rows, loss=loss).train()
    assert [] == warnings_of(caplog, "% of the negatives of random batches")
