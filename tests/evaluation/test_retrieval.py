"""Retrieval: measures against slow oracles and the host's evaluator, files, the trainer's evaluator and the command."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, make_static_model
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from gcbs_st.evaluation.retrieval import RetrievalEvaluator, evaluate_retrieval, score_ranking
from gcbs_st.evaluation.retrieval_tasks import RetrievalTask, load_retrieval_tasks

ROOT = Path(__file__).parents[2]


def write(file: Path, rows: list) -> None:
    """Writes a file of one JSON object per line."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def make_set(folder: Path, name: str = "toy", ending: str = ".jsonl", splits=("test",), seed: int = 0) -> None:
    """A set of 6 queries a split over 150 documents, each query with three relevant ones."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(150)]
    folder.mkdir(exist_ok=True)
    write(folder / f"{name}.corpus{ending}", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    queries, judged = [], []
    for split, number in itertools.product(splits, range(6)):
        rows = rng.choice(150, size=3, replace=False)
        words = [*texts[rows[0]].split()[:2], *rng.choice(WORDS, size=2)]  # its answer is near, and not always first
        queries.append({"_id": f"{split}{number}", "text": " ".join(words)})
        judged += [
            {"query_id": f"{split}{number}", "corpus_id": f"d{row}", "score": 1, "split": split} for row in rows
        ]
    write(folder / f"{name}.queries{ending}", queries)
    write(folder / f"{name}.qrels{ending}", judged)


# ---------------------------------------------------------------- measures


@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=6),
    st.lists(st.integers(-1, 1), min_size=2, max_size=2),
    st.data(),
)
def test_measures_are_the_average_over_the_orders_of_ties(documents, query, data):
    """All orders of the documents that the scores allow, each measured by the textbook; small cut-offs, so that they cut."""
    gains = data.draw(
        st.dictionaries(st.integers(0, len(documents) - 1), st.sampled_from([1.0, 2.0, 0.5]), min_size=1)
    )
    scores = [sum(a * b for a, b in zip(query, document, strict=True)) for document in documents]
    orders = [
        order
        for order in itertools.permutations(range(len(documents)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, k in (("NDCG_AT", 3), ("MRR_AT", 2), ("RECALL_AT", 2)):
            patch.setattr(f"gcbs_st.evaluation.retrieval.{name}", k)
        task = RetrievalTask("t", ["q"], [str(row) for row in documents], [gains])
        found = score_ranking(np.array([query], np.float32), np.array(documents, np.float32), task)
    ideal = sum(gain / math.log2(i + 2) for i, gain in enumerate(sorted(gains.values(), reverse=True)[:3]))
    ndcg, mrr, recall = [], [], []
    for order in orders:
        ndcg.append(sum(gains.get(row, 0) / math.log2(i + 2) for i, row in enumerate(order[:3])) / ideal)
        mrr.append(next((1 / (i + 1) for i, row in enumerate(order[:2]) if row in gains), 0))
        recall.append(sum(row in gains for row in order[:2]) / len(gains))
    expected = [100 * np.mean(values) for values in (ndcg, mrr, recall)]
    assert pytest.approx(expected) == list(found.values())


def test_measures_are_the_hosts_where_nothing_ties(tmp_path):
    """nDCG@10, MRR@10 and recall@100 equal those of the host's evaluator, for relevance of yes or no."""
    make_set(tmp_path)
    (task,) = load_retrieval_tasks(tmp_path).values()
    model = make_static_model(seed=1)
    host = InformationRetrievalEvaluator(
        {str(i): text for i, text in enumerate(task.queries)},
        {str(i): text for i, text in enumerate(task.documents)},
        {str(i): {str(row) for row in gains} for i, gains in enumerate(task.relevant)},
        ndcg_at_k=[10], mrr_at_k=[10], precision_recall_at_k=[100], write_csv=False,
    )(model)  # fmt: skip
    ours = evaluate_retrieval(model, {"toy": task})
    for score in ("ndcg@10", "mrr@10", "recall@100"):
        assert pytest.approx(100 * host[f"cosine_{score}"], abs=1e-3) == ours[f"toy_{score}"]
    assert 0 < ours["toy_ndcg@10"] == ours["retrieval_avg"] < 100


def test_a_collapsed_model_scores_as_chance():
    """One point for all texts: each document is among the first 100 of 400 with probability a quarter."""
    task = RetrievalTask("t", ["q"], [str(row) for row in range(400)], [{3: 1.0, 5: 2.0}])
    found = score_ranking(np.ones((1, 4), np.float32), np.ones((400, 4), np.float32), task)
    assert pytest.approx(25.0) == found["recall@100"]
    firsts = [math.comb(400 - place, 1) / math.comb(400, 2) / place for place in range(1, 11)]
    assert pytest.approx(100 * sum(firsts)) == found["mrr@10"]


