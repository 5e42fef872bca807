"""Tests of ``gcbs_st.training.trainer``, ``gcbs_st.training.replan_callback`` and ``gcbs_st.training.arguments``: what is trained on, and when it is planned."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import HfArgumentParser, Trainer, TrainerCallback

from gcbs_st import GCBSTrainer, GCBSTrainingArguments, planners
from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.models.load import use_sparse_gradients
from gcbs_st.planners import BisectPlanner, register
from gcbs_st.planners.quality import plan_quality

B = 8
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
LOGGED = {"gap", "gap_bound", "tail_coverage", "false_negatives", "plan_seconds", "embed_seconds", "embedding_age"}


pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(folder: Path, **given: Any) -> GCBSTrainingArguments:
    """Arguments of a quiet run on batches of `B` rows."""
    return GCBSTrainingArguments(
        str(folder), **{"per_device_train_batch_size": B, "num_train_epochs": 2, **QUIET, **given}
    )


class PlanningTrainer(RecordingTrainer):
    """Keeps what was planned with, and when: (optimizer step, batches drawn, anchors, positives, order)."""

    def plan_batches(self, anchors, positives, batch_size, rng):
        order = super().plan_batches(anchors, positives, batch_size, rng)
        cursor = self.planned_samplers[""].cursor if "" in self.planned_samplers else None
        self.plans = [*getattr(self, "plans", []), (self.state.global_step, cursor, anchors, positives, order)]
        return order


def trained(model, args, rows, trainer_class=PlanningTrainer, **given) -> Any:
    """A trainer that has trained to the end."""
    given.setdefault("loss", MultipleNegativesRankingLoss(model))
    trainer = trainer_class(model, args, rows, **given)
    trainer.train()
    return trainer


def batches_of_ids(trainer: RecordingTrainer, rows: Dataset) -> list[list[int]]:
    """The row ids of every batch that was trained on, in order."""
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    assert len(rows) == len(ids), "the test's rows have to differ"
    return [[ids[texts] for texts in batch] for _, batch in trainer.trained]


def logged(trainer: GCBSTrainer, prefix: str = "gcbs/") -> list[dict[str, float]]:
    """Our entries of the log."""
    return [entry for entry in trainer.state.log_history if f"{prefix}gap" in entry]


# ---------------------------------------------------------------- drop-in


def test_plain_arguments_are_taken_and_not_changed(tmp_path, static_model, pairs):
    """The host's own arguments are enough; ours are filled in on a copy."""
    plain = SentenceTransformerTrainingArguments(
        str(tmp_path), per_device_train_batch_size=B, num_train_epochs=1, **QUIET
    )
    before = copy.copy(vars(plain))
    trainer = trained(static_model, plain, pairs)
    assert SentenceTransformerTrainingArguments is type(plain)
    assert before == vars(plain)
    assert ("auto", 0.0, True) == (
        trainer.args.planner,
        trainer.args.replan_steps,
        trainer.args.shuffle_planned_batches,
    )
    assert 1 == len(trainer.plans)
    assert len(pairs) // B == trainer.state.global_step


def test_all_arguments_of_the_host_may_be_positional(tmp_path, static_model, pairs):
    """Every parameter of the host's constructor is taken at the host's position."""
    names = list(inspect.signature(SentenceTransformerTrainer.__init__).parameters)[1:]
    callback, loss = TrainerCallback(), MultipleNegativesRankingLoss(static_model)
    optimizer = torch.optim.SGD(static_model.parameters(), lr=0.1)
    given = {
        "model": static_model,
        "args": arguments(tmp_path, num_train_epochs=1),
        "train_dataset": pairs,
        "eval_dataset": pairs.select(range(16)),
        "loss": loss,
        "callbacks": [callback],
        "optimizers": (optimizer, None),
    }
    trainer = GCBSTrainer(*[given.get(name) if name != "optimizers" else given[name] for name in names])
    assert loss is trainer.loss
    assert callback in trainer.callback_handler.callbacks
    assert optimizer is trainer.optimizer
    assert 16 == len(trainer.eval_dataset)
    assert len(pairs) // B == trainer.train().global_step


def test_without_arguments_the_defaults_are_taken(tmp_path, monkeypatch, static_model, pairs):
    """As in the host, `args` may be left out."""
    monkeypatch.chdir(tmp_path)
    trainer = GCBSTrainer(static_model, train_dataset=pairs, loss=MultipleNegativesRankingLoss(static_model))
    assert "auto" == trainer.args.planner
    assert isinstance(trainer.planner, BisectPlanner)


