"""Tests of `planner_columns`: any two text columns are planned on, and the loss sees what it always saw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import HfArgumentParser

from gcbs_st import EMC2Loss, GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.store import NEVER
from gcbs_st.reports.inspection import pair_texts
from gcbs_st.rows.columns import text_columns, text_names
from gcbs_st.rows.training_set import corpus_hash, planned_names

B = 8
ROWS = 48
# The paper's quantile of few products, and walks long enough for few rows.
OPTIONS = {"gcbs": {"quantile": 0.9}, "random_walk": {"candidates": ROWS - 1, "neighbors": 8}}
ONE_OR_TWO = 'one column name or two different ones, as ["anchor", "negative"]'


pytestmark = pytest.mark.usefixtures("one_thread")


def ntuples(seed: int = 0) -> Dataset:
    """Score, anchor, positive and two negatives: five columns, of which four are texts, all different."""
    rows, others = make_pairs(ROWS, seed), make_pairs(ROWS, seed + 50)
    columns = {"score": np.linspace(0, 1, ROWS).tolist(), **rows.to_dict()}
    return Dataset.from_dict({**columns, "hard": others["anchor"], "harder": others["positive"]})


class Keeping(GCBSTrainer):
    """Keeps what was planned with, by number of the plan, and what was harvested when the training ended."""

    def plan_batches(self, anchors, positives, batch_size, rng):
        self.plans = [*getattr(self, "plans", []), (np.array(anchors), np.array(positives))]
        return super().plan_batches(anchors, positives, batch_size, rng)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.args.embedding_source == "harvest":
            self.source.sync()
            self.kept = {name: (store.steps(), store) for name, store in self.source.harvested.stores.items()}
            self.kept = {
                name: (np.flatnonzero(steps != NEVER), store.read(np.flatnonzero(steps != NEVER)))
                for name, (steps, store) in self.kept.items()
                if (steps != NEVER).any()
            }


def trained(folder: Path, rows: Any, loss: Any = MultipleNegativesRankingLoss, **given: Any) -> Keeping:
    """A trainer that trained for an epoch without changing its model."""
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": B, "num_train_epochs": 1, "learning_rate": 0.0, "report_to": "none",
            "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1, **given,
        },
    )  # fmt: skip
    trainer = Keeping(model, args, rows, loss=loss(model))
    trainer.train()
    return trainer


def units(texts: Any) -> np.ndarray:
    """What the model makes of texts, by its own `encode`."""
    return make_static_model().encode(list(texts), normalize_embeddings=True)


@pytest.mark.parametrize(
    "names", [["anchor", "hard"], ["harder", "anchor"], ["hard", "positive"], ("positive", "hard"), None]
)
def test_the_named_columns_are_planned_on(tmp_path, names):
    """In their order, whatever their places; without names the first two that are no labels."""
    rows = ntuples()
    trainer = trained(tmp_path, rows, planner_columns=names)
    ((anchors, positives),) = trainer.plans
    first, second = names or ("anchor", "positive")
    np.testing.assert_allclose(anchors, units(rows[first]), atol=1e-6)
    np.testing.assert_allclose(positives, units(rows[second]), atol=1e-6)


@pytest.mark.parametrize("planner", ["gcbs", "tbs", "random_walk", "bisect", "partition", "best"])
def test_a_single_column_puts_rows_together_that_are_alike_in_it(tmp_path, planner):
    """Whatever their other columns are, and no other text is embedded."""
    topics = np.random.default_rng(3).permutation(np.repeat(np.arange(ROWS // B), B))
    unlike = [f"w{30 + row} w{(row * 7) % 30} w{(row * 11) % 30}" for row in range(ROWS)]
    rows = Dataset.from_dict({"query": [f"w{t} w{t} w{t} w{10 + i}" for i, t in enumerate(topics)], "code": unlike})
    trainer = trained(
        tmp_path, rows, planner=planner, planner_columns=["query"], planner_options=OPTIONS.get(planner),
        shuffle_planned_batches=False,
    )  # fmt: skip
    ((anchors, positives),) = trainer.plans
    np.testing.assert_allclose(anchors, units(rows["query"]), atol=1e-6)
    np.testing.assert_array_equal(anchors, positives)
    order = trainer.planned_samplers[""].order
    assert [*range(ROWS)] == sorted(order)
    together = [len(set(block)) for block in topics[order].reshape(-1, B)]
    by_chance = [len(set(block)) for block in topics.reshape(-1, B)]
    assert np.mean(together) <= (1.5 if planner in ("bisect", "partition", "best") else np.mean(by_chance) - 1), (
        together
    )


def test_the_loss_sees_all_columns(tmp_path):
    """Those that are planned on are neither moved to the front nor all that is trained on."""
    seen = []

    class Watching(MultipleNegativesRankingLoss):
        def forward(self, features, labels):
            seen.append([len(column["offsets"]) for column in features])
            return super().forward(features, labels)

    rows = ntuples()
    named, plain = (trained(tmp_path, rows, Watching, planner_columns=names) for names in (["harder", "hard"], None))
    assert {(B,) * 4} == {tuple(sizes) for sizes in seen}
    losses = [[e["loss"] for e in one.state.log_history if "loss" in e] for one in (named, plain)]
    assert len(losses[0]) == ROWS // B
    assert losses[0] != losses[1], "another plan, other batches"


def test_prompts_are_those_of_the_named_columns(tmp_path):
    """A prompt belongs to its column, not to a place."""
    rows, prompts = ntuples(), {"anchor": "query : ", "hard": "passage : "}
    trainer = trained(tmp_path, rows, planner_columns=["hard", "positive"], prompts=prompts)
    ((anchors, positives),) = trainer.plans
    np.testing.assert_allclose(anchors, units(f"passage : {text}" for text in rows["hard"]), atol=1e-6)
    np.testing.assert_allclose(positives, units(rows["positive"]), atol=1e-6)


PARTS = {
    "for all": (["hard", "anchor"], {"one": ["hard", "anchor"], "two": ["hard", "anchor"]}),
    "by dataset": (
        {"one": ["harder", "anchor"], "two": ["anchor", "hard"]},
        {"one": ["harder", "anchor"], "two": ["anchor", "hard"]},
    ),
    "one and two": (
        {"one": ["hard"], "two": ["harder", "positive"]},
        {"one": ["hard"], "two": ["harder", "positive"]},
    ),
    "one is left out": (
        {"two": ["positive", "harder"]},
        {"one": ["anchor", "positive"], "two": ["positive", "harder"]},
    ),
}


@pytest.mark.parametrize("source", ["encode", "harvest"])
@pytest.mark.parametrize("given, expected", PARTS.values(), ids=PARTS)
def test_several_datasets(tmp_path, given, expected, source):
    """Two names for all, or by name of the dataset; harvested rows are those of the columns of their own dataset."""
    parts = DatasetDict(one=ntuples(), two=ntuples(seed=9))
    trainer = trained(
        tmp_path, parts, planner_columns=given, embedding_source=source, multi_dataset_batch_sampler="round_robin",
        num_train_epochs=2,
    )  # fmt: skip
    if source == "encode":
        for plan, name in zip(trainer.plans, ["one", "two"] * 2, strict=True):
            names = expected[name]
            for array, column in zip(plan, names if len(names) == 2 else names * 2, strict=True):
                np.testing.assert_allclose(array, units(parts[name][column]), atol=1e-6)
        return
    assert {"one", "two"} == set(trainer.kept)
    for name, (seen, arrays) in trainer.kept.items():
        assert ROWS == len(seen)
        for array, column in zip(arrays, expected[name], strict=True):
            np.testing.assert_allclose(array, units(parts[name][column]), atol=2e-6)


@pytest.mark.parametrize("names", [["harder", "anchor"], ["positive", "hard"], ["hard"]])
def test_harvested_columns_are_the_named_ones(tmp_path, names):
    """With gradient accumulation and data workers too."""
    rows = ntuples()
    trainer = trained(
        tmp_path, rows, planner_columns=names, embedding_source="harvest", gradient_accumulation_steps=2,
        dataloader_num_workers=1,
    )  # fmt: skip
    ((seen, arrays),) = trainer.kept.values()
    assert ROWS == len(seen)
    for array, column in zip(arrays, names, strict=True):
        np.testing.assert_allclose(array, units(rows[column]), atol=2e-6)


def test_a_loss_with_states_reads_its_own_columns(tmp_path):
    """EMC2 contrasts anchors with positives of the whole training set, whatever is planned on."""
    rows, read = make_pairs(ROWS), np.array([3, 1])
    texts = rows.to_dict()
    for column in (0, 1):  # its own texts come in the loss's order, and not in the plan's
        expected = make_static_model().preprocess([texts[list(texts)[column]][row] for row in read])
        found = []

        class Reading(EMC2Loss):
            def forward(self, features, labels, found=found, column=column):
                found.append(self._features_of(read, column))
                return super().forward(features, labels)

        trained(tmp_path, rows, Reading, planner="bisect", planner_columns=["positive", "anchor"])
        assert all(torch.equal(expected["input_ids"], features["input_ids"]) for features in found)
        assert ROWS // B == len(found)


REFUSED = {
    "none": ([], ONE_OR_TWO),
    "three": (["a", "b", "c"], ONE_OR_TWO),
    "the same": (["anchor", "anchor"], ONE_OR_TWO),
    "no names": ([1, 2], ONE_OR_TWO),
    "a name": ('"anchor"', ONE_OR_TWO),
    "no JSON": ("anchor,hard", ONE_OR_TWO),
    "three of a dataset": ({"one": ["a", "b", "c"]}, ONE_OR_TWO),
}


@pytest.mark.parametrize("given, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_one_or_two_names_is_refused(tmp_path, given, message):
    """The message shows what was given and what is expected."""
    with pytest.raises(ValueError, match="^planner_columns: got ") as error:
        GCBSTrainingArguments(str(tmp_path), planner_columns=given, report_to="none")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


UNKNOWN = {
    "unknown": (
        ["anchor", "negative"],
        r"got 'negative', expected one or two of the text columns \['anchor', 'positive'",
    ),
    "labels": (["anchor", "score"], r"got 'score' \(a column of labels\), expected one or two of the text columns"),
    "no datasets": ({"one": ["anchor", "hard"]}, "got columns of 'one', but the training set is one dataset"),
}


@pytest.mark.parametrize("given, message", UNKNOWN.values(), ids=UNKNOWN)
def test_columns_that_are_not_there_are_refused(tmp_path, given, message):
    """Before the first step."""
    with pytest.raises(ValueError, match=f"^planner_columns: {message}"):
        trained(tmp_path, ntuples(), planner_columns=given)


def test_datasets_that_are_not_there_are_refused():
    """With the names of those that are; and the dataset is named whose columns are wrong."""
    parts = DatasetDict(one=ntuples(), two=ntuples())
    with pytest.raises(
        ValueError, match=r"got columns of 'three', but the training set is the datasets \['one', 'two'\]"
    ):
        planned_names({"three": ["anchor", "hard"]}, parts)
    with pytest.raises(ValueError, match="of the training set 'two'"):
        text_columns(parts["two"], dataset_name="two", names=["a", "b"])
    assert ["anchor", "positive", "hard", "harder"] == text_names(parts["one"], ["score"])


def test_they_are_read_from_the_command_line_and_yaml(tmp_path):
    """As JSON on the command line, as a list or a mapping in YAML."""
    parser = HfArgumentParser(GCBSTrainingArguments)
    line = ["--output_dir", str(tmp_path), "--report_to", "none", "--planner_columns"]
    for text, expected in (('["anchor", "hard"]', ["anchor", "hard"]), ('{"one": ["a", "b"]}', {"one": ["a", "b"]})):
        (args,) = parser.parse_args_into_dataclasses([*line, text])
        assert expected == args.planner_columns
        (tmp_path / "args.yaml").write_text(f"output_dir: {tmp_path}\nreport_to: none\nplanner_columns: {text}\n")
        (args,) = parser.parse_yaml_file(str(tmp_path / "args.yaml"))
        assert expected == args.planner_columns


@pytest.mark.parametrize("given", [["hard", "anchor"], '["hard", "anchor"]', None, ["hard"]])
def test_the_page_shows_what_was_planned_on(tmp_path, monkeypatch, given):
    """The texts of a finished run are read from the columns that its arguments name."""
    rows = ntuples().remove_columns("score")
    monkeypatch.setattr("gcbs_st.experiments.data.load_rows", lambda config: (rows, None))
    config = SimpleNamespace(train={"planner_columns": given}, runs={"one": {}}, corpus=SimpleNamespace(source="x"))
    texts = pair_texts.read_run_texts(tmp_path, config, corpus_hash(rows))
    first, second = ["anchor", "positive"] if given in (None, ["hard"]) else ["hard", "anchor"]
    assert [(rows[first][4], rows[second][4])] == texts.read(np.array([4]))


def test_another_choice_of_columns_is_another_store(tmp_path, caplog):
    """Harvested embeddings of other columns are not resumed from, and it is said."""
    given = {"embedding_source": "harvest", "save_strategy": "steps", "save_steps": 3}
    trained(tmp_path, ntuples(), planner_columns=["anchor", "hard"], **given)
    for names, warnings in ((["anchor", "hard"], 0), (["hard", "anchor"], 1)):
        model = make_static_model()
        args = GCBSTrainingArguments(
            str(tmp_path), per_device_train_batch_size=B, num_train_epochs=1, report_to="none", disable_tqdm=True,
            use_cpu=True, planner_columns=names, **given,
        )  # fmt: skip
        caplog.clear()
        GCBSTrainer(model, args, ntuples(), loss=MultipleNegativesRankingLoss(model)).train(
            str(tmp_path / "checkpoint-3")
        )
        assert warnings == sum("The embeddings in the checkpoint" in record.message for record in caplog.records)