def test_queries_and_documents_get_their_prompts_and_the_models_similarity(tmp_path):
    """A model with prompts encodes each side with its own, and one of dot products is not normalised."""
    make_set(tmp_path)
    tasks = load_retrieval_tasks(tmp_path)
    model = make_static_model(seed=1)
    plain = evaluate_retrieval(model, tasks)
    model.prompts = {"query": "query : ", "document": "passage : "}
    with_prompts = evaluate_retrieval(model, tasks)
    task = tasks["toy"]
    by_hand = {
        "toy": RetrievalTask(
            "toy", [f"query : {q}" for q in task.queries], [f"passage : {d}" for d in task.documents], task.relevant
        )
    }
    model.prompts = {"query": "", "document": ""}
    assert pytest.approx(evaluate_retrieval(model, by_hand)) == with_prompts
    model.similarity_fn_name = "dot"
    assert plain["toy_ndcg@10"] != evaluate_retrieval(model, tasks)["toy_ndcg@10"]
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match="compares by euclidean, expected cosine or dot"):
        evaluate_retrieval(model, tasks)


def test_scoring_leaves_the_model_as_it_was(tmp_path):
    """A model that trains still trains afterwards, and the random numbers go on where they were."""
    import torch

    make_set(tmp_path)
    model = make_static_model()
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluate_retrieval(model, load_retrieval_tasks(tmp_path))
    assert model.training
    assert torch.equal(expected, torch.rand(2))


def test_nothing_to_score_is_refused():
    """No tasks, queries without documents, gains of nothing."""
    with pytest.raises(ValueError, match="got no tasks"):
        evaluate_retrieval(make_static_model(), {})
    for queries, relevant in ((["q"], []), ([], []), (["q"], [{}]), (["q"], [{7: 1.0}]), (["q"], [{0: 0.0}])):
        with pytest.raises(ValueError, match="retrieval t: got"):
            RetrievalTask("t", queries, ["d"], relevant)


# ---------------------------------------------------------------- files


def test_files_of_all_kinds_are_read(tmp_path):
    """Zipped or not, with titles, whole numbers as ids, grades, scores of 0, a split that is not named."""
    write(tmp_path / "x.y.queries.jsonl.gz", [{"_id": 1, "text": "q"}, {"_id": "2", "text": "unjudged"}])
    write(tmp_path / "x.y.corpus.jsonl", [{"_id": 1, "text": "d", "title": "T"}, {"_id": 9, "text": "e", "title": ""}])
    write(
        tmp_path / "x.y.qrels.jsonl",
        [{"query_id": 1, "corpus_id": "1", "score": "2"}, {"query_id": 1, "corpus_id": 9, "score": 0}],
    )
    (tmp_path / "notes.txt").write_text("no set")
    (task,) = load_retrieval_tasks(tmp_path).values()
    assert RetrievalTask("x.y", ["q"], ["T d", "e"], [{0: 2.0}]) == task


def test_splits_are_tasks_of_their_own(tmp_path):
    """A test keeps the name; sets without any of the splits are left out, unless they are asked for."""
    make_set(tmp_path, splits=("train", "dev", "test"))
    make_set(tmp_path, name="other", ending=".jsonl.gz", splits=("dev",))
    assert ["toy"] == list(load_retrieval_tasks(tmp_path))
    both = load_retrieval_tasks(tmp_path, splits=("test", "dev"))
    assert ["other-dev", "toy", "toy-dev"] == list(both)
    assert both["toy"].documents == both["toy-dev"].documents
    assert not set(both["toy"].queries) & set(both["toy-dev"].queries)
    scores = evaluate_retrieval(make_static_model(), both)
    assert scores["retrieval_avg"] == scores["toy_ndcg@10"]  # the average is of the tests
    with pytest.raises(ValueError, match="other has no relevant document in test"):
        load_retrieval_tasks(tmp_path, names=["other"])
    with pytest.raises(ValueError, match="no set with the split train"):
        (tmp_path / "only").mkdir()
        make_set(tmp_path / "only", name="other", splits=("dev",))
        load_retrieval_tasks(tmp_path / "only", splits=("train",))


