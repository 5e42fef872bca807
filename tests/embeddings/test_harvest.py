"""Tests of ``gcbs_st.embeddings.harvest`` and ``gcbs_st.embeddings.source``: each row's embedding, under its own id, whatever the training."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert, make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import nn
from transformers import TrainerCallback

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.embeddings.store import NEVER
from gcbs_st.losses import CachedGuardedMultipleNegativesRankingLoss, GuardedMultipleNegativesRankingLoss

B = 8
ROWS = 53  # six batches and five rows that fill none
MNRL = losses.MultipleNegativesRankingLoss
STILL: dict[str, Any] = {
    # Nothing changes while it trains, so that every row's embedding is known beforehand.
    "learning_rate": 0.0, "weight_decay": 0.0, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": B, "embedding_source": "harvest",
    "planner": "bisect",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def still_bert(tmp_path_factory):
    """The path of a BERT without dropout."""
    return make_bert(tmp_path_factory.mktemp("still"), dropout=0.0)


class Look(TrainerCallback):
    """Keeps what is stored when the training ends."""

    def __init__(self) -> None:
        self.steps: dict[str, np.ndarray] = {}
        self.arrays: dict[str, list[np.ndarray]] = {}

    def look(self, trainer: GCBSTrainer) -> Look:
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.source.sync()
        harvested = self.trainer.source.harvested
        for name, store in ({} if harvested is None else harvested.stores).items():
            self.steps[name] = store.steps()
            seen = np.flatnonzero(self.steps[name] != NEVER)
            self.arrays[name] = [np.array(array) for array in store.read(seen)] if len(seen) else []


def harvest(
    tmp_path: Path, model: SentenceTransformer, rows: Any, loss: Any, **given: Any
) -> tuple[GCBSTrainer, Look]:
    """Trains for two epochs without changing the model; what was harvested."""
    args = GCBSTrainingArguments(str(tmp_path), **{"num_train_epochs": 2, **STILL, **given})
    trainer = GCBSTrainer(model, args, rows, loss=loss)
    look = Look().look(trainer)
    trainer.train()
    return trainer, look


def check(trainer: GCBSTrainer, look: Look, tolerance: float = 2e-6) -> None:
    """Every row that was trained on has the embedding of its own text."""
    for name, part in trainer_parts(trainer).items():
        seen = np.flatnonzero(look.steps[name] != NEVER)
        assert len(seen) >= len(part[0]) // B * B, "a row that was trained on was not harvested"
        expected = encode_rows(trainer.model, part[0], seen, part[1], batch_size=16)
        for harvested, encoded in zip(look.arrays[name], expected, strict=True):
            np.testing.assert_allclose(harvested, encoded, atol=tolerance)
            # The texts differ enough for a wrong row to be seen.
            assert np.abs(np.roll(harvested, 1, axis=0) - encoded).max(axis=1).min() > 10 * tolerance


def trainer_parts(trainer: GCBSTrainer) -> dict[str, tuple[Dataset, Any]]:
    """Dataset and columns by name."""
    from gcbs_st.rows.columns import text_columns
    from gcbs_st.rows.training_set import parts_of

    return {
        name: (
            part,
            text_columns(
                part,
                label_columns=trainer.data_collator.valid_label_columns,
                prompts=trainer.args.prompts,
                dataset_name=name or None,
            ),
        )
        for name, part in parts_of(trainer.train_dataset).items()
    }


def encoded_by(model: SentenceTransformer, trainer: GCBSTrainer, look: Look) -> list[np.ndarray]:
    """What another model makes of the rows that were harvested from a single dataset."""
    part, columns = trainer_parts(trainer)[""]
    return encode_rows(model, part, np.flatnonzero(look.steps[""] != NEVER), columns, batch_size=16)


def triplets() -> Dataset:
    """Anchor, positive and two negatives, which are other texts."""
    pairs, others = make_pairs(ROWS), make_pairs(ROWS, seed=9)
    return pairs.add_column("negative_1", others["anchor"]).add_column("negative_2", others["positive"])


def scored() -> Dataset:
    """Pairs with a score, which is no text."""
    return make_pairs(ROWS).add_column("score", np.linspace(0, 1, ROWS).tolist())


def twice() -> Dataset:
    """Unsupervised: each sentence is its own positive."""
    sentences = make_pairs(ROWS)["anchor"]
    return Dataset.from_dict({"anchor": sentences, "positive": sentences})


def transformed() -> Dataset:
    """Texts that only a transform of the user's makes, of rows in another order than in memory."""
    rows = make_pairs(ROWS).shuffle(seed=3)
    return rows.with_transform(lambda batch: {name: [f"w1 {text}" for text in texts] for name, texts in batch.items()})


