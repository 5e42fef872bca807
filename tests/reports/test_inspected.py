"""What can be inspected: runs and checkpoints, whole ones and broken ones."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import make_pairs, make_static_model
from datasets import DatasetDict
from inspection import refused, train, unit_rows

from gcbs_st.batches.plan_history import StoredPlan, plan_files, read_stored_plan, step_of
from gcbs_st.commands.inspect import main, make_content
from gcbs_st.config import LossConfig, load_config
from gcbs_st.embeddings.store import EmbeddingStore, read_saved_store
from gcbs_st.experiments.experiment import run_experiment
from gcbs_st.reports.inspection.inspected import configured_scale, open_checkpoint, open_run
from gcbs_st.reports.inspection.inspector import inspect_plan
from gcbs_st.reports.inspection.pair_texts import PairTexts
from gcbs_st.reports.inspection.plan_embeddings import stored_subject


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of an experiment with a random and a gcbs run of two epochs, checkpoints with harvested rows among it."""
    folder = tmp_path_factory.mktemp("experiment")
    make_static_model().save(str(folder / "start"))
    pairs = make_pairs().add_column("photo", [i // 2 for i in range(200)])
    pairs.to_json(folder / "pairs.jsonl")
    sts = folder / "sts"
    sts.mkdir()
    rows = [{"sentence1": f"w{i} w{i + 1}", "sentence2": f"w{i * 5 % 12} w3", "score": i % 6} for i in range(12)]
    (sts / "STSBenchmark.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(f"""
output: {folder / "out"}
corpus: {{source: {folder / "pairs.jsonl"}, held_out: 20, group: photo}}
model: {{name: {folder / "start"}, static: true, sparse_gradients: true}}
loss: {{options: {{scale: 15.0}}}}
evaluation: {{sts: {sts}, splits: [test]}}
train:
  num_train_epochs: 2
  per_device_train_batch_size: 16
  learning_rate: 1e-2
  max_grad_norm: 0
  seed: 3
  save_steps: 6
  disable_tqdm: true
  use_cpu: true
runs:
  random: {{planner: random}}
  gcbs: {{planner: gcbs, planner_options: {{quantile: 0.9}}, replan_steps: 6, embedding_source: harvest, first_plan: encode}}
""")
    run_experiment(load_config(folder / "config.yaml"))
    return folder / "out"


@pytest.fixture
def run_copy(runs, tmp_path):
    """A copy of the gcbs run's folder, to be broken."""
    import shutil

    return shutil.copytree(runs / "gcbs", tmp_path / "gcbs")


def rows_of(config_file):
    """The training rows, read independently of the inspector."""
    from gcbs_st.experiments.data import load_data

    return load_data(load_config(config_file)).train


def check_content(content, rows, model):
    """Texts belong to their rows, and scores are those that the model itself gives."""
    for group in content["groups"]:
        for batch in group["batches"]:
            assert [[rows[i]["anchor"], rows[i]["positive"]] for i in batch["ids"]] == batch["texts"]
            left, right = (
                model.encode([pair[side] for pair in batch["texts"]], normalize_embeddings=True) for side in (0, 1)
            )
            np.testing.assert_allclose((left * right).sum(axis=1), [row[1] for row in batch["rows"]], atol=1e-3)


def test_a_run_is_inspected(runs, tmp_path, capsys):
    """The last plan by the trained model; pictures by both models; a line a plan; texts of the right rows."""
    from sentence_transformers import SentenceTransformer

    assert 0 == main(["--run", str(runs / "gcbs"), "--out", str(tmp_path / "page.html")])
    inspected = open_run(runs / "gcbs")
    content = make_content(inspected)
    model = SentenceTransformer(str(runs / "gcbs" / "model"), device="cpu")
    check_content(content, rows_of(runs / "gcbs" / "config.yaml"), model)
    last = read_stored_plan(plan_files(runs / "gcbs" / "plans")[-1])[""]
    assert {tuple(batch) for batch in last.order.reshape(-1, 16).tolist()} == {
        tuple(batch["ids"]) for batch in content["groups"][0]["batches"]
    }
    summary = dict(content["summary"])
    assert ("gcbs", "quantile=0.9") == (summary["Planner"], summary["Options"])
    assert "scale 15" in summary["In-batch loss"]
    assert [True, True, False, False] == ["before training" in matrix["model"] for matrix in content["matrices"]]
    assert [step_of(file) for file in plan_files(runs / "gcbs" / "plans")] == [
        row[0] for row in content["plans"]["rows"]
    ]
    assert "closed" in [column["title"] for column in content["plans"]["columns"]]
    assert "start" in content["origin"]["configuration"]
    assert "MB; open it" in capsys.readouterr().out


def test_an_earlier_plan_and_a_sample_are_inspected(runs):
    """--step takes the plan in force then; --max-rows encodes whole batches, and their texts stay with their rows."""
    files = plan_files(runs / "gcbs" / "plans")
    first = open_run(runs / "gcbs", step=step_of(files[1]) - 1, max_rows=40)
    assert step_of(files[0]) == first.step
    assert ((2, 16), 11) == (first.subject.batches.shape, first.subject.batches_in_plan)
    content = make_content(first)
    whole = read_stored_plan(files[0])[""].order.reshape(-1, 16)
    for batch in content["groups"][0]["batches"]:
        assert whole[batch["number"]].tolist() == batch["ids"]
    from sentence_transformers import SentenceTransformer

    check_content(content, rows_of(runs / "gcbs" / "config.yaml"), SentenceTransformer(str(runs / "gcbs" / "model")))


def test_random_batches_are_inspected(runs):
    """A run without plans shows its random batches, with a line an epoch."""
    content = make_content(open_run(runs / "random"))
    assert "random" == dict(content["summary"])["Planner"]
    assert 2 == len(content["plans"]["rows"])


def test_a_checkpoint_is_inspected_with_what_was_harvested(runs, tmp_path):
    """Scores are those of the stored embeddings, of batches whose rows were all seen; texts come from the run's corpus."""
    folder = runs / "gcbs" / "checkpoint-12"
    inspected = open_checkpoint(folder)
    content = make_content(inspected)
    arrays, steps = read_saved_store(folder / "gcbs_embeddings" / "0")
    assert "harvested" in inspected.subject.model
    rows = rows_of(runs / "gcbs" / "config.yaml")
    for batch in content["groups"][0]["batches"]:
        assert (steps[batch["ids"]] >= 0).all()
        own = (arrays[0][batch["ids"]] * arrays[1][batch["ids"]]).sum(axis=1)
        np.testing.assert_allclose(own, [row[1] for row in batch["rows"]], atol=1e-3)
        assert [[rows[i]["anchor"], rows[i]["positive"]] for i in batch["ids"]] == batch["texts"]
    assert 0 == main(["--checkpoint", str(folder), "--out", str(tmp_path / "page.html")])


def test_of_rows_never_harvested_no_batch_is_measured(tmp_path):
    """Only batches whose rows were all seen are taken, with their places in the plan; without any there is no subject."""
    plan = StoredPlan(
        step=9, epoch=0, plan_count=1, order=np.array([5, 1, 0, 3, 2, 4]), batch_size=2, rows=6, repeats=False
    )
    texts = PairTexts(6, "texts", lambda ids: [(f"a {i}", f"p {i}") for i in ids.tolist()])
    rows, store = unit_rows(6, 1), EmbeddingStore(6, 2, "key")
    described = {"title": "a title", "notes": []}
    store.save(tmp_path / "empty")
    assert stored_subject(tmp_path / "empty", 9, plan, texts, **described) is None
    for seen, expected in (([5, 0, 2], None), ([0, 3, 2, 4], [1, 2])):
        store.clear()
        store.write(np.array(seen), [rows[seen], -rows[seen]], step=4)
        store.save(tmp_path / "store")
        subject = stored_subject(tmp_path / "store", 9, plan, texts, **described)
        assert expected == (None if subject is None else subject.numbers.tolist())
    assert [[0, 3], [2, 4]] == subject.batches.tolist()
    assert not subject.complete
    assert "5 steps before" in subject.model
    assert [[0, 3], [2, 4]] == [
        sorted(batch["ids"])
        for batch in sorted(inspect_plan(subject)["groups"][0]["batches"], key=lambda batch: batch["number"])
    ]
    for wrong in (dataclasses.replace(plan, rows=7), dataclasses.replace(plan, rows=5)):
        with pytest.raises(ValueError, match="expected one or two of"):
            stored_subject(tmp_path / "store", 9, wrong, texts, **described)


def test_embeddings_of_a_single_column_are_both_sides(tmp_path):
    """A run that planned on one column harvested one."""
    plan = StoredPlan(step=9, epoch=0, plan_count=1, order=np.arange(6), batch_size=2, rows=6, repeats=False)
    texts = PairTexts(6, "texts", lambda ids: [(f"a {i}", f"p {i}") for i in ids.tolist()])
    rows, store = unit_rows(6, 1), EmbeddingStore(6, 1, "key")
    store.write(np.arange(6), [rows], step=4)
    store.save(tmp_path / "store")
    subject = stored_subject(tmp_path / "store", 9, plan, texts, title="a title", notes=[])
    np.testing.assert_array_equal(rows, subject.anchors)
    np.testing.assert_array_equal(rows, subject.positives)


def test_batches_with_a_blank_text_are_left_out_of_the_page(static_model):
    """They have no scores; a note says how many they are."""
    from gcbs_st.reports.inspection.plan_embeddings import encoded_subject

    plan = StoredPlan(step=9, epoch=0, plan_count=1, order=np.arange(6), batch_size=2, rows=6, repeats=False)
    texts = PairTexts(6, "texts", lambda ids: [("" if i == 3 else f"w{i}", f"w{i + 9}") for i in ids.tolist()])
    subject = encoded_subject(static_model, plan, texts, None, notes=[], title="a title", model="a model")
    assert [0, 2] == subject.numbers.tolist()
    assert "1 batches are left out" in subject.notes[-1]
    assert [0, 2] == sorted(batch["number"] for batch in inspect_plan(subject)["groups"][0]["batches"])


def test_a_checkpoint_without_embeddings_is_encoded(runs):
    """Of random batches nothing was harvested: the checkpoint's own model embeds the rows."""
    from sentence_transformers import SentenceTransformer

    folder = runs / "random" / "checkpoint-12"
    inspected = open_checkpoint(folder)
    assert "the model of step 12" == inspected.subject.model
    model = SentenceTransformer(str(folder), device="cpu")
    check_content(make_content(inspected), rows_of(runs / "random" / "config.yaml"), model)


def test_a_checkpoint_of_several_datasets_needs_a_name_and_texts(tmp_path, capsys):
    """Each data set has a plan of its own; its texts are in no config."""
    parts = DatasetDict({"first": make_pairs(60, 1), "second": make_pairs(90, 2)})
    train(tmp_path / "run", rows=parts, num_train_epochs=1)
    folder = tmp_path / "run" / "checkpoint-5"
    parts["second"].to_json(tmp_path / "second.jsonl")
    texts = ["--texts", str(tmp_path / "second.jsonl")]
    capsys.readouterr()
    out = ["--out", str(tmp_path / "page.html")]
    for options, words in (
        (texts, "--dataset: got None, expected one of those"),
        (["--dataset", "third", *texts], "first, second"),
        (["--dataset", "second"], "--texts"),
        (["--dataset", "first", *texts], "60 rows"),
    ):
        assert 2 == main(["--checkpoint", str(folder), *options, *out])
        refused(capsys, words)
    assert 0 == main(["--checkpoint", str(folder), "--dataset", "second", *texts, *out])


def test_a_changed_corpus_is_refused_and_its_texts_of_then_taken(run_copy, tmp_path, capsys):
    """Other texts than were trained on are never shown; the same ones may come from another file."""
    config = run_copy / "config.yaml"
    rows = rows_of(config)
    rows.to_json(tmp_path / "then.jsonl")
    other = make_pairs(seed=9).add_column("photo", list(range(200)))
    other.to_json(tmp_path / "other.jsonl")
    text = config.read_text()
    source = next(line.split("source: ")[1] for line in text.splitlines() if "source: " in line)
    config.write_text(text.replace(source, str(tmp_path / "other.jsonl")))
    assert 2 == main(["--run", str(run_copy), "--out", str(tmp_path / "page.html")])
    refused(capsys, "is another one now")
    assert 2 == main(["--checkpoint", str(run_copy / "checkpoint-12"), "--out", str(tmp_path / "page.html")])
    refused(capsys, "is another one now")
    texts = ["--texts", str(tmp_path / "then.jsonl")]
    assert 0 == main(["--run", str(run_copy), *texts, "--out", str(tmp_path / "page.html")])


def remove(name):
    """Deletes a file or folder of a run."""

    def act(folder):
        import shutil

        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def overwrite(name, content):
    """Replaces a file of a run."""
    return lambda folder: (folder / name).write_bytes(content)


def cut(pattern):
    """Cuts a file of a run in half."""

    def act(folder):
        file = sorted(folder.glob(pattern))[-1]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return act


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.yaml"), "holds no config.yaml"),
        (remove("results.json"), "the run has not finished"),
        (remove("model"), "holds no model/"),
        (remove("plans"), "keeps no plans"),
        (overwrite("config.yaml", b"a: [b\nc"), "config.yaml is damaged"),
        (overwrite("config.yaml", b"\xff\xfe\x00"), "config.yaml is damaged"),
        (overwrite("config.yaml", b"output: x"), "config.yaml is damaged"),
        (overwrite("results.json", b"{"), "results.json is damaged"),
        (overwrite("results.json", b"[1]"), "results.json is damaged"),
        (overwrite("results.json", b"{}"), "results.json is damaged"),
        (cut("plans/*.npz"), "is damaged"),
        (cut("model/*.safetensors"), "cannot load"),
        (cut("model/modules.json"), "cannot load"),
        (cut("checkpoint-22/trainer_state.json"), None),
    ],
)
def test_broken_run_folders_get_one_line(run_copy, tmp_path, capsys, damage, words):
    """Corrupt, half-written or of something else: exit code 2, one line, no page. Checkpoints are no matter of it."""
    damage(run_copy)
    code = main(["--run", str(run_copy), "--out", str(tmp_path / "page.html")])
    assert (words is None) == (tmp_path / "page.html").exists()
    assert (0 if words is None else 2) == code
    if words is not None:
        refused(capsys, words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("gcbs_plan.npz"), "is not there"),
        (cut("gcbs_plan.npz"), "is damaged"),
        (remove("trainer_state.json"), "trainer_state.json cannot be read"),
        (overwrite("trainer_state.json", b"{"), "trainer_state.json is damaged"),
        (cut("gcbs_embeddings/0/column-1.bin"), "is damaged"),
        (cut("gcbs_embeddings/0/steps.i32"), "is damaged"),
        (overwrite("gcbs_embeddings/0/store.json", b"{}"), "is damaged"),
    ],
)
def test_broken_checkpoints_get_one_line(run_copy, tmp_path, capsys, damage, words):
    """As with runs."""
    damage(run_copy / "checkpoint-12")
    assert 2 == main(["--checkpoint", str(run_copy / "checkpoint-12"), "--out", str(tmp_path / "page.html")])
    refused(capsys, words)
    assert not (tmp_path / "page.html").exists()