def test_training_makes_the_loss_fall(tmp_path, static_model, pairs):
    """The loss of the last epoch is well below that of the first."""
    trainer = trained(static_model, arguments(tmp_path, num_train_epochs=3, learning_rate=0.1), pairs)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    steps = len(pairs) // B
    assert 3 * steps == len(losses)
    assert np.mean(losses[-steps:]) < 0.7 * np.mean(losses[:steps])


# ---------------------------------------------------------------- what is trained on


def grouped_rows() -> Dataset:
    """12 groups of B rows, shuffled; the rows of group g all say `wg`, three times, and differ in the other words."""
    rows = [(f"w{g} w{g} w{g} w{20 + g} w{40 + k}", f"w{g} w{g} w{g} w{50 + k}") for g in range(12) for k in range(B)]
    anchors, positives = zip(*[rows[i] for i in np.random.default_rng(5).permutation(len(rows))], strict=True)
    return Dataset.from_dict({"anchor": anchors, "positive": positives})


class ByGroupPlanner:
    """Puts rows together that are nearest to the same word, in the order of the words."""

    def __init__(self, groups: int) -> None:
        words = make_static_model().encode([f"w{g}" for g in range(groups)], normalize_embeddings=True)
        self.words = words

    def plan(self, anchors, positives, batch_size, rng):
        return np.argsort(np.argmax((anchors + positives) @ self.words.T, axis=1), kind="stable")


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_plan(tmp_path, monkeypatch, static_model, shuffle, workers):
    """Each batch that is trained on is one block of the planner's order, side by side only when not shuffled."""
    monkeypatch.setattr("gcbs_st.planners._REGISTRY", dict(planners._REGISTRY))
    register("by_group")(ByGroupPlanner)
    rows = grouped_rows()
    args = arguments(
        tmp_path, planner="by_group", planner_options={"groups": 12}, shuffle_planned_batches=shuffle,
        learning_rate=0.0, replan_steps=5, dataloader_num_workers=workers,
    )  # fmt: skip
    trainer = trained(static_model, args, rows)
    group = [int(anchor.split()[0][1:]) for anchor in rows["anchor"]]
    groups = [{group[i] for i in batch} for batch in batches_of_ids(trainer, rows)]
    assert 24 == len(groups)
    assert {1} == set(map(len, groups))
    drawn = [next(iter(of_batch)) for of_batch in groups]
    assert [*range(12)] == sorted(drawn[:12]) == sorted(drawn[12:])
    assert (not shuffle) == (drawn == [*range(12), *range(12)])


def test_plan_batches_may_be_overridden(tmp_path, static_model, pairs):
    """A subclass's `plan_batches` decides, gets unit rows in the order of row ids, and any planner is passed over."""
    seen = []

    class Backwards(RecordingTrainer):
        def plan_batches(self, anchors, positives, batch_size, rng):
            seen.append((anchors, positives, batch_size))
            return np.arange(len(anchors))[::-1]

    args = arguments(tmp_path, planner="random", shuffle_planned_batches=False, num_train_epochs=1, learning_rate=0.0)
    trainer = trained(static_model, args, pairs, Backwards)
    assert [*range(len(pairs))][::-1] == np.concatenate(batches_of_ids(trainer, pairs)).tolist()
    ((anchors, positives, batch_size),) = seen
    assert B == batch_size
    np.testing.assert_allclose(
        static_model.encode(list(pairs["anchor"]), normalize_embeddings=True), anchors, atol=1e-6
    )
    np.testing.assert_allclose(
        static_model.encode(list(pairs["positive"]), normalize_embeddings=True), positives, atol=1e-6
    )
    assert np.float32 == anchors.dtype == positives.dtype


def test_the_model_as_it_is_then_is_planned_with(tmp_path, static_model, pairs):
    """Each plan embeds anew: the embeddings of two plans differ once the model has learnt something."""
    trainer = trained(static_model, arguments(tmp_path, learning_rate=0.1), pairs)
    first, second = (plan[2] for plan in trainer.plans)
    assert first.shape == second.shape
    assert np.abs(first - second).max() > 0.01


# ---------------------------------------------------------------- when it is planned