@pytest.mark.parametrize(
    ("part", "row", "message"),
    [
        ("queries", {"_id": "q"}, "expected _id and text"),
        ("queries", {"_id": True, "text": "t"}, "expected _id and text"),
        ("queries", ["q"], "expected _id and text"),
        ("corpus", {"_id": "d0", "text": "again"}, "the id 'd0' stands twice"),
        ("corpus", {"_id": "x", "text": "t", "title": 3}, "expected _id and text"),
        ("qrels", {"query_id": "test0", "corpus_id": "d0"}, "expected the keys query_id, corpus_id, score"),
        ("qrels", {"query_id": "test0", "corpus_id": "nowhere", "score": 1}, "expected ids of toy's files"),
        ("qrels", {"query_id": "test0", "corpus_id": "d0", "score": "high"}, "expected a finite number"),
        ("qrels", {"query_id": "test0", "corpus_id": "d0", "score": True}, "expected a finite number"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, part, row, message):
    """File, line, what is there and what was expected."""
    make_set(tmp_path)
    file = tmp_path / f"toy.{part}.jsonl"
    lines = file.read_text().count("\n") + 1
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"toy.{part}.jsonl, line {lines}: .*{message}"):
        load_retrieval_tasks(tmp_path)


def test_a_pair_that_stands_twice_and_files_that_are_missing_are_refused(tmp_path):
    """Each with what to do about it."""
    make_set(tmp_path)
    qrels = tmp_path / "toy.qrels.jsonl"
    once = qrels.read_text()
    qrels.write_text(once + once.splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="stand twice in test"):
        load_retrieval_tasks(tmp_path)
    qrels.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no toy.qrels.jsonl; expected a folder of"):
        load_retrieval_tasks(tmp_path)
    with pytest.raises(ValueError, match="has no set cacm, only toy"):
        load_retrieval_tasks(tmp_path, names=["cacm"])
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_retrieval_tasks(tmp_path / "absent")
    with pytest.raises(ValueError, match="retrieval splits: got"):
        load_retrieval_tasks(tmp_path, splits=["validation"])
    write(tmp_path / "toy.corpus.jsonl.gz", [])
    with pytest.raises(ValueError, match="are of one set; remove one"):
        load_retrieval_tasks(tmp_path)


def test_the_variable_of_a_folder_is_filled_in(tmp_path, monkeypatch):
    """`$DATA/retrieval` as in configurations."""
    make_set(tmp_path / "retrieval")
    monkeypatch.setenv("DATA", str(tmp_path))
    assert ["toy"] == list(load_retrieval_tasks("$DATA/retrieval"))


# ---------------------------------------------------------------- evaluator and commands


def test_the_evaluator_chooses_by_the_first_ndcg(tmp_path):
    """Names as the trainer logs them, a CSV file, and another score to choose by."""
    make_set(tmp_path / "data", splits=("dev", "test"))
    tasks = load_retrieval_tasks(tmp_path / "data", splits=("dev", "test"))
    evaluator = RetrievalEvaluator(tasks)
    assert "retrieval_toy-dev_ndcg@10" == evaluator.primary_metric
    model = make_static_model()
    scores = evaluator(model, str(tmp_path), 1.0, 10)
    assert {f"retrieval_{name}": value for name, value in evaluate_retrieval(model, tasks).items()} == scores
    header, line = (tmp_path / "retrieval_evaluation_retrieval_results.csv").read_text().splitlines()
    assert ["epoch", "steps", *(name.removeprefix("retrieval_") for name in scores)][:4] == header.split(",")[:4]
    assert len(header.split(",")) == len(line.split(","))
    assert "retrieval_retrieval_avg" == RetrievalEvaluator(tasks, primary="retrieval_avg").primary_metric
    with pytest.raises(ValueError, match="got primary 'mrr', expected one of"):
        RetrievalEvaluator(tasks, primary="mrr")


def load_script(name: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_prints_what_the_function_returns(tmp_path, capsys):
    """As JSON and as lines; a mistake is one line and exit code 2."""
    make_set(tmp_path / "data", splits=("dev", "test"))
    model = make_static_model(seed=1)
    model.save(str(tmp_path / "model"))
    script = load_script("evaluate_retrieval")
    argv = ["--model", str(tmp_path / "model"), "--data-dir", str(tmp_path / "data"), "--device", "cpu"]
    assert 0 == script.main([*argv, "--splits", "dev", "--tasks", "toy", "--json"])
    expected = evaluate_retrieval(model, load_retrieval_tasks(tmp_path / "data", splits=["dev"]))
    assert {name: round(value, 2) for name, value in expected.items()} == json.loads(capsys.readouterr().out)
    assert 2 == script.main([*argv, "--tasks", "cacm"])
    assert "has no set cacm, only toy" in capsys.readouterr().err


def test_mteb_says_the_same(tmp_path, capsys):
    """Through mteb's own task and metric, with a result file for each set."""
    pytest.importorskip("mteb")
    make_set(tmp_path / "data")
    make_set(tmp_path / "data", name="second", seed=2)
    model = make_static_model(seed=1)
    model.save(str(tmp_path / "model"))
    script = load_script("evaluate_mteb")
    output = tmp_path / "mteb"
    argv = ["--model", str(tmp_path / "model"), "--output", str(output), "--device", "cpu"]
    assert 0 == script.main([*argv, "--retrieval", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    expected = evaluate_retrieval(model, load_retrieval_tasks(tmp_path / "data"))
    for name in ("toy", "second"):
        (file,) = (output / "results").glob(f"*/*/{name}.json")
        score = json.loads(file.read_text())["scores"]["test"][0]["main_score"]
        assert pytest.approx(expected[f"{name}_ndcg@10"], abs=2e-3) == 100 * score
        assert f"{100 * score:.2f}" in printed
    assert "Not scored" not in printed
    assert 2 == script.main([*argv, "--retrieval", str(tmp_path / "data"), "--data-dir", "sts"])
    assert "got both, expected one" in capsys.readouterr().err


def test_mteb_has_no_fractions_of_relevance():
    """Its metric takes whole grades only."""
    protocol = pytest.importorskip("gcbs_st.evaluation.mteb_protocol")
    task = RetrievalTask("t", ["a"], ["b"], [{0: 0.5}])
    with pytest.raises(ValueError, match="no whole number"):
        protocol.evaluate_retrieval_mteb(make_static_model(), {"t": task}, model_name="a/b")