def test_folders_that_hold_runs_name_them(runs, tmp_path, capsys):
    """Who gives the folder above is told what to give; what is not there is said to be not there."""
    out = ["--out", str(tmp_path / "page.html")]
    for options, words in (
        (["--run", str(runs)], "It holds the runs gcbs, random"),
        (["--run", str(tmp_path / "nowhere")], "is not there"),
        (["--checkpoint", str(tmp_path / "nowhere")], "is not there"),
        (["--run", str(runs / "gcbs"), "--step", "-1"], "--step: got -1"),
        (["--run", str(runs / "gcbs"), "--max-rows", "0"], "--max-rows: got 0"),
        (["--run", str(runs / "gcbs"), "--dataset", "a"], "--dataset does not go with --run"),
    ):
        assert 2 == main([*options, *out])
        refused(capsys, words)


def test_the_scale_is_that_of_the_loss():
    """From scale, temperature, or neither."""
    options = ({"scale": 5}, {"temperature": 0.1}, {}, {"scale": 0}, {"temperature": 0})
    assert [5.0, 10.0, 20.0, 20.0, 20.0] == [configured_scale(LossConfig(options=one)) for one in options]


def test_saved_stores_are_read_without_being_changed(tmp_path):
    """An empty store has no columns; a filled one gives what was written."""
    store = EmbeddingStore(4, 2, "key", dtype="float16")
    store.save(tmp_path / "empty")
    assert ([], [-1] * 4) == (
        read_saved_store(tmp_path / "empty")[0],
        read_saved_store(tmp_path / "empty")[1].tolist(),
    )
    rows = unit_rows(2, 1)
    store.write(np.array([1, 3]), [rows, -rows], step=7)
    store.save(tmp_path / "filled")
    (left, right), steps = read_saved_store(tmp_path / "filled")
    np.testing.assert_array_equal(left[[1, 3]], rows.astype(np.float16))
    np.testing.assert_array_equal(right, -left)
    assert [-1, 7, -1, 7] == steps.tolist()
    with pytest.raises(ValueError, match="is not there or is damaged"):
        read_saved_store(tmp_path)