# 96 rows, 12 steps an epoch, 2 epochs. Planning of fewer than two batches is left out, hence not at step 10.
WHEN = {
    "each epoch": ({"replan_steps": 0}, [0, 12]),
    "every step but the last": ({"replan_steps": 1}, [*range(0, 10), *range(12, 22)]),
    "every fifth step": ({"replan_steps": 5}, [0, 5, 12, 17]),
    "half an epoch": ({"replan_steps": 0.5}, [0, 6, 12, 18]),
    "a share that is rounded up": ({"replan_steps": 0.3}, [0, 4, 8, 12, 16, 20]),
    "a share below one step": ({"replan_steps": 0.01}, [*range(0, 10), *range(12, 22)]),
    "a share with accumulation": ({"replan_steps": 0.5, "gradient_accumulation_steps": 2}, [0, 3, 6, 9]),
    "more than an epoch": ({"replan_steps": 15}, [0, 12]),
    "after a warm-up": ({"replan_steps": 5, "planner_warmup_steps": 7}, [7, 12, 17]),
    "after a warm-up of an epoch": ({"planner_warmup_steps": 12}, [12]),
    "after a warm-up into the second epoch": ({"planner_warmup_steps": 14}, [14]),
    "never": ({"planner_warmup_steps": 1000}, []),
    "before a cool-down": ({"replan_steps": 5, "planner_cooldown_steps": 8}, [0, 5, 12]),
    "before a cool-down of an epoch": ({"planner_cooldown_steps": 0.5}, [0]),
    "before a cool-down that is rounded up": ({"replan_steps": 1, "planner_cooldown_steps": 0.9}, [0, 1]),
    "before a cool-down after a warm-up": ({"planner_cooldown_steps": 10, "planner_warmup_steps": 4}, [4, 12]),
    "cool-down alone": ({"planner_cooldown_steps": 1000}, []),
    "warm-up up to the cool-down": ({"planner_cooldown_steps": 12, "planner_warmup_steps": 12}, []),
}


@pytest.mark.parametrize("given, expected", WHEN.values(), ids=WHEN)
def test_plans_are_made_when_they_are_due(tmp_path, static_model, pairs, given, expected):
    """At each epoch's start, every so many optimizer steps from there, and not before the warm-up is over."""
    trainer = trained(static_model, arguments(tmp_path, **given), pairs.select(range(96)))
    assert expected == [step for step, *_ in getattr(trainer, "plans", [])]
    assert expected == [entry["step"] for entry in logged(trainer)]


def test_batches_are_random_until_the_warm_up_is_over(tmp_path, static_model, pairs):
    """The batches of the warm-up, and those drawn ahead by then, are the sampler's random ones."""
    args = arguments(tmp_path, planner_warmup_steps=6)
    trainer = trained(static_model, args, pairs)
    expected = list(PlannedBatchSampler(pairs, B, seed=args.seed))
    found = batches_of_ids(trainer, pairs)
    assert expected[:7] == found[:7]
    assert expected[7:] != found[7 : len(expected)]


@pytest.mark.parametrize("cooldown", [6, 0.25])
def test_batches_are_random_once_the_run_cools_down(tmp_path, static_model, pairs, cooldown):
    """The second epoch's batches are blocks of its plan until then, one drawn ahead, and none are after it."""
    trainer = trained(static_model, arguments(tmp_path, planner_cooldown_steps=cooldown), pairs)
    batches, length = batches_of_ids(trainer, pairs), len(pairs) // B
    start = 2 * length - (cooldown if cooldown >= 1 else math.ceil(cooldown * 2 * length))
    assert length < start + 1 < 2 * length - 1
    blocks = {frozenset(block) for block in trainer.plans[-1][-1][: length * B].reshape(-1, B).tolist()}
    found = [frozenset(batch) in blocks for batch in batches[length:]]
    assert [True] * (start + 1 - length) == found[: start + 1 - length]
    assert not any(found[start + 1 - length :])
    assert {1} == set(Counter(row for batch in batches[length:] for row in batch).values())


LOADERS = [(0, False, None, 1), (0, False, None, 2), (2, False, None, 1), (2, False, 1, 2), (1, True, 3, 2)]


