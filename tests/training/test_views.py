"""By whose embeddings rows are alike: the model's, those of before training, a reference's, or two against each other."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_static_model
from datasets import DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainingArguments
from gcbs_st.embeddings import row_encoder
from gcbs_st.losses import GuardedMultipleNegativesRankingLoss
from gcbs_st.training.row_memory import VIEW_FILE

B = 8
pytestmark = pytest.mark.usefixtures("one_thread")


class Keeping(RecordingTrainer):
    """Keeps what each plan was made from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.planned: list[dict[str, Any]] = []
        plan_rows, order = self.replanner.plan_rows, self.replanner._order

        def keep(name: str, fetched: Any, *rest: Any) -> Any:
            self.planned.append({"step": self.state.global_step, "fetched": fetched})
            return plan_rows(name, fetched, *rest)

        def keep_order(pairs: Any, batch_size: int, rng: Any) -> Any:
            against = getattr(self.planner, "contradictions", None)
            self.planned[-1] |= {
                "pairs": pairs,
                "size": batch_size,
                "against": against,
                "scale": getattr(self.planner, "scale", None),
            }
            return order(pairs, batch_size, rng)

        self.replanner.plan_rows, self.replanner._order = keep, keep_order


def train(folder, rows, model=None, resume=None, loss=MultipleNegativesRankingLoss, **given):
    """Trains for two epochs of 25 steps, re-planned every five."""
    model = make_static_model() if model is None else model
    defaults = {
        "per_device_train_batch_size": B, "num_train_epochs": 2, "learning_rate": 1e-1, "replan_steps": 5,
        "planner": "best", "planner_options": {"neighbors": 8}, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "planner_view": "initial",
    }  # fmt: skip
    args = GCBSTrainingArguments(str(folder), **{**defaults, **given})
    trainer = Keeping(model, args, rows, loss=loss(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture
def passes(monkeypatch):
    """The number of rows of each encoding pass."""
    counts: list[int] = []
    encode = row_encoder.encode_rows

    def counting(model, dataset, rows, *args, **kwargs):
        counts.append(len(rows))
        return encode(model, dataset, rows, *args, **kwargs)

    monkeypatch.setattr(row_encoder, "encode_rows", counting)
    return counts


def embedded(model, texts):
    """Unit rows of texts by a model as it is, rounded as a fixed view is."""
    rows = model.encode(list(texts), convert_to_numpy=True, normalize_embeddings=True)
    return rows.astype(np.float16).astype(np.float32)


def test_initial_view_costs_one_pass_and_none_from_the_cache(tmp_path, pairs, own_cache, passes):
    """One pass over the rows for the first run, none for the second one, which trains on the same batches."""
    first = train(tmp_path / "a", pairs)
    assert [200] == passes
    assert 1 == len(list(own_cache.iterdir()))
    second = train(tmp_path / "b", pairs)
    assert [200] == passes
    assert first.trained == second.trained
    assert weights_hash(first.model) == weights_hash(second.model)
    # Embedding 0 seconds are told from those of the pass.
    seconds = [[e["gcbs/embed_seconds"] for e in t.state.log_history if "gcbs/gap" in e] for t in (first, second)]
    assert seconds[0][0] > seconds[1][0] >= 0


def test_plans_are_made_from_the_model_as_it_was(tmp_path, pairs, own_cache):
    """Also in the second epoch, when the weights are others; the model's own view differs by then."""
    trainer = train(tmp_path, pairs)
    expected = embedded(make_static_model(), pairs["anchor"])
    assert [0, 25] == [plan["step"] for plan in trainer.planned]
    for plan in trainer.planned:
        fetched = plan["fetched"]
        np.testing.assert_allclose(expected[fetched.rows], fetched.arrays[0], atol=1e-3)
        assert {plan["step"]} == set(fetched.ages.tolist())
    now = embedded(trainer.model, pairs["anchor"])
    assert np.abs(now - expected).max() > 0.05


@pytest.mark.parametrize("change", ["weights", "texts", "prompt"])
def test_what_the_embeddings_depend_on_is_in_their_key(tmp_path, pairs, own_cache, passes, change):
    """Other weights, texts or prompts are embedded anew; the steps that are trained do not matter."""
    train(tmp_path / "a", pairs, max_steps=2)
    model, rows, given = make_static_model(seed=int(change == "weights")), pairs, {}
    if change == "texts":
        rows = pairs.select(range(199, -1, -1))
    if change == "prompt":
        given = {"prompts": "query: "}
    train(tmp_path / "b", rows, model, max_steps=2, **given)
    assert [200, 200] == passes
    train(tmp_path / "c", pairs, max_steps=2, replan_steps=0, learning_rate=1e-3, seed=9)
    assert [200, 200] == passes


@pytest.mark.parametrize("static", [True, False], ids=["static", "transformer"])
def test_a_model_that_was_used_has_the_key_of_one_that_was_not(
    tmp_path, pairs, own_cache, passes, bert_folder, static
):
    """Encoding sets a tokenizer's padding and truncation, of a trained and of a reference model alike."""

    def model():
        return make_static_model() if static else SentenceTransformer(bert_folder, device="cpu")

    train(tmp_path / "a", pairs, model(), max_steps=1)
    used = model()
    used.encode(pairs["anchor"][:3])
    train(tmp_path / "b", pairs, used, max_steps=1)
    reference = model()
    for folder in "cd":
        train(tmp_path / folder, pairs, make_static_model(seed=9), planner_view=reference, max_steps=1)
    assert [len(pairs)] * 2 == passes  # one for each kind of view


def test_damaged_cache_is_made_anew(tmp_path, pairs, own_cache, passes, caplog):
    """A cut file is reported and replaced."""
    train(tmp_path / "a", pairs, max_steps=2)
    file = next(own_cache.iterdir()) / "column-0.npy"
    file.write_bytes(file.read_bytes()[:200])
    train(tmp_path / "b", pairs, max_steps=2)
    assert [200, 200] == passes and "are made anew" in caplog.text
    train(tmp_path / "c", pairs, max_steps=2)
    assert [200, 200] == passes


def test_a_cache_that_cannot_be_written_costs_a_pass_per_run(tmp_path, pairs, own_cache, passes, monkeypatch, caplog):
    """The run goes on from memory and says so."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    trainer = train(tmp_path / "a", pairs)
    assert [200] == passes and "are not kept for later runs" in caplog.text
    assert 2 == len(trainer.planned)


def test_reference_by_folder_and_as_an_object(tmp_path, pairs, own_cache, passes):
    """The rows are alike for another model, whatever is trained; one pass for both ways of naming it."""
    reference = make_static_model(seed=5)
    reference.save(str(tmp_path / "reference"))
    expected = embedded(reference, pairs["positive"])
    one = train(tmp_path / "a", pairs, planner_view=str(tmp_path / "reference"))
    np.testing.assert_allclose(expected, one.planned[0]["fetched"].arrays[1], atol=1e-3)
    two = train(tmp_path / "b", pairs, planner_view=reference)
    assert [200] == passes
    assert one.trained == two.trained
    assert "planner_view" in two.args.to_dict() and isinstance(two.args.to_dict()["planner_view"], str)
    assert copy.deepcopy(two.args).planner_view is reference
    with pytest.raises(ValueError, match="got the model that is trained as a reference"):
        model = make_static_model()
        train(tmp_path / "c", pairs, model, planner_view=model)


def test_two_views_are_one_less_the_other(tmp_path, pairs, own_cache):
    """Products that are planned on are half of the difference of cosines, and planned for twice the scale."""
    reference = make_static_model(seed=5)
    trainer = train(tmp_path, pairs, planner_view=["model", reference], max_steps=6)
    for plan in trainer.planned:
        anchors, positives = plan["pairs"]
        fetched = plan["fetched"]
        rows = fetched.rows
        other = [embedded(reference, pairs.select(rows)[name]) for name in ("anchor", "positive")]
        expected = fetched.arrays[0] @ fetched.arrays[1].T - other[0] @ other[1].T
        np.testing.assert_allclose(expected, 2 * anchors @ positives.T, atol=2e-3)
        assert 40.0 == plan["scale"]
    assert [0, 5] == [plan["step"] for plan in trainer.planned]
    # The first view is the model as it is: at step 5 another one than at the start.
    assert not np.allclose(trainer.planned[0]["fetched"].arrays[0][:4], trainer.planned[1]["fetched"].arrays[0][:4])


# ---------------------------------------------------------------- resuming


def test_resumed_run_plans_on_what_the_first_one_began_with(tmp_path, pairs, own_cache, passes):
    """From the cache, or embedded again by the model that the user gives, whose weights the checkpoint replaces."""
    given = {"save_strategy": "steps", "save_steps": 7, "planner_hardness": [[0, 0.5], [0.5, 1]]}
    whole = train(tmp_path / "a", pairs, **given)
    checkpoint = tmp_path / "a" / "checkpoint-14"
    expected = [entry for entry in whole.trained if entry[0] > 14]
    resumed = train(tmp_path / "a", pairs, resume=str(checkpoint), **given)
    assert [200] == passes
    assert expected == resumed.trained and weights_hash(whole.model) == weights_hash(resumed.model)
    shutil.rmtree(own_cache)
    again = train(tmp_path / "a", pairs, resume=str(checkpoint), **given)
    assert [200, 200] == passes
    assert expected == again.trained and weights_hash(whole.model) == weights_hash(again.model)


def test_resuming_with_another_model_uses_the_cache_or_is_refused(tmp_path, pairs, own_cache):
    """Whose weights are gone can be planned on only as long as its embeddings are on disk."""
    given = {"save_strategy": "steps", "save_steps": 7}
    whole = train(tmp_path / "a", pairs, **given)
    checkpoint = str(tmp_path / "a" / "checkpoint-7")
    resumed = train(tmp_path / "a", pairs, make_static_model(seed=3), resume=checkpoint, **given)
    assert weights_hash(whole.model) == weights_hash(resumed.model)
    assert (tmp_path / "a" / "checkpoint-7" / VIEW_FILE).is_file()
    shutil.rmtree(own_cache)
    with pytest.raises(ValueError, match="stands for the weights that the run began with"):
        train(tmp_path / "a", pairs, make_static_model(seed=3), resume=checkpoint, **given)


@pytest.mark.parametrize("at", [3, 5, 6, 12])
def test_redealt_clusters_resume_bitwise(tmp_path, pairs, own_cache, at):
    """With a fixed view clusters are dealt anew every five steps, in a resumed run as in one that was not stopped."""
    given = {"save_strategy": "steps", "save_steps": at, "planner_hardness": 0.6, "num_train_epochs": 1}
    whole = train(tmp_path / "a", pairs, **given)
    resumed = train(tmp_path / "a", pairs, resume=str(tmp_path / "a" / f"checkpoint-{at}"), **given)
    assert [entry for entry in whole.trained if entry[0] > at] == resumed.trained
    assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_redealing_keeps_clusters_and_makes_no_plan(tmp_path, pairs, own_cache):
    """Rows of a cluster stay together, in other batches; each row is drawn once."""
    given = {"planner_hardness": 0.67, "num_train_epochs": 1, "shuffle_planned_batches": False}
    trainer = train(tmp_path, pairs, **given)
    assert [0] == [plan["step"] for plan in trainer.planned]
    assert [4] == [plan["size"] for plan in trainer.planned]
    order = [text for _, batch in trainer.trained for text in batch]
    assert 200 == len(set(order))
    unbroken = train(tmp_path, pairs, **{**given, "replan_steps": 0})
    before = [text for _, batch in unbroken.trained for text in batch]

    def clusters(texts):
        return {frozenset(texts[i : i + 4]) for i in range(0, 200, 4)}

    def batches(texts):
        return {frozenset(texts[i : i + B]) for i in range(0, 200, B)}

    assert clusters(order) == clusters(before)
    # Six batches were drawn before the first time (one is drawn ahead).
    assert 6 <= len(batches(order) & batches(before)) < 12


# ---------------------------------------------------------------- hardness


def test_schedule_sets_hardness_and_when_plans_are_made(tmp_path, pairs, own_cache):
    """A plan at each point; hardness 0 asks for no embeddings; between points it is interpolated."""
    trainer = train(
        tmp_path, pairs, planner_hardness=[[0, 0], [0.2, 0.5], [0.4, 1], [0.4, 0.7], [0.8, 0]], replan_steps=0,
        planner_view="model",
    )  # fmt: skip
    # 50 steps: points at 10, 20 and 40, the epoch's start at 25.
    found = [(plan["step"], plan["size"]) for plan in trainer.planned]
    assert [(10, 3), (20, 4), (25, round(8 ** (0.7 * 15 / 20)))] == found


@pytest.mark.parametrize("planner", ["gcbs", "tbs", "random_walk", "bisect", "partition", "best", "hobit"])
def test_every_planner_takes_hardness(tmp_path, pairs, own_cache, planner):
    """Batches are full and every row is drawn once an epoch, of any number of rows per batch."""
    given = {"planner": planner, "planner_options": {}, "planner_hardness": 0.6, "per_device_train_batch_size": 7}
    trainer = train(tmp_path, pairs, planner_view="model", replan_steps=11, num_train_epochs=1, **given)
    texts = [text for _, batch in trainer.trained for text in batch]
    assert 7 * 28 == len(texts) == len(set(texts))
    assert {3} == {plan["size"] for plan in trainer.planned}


def test_overlapping_batches_take_hardness(tmp_path, pairs, own_cache):
    """A row may recur, but not in one batch."""
    given = {"planner": "random_walk", "planner_options": {"exact_cover": False}, "planner_hardness": 0.5}
    trainer = train(tmp_path, pairs, planner_view="model", num_train_epochs=1, **given)
    assert all(B == len(set(batch)) for _, batch in trainer.trained)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"planner_hardness": 1.2}, "planner_hardness: got 1.2, expected a number from 0 to 1, or a list"),
        ({"planner_hardness": [[0.5, 1], [0.2, 1]]}, "with rising shares"),
        ({"planner_hardness": "[[0, 1]"}, "planner_hardness: got '.*', expected a number"),
        ({"planner_hardness": True}, "planner_hardness: got True"),
        ({"planner_hardness": 0.5, "planner_options": {"clusters_per_batch": 2}}, "say the same in other words"),
        ({"planner_hardness": 0.5, "cluster_schedule": "curriculum"}, "say the same in other words"),
        ({"planner_view": ["initial", "initial"]}, "planner_view: got .*, expected model, initial, auto, a reference"),
        ({"planner_view": ["a", "b", "c"]}, "planner_view: got"),
        ({"planner_view": 3}, "planner_view: got 3"),
        ({"planner_view": ["auto", "initial"]}, "planner_view: got .*'auto'"),
        ({"planner_reference": "auto"}, "planner_reference: got 'auto'"),
        (
            {"planner_view": ["initial", "x"], "planner": "bisect", "planner_options": {}},
            "sums of anchors and positives",
        ),
        ({"planner_view": "initial", "embedding_source": "harvest"}, "harvest takes embeddings of the model as it"),
        ({"planner_margin": -0.1}, "planner_margin: got -0.1, expected at least 0"),
        ({"planner_margin": "0.9"}, "planner_margin: got '0.9', expected a number"),
        ({"planner_reference": "model"}, "planner_reference: got 'model'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, given, message):
    """Before anything was embedded, with what was given and what is expected."""
    with pytest.raises(ValueError, match=message):
        GCBSTrainingArguments(str(tmp_path), **{"planner": "best", **given})


def test_a_command_line_gives_json(tmp_path):
    """Numbers, pairs and names as texts."""
    args = GCBSTrainingArguments(str(tmp_path), planner="best", planner_hardness="[[0, 0.5], [1, 1]]")
    assert ((0.0, 0.5), (1.0, 1.0)) == args.hardness.points
    args = GCBSTrainingArguments(
        str(tmp_path), planner="best", planner_hardness="0.5", planner_view='["initial", "x/y"]'
    )
    assert ((0.0, 0.5),) == args.hardness.points and ["initial", "x/y"] == args.views
    assert ["some/model"] == GCBSTrainingArguments(str(tmp_path), planner_view="some/model").views


# ---------------------------------------------------------------- contradictions


def test_the_planner_is_told_what_the_loss_masks(tmp_path, pairs, own_cache):
    """The margin of the loss, or the user's; rows that share a text or group; by a reference where one is named."""

    def guarded(model):
        return GuardedMultipleNegativesRankingLoss(model, margin=0.9)

    rows = pairs.add_column("group", [row // 2 for row in range(len(pairs))])
    reference = make_static_model(seed=5)
    plain = train(tmp_path, pairs, max_steps=1).planned[0]["against"]
    assert plain is None or (plain.margin is None and plain.values is not None)
    told = train(tmp_path, rows, max_steps=1, loss=guarded, group_column="group").planned[0]["against"]
    assert 0.9 == told.margin and told.judge is None
    met = told.among(np.arange(2), np.arange(4), np.zeros((2, 4)), np.ones(2))
    assert [[False, True, False, False], [True, False, False, False]] == met.tolist()
    mine = train(tmp_path, pairs, max_steps=1, loss=guarded, planner_margin=0.5, planner_reference=reference)
    told = mine.planned[0]["against"]
    assert 0.5 == told.margin
    np.testing.assert_allclose(embedded(reference, pairs["anchor"]), told.judge[0], atol=1e-3)
    logged = next(entry for entry in mine.state.log_history if "gcbs/closed" in entry)
    assert {"gcbs/trained_gap", "gcbs/trained_closed", "gcbs/plan_masked", "gcbs/worst_masked"} <= logged.keys()


def test_log_says_how_much_of_a_plan_is_that_of_the_last(tmp_path, pairs, own_cache):
    """A planner that does not change repeats all, random batches next to nothing."""

    class AsTheyCome:
        """One order for ever."""

        def plan(self, anchors, positives, batch_size, rng):
            return np.arange(len(anchors))

    def repeated(planner):
        trainer = RecordingTrainer(
            model := make_static_model(),
            GCBSTrainingArguments(
                str(tmp_path), planner=planner, num_train_epochs=3, per_device_train_batch_size=B, report_to="none",
                disable_tqdm=True, use_cpu=True, save_strategy="no",
                planner_options={"measure": True} if planner == "random" else None,
            ),
            pairs,
            loss=MultipleNegativesRankingLoss(model),
        )  # fmt: skip
        trainer.train()
        return [e["gcbs/repeated"] for e in trainer.state.log_history if "gcbs/repeated" in e]

    assert [1.0, 1.0] == repeated(AsTheyCome())
    assert max(repeated("random")) < 0.1


def test_training_is_left_as_it_was(tmp_path, pairs, own_cache):
    """Making a view draws no random number of training and leaves weights and modes as they were."""
    plain = train(
        tmp_path / "a", pairs, planner="random", planner_options={}, planner_view="model", num_train_epochs=1
    )
    torch_state = torch.get_rng_state()
    viewed = train(tmp_path / "b", pairs, planner_hardness=0.0, num_train_epochs=1)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert sorted(text for _, batch in plain.trained for text in batch) == sorted(
        text for _, batch in viewed.trained for text in batch
    )


# ---------------------------------------------------------------- what the study supports


def test_auto_stands_for_what_the_study_supports(tmp_path, pairs, own_cache, bert_folder, caplog):
    """A static model plans on itself, a transformer on what it was."""
    caplog.set_level("INFO", "gcbs_st")
    auto = train(tmp_path / "a", pairs, planner_view="auto", max_steps=26)
    assert "planner_view: auto stands for the view 'model': " in caplog.text
    own = train(tmp_path / "b", pairs, planner_view="model", max_steps=26)
    assert auto.trained == own.trained and not own_cache.exists()
    given = {"planner_view": "auto", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = train(tmp_path / "c", pairs, SentenceTransformer(bert_folder, device="cpu"), **given)
    assert "auto stands for the view 'initial': " in caplog.text
    assert 1 == len(list(own_cache.iterdir())) and 1 == len(whole.planned)
    checkpoint = str(tmp_path / "c" / "checkpoint-1")
    resumed = train(tmp_path / "c", pairs, SentenceTransformer(bert_folder, device="cpu"), resume=checkpoint, **given)
    assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_the_planner_auto_is_planner_and_view(tmp_path, pairs, own_cache, bert_folder, caplog):
    """The batches of the planner and the view that it stands for, said in one line; a view of one's own wins."""
    caplog.set_level("INFO", "gcbs_st")
    given = {"max_steps": 3, "planner_options": None, "planner_view": None}
    auto = train(tmp_path / "a", pairs, SentenceTransformer(bert_folder, device="cpu"), planner="auto", **given)
    assert "planner: auto stands for 'bisect' with the view 'initial': " in caplog.text
    named = {**given, "planner": "bisect", "planner_view": "initial"}
    by_name = train(tmp_path / "b", pairs, SentenceTransformer(bert_folder, device="cpu"), **named)
    assert auto.trained == by_name.trained
    own = train(
        tmp_path / "c", pairs, SentenceTransformer(bert_folder, device="cpu"), **{**named, "planner_view": "model"}
    )
    mine = {**given, "planner": "auto", "planner_view": "model"}
    assert own.trained == train(tmp_path / "d", pairs, SentenceTransformer(bert_folder, device="cpu"), **mine).trained
    args = GCBSTrainingArguments(str(tmp_path), planner="auto")
    assert ("auto", "auto") == (args.to_dict()["planner"], args.to_dict()["planner_view"])
    assert "model" == GCBSTrainingArguments(str(tmp_path), planner="bisect").to_dict()["planner_view"]
    with pytest.raises(ValueError, match="planner_options: got .* with planner='auto', which chooses them itself"):
        GCBSTrainingArguments(str(tmp_path), planner="auto", planner_options={"trees": 2})


@pytest.mark.parametrize("columns", [["anchor", "same"], ["anchor", "positive"], ["anchor", "same", "positive"]])
def test_auto_leaves_rows_of_one_text_to_chance(tmp_path, pairs, own_cache, bert_folder, caplog, columns):
    """Dropout makes the pair: random batches, without a pass that embeds; named planners plan such rows as they did."""
    caplog.set_level("INFO", "gcbs_st")
    rows = pairs.add_column("same", pairs["anchor"]).select_columns(columns)
    given = {"max_steps": 3, "planner_options": None, "planner_view": None}

    def trained(folder, planner):
        return train(tmp_path / folder, rows, SentenceTransformer(bert_folder, device="cpu"), planner=planner, **given)

    auto = trained("a", "auto")
    single = columns == ["anchor", "same"]
    assert single == ("planner: auto leaves the batches of the training set random" in caplog.text)
    assert single != ("planner: auto stands for 'bisect'" in caplog.text)
    assert (0 if single else 1) == len(auto.planned)
    assert single != own_cache.exists(), "whether rows were embedded"
    assert single == (auto.trained == trained("b", "random").trained)
    assert 1 == len(trained("c", "bisect").planned)


def test_auto_decides_for_each_dataset(tmp_path, pairs, own_cache, bert_folder, caplog):
    """Of two datasets the one with pairs is planned, and the other is not."""
    caplog.set_level("INFO", "gcbs_st")
    both = DatasetDict(
        {"pairs": pairs, "texts": pairs.add_column("same", pairs["anchor"]).select_columns(["anchor", "same"])}
    )
    given = {"max_steps": 4, "planner": "auto", "planner_options": None, "planner_view": None}
    train(tmp_path, both, SentenceTransformer(bert_folder, device="cpu"), **given)
    assert "auto leaves the batches of texts random" in caplog.text
    assert "rows of pairs with bisect" in caplog.text.lower() and "rows of texts with" not in caplog.text


def test_auto_with_harvested_rows_is_the_models_view(tmp_path, pairs, own_cache):
    """There is no other one."""
    trainer = train(tmp_path, pairs, planner_view="auto", embedding_source="harvest", first_plan="encode", max_steps=2)
    assert 1 == len(trainer.planned) and not own_cache.exists()