def matryoshka(model: SentenceTransformer, inner: Any, **given: Any) -> nn.Module:
    """Smallest dimensions first, and not the whole width among them."""
    return losses.MatryoshkaLoss(model, inner, [4, 8], **given)


SETTINGS = {
    "pairs": (make_pairs, MNRL, {}),
    "triplets, merged forward": (triplets, MNRL, {}),
    "unsupervised": (twice, MNRL, {}),
    "symmetric": (make_pairs, losses.MultipleNegativesSymmetricRankingLoss, {}),
    "cached": (triplets, lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3), {}),
    "guarded": (make_pairs, GuardedMultipleNegativesRankingLoss, {}),
    "cached guarded": (
        make_pairs, lambda model: CachedGuardedMultipleNegativesRankingLoss(model, mini_batch_size=3), {},
    ),
    "matryoshka": (triplets, lambda model: matryoshka(model, MNRL(model)), {}),
    "matryoshka, one dimension a step": (
        make_pairs, lambda model: matryoshka(model, MNRL(model), n_dims_per_step=1), {},
    ),
    "matryoshka, cached": (
        make_pairs,
        lambda model: matryoshka(model, losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)),
        {},
    ),
    "adaptive layer": (make_pairs, lambda model: losses.AdaptiveLayerLoss(model, MNRL(model)), {}),
    "workers": (make_pairs, MNRL, {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3}),
    "accumulation": (make_pairs, MNRL, {"gradient_accumulation_steps": 3}),
    "workers, persistent, accumulation, replanning": (
        make_pairs,
        MNRL,
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "gradient_accumulation_steps": 2,
         "replan_steps": 1},
    ),
    "gradient checkpointing": (make_pairs, MNRL, {"gradient_checkpointing": True}),
    "compiled": (make_pairs, MNRL, {"torch_compile": True, "torch_compile_backend": "eager"}),
    "prompts": (make_pairs, MNRL, {"prompts": {"anchor": "query: ", "positive": "passage: "}}),
    "transform": (transformed, MNRL, {}),
    "no duplicates": (make_pairs, MNRL, {"batch_sampler": "no_duplicates"}),
    "half precision on disk": (make_pairs, MNRL, {"embedding_dtype": "float16", "embedding_storage": "disk"}),
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_row_is_stored_under_its_id(setting, tmp_path, still_bert):
    """However the loss, the loader and the loop treat a batch."""
    rows, loss, given = SETTINGS[setting]
    model = SentenceTransformer(still_bert, device="cpu")
    rows = rows(ROWS) if rows is make_pairs else rows()
    trainer, look = harvest(tmp_path, model, rows, loss(model), **given)
    check(trainer, look, tolerance=1e-3 if "half" in setting else 2e-6)
    assert trainer.state.log_history[-2].get("gcbs/embed_seconds") is not None or any(
        "gcbs/gap" in entry for entry in trainer.state.log_history
    ), "the second epoch is planned"


def test_autocast_is_harvested_as_it_is(tmp_path, still_bert):
    """Under bfloat16 autocast the embeddings are those of that precision."""
    model = SentenceTransformer(still_bert, device="cpu")
    trainer, look = harvest(tmp_path, model, make_pairs(ROWS), MNRL(model), bf16=True)
    check(trainer, look, tolerance=8e-3)
    plain = encoded_by(SentenceTransformer(still_bert, device="cpu"), trainer, look)
    assert max(np.abs(one - other).max() for one, other in zip(look.arrays[""], plain, strict=True)) > 1e-5, "not bf16"