@pytest.mark.parametrize("workers, persistent, prefetch, accumulation", LOADERS)
def test_each_row_at_most_once_an_epoch(tmp_path, static_model, pairs, workers, persistent, prefetch, accumulation):
    """Re-planning in mid-epoch touches only what no one has drawn, however far the loader reads ahead."""
    args = arguments(
        tmp_path, replan_steps=2, num_train_epochs=3, gradient_accumulation_steps=accumulation,
        dataloader_num_workers=workers, dataloader_persistent_workers=persistent, dataloader_prefetch_factor=prefetch,
    )  # fmt: skip
    trainer = trained(static_model, args, pairs.select(range(103)))
    batches, length = batches_of_ids(trainer, pairs.select(range(103))), 103 // B
    assert 3 * length == len(batches)
    assert {B} == set(map(len, batches))
    for epoch in range(3):
        drawn = Counter(row for batch in batches[epoch * length : (epoch + 1) * length] for row in batch)
        assert {1} == set(drawn.values())
    steps, ahead = -(-length // accumulation), 1 + (prefetch or 2) * workers
    planned = [(step, cursor) for step, cursor, *_ in trainer.plans]
    expected = [(step, step % steps * accumulation + ahead * (step % steps > 0)) for step, _ in planned]
    assert expected == planned
    assert len(planned) > 3, "no plan in mid-epoch"


def test_rows_that_fill_no_batch_change_from_epoch_to_epoch(tmp_path, static_model, pairs):
    """It is not always the same rows that are left out."""
    rows = pairs.select(range(4 * B - 1))
    trainer = trained(static_model, arguments(tmp_path, num_train_epochs=6), rows)
    batches = batches_of_ids(trainer, rows)
    left_out = [frozenset(range(len(rows))) - set(np.concatenate(batches[e * 3 : e * 3 + 3])) for e in range(6)]
    assert {B - 1} == set(map(len, left_out))
    assert 6 == len(set(left_out))


def test_seed_decides_the_batches(tmp_path, pairs):
    """The same seed gives the same batches and weights, another one gives others; `data_seed` goes first."""
    rows = pairs.select(range(96))

    def run(**given):
        trainer = trained(make_static_model(), arguments(tmp_path, replan_steps=5, num_train_epochs=1, **given), rows)
        return batches_of_ids(trainer, rows), weights_hash(trainer.model)

    first = run(seed=1)
    assert first == run(seed=1)
    assert first[0] != run(seed=2)[0]
    assert first[0] == run(seed=2, data_seed=1)[0]


# ---------------------------------------------------------------- what is logged


class WithTemperature(torch.nn.Module):
    """A loss that names its temperature and has no scale, as GISTEmbedLoss does."""

    def __init__(self, model: SentenceTransformer, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.inner = MultipleNegativesRankingLoss(model, scale=1 / temperature)

    def forward(self, features: Any, labels: Any = None) -> torch.Tensor:
        return self.inner(features, labels)


LOSSES: dict[str, tuple[Callable[[SentenceTransformer], torch.nn.Module], float]] = {
    "default scale": (MultipleNegativesRankingLoss, 20.0),
    "scale": (lambda model: MultipleNegativesRankingLoss(model, scale=5.0), 5.0),
    "wrapped": (lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=7.0), [16, 8]), 7.0),
    "temperature": (lambda model: WithTemperature(model, temperature=0.1), 10.0),
}


@pytest.mark.parametrize("loss, scale", LOSSES.values(), ids=LOSSES)
def test_logged_quality_is_that_of_the_plan_at_the_scale_of_the_loss(tmp_path, static_model, pairs, loss, scale):
    """All quantities are in the log, the gap measured with the loss's own temperature on the batches as planned."""
    args = arguments(tmp_path, num_train_epochs=1, learning_rate=0.0)
    trainer = trained(static_model, args, pairs, loss=loss(static_model))
    (entry,) = logged(trainer)
    assert {f"gcbs/{name}" for name in LOGGED} <= set(entry)
    ((_, _, anchors, positives, order),) = trainer.plans
    expected = plan_quality(anchors, positives, order, B, scale=scale)
    found = [entry[f"gcbs/{name}"] for name in ("gap", "gap_bound", "tail_coverage", "false_negatives")]
    wanted = [expected.gap, expected.gap_bound, expected.tail_coverage, expected.false_negatives]
    np.testing.assert_allclose(wanted, found, rtol=1e-6)
    assert 0.0 == entry["gcbs/embedding_age"]
    assert all(entry[f"gcbs/{name}"] >= 0 for name in ("plan_seconds", "embed_seconds"))


