"""Tests of several datasets: weights, passes that start over, and batches made of sub-batches; in one process and two."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from datasets_job import BATCH, PROMPTS, RATE, WEIGHTS, losses_of, run, three_sets, told, work
from forked_ranks import run_ranks
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CosineSimilarityLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

pytestmark = pytest.mark.usefixtures("one_thread")

SUB = BATCH // 2


def names_of_rows(rows: DatasetDict) -> dict[tuple[str, ...], tuple[str, int]]:
    """The dataset and number of each row, by its texts."""
    return {
        tuple(str(value) for value in row.values()): (name, i)
        for name, part in rows.items()
        for i, row in enumerate(part)
    }


def located(trained: Any, rows: DatasetDict, size: int) -> list[list[tuple[str, list[int]]]]:
    """(dataset, rows) of each sub-batch of `size`, of each batch."""
    known, found = names_of_rows(rows), []
    for _, texts in trained:
        places = [known[tuple(row)] for row in texts]
        parts = [places[start : start + size] for start in range(0, len(places), size)]
        assert all(1 == len({name for name, _ in part}) for part in parts), "a sub-batch of two datasets"
        found.append([(part[0][0], [row for _, row in part]) for part in parts])
    return found


def by_hand(batches_of_steps: Any, size: int) -> torch.Tensor:
    """The word vectors after plain gradient descent on these batches, each sub-batch scored by itself."""
    model = make_static_model()
    losses, known = losses_of(model), names_of_rows(three_sets())
    vectors = next(model.parameters())
    for batches in batches_of_steps:
        total = 0.0
        for texts in batches:
            for start in range(0, len(texts), size):
                part = [tuple(row) for row in texts[start : start + size]]
                name = known[part[0]][0]
                prompts = [PROMPTS[name].get(column, "") for column in ("anchor", "positive", "negative")]
                columns = zip(*part, strict=True)
                features = [
                    model.preprocess([prompt + text for text in column])
                    for prompt, column in zip(prompts, columns, strict=False)
                ]
                total = total + losses[name](features, None) * len(part) / len(texts)
        (gradient,) = torch.autograd.grad(total / len(batches), [vectors])
        with torch.no_grad():
            vectors -= RATE * gradient.to_dense()
    return vectors.detach()


def by_step(*trained: Any) -> list[list[Any]]:
    """The batches of each optimizer step, of all ranks."""
    steps: dict[int, list[Any]] = {}
    for of_rank in trained:
        for step, texts in of_rank:
            steps.setdefault(step, []).append(texts)
    return list(steps.values())


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("source", ["encode", "harvest"])
def test_it_trains_what_a_loop_of_a_few_lines_trains(tmp_path, accumulation, parts, source):
    """By each dataset's loss and prompts, negatives within a sub-batch alone, the mean by rows; and the shares logged."""
    rows, size = three_sets(), BATCH // parts
    trainer = run(
        tmp_path, dataset_weights=WEIGHTS, prompts=PROMPTS, sub_batches=parts, embedding_source=source,
        first_plan="encode", gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    batches = located(trainer.trained, rows, size)
    expected = by_hand(by_step(trainer.trained), size)
    torch.testing.assert_close(expected, next(trainer.model.parameters()).detach(), rtol=1e-4, atol=1e-5)
    an_epoch = sum(
        -(-len(part) // size) if name == "own" and parts == 1 else len(part) // size for name, part in rows.items()
    )
    assert 2 * (an_epoch // parts) == len(batches)
    names = [[name for name, _ in batch] for batch in batches]
    assert names[: len(names) // 2] != names[len(names) // 2 :], "the epochs have one order"
    for epoch in (0, 1):
        of_epoch = batches[epoch * len(batches) // 2 : (epoch + 1) * len(batches) // 2]
        drawn = [part for batch in of_epoch for part in batch]
        counted = Counter(name for name, _ in drawn)
        for name, weight in WEIGHTS.items():
            assert abs(counted[name] - an_epoch * weight / 4) < 1 + parts
            order = [row for of, part in drawn if of == name for row in part]
            full = name != "own" or parts > 1  # the host's last batch of a pass may be short
            a_pass = len(rows[name]) // size * size if full else len(rows[name])
            for start in range(0, len(order), a_pass):
                assert len(set(order[start : start + a_pass])) == len(order[start : start + a_pass]), (
                    "a row twice a pass"
                )
        logged = told(trainer)["shares"]
        last = (epoch + 1) * len(logged) // 2 - 1
        for name in WEIGHTS:
            assert counted[name] / len(drawn) == pytest.approx(logged[last][name])
    assert counted["second"] * size > len(rows["second"]), "it started over"


def clustered(clusters: int, seed: int) -> Dataset:
    """Rows of planted clusters of eight that share words; a random batch of eight mixes them."""
    rng = np.random.default_rng(seed)
    anchors = [f"w{c} w{c} w{c} w{20 + i} w{30 + seed}" for c in range(clusters) for i in range(BATCH)]
    positives = [f"w{c} w{c} w{c} w{40 + i}" + f" w{30 + seed}" * 2 for c in range(clusters) for i in range(BATCH)]
    order = rng.permutation(len(anchors))
    return Dataset.from_dict({"anchor": [anchors[i] for i in order], "positive": [positives[i] for i in order]})


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dataloader_num_workers": 2},
        {"gradient_accumulation_steps": 3},
        {"replan_steps": 2},
        {"planner_view": "initial"},
    ],
    ids=str,
)
def test_every_pass_is_planned_before_it_is_drawn(tmp_path, own_cache, given):
    """Of a dataset that starts over three times an epoch each batch is a planted cluster; of another each row comes once."""
    rows = DatasetDict(small=clustered(3, 0), large=clustered(8, 1))
    settings = {"planner": "best", "learning_rate": 0.0, "dataset_weights": {"small": 4, "large": 1}, **given}
    trainer = run(tmp_path, rows=rows, loss=MultipleNegativesRankingLoss, num_train_epochs=3, **settings)
    known = names_of_rows(rows)
    assert 33 == len(trainer.trained)
    assert 27 == sum(is_pure(texts) for _, texts in trainer.trained if known[texts[0]][0] == "small")
    for epoch in range(3):
        of_epoch = [known[row] for _, texts in trainer.trained[epoch * 11 : epoch * 11 + 11] for row in texts]
        counts = Counter(of_epoch)
        assert {3} == {count for (name, _), count in counts.items() if name == "small"}
        assert {1} == {count for (name, _), count in counts.items() if name == "large"}
        assert 24 + 2 * BATCH == len(counts)


def is_pure(texts: list[tuple[str, ...]]) -> bool:
    """Whether all rows are of one cluster."""
    return 1 == len({row[0].split()[0] for row in texts})


def test_warming_up_and_cooling_down_with_passes(tmp_path):
    """Batches are planned from the first pass behind the first steps to the last step that should be, also in mid-pass."""
    rows = DatasetDict(small=clustered(3, 0), large=clustered(8, 1))
    settings = {"planner": "best", "learning_rate": 0.0, "dataset_weights": {"small": 4, "large": 1}}
    trainer = run(
        tmp_path, rows=rows, loss=MultipleNegativesRankingLoss, num_train_epochs=3,
        planner_warmup_steps=4, planner_cooldown_steps=5, **settings,
    )  # fmt: skip
    known = names_of_rows(rows)
    pure = [(step, is_pure(texts)) for step, texts in trainer.trained if known[texts[0]][0] == "small"]
    assert 27 == len(pure)
    assert not any(planned for step, planned in pure[:3]), "the first pass was drawn while warming up"
    # Of the second pass some rows were drawn by then; one step is drawn ahead.
    assert all(planned for step, planned in pure[6:] if step <= 28)
    assert not any(planned for step, planned in pure if step > 29)


@pytest.mark.parametrize("given", [{}, {"sub_batches": 2}, {"dataloader_num_workers": 2, "sub_batches": 2}], ids=str)
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path, given):
    """From every checkpoint, in the middle of passes and epochs, the same batches and the same weights."""
    settings: dict[str, Any] = {"dataset_weights": 0.3, "prompts": PROMPTS, "replan_steps": 3, **given}
    whole = run(tmp_path / "whole", save_strategy="steps", save_steps=3, **settings)
    steps = [int(path.name.split("-")[1]) for path in (tmp_path / "whole").glob("checkpoint-*")]
    assert len(steps) >= 10
    for step in steps[:: 3 if given.get("dataloader_num_workers") else 1]:
        resumed = run(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{step}"), **settings)
        assert [entry for entry in whole.trained if entry[0] > step] == resumed.trained, step
        assert told(whole)["weights"] == told(resumed)["weights"], step


def test_other_weights_are_told_when_a_run_is_resumed(tmp_path, caplog):
    """The plan of the checkpoint has other passes."""
    run(tmp_path, save_strategy="steps", save_steps=7, dataset_weights=WEIGHTS)
    caplog.clear()
    run(tmp_path, str(tmp_path / "checkpoint-7"), dataset_weights={"first": 2, "second": 1, "own": 1})
    assert [record for record in caplog.records if "cannot be resumed: its order is" in record.getMessage()]


def test_the_hosts_mixing_of_sub_batches(tmp_path):
    """Round robin of three datasets with three sub-batches is one of each in every batch."""
    rows, size = three_sets(), 4
    trainer = run(
        tmp_path, sub_batches=3, per_device_train_batch_size=12, multi_dataset_batch_sampler="round_robin",
        prompts=PROMPTS, num_train_epochs=1,
    )  # fmt: skip
    batches = located(trainer.trained, rows, size)
    assert 30 // size == len(batches)
    assert all(["first", "second", "own"] == [name for name, _ in batch] for batch in batches)
    expected = by_hand(by_step(trainer.trained), size)
    torch.testing.assert_close(expected, next(trainer.model.parameters()).detach(), rtol=1e-4, atol=1e-5)
    assert [] == told(trainer)["shares"], "without weights there is nothing to tell"


def test_weights_where_nothing_is_planned(tmp_path):
    """Of losses that contrast no rows the host's own batches are drawn by weights, each row once a pass."""
    rows = DatasetDict({
        name: make_pairs(n, seed=n).add_column("score", np.linspace(0, 1, n).tolist()) for name, n in (("a", 64), ("b", 16))
    })  # fmt: skip
    trainer = run(tmp_path, rows=rows, loss=CosineSimilarityLoss, dataset_weights={"a": 1, "b": 1}, num_train_epochs=1)
    known = names_of_rows(rows.remove_columns("score"))
    counts = Counter(known[row] for _, texts in trainer.trained for row in texts)
    assert {} == trainer.planned_samplers
    assert {"a": 5, "b": 5} == Counter(known[texts[0]][0] for _, texts in trainer.trained)
    assert {1} == {n for (name, _), n in counts.items() if name == "a"}
    assert {2, 3} == {n for (name, _), n in counts.items() if name == "b"}


def test_a_dataset_of_weight_zero_costs_nothing(tmp_path):
    """It is neither drawn nor embedded."""
    trainer = run(tmp_path, dataset_weights={"first": 0, "second": 1, "own": 1}, num_train_epochs=1)
    assert ["second"] == list(trainer.planned_samplers)
    assert {"second", "own"} == {name for batch in located(trainer.trained, three_sets(), BATCH) for name, _ in batch}


@pytest.mark.parametrize("sampler", ["round_robin", "proportional"])
def test_without_weights_the_hosts_samplers_are_the_hosts(tmp_path, sampler):
    """Of losses that contrast no rows: the same batches and weights as in the host's own trainer, bit by bit."""
    scored = {
        name: make_pairs(n, seed=n).add_column("score", np.linspace(0, 1, n).tolist())
        for name, n in (("a", 60), ("b", 20))
    }
    hashes = []
    for kind in (SentenceTransformerTrainer, GCBSTrainer):
        model = make_static_model()
        args = GCBSTrainingArguments(
            str(tmp_path), per_device_train_batch_size=BATCH, num_train_epochs=2, multi_dataset_batch_sampler=sampler,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
        )  # fmt: skip
        kind(model, args, DatasetDict(scored), loss=CosineSimilarityLoss(model)).train()
        hashes.append(next(model.parameters()).detach().clone())
    assert torch.equal(*hashes)


def test_cached_losses_train_each_sub_batch(bert_folder, tmp_path):
    """Their gradients are those of the plain loss, although all sub-batches pass before any gradient is computed."""
    gradients = []
    for kind in (MultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss):
        model = SentenceTransformer(bert_folder, device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        args = GCBSTrainingArguments(
            str(tmp_path), per_device_train_batch_size=BATCH, sub_batches=2, dataset_weights=0, max_steps=1, optim="sgd",
            learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, planner="random",
        )  # fmt: skip
        loss = kind(model) if kind is MultipleNegativesRankingLoss else kind(model, mini_batch_size=2)
        rows = DatasetDict(first=make_pairs(40), second=make_pairs(40, seed=5))
        if "cache" in vars(loss):
            pytest.skip("this host's cached losses keep one pass, and are refused")
        before = torch.cat([one.detach().ravel().clone() for one in model.parameters()])
        GCBSTrainer(model, args, rows, loss=loss).train()
        gradients.append(before - torch.cat([one.detach().ravel() for one in model.parameters()]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- what is refused


class KeepsOnePass(MultipleNegativesRankingLoss):
    """As the cached losses before sentence-transformers 6.2."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.cache = None


@pytest.mark.parametrize("wrap", [KeepsOnePass, lambda model: MatryoshkaLoss(model, KeepsOnePass(model), [16, 8])])
def test_losses_that_keep_one_pass(tmp_path, wrap):
    """Would train the gradients of the last sub-batch alone; without sub-batches nothing is wrong with them."""
    rows = DatasetDict(first=make_pairs(16), second=make_pairs(16, seed=5))
    with pytest.raises(
        ValueError, match="^sub_batches: got 2 with KeepsOnePass, which keeps the gradients of one pass"
    ):
        run(tmp_path, rows=rows, loss=wrap, sub_batches=2)
    with pytest.raises(ValueError, match="^sub_batches: got 2 with KeepsOnePass"):
        run(tmp_path, rows=rows, loss=lambda model: {"first": wrap(model), "second": wrap(model)}, sub_batches=2)
    assert 2 == run(tmp_path, rows=rows, loss=wrap, dataset_weights=1, max_steps=2).state.global_step


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"dataset_weights": {"a": -1, "b": 1}},
            "dataset_weights: got {'a': -1, 'b': 1}, expected a number of 0 or more",
        ),
        ({"dataset_weights": {"a": 0, "b": 0.0}}, "dataset_weights: got .*, not all of them 0"),
        ({"dataset_weights": {}}, "dataset_weights: got {}"),
        ({"dataset_weights": {"a": "1"}}, "dataset_weights: got {'a': '1'}"),
        ({"dataset_weights": True}, "dataset_weights: got True"),
        ({"dataset_weights": float("nan")}, "dataset_weights: got nan"),
        ({"dataset_weights": [1, 2]}, r"dataset_weights: got \[1, 2\]"),
        ({"dataset_weights": "a=1"}, "dataset_weights: got 'a=1', expected a number of 0 or more"),
        ({"dataset_weights": 1, "multi_dataset_batch_sampler": "round_robin"}, "together with .*=round_robin"),
        ({"sub_batches": 0}, "sub_batches: got 0, expected a divisor of the 8 rows"),
        ({"sub_batches": 3}, "sub_batches: got 3"),
        ({"sub_batches": 8}, "sub_batches: got 8, .* two rows or more"),
        ({"sub_batches": 2.0}, "sub_batches: got 2.0"),
    ],
    ids=str,
)
def test_values_that_mean_nothing(tmp_path, given, message):
    """Are refused when the arguments are made."""
    with pytest.raises(ValueError, match=f"^{message}" if not message.startswith("together") else message):
        GCBSTrainingArguments(str(tmp_path), per_device_train_batch_size=8, **given)


@pytest.mark.parametrize(
    "field", [{"dataset_weights": 0.5}, {"dataset_weights": {"a": 1}}, {"sub_batches": 2}], ids=str
)
@pytest.mark.parametrize(
    "rows, there",
    [
        (lambda: make_pairs(32), "one dataset,"),
        (lambda: DatasetDict(only=make_pairs(32)), "one dataset, 'only',"),
        (lambda: make_pairs(32).to_iterable_dataset(), "an IterableDataset,"),
    ],
    ids=["Dataset", "DatasetDict of one", "stream"],
)
def test_one_dataset_has_no_weight(tmp_path, field, rows, there):
    """Nor sub-batches; said before anything is read."""
    with pytest.raises(
        ValueError, match=f"^{next(iter(field))}: got .* with {there} expected a DatasetDict of several"
    ):
        run(tmp_path, rows=rows(), loss=MultipleNegativesRankingLoss, max_steps=3, **field)


@pytest.mark.parametrize(
    "weights, named", [({"first": 1, "second": 1}, "without 'own'"), ({**WEIGHTS, "onw": 1}, "of 'onw'")]
)
def test_names_that_are_not_there(tmp_path, weights, named):
    """And those that are left out."""
    with pytest.raises(
        ValueError, match=f"^dataset_weights: got weights {named}, expected one for each of the datasets"
    ):
        run(tmp_path, dataset_weights=weights)


@pytest.mark.parametrize("given", [{"sub_batches": 2}, {"sub_batches": 2, "dataset_weights": 1.0}], ids=str)
def test_a_dataset_that_fills_no_sub_batch(tmp_path, given):
    """Is not left out silently, and not drawn as a short one."""
    rows = DatasetDict(large=make_pairs(32), tiny=make_pairs(3))
    with pytest.raises(ValueError, match="^sub_batches: got 2 with 3 rows of 'tiny', expected enough for 1 full"):
        run(tmp_path, rows=rows, loss=MultipleNegativesRankingLoss, **given)


# ---------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes saw of the same runs."""
    folder = tmp_path_factory.mktemp("datasets")
    run_ranks(work, 2, folder, folder=folder)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("way", ["sub-batches", "accumulated", "harvest"])
def test_two_processes_train_what_the_loop_trains(ranks, way):
    """On the batches of both; each step's sub-batches are of the same datasets on both, of different rows."""
    first, second = (rank[way] for rank in ranks)
    assert first["weights"] == second["weights"]
    expected = by_hand(by_step(first["trained"], second["trained"]), SUB)
    torch.testing.assert_close(expected, torch.tensor(first["vectors"]), rtol=1e-4, atol=1e-5)
    rows = three_sets()
    mine, other = (located(one["trained"], rows, SUB) for one in (first, second))
    for batch, beside in zip(mine, other, strict=True):
        assert [name for name, _ in batch] == [name for name, _ in beside]
        assert all(not set(part) & set(apart) for (_, part), (_, apart) in zip(batch, beside, strict=True))
    counted = Counter(name for batch in mine for name, _ in batch)
    steps = sum(len(part) // SUB // 2 for part in rows.values())
    assert all(abs(counted[name] - 2 * steps * weight / 4) <= 3 for name, weight in WEIGHTS.items())


def test_where_negatives_are_gathered_a_step_is_planned_as_one(ranks):
    """The sub-batches of both ranks are a block of the plan, in every pass."""
    rows = three_sets()
    mine, other = (located(rank["gathered"]["trained"], rows, SUB) for rank in ranks)
    blocks = {
        (name, frozenset(order[start : start + BATCH]))
        for _, name, order in ranks[0]["gathered"]["plans"]
        for start in range(0, len(order), BATCH)
    }
    for batch, beside in zip(mine, other, strict=True):
        for (name, part), (_, apart) in zip(batch, beside, strict=True):
            assert (name, frozenset(part + apart)) in blocks
    passes = [name for _, name, _ in ranks[0]["gathered"]["plans"]].count("second")
    assert passes > 2, "it started over"


def test_two_processes_resume_bitwise(ranks):
    """From checkpoints in mid-pass, at an epoch's end and behind it."""
    for rank in ranks:
        for label, resumed in rank["resumed"].items():
            way, step = label.rsplit(" ", 1)
            whole = rank[way]
            assert [entry for entry in whole["trained"] if entry[0] > int(step)] == resumed["trained"], label
            assert whole["weights"] == resumed["weights"], label
