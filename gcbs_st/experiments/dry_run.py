"""A whole experiment in seconds: a configuration in, and out its table on a tiny random model and what the full run costs.

Everything is built as the full run builds it, by the same code, from a model of the same architecture with
random weights, a few hundred rows and two steps per run. Nothing is downloaded: data that are not on this
machine are replaced by synthetic rows of the same columns.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast

from gcbs_st.config import (
    CodeSearchConfig,
    CorpusConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    RetrievalConfig,
)
from gcbs_st.corpora.code_pairs import split_of
from gcbs_st.corpora.corpus import join_corpora, load_corpus
from gcbs_st.corpora.sources import FROM_PACKAGES
from gcbs_st.evaluation.retrieval_tasks import load_retrieval_tasks
from gcbs_st.evaluation.sts_tasks import StsTask, load_sts_tasks
from gcbs_st.experiments.cost import ANY_MACHINE, architecture, cost_table, is_here, needs, with_train
from gcbs_st.experiments.experiment import run_experiment
from gcbs_st.experiments.training_run import training_arguments
from gcbs_st.records.tables import experiment_table

_ROWS, _HELD_OUT, _PAIRS, _BATCH, _STEPS, _WORDS = 128, 32, 100, 16, 2, 200
# Docstrings of all installed packages take many seconds to read; those of one of our own dependencies do not.
_DOCSTRINGS = ["datasets"]
_SMALL = {
    **ANY_MACHINE, "max_steps": _STEPS, "replan_steps": 1, "planner_warmup_steps": 0, "planner_cooldown_steps": 0, "eval_steps": _STEPS, "save_steps": _STEPS,
    "logging_steps": 1, "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 64,
    "embedding_batch_size": 64, "dataloader_num_workers": 0, "disable_tqdm": True, "report_to": "none",
}  # fmt: skip


def dry_run(config: ExperimentConfig) -> str:
    """Returns a report: the table of a tiny run of the experiment, what the full one would fetch, and its cost.

    Raises a ConfigError or ValueError for what the full run would refuse as well, of data that are on this machine.
    """
    for name in config.runs:  # the full run's own values, before they are made small
        training_arguments(with_train(config, ANY_MACHINE), name)
    with tempfile.TemporaryDirectory(prefix="gcbs_st-dry-run-") as folder:
        records = run_experiment(small_config(config, Path(folder)))
    return "\n\n".join(
        [
            f"Two steps of each run on a random model of the same architecture; scores mean nothing.\n\n"
            f"{experiment_table(records)}",
            "The full run needs:\n" + "\n".join(f"- {need}" for need in needs(config)),
            cost_table(config),
        ]
    )


def small_config(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """Returns the experiment made small, and writes the model and the data that it names."""
    rows = join_corpora([_small_rows(part) for part in (config.corpus, *config.corpus.also)])
    code = config.evaluation.code_search
    tasks = {} if code else _small_tasks(config)
    rows.to_json(folder / "rows.jsonl")
    (folder / "sts").mkdir()
    for name, task in tasks.items():
        pairs = Dataset.from_dict({"sentence1": task.sentence1, "sentence2": task.sentence2, "score": task.scores})
        base, _, split = name.rpartition("-") if name.endswith(("-dev", "-train")) else (name, "", "test")
        pairs.to_json(folder / "sts" / f"{base}.{split}.jsonl")
    texts = [text for name in rows.column_names if name != "group" for text in rows[name]]
    _write_model(config.model, [*texts, *(t for task in tasks.values() for t in task.sentence1)], folder / "model")
    small = dataclasses.replace(
        config,
        output=str(folder / "out"),
        corpus=CorpusConfig(
            str(folder / "rows.jsonl"),
            group="group" if config.corpus.group else None,
            held_out=min(config.corpus.held_out, _HELD_OUT),
        ),
        model=dataclasses.replace(config.model, name=str(folder / "model")),
        evaluation=dataclasses.replace(
            config.evaluation,
            sts=str(folder / "sts"),
            retrieval=_small_retrieval(config.evaluation, folder / "retrieval"),
            code_search=code and _small_code_search(code, folder),
        ),
        arms={},
    )
    return _small_batches(with_train(small, _SMALL))


def _small_batches(config: ExperimentConfig) -> ExperimentConfig:
    runs = {}
    for name, run in config.runs.items():
        merged = {**config.train, **run}
        # A batch of that many clusters has at least as many rows.
        clusters = (merged.get("planner_options") or {}).get("clusters_per_batch", 1)
        batch = min(merged.get("per_device_train_batch_size", 8), max(_BATCH, clusters))
        runs[name] = {**run, "per_device_train_batch_size": batch}
    return dataclasses.replace(config, runs=runs)


# ---------------------------------------------------------------- stand-ins for model and data


def _small_rows(corpus: CorpusConfig) -> Dataset:
    """The first rows of a corpus, or synthetic ones that share half of their words, under the names of `load_corpus`."""
    if is_here(corpus.source):
        options = dataclasses.asdict(corpus)
        del options["held_out"], options["also"]
        if corpus.source in FROM_PACKAGES:
            options["distributions"] = corpus.distributions or _DOCSTRINGS
        if corpus.source == "code" and not corpus.distributions:
            options["split"] = split_of(_DOCSTRINGS[0])
        return load_corpus(**{**options, "max_rows": min(corpus.max_rows or _ROWS, _ROWS)})
    count = len(corpus.columns or ["anchor", "positive"])
    negatives = ["negative"] if count == 3 else [f"negative_{i + 1}" for i in range(count - 2)]
    anchors = list(_sentences(_ROWS, seed=0))
    columns: dict[str, list[Any]] = {"anchor": anchors, "positive": anchors}
    for seed, name in enumerate(["positive", *negatives][: count - 1], start=1):
        others = _sentences(_ROWS, seed=seed)
        columns[name] = [f"{a[: len(a) // 2]} {b}" for a, b in zip(anchors, others, strict=True)]
    if corpus.group:
        columns["group"] = [i // 2 for i in range(_ROWS)]
    return Dataset.from_dict(columns)


def _small_code_search(code: CodeSearchConfig, folder: Path) -> CodeSearchConfig:
    """Some rows of each part, written as files; without CoSQA, whose files hold nothing that a part does not."""
    files: dict[str, Any] = {}
    for key, part in {"dev": code.dev, "test": code.test, "functions": code.functions}.items():
        files[key] = part and CorpusConfig(str(folder / f"{key}.jsonl"))
        if part:
            _small_rows(part).to_json(folder / f"{key}.jsonl")
    return dataclasses.replace(code, **files, cosqa=None)


def _small_retrieval(evaluation: EvaluationConfig, folder: Path) -> RetrievalConfig | None:
    """Some queries of each set with their documents, or synthetic ones, written as files."""
    given = evaluation.retrieval
    if given is None:
        return None
    folder.mkdir()
    if is_here(given.folder):
        tasks = load_retrieval_tasks(given.folder, names=given.tasks)
        sets = {name: (task.queries, task.documents, task.relevant) for name, task in tasks.items()}
    else:
        texts = list(_sentences(_PAIRS, seed=9))
        relevant: list[dict[int, float]] = [{row: 1.0} for row in range(_PAIRS)]
        sets = dict.fromkeys(given.tasks or ["retrieval"], (texts, list(_sentences(_PAIRS, seed=10)), relevant))
    for name, (queries, documents, gains) in sets.items():
        some = gains[:_HELD_OUT]
        rows = sorted({row for of_query in some for row in of_query})
        files = {
            "queries": [{"_id": f"q{query}", "text": queries[query]} for query in range(len(some))],
            "corpus": [{"_id": f"d{row}", "text": documents[row]} for row in rows],
            "qrels": [
                {"query_id": f"q{query}", "corpus_id": f"d{row}", "score": gain}
                for query, of_query in enumerate(some)
                for row, gain in of_query.items()
            ],
        }
        for part, content in files.items():
            Dataset.from_list(content).to_json(folder / f"{name}.{part}.jsonl")
    return RetrievalConfig(str(folder))


def _sentences(count: int, *, seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield " ".join(f"word{i}" for i in rng.integers(_WORDS, size=rng.integers(4, 9)))


def _small_tasks(config: ExperimentConfig) -> dict[str, StsTask]:
    """Some pairs of the experiment's tasks, or of the packaged STS-B, or synthetic ones."""
    splits = config.evaluation.splits
    for source in (config.evaluation.sts, "package"):
        if source != "package" and (source == "hub" or not is_here(source)):
            continue
        try:
            tasks = load_sts_tasks(source, splits=splits)
        except ImportError:
            continue
        return {name: _some_pairs(task) for name, task in tasks.items()}
    names = ["STSBenchmark" if split == "test" else f"STSBenchmark-{split}" for split in splits]
    pairs = (list(_sentences(_PAIRS, seed=7)), list(_sentences(_PAIRS, seed=8)))
    return {name: StsTask(name, *pairs, [i % 6 for i in range(_PAIRS)]) for name in names}


def _some_pairs(task: StsTask) -> StsTask:
    # Evenly spaced: the first pairs of a sorted file may all have one score.
    every = slice(None, None, -(-len(task.scores) // _PAIRS))
    return StsTask(task.name, task.sentence1[every], task.sentence2[every], task.scores[every])


def _write_model(model: ModelConfig, texts: Sequence[str], folder: Path) -> None:
    """Saves a tiny transformer of the model's architecture with random weights, and a tokenizer of the texts' words."""
    config = architecture(model)
    special = (
        ["<s>", "<pad>", "</s>", "<unk>"] if "roberta" in config.model_type else ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    )
    start, pad, end, unknown = special
    splitter = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, vocabulary[token]) for token in (start, end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=start, pad_token=pad, sep_token=end, unk_token=unknown,
        bos_token=start, eos_token=end, model_max_length=128,
    ).save_pretrained(folder)  # fmt: skip
    for key, value in {
        "vocab_size": len(vocabulary), "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
        "num_hidden_layers": model.layers or 2, "max_position_embeddings": 132, "pad_token_id": vocabulary[pad],
    }.items():  # fmt: skip
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