def test_quantities_reach_tensorboard(tmp_path, monkeypatch, static_model, pairs):
    """TensorBoard's event file holds every logged quantity, at its step."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = arguments(tmp_path, report_to="tensorboard", replan_steps=10)
    trainer = trained(static_model, args, pairs)
    (file,) = [path for path in tmp_path.rglob("events.out.tfevents*")]
    events = EventAccumulator(str(file)).Reload()
    for name in LOGGED:
        expected = [(entry["step"], np.float32(entry[f"gcbs/{name}"])) for entry in logged(trainer)]
        assert expected == [(event.step, np.float32(event.value)) for event in events.Scalars(f"train/gcbs/{name}")]


def test_random_batches_embed_nothing(tmp_path, monkeypatch, static_model, pairs):
    """The random planner costs no forward pass, and logs no plan."""

    def encode(*args, **kwargs):
        raise AssertionError("encode was called")

    monkeypatch.setattr(static_model, "encode", encode)
    trainer = trained(static_model, arguments(tmp_path, planner="random", replan_steps=3), pairs, RecordingTrainer)
    assert [] == logged(trainer)
    batches = batches_of_ids(trainer, pairs)
    assert [*range(200)] == sorted(row for batch in batches[:25] for row in batch)
    assert batches[:25] != batches[25:]


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_bars_follow_disable_tqdm(tmp_path, capsys, static_model, pairs, quiet):
    """Embedding and planning show progress bars, which say so and name the dataset, when the host shows its own."""
    rows = DatasetDict({"captions": pairs})
    trained(
        static_model, arguments(tmp_path, disable_tqdm=quiet, planner="gcbs", planner_options={"neighbors": 50}), rows
    )
    shown = capsys.readouterr().err
    assert (not quiet) == ("planning captions: 100%" in shown)
    assert (not quiet) == ("planning:   0%" in shown)


# ---------------------------------------------------------------- what training must not notice


class AsRandomTrainer(RecordingTrainer):
    """Embeds, and then plans what the random planner plans."""

    def plan_batches(self, anchors, positives, batch_size, rng):
        return rng.permutation(len(anchors))


@pytest.mark.parametrize("workers", [0, 2])
def test_embedding_disturbs_nothing_in_training(tmp_path, bert_folder, pairs, workers):
    """With dropout on, a run that embeds and then takes random batches ends in the very weights of one that does not."""

    def run(trainer_class):
        model = SentenceTransformer(bert_folder, device="cpu")
        args = arguments(
            tmp_path, planner="random", replan_steps=3, learning_rate=1e-3, dataloader_num_workers=workers
        )
        return trained(model, args, pairs.select(range(64)), trainer_class)

    without, with_embedding = run(RecordingTrainer), run(AsRandomTrainer)
    assert [] == logged(without)
    assert {0: [0, 3, 8, 11], 2: [0, 8]}[workers] == [entry["step"] for entry in logged(with_embedding)]
    assert without.trained == with_embedding.trained
    assert weights_hash(without.model) == weights_hash(with_embedding.model)


def test_model_is_left_in_the_mode_it_was_in(tmp_path, bert_folder, pairs):
    """Every single module is in the mode in which planning found it, at an epoch's start and in mid-epoch."""

    class Modes(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[list[bool]] = []

        def look(self, model):
            self.seen.append([module.training for module in model.modules()])

        def on_epoch_begin(self, args, state, control, model, **kwargs):
            if state.global_step == 0:  # a mixed state, as of a model that is frozen in parts
                next(iter(model.children())).train(self is before)
                model[0].auto_model.encoder.layer[0].eval()
            self.look(model)

        def on_step_end(self, args, state, control, model, **kwargs):
            self.look(model)

    before, after = Modes(), Modes()
    model = SentenceTransformer(bert_folder, device="cpu").eval()
    after.on_epoch_begin = lambda args, state, control, model, **kwargs: after.look(model)
    args = arguments(tmp_path, replan_steps=1, num_train_epochs=1)
    trainer = PlanningTrainer(
        model, args, pairs.select(range(40)), loss=MultipleNegativesRankingLoss(model), callbacks=[before]
    )
    trainer.add_callback(after)
    trainer.train()
    assert [0, 1, 2] == [step for step, *_ in trainer.plans]
    assert before.seen == after.seen
    assert {True, False} == set(before.seen[0])
    assert {True} == set(before.seen[1])


# ---------------------------------------------------------------- evaluation


def test_evaluation_uses_the_sampler_of_the_host(tmp_path, static_model, pairs):
    """Rows that are evaluated are not planned, not even when they are the training set itself."""
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=10, replan_steps=4, batch_sampler="no_duplicates")
    trainer = trained(static_model, args, pairs, eval_dataset=pairs)
    sampler = trainer.get_eval_dataloader().batch_sampler
    assert isinstance(sampler, DefaultBatchSampler)
    assert not isinstance(sampler, PlannedBatchSampler)
    batches = batches_of_ids(trainer, pairs)
    assert [*range(200)] == sorted(row for batch in batches[:25] for row in batch)
    assert [0, 4, 8, 12, 16, 20, 25] == [step for step, *_ in trainer.plans][:7]
    assert 5 == len({e["step"] for e in trainer.state.log_history if "eval_loss" in e})


def test_best_model_of_an_evaluator_is_loaded_at_the_end(tmp_path, static_model, pairs):
    """The host's evaluators and `load_best_model_at_end` work as ever."""
    scores = np.random.default_rng(0).random(40).tolist()
    evaluator = EmbeddingSimilarityEvaluator(list(pairs["anchor"][:40]), list(pairs["positive"][:40]), scores)
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=5, save_strategy="steps", save_steps=5, replan_steps=5,
        load_best_model_at_end=True, metric_for_best_model="eval_spearman_cosine", learning_rate=0.1,
    )  # fmt: skip
    trainer = trained(static_model, args, pairs, evaluator=evaluator)
    measured = {e["step"]: e["eval_spearman_cosine"] for e in trainer.state.log_history if "eval_spearman_cosine" in e}
    best = Path(trainer.state.best_model_checkpoint)
    assert max(measured, key=measured.get) == int(best.name.rsplit("-", 1)[1])
    assert weights_hash(SentenceTransformer(str(best), device="cpu")) == weights_hash(trainer.model)