@pytest.mark.parametrize("half", [False, True])
def test_rows_are_encoded_in_the_precision_of_training(half, tmp_path, still_bert):
    """A refreshed row is what a training pass would have made of it."""
    model, given = (
        SentenceTransformer(still_bert, device="cpu"),
        {"embedding_source": "encode", "planner": Kept(), "bf16": half},
    )
    args = GCBSTrainingArguments(str(tmp_path), **{"num_train_epochs": 1, **STILL, **given})
    trainer = GCBSTrainer(model, args, make_pairs(ROWS), loss=MNRL(model))
    trainer.train()
    context = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with torch.no_grad(), context:
        first = model(model.preprocess([make_pairs(ROWS)["anchor"][0]]))["sentence_embedding"][0].float().numpy()
    np.testing.assert_allclose(trainer.planner.anchors[0], first / np.linalg.norm(first), atol=4e-3 if half else 2e-6)
    assert half == (np.abs(trainer.planner.anchors[0] - encoded_first(still_bert)).max() > 3e-6)


class Kept:
    """Keeps the embeddings that it was given."""

    def plan(self, anchors, positives, batch_size, rng):
        self.anchors = np.array(anchors)
        return np.arange(len(anchors))


def encoded_first(folder: str) -> np.ndarray:
    """The embedding of the first anchor in full precision."""
    return SentenceTransformer(folder, device="cpu").encode(make_pairs(ROWS)["anchor"][0], normalize_embeddings=True)


@pytest.mark.parametrize("sampler", ["round_robin", "proportional"])
def test_several_datasets(sampler, tmp_path, still_bert):
    """Each dataset has a store of its own, in which rows are counted from 0."""
    model = SentenceTransformer(still_bert, device="cpu")
    rows = DatasetDict({"first": make_pairs(ROWS), "second": make_pairs(3 * B + 1, seed=5)})
    loss = {"first": MNRL(model), "second": losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)}
    # Round robin ends with the smaller dataset, so it takes more epochs to see all rows of the larger.
    trainer, look = harvest(tmp_path, model, rows, loss, multi_dataset_batch_sampler=sampler, num_train_epochs=6)
    for name, steps in look.steps.items():
        seen = np.flatnonzero(steps != NEVER)
        part, columns = trainer_parts(trainer)[name]
        assert len(seen) > 2 * B
        for harvested, encoded in zip(
            look.arrays[name], encode_rows(model, part, seen, columns, batch_size=16), strict=True
        ):
            np.testing.assert_allclose(harvested, encoded, atol=2e-6)


def test_gist_shows_the_model_and_not_its_guide(tmp_path, still_bert):
    """The guide has the same features and other embeddings."""
    model = SentenceTransformer(still_bert, device="cpu")
    guide = SentenceTransformer(make_bert(tmp_path / "guide", seed=4, dropout=0.0), device="cpu")
    trainer, look = harvest(tmp_path / "run", model, make_pairs(ROWS), losses.GISTEmbedLoss(model, guide))
    check(trainer, look)
    guided = encoded_by(guide, trainer, look)
    assert all(np.abs(one - other).max() > 0.1 for one, other in zip(look.arrays[""], guided, strict=True))