# ---------------------------------------------------------------- shapes of data


@pytest.mark.parametrize("name", ["no_duplicates", "no_duplicates_hashed"])
@pytest.mark.parametrize("rows, planner", [(100, "gcbs"), (96, "random")])
def test_no_text_stands_twice_in_a_batch(tmp_path, pairs, name, rows, planner):
    """With no_duplicates every batch is full and holds no text twice, in every epoch and after every plan."""
    positives = (list(pairs["positive"][:20]) * 5)[:rows]  # in five rows each; an epoch has 12 batches
    data = Dataset.from_dict({"anchor": pairs["anchor"][:rows], "positive": positives})

    def run(sampler):
        args = arguments(tmp_path, batch_sampler=sampler, planner=planner, replan_steps=3, num_train_epochs=3)
        return [batch for _, batch in trained(make_static_model(), args, data, RecordingTrainer).trained]

    def random_batches(data):
        order = np.random.default_rng(0).permutation(len(data))
        texts = list(zip(data["anchor"], data["positive"], strict=True))
        return [[texts[row] for row in order[start : start + B]] for start in range(0, rows // B * B, B)]

    def repeats(batches):
        return [batch for batch in batches if len({text for row in batch for text in row}) < 2 * len(batch)]

    batches = run(name)
    assert 3 * (rows // B) == len(batches)
    assert {B} == set(map(len, batches))
    assert [] == repeats(batches)
    for epoch in range(3):
        drawn = Counter(row for batch in batches[epoch * (rows // B) : (epoch + 1) * (rows // B)] for row in batch)
        assert {1} == set(drawn.values())
    # By default too: texts are kept apart wherever that can be.
    assert [] == repeats(run("batch_sampler"))
    assert len(repeats(random_batches(data))) > 3, "these rows are too easy"


def test_triplets(tmp_path, static_model, pairs):
    """A third column of hard negatives is trained on; the first two are planned with."""
    rows = pairs.add_column("negative", [f"w{i % 60}" for i in range(len(pairs))])
    trainer = trained(static_model, arguments(tmp_path, learning_rate=0.0), rows)
    assert {3} == {len(row) for _, batch in trainer.trained for row in batch}
    anchors, positives = trainer.plans[0][2:4]
    np.testing.assert_allclose(
        static_model.encode(pairs["anchor"][0], normalize_embeddings=True), anchors[0], atol=1e-6
    )
    np.testing.assert_allclose(
        static_model.encode(pairs["positive"][0], normalize_embeddings=True), positives[0], atol=1e-6
    )


def test_unsupervised(tmp_path, bert_folder, pairs):
    """The same text twice is trained on with two dropout masks, embedded once, and kept by no_duplicates."""
    rows = Dataset.from_dict({"anchor": pairs["anchor"][:64], "positive": pairs["anchor"][:64]})
    model = SentenceTransformer(bert_folder, device="cpu")
    args = arguments(tmp_path, batch_sampler="no_duplicates", num_train_epochs=1)
    trainer = trained(model, args, rows)
    ((_, _, anchors, positives, _),) = trainer.plans
    assert anchors is positives
    assert [*range(64)] == sorted(np.concatenate(batches_of_ids(trainer, rows)))
    assert all(entry["loss"] > 0.01 for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("label", ["label", "score"])
def test_labels_are_not_texts(tmp_path, static_model, pairs, label):
    """A column of labels, wherever it stands, is neither embedded nor compared, and reaches the loss."""
    rows = Dataset.from_dict({label: [float(i % 2) for i in range(200)], **pairs.to_dict()})
    seen = []

    class Watching(MultipleNegativesRankingLoss):
        def forward(self, features, labels):
            seen.extend(labels.tolist())
            return super().forward(features, labels)

    args = arguments(tmp_path, batch_sampler="no_duplicates", num_train_epochs=1, learning_rate=0.0)
    trainer = trained(static_model, args, rows, loss=Watching(static_model))
    assert {0.0: 100, 1.0: 100} == Counter(seen)
    np.testing.assert_allclose(
        static_model.encode(pairs["anchor"][3], normalize_embeddings=True), trainer.plans[0][2][3], atol=1e-6
    )


@pytest.mark.parametrize("kind, expected", [("round_robin", (8, 8)), ("proportional", (8, 12))])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_dataset_has_its_own_plan(tmp_path, static_model, pairs, kind, expected, workers):
    """Of two datasets each is planned for itself, in mid-epoch too; no batch mixes them and no row comes twice."""
    parts = {"a": pairs.select(range(64)), "b": pairs.select(range(64, 160))}
    args = arguments(tmp_path, multi_dataset_batch_sampler=kind, replan_steps=4, dataloader_num_workers=workers)
    trainer = trained(static_model, args, DatasetDict(parts))
    batches = batches_of_ids(trainer, pairs)
    assert 2 * sum(expected) == len(batches)
    for epoch in range(2):
        of_epoch = batches[epoch * sum(expected) : (epoch + 1) * sum(expected)]
        assert {1} == set(Counter(np.concatenate(of_epoch).tolist()).values())
        sides = [{"a" if row < 64 else "b" for row in batch} for batch in of_epoch]
        assert expected == (sides.count({"a"}), sides.count({"b"}))
    for name in parts:
        steps = [entry["step"] for entry in logged(trainer, f"gcbs/{name}/")]
        assert {0, 4, sum(expected)} <= set(steps)
    assert [8, 12] == [len(trainer.planned_samplers[name]) for name in parts]


def test_one_dataset_under_two_names(tmp_path, static_model, pairs):
    """The same rows may stand in the training set twice; each name has its own plan."""
    rows = pairs.select(range(64))
    texts = [tuple(row.values()) for row in rows]
    args = arguments(tmp_path, multi_dataset_batch_sampler="round_robin", num_train_epochs=1)
    trainer = trained(static_model, args, DatasetDict(a=rows, b=rows))
    assert ["a", "b"] == list(trainer.planned_samplers)
    assert dict.fromkeys(texts, 2) == Counter(row for _, batch in trainer.trained for row in batch)
    assert [1, 1] == [len(logged(trainer, f"gcbs/{name}/")) for name in "ab"]


def test_a_dict_of_datasets_is_taken(tmp_path, static_model, pairs):
    """As in the host, a plain dict stands for a DatasetDict, and prompts may differ by dataset."""
    parts = {"a": pairs.select(range(32)), "b": pairs.select(range(32, 64))}
    seen, encode = set(), static_model.encode
    static_model.encode = lambda *a, **k: seen.add(k["prompt"]) or encode(*a, **k)
    args = arguments(tmp_path, prompts={"a": "query : ", "b": {"anchor": "passage : "}}, num_train_epochs=1)
    trainer = trained(static_model, args, parts)
    assert 8 == trainer.state.global_step
    assert {"query : ", "passage : ", ""} == seen


# ---------------------------------------------------------------- arguments


class PicklablePlanner:
    """A planner object, as a user would hand over."""

    def __init__(self, step: int) -> None:
        self.step = step

    def plan(self, anchors, positives, batch_size, rng):
        return np.roll(np.arange(len(anchors)), self.step)

    def __repr__(self) -> str:
        return f"PicklablePlanner({self.step})"


def test_a_planner_object_survives_saving(tmp_path, static_model, pairs):
    """An object in `planner` is in the checkpoint's training_args.bin, and is text in what trackers get."""
    args = arguments(tmp_path, planner=PicklablePlanner(7), save_strategy="steps", save_steps=25, num_train_epochs=1)
    trainer = trained(static_model, args, pairs)
    assert args.planner is trainer.planner
    loaded = torch.load(tmp_path / "checkpoint-25" / "training_args.bin", weights_only=False)
    assert 7 == loaded.planner.step
    assert "PicklablePlanner(7)" == args.to_dict()["planner"]
    assert "PicklablePlanner(7)" == json.loads(args.to_json_string())["planner"]
    assert "PicklablePlanner(7)" in (tmp_path / "checkpoint-25" / "README.md").read_text()


def test_arguments_from_the_command_line(tmp_path):
    """HfArgumentParser reads all our fields, the options as JSON."""
    line = [
        "--output_dir", str(tmp_path), "--planner", "gcbs", "--planner_options", '{"quantile": 0.99}',
        "--replan_steps", "0.5", "--planner_warmup_steps", "10", "--embedding_batch_size", "64",
        "--shuffle_planned_batches", "false", "--report_to", "none",
    ]  # fmt: skip
    (args,) = HfArgumentParser(GCBSTrainingArguments).parse_args_into_dataclasses(line)
    found = (args.planner, args.planner_options, args.replan_steps, args.planner_warmup_steps)
    assert ("gcbs", {"quantile": 0.99}, 0.5, 10) == found
    assert (64, False) == (args.embedding_batch_size, args.shuffle_planned_batches)
    assert 0.99 == args.make_planner().quantile


def test_arguments_from_yaml(tmp_path):
    """HfArgumentParser reads our fields from YAML, the options as a mapping or as JSON."""
    for options in ("{quantile: 0.99}", "'{\"quantile\": 0.99}'"):
        (tmp_path / "args.yaml").write_text(
            f"output_dir: {tmp_path}\nreport_to: none\nreplan_steps: 0.5\nplanner: gcbs\nplanner_options: {options}\n"
        )
        (args,) = HfArgumentParser(GCBSTrainingArguments).parse_yaml_file(str(tmp_path / "args.yaml"))
        assert (0.5, {"quantile": 0.99}) == (args.replan_steps, args.planner_options)


REFUSED = {
    "negative steps": ({"replan_steps": -1}, "replan_steps: got -1, expected 0"),
    "no whole steps": ({"replan_steps": 1.5}, "replan_steps: got 1.5, expected 0"),
    "not a number of steps": ({"replan_steps": math.nan}, "replan_steps: got nan, expected 0"),
    "infinite steps": ({"replan_steps": math.inf}, "replan_steps: got inf, expected 0"),
    "half a step of cool-down": (
        {"planner_cooldown_steps": 1.5},
        "planner_cooldown_steps: got 1.5, expected 0 (no step)",
    ),
    "negative cool-down": ({"planner_cooldown_steps": -1}, "planner_cooldown_steps: got -1, expected 0 (no step)"),
    "negative warm-up": ({"planner_warmup_steps": -1}, "planner_warmup_steps: got -1, expected 0 or more"),
    "no texts": ({"embedding_batch_size": 0}, "embedding_batch_size: got 0, expected at least 1, or None"),
    "no JSON": ({"planner_options": "{quantile"}, "planner_options: got '{quantile', expected a JSON object"),
    "no mapping": ({"planner_options": "3"}, "planner_options: got 3, expected a mapping"),
}


@pytest.mark.parametrize("given, message", REFUSED.values(), ids=REFUSED)
def test_values_out_of_range_are_refused(tmp_path, given, message):
    """The message names the field, what it holds and what it may hold."""
    with pytest.raises(ValueError) as error:
        arguments(tmp_path, **given)
    assert str(error.value).startswith(message)


# ---------------------------------------------------------------- other ways to train


def test_sparse_gradients(tmp_path, static_model, pairs):
    """A static model trains with SparseAdam, and its gradients' norm is logged as that of dense ones."""

    def first_norm(trainer):
        return next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)

    before = weights_hash(static_model)
    assert use_sparse_gradients(static_model)
    args = arguments(tmp_path, max_grad_norm=0.0, num_train_epochs=1)
    optimizer = torch.optim.SparseAdam(list(static_model.parameters()), lr=0.01)
    sparse = trained(static_model, args, pairs, optimizers=(optimizer, None))
    assert static_model[0].embedding.sparse
    assert before != weights_hash(static_model)
    dense = trained(make_static_model(), args, pairs)
    assert sparse.trained[0] == dense.trained[0]
    if hasattr(Trainer, "_get_grad_norm"):  # older hosts log no norm of gradients that are not clipped
        assert first_norm(sparse) == pytest.approx(float(first_norm(dense)), rel=1e-4)


def test_training_twice(tmp_path, pairs):
    """With `model_init`, a second call of `train` starts from its first epoch again, as in a search for settings."""
    args = arguments(tmp_path, replan_steps=5)
    trainer = PlanningTrainer(
        None, args, pairs, model_init=lambda trial=None: make_static_model(), loss=MultipleNegativesRankingLoss
    )
    runs = []
    for _ in range(2):
        trainer.trained, trainer.plans = [], []
        trainer.train()
        runs.append((trainer.trained, [step for step, *_ in trainer.plans], weights_hash(trainer.model)))
    assert runs[0] == runs[1]
    assert 50 == len(runs[0][0])


def test_words_of_the_tests_are_known():
    """The tests' texts use words that the tests' models know."""
    assert {f"w{i}" for i in range(60)} == set(WORDS)
    assert 200 == len({tuple(row.values()) for row in make_pairs()})


def test_random_batches_can_be_measured(tmp_path, pairs):
    """With `measure` the same random batches are logged, with nothing closed."""
    drawn = {}
    for measure in (False, True):
        model = make_static_model()
        args = arguments(tmp_path, planner="random", planner_options={"measure": measure}, num_train_epochs=1)
        trainer = trained(model, args, pairs.select(range(96)), RecordingTrainer)
        drawn[measure] = batches_of_ids(trainer, pairs.select(range(96)))
        assert measure == bool(logged(trainer))
    assert drawn[False] == drawn[True]
    assert abs(logged(trainer)[0]["gcbs/closed"]) < 0.5