def test_ages_are_the_steps_at_which_rows_were_trained_on(tmp_path):
    """Against the batches, as the collator saw them."""
    model = make_static_model()
    rows = make_pairs(ROWS)
    ids = {text: i for i, text in enumerate(rows["anchor"])}
    args = GCBSTrainingArguments(str(tmp_path), **{"num_train_epochs": 2, **STILL})
    seen: list[list[int]] = []
    trainer = GCBSTrainer(model, args, rows, loss=MNRL(model))
    collate = trainer.data_collator
    trainer.data_collator = Recording(collate, seen, ids)
    look = Look().look(trainer)
    trainer.train()
    expected = np.full(ROWS, NEVER)
    for step, batch in enumerate(seen):
        expected[batch] = step
    assert expected.tolist() == look.steps[""].tolist()
    planned = next(entry for entry in trainer.state.log_history if "gcbs/gap" in entry)
    first = [step for step, batch in enumerate(seen[: ROWS // B]) for _ in batch]
    assert max(planned["gcbs/embedding_age_max"], 0) == ROWS // B - min(first)
    assert np.mean(ROWS // B - np.array(first)) == pytest.approx(planned["gcbs/embedding_age"], abs=0.5)


class Recording:
    """A collator that keeps which rows it was given."""

    def __init__(self, collator: Any, seen: list[list[int]], ids: dict[str, int]) -> None:
        self.collator, self.seen, self.ids = collator, seen, ids
        self.valid_label_columns = collator.valid_label_columns

    def __call__(self, rows: Any) -> Any:
        self.seen.append([self.ids[row["anchor"]] for row in rows])
        return self.collator(rows)


class Hiding(nn.Module):
    """A loss that never passes the model's front door."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.inner = model[0]

    def forward(self, features: Any, labels: Any) -> torch.Tensor:
        anchors, positives = (self.inner(dict(column))["sentence_embedding"] for column in features)
        return (anchors - positives).square().mean()


def test_a_loss_that_hides_embeddings_is_said_and_rows_are_encoded(tmp_path, caplog):
    """Plans are made all the same, from encoded rows."""
    model = make_static_model()
    trainer, _ = harvest(tmp_path, model, make_pairs(ROWS), Hiding(model))
    assert 1 == sum("the training passes show no embeddings" in record.message for record in caplog.records)
    plans = [entry for entry in trainer.state.log_history if "gcbs/gap" in entry]
    assert [0.0] == [entry["gcbs/embedding_age"] for entry in plans]


def test_nothing_is_left_behind(tmp_path):
    """Hooks and files are gone after training, also after one that failed."""
    model = make_static_model()
    hooks = len(model._forward_pre_hooks), len(model[0]._forward_hooks)
    trainer, _ = harvest(tmp_path, model, make_pairs(ROWS), MNRL(model), embedding_storage="disk")
    assert hooks == (len(model._forward_pre_hooks), len(model[0]._forward_hooks))
    assert not list(tmp_path.rglob("*.bin"))
    trainer.loss = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert hooks == (len(model._forward_pre_hooks), len(model[0]._forward_hooks))


# ---------------------------------------------------------------- policies


def plans_of(trainer: GCBSTrainer) -> list[dict[str, float]]:
    """Our entries of the log."""
    return [entry for entry in trainer.state.log_history if "gcbs/gap" in entry]


@pytest.mark.parametrize(
    ("given", "ages"), [({"first_plan": "random"}, [False, True]), ({"first_plan": "encode"}, [True, True])]
)
def test_what_plans_the_first_epoch(given, ages, tmp_path, still_bert):
    """Nothing or an encoding pass; the second epoch is planned from the harvest."""
    model = SentenceTransformer(still_bert, device="cpu")
    trainer, _ = harvest(tmp_path, model, make_pairs(ROWS), MNRL(model), **given)
    plans = plans_of(trainer)
    assert [age for age in ages if age is not False] == [
        True if "gcbs/embedding_age" in plan else None for plan in plans
    ]
    assert all(plan["gcbs/planned_rows"] >= 5 * B for plan in plans)


class Counting:
    """Counts the rows that are encoded."""

    def __init__(self, monkeypatch) -> None:
        self.rows: list[int] = []
        from gcbs_st.embeddings import row_encoder

        def encode(model, dataset, rows, columns, **given):
            self.rows.append(len(rows))
            return encode_rows(model, dataset, rows, columns, **given)

        monkeypatch.setattr(row_encoder, "encode_rows", encode)


def test_old_rows_are_encoded_within_the_budget(tmp_path, monkeypatch):
    """At the third epoch's start the rows are 1 to 6 steps old: those above the age are encoded, oldest first."""
    model, counted = make_static_model(), Counting(monkeypatch)
    trainer, _ = harvest(
        tmp_path, model, make_pairs(6 * B), MNRL(model), embedding_max_age=2, num_train_epochs=2, first_plan="random"
    )
    # Of six batches of ages 6, 5, 4, 3, 2, 1 those of 6 to 3.
    assert [4 * B] == counted.rows
    assert 2.0 == plans_of(trainer)[-1]["gcbs/embedding_age_max"]
    counted.rows.clear()
    trainer, _ = harvest(
        tmp_path,
        model,
        make_pairs(6 * B),
        MNRL(model),
        embedding_max_age=2,
        embedding_budget=2 * B,
        num_train_epochs=2,
    )
    assert [2 * B] == counted.rows
    assert 4.0 == plans_of(trainer)[-1]["gcbs/embedding_age_max"], "the oldest were encoded"


def test_rows_never_seen_keep_their_place(tmp_path):
    """In mid-epoch of the first epoch there is nothing to plan from: the batches stay as they were."""
    model = make_static_model()
    trainer, _ = harvest(tmp_path, model, make_pairs(ROWS), MNRL(model), replan_steps=2, num_train_epochs=1)
    assert [] == plans_of(trainer)


@pytest.mark.parametrize("model", ["static", "bert"])
@pytest.mark.parametrize("planner", ["bisect", "gcbs"])
def test_harvesting_plans_the_batches_that_encoding_plans(model, planner, tmp_path, still_bert):
    """With a learning rate of 0 and no dropout there is no difference."""
    drawn = {}
    for source in ("encode", "harvest"):
        start = make_static_model() if model == "static" else SentenceTransformer(still_bert, device="cpu")
        args = GCBSTrainingArguments(
            str(tmp_path),
            **{**STILL, "num_train_epochs": 3, "embedding_source": source, "first_plan": "encode", "planner": planner},
        )
        rows = make_pairs(6 * B)  # no row is left out of an epoch, so none is encoded later
        ids = {text: i for i, text in enumerate(rows["anchor"])}
        trainer = GCBSTrainer(start, args, rows, loss=MNRL(start))
        drawn[source] = []
        trainer.data_collator = Recording(trainer.data_collator, drawn[source], ids)
        trainer.data_collator_class = Recording  # not taken for a user's, which may change texts
        trainer.train()
    assert drawn["encode"] == drawn["harvest"]


def test_overlapping_batches_choose_among_all_rows(tmp_path, monkeypatch):
    """A planner whose rows recur would never draw what it cannot see: such rows are encoded."""
    counted = Counting(monkeypatch)
    model = make_static_model()
    trainer, look = harvest(
        tmp_path, model, make_pairs(6 * B), MNRL(model), planner="random_walk",
        planner_options={"exact_cover": False, "candidates": 20, "neighbors": 10},
    )  # fmt: skip
    assert 6 * B == counted.rows[0]
    assert 6 * B == plans_of(trainer)[0]["gcbs/planned_rows"]
    assert (look.steps[""] != NEVER).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embedding_source": "steal"}, "embedding_source: got 'steal', expected encode or harvest"),
        ({"first_plan": "best"}, "first_plan: got 'best', expected random or encode"),
        ({"embedding_max_age": -1}, "embedding_max_age: got -1, expected at least 0"),
        ({"embedding_max_age": 3, "embedding_budget": 0}, "embedding_budget: got 0, expected at least 1"),
        ({"embedding_budget": 5}, "embedding_budget: got 5 without embedding_max_age"),
        ({"embedding_dtype": "int8"}, "embedding_dtype: got 'int8', expected float32 or float16"),
        ({"embedding_storage": "cloud"}, "embedding_storage: got 'cloud', expected memory or disk"),
    ],
)
def test_bad_arguments_are_refused(given, message, tmp_path):
    """The message names the field, what it holds and what it may hold."""
    with pytest.raises(ValueError, match=message):
        GCBSTrainingArguments(str(tmp_path), **{**STILL, **given})
