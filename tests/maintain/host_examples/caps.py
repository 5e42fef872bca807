"""Makes a script small and keeps it at home: sizes are cut by rule, and what needs the hub is put out of the way.

A script's own text stays as it is. Each function here changes a class or function of a library for the whole process.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import datasets
import pandas
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base import training_args
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.trainer import BaseTrainer
from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorNanoBEIREvaluator
from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sparse_encoder.evaluation import SparseNanoBEIREvaluator

from host_examples.data import load_dataset

BATCH = 16
TRIALS = 2
ARGUMENTS = {
    "num_train_epochs": 1, "fp16": False, "bf16": False, "torch_compile": False, "use_cpu": True, "report_to": "none",
    "push_to_hub": False, "disable_tqdm": True, "logging_steps": 5,
}  # fmt: skip
# What is held out where a script asks for more rows; the rest of the 400 rows of a dataset fills its batches.
HELD_OUT_PERCENT = 12
EVALUATORS = {NanoBEIREvaluator: "cosine", SparseNanoBEIREvaluator: "dot", MultiVectorNanoBEIREvaluator: "maxsim"}


def cap_arguments(arguments_class: type, **given: Any) -> None:
    """Makes training arguments ask for small batches, one epoch, no trackers, and two evaluations and checkpoints.

    Args:
        arguments_class: of any of the host's trainers, or derived from one.
        given: arguments that are set besides.
    """
    init = arguments_class.__init__

    @functools.wraps(init)
    def capped(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            kwargs[name] = min(kwargs.get(name, BATCH), BATCH)
        for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
            if kwargs.get(strategy) == "steps":
                kwargs[steps] = 0.5
        init(self, *args, **kwargs | ARGUMENTS | given)

    arguments_class.__init__ = capped


def cap_sizes() -> None:
    """Cuts the numbers that scripts write out for large datasets to what the small ones hold."""
    select, split, sample = Dataset.select, Dataset.train_test_split, random.sample
    matryoshka, search = MatryoshkaLoss.__init__, BaseTrainer.hyperparameter_search

    def select_there_is(self: Dataset, indices: Any, *args: Any, **kwargs: Any) -> Dataset:
        if isinstance(indices, range):
            indices = fit_range(indices, len(self))
        return select(self, indices, *args, **kwargs)

    def split_there_is(self: Dataset, test_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(test_size, int):
            test_size = min(test_size, held_out(len(self)))
        return split(self, test_size, *args, **kwargs)

    def sample_there_is(population: Sequence[Any], k: int, **kwargs: Any) -> list[Any]:
        return sample(population, min(k, len(population)), **kwargs)

    @functools.wraps(matryoshka)
    def narrower(self: Any, model: Any, loss: Any, matryoshka_dims: Sequence[int], *args: Any, **kwargs: Any) -> None:
        dims = [dim for dim in matryoshka_dims if dim <= model.get_embedding_dimension()]
        matryoshka(self, model, loss, dims, *args, **kwargs)

    def search_few(self: Any, *args: Any, **kwargs: Any) -> Any:
        from optuna.samplers import RandomSampler

        return search(self, *args, **kwargs | {"n_trials": TRIALS, "sampler": RandomSampler(seed=0)})

    Dataset.select, Dataset.train_test_split, random.sample = select_there_is, split_there_is, sample_there_is
    MatryoshkaLoss.__init__, BaseTrainer.hyperparameter_search = narrower, search_few


def held_out(rows: int) -> int:
    """Returns how many of so many rows are held out."""
    return rows * HELD_OUT_PERCENT // 100


def fit_range(wanted: range, rows: int) -> range:
    """Returns the part of a small dataset that stands for a range of rows of the real one.

    Args:
        wanted: may lie beyond the end, or before the start where a script holds out more rows than there are.
        rows: that there are.
    """
    kept = rows - held_out(rows)
    if wanted.stop < 0:
        return range(kept)
    first = kept if wanted.start < 0 or wanted.start >= rows else wanted.start
    return range(first, min(wanted.stop, rows))


def mend() -> None:
    """Takes away what hinders scripts that are older than the libraries installed."""
    # Two scripts import the class from a module that no longer has it.
    training_args.SentenceTransformerTrainingArguments = SentenceTransformerTrainingArguments
    # pandas 3 gives texts another type than the hub's rows have, and they could not be put together.
    pandas.options.future.infer_string = False


def stay_at_home() -> None:
    """Puts local rows in the place of the hub's, a constant in the place of NanoBEIR, and pushes nothing."""
    datasets.load_dataset = load_dataset
    BaseModel.push_to_hub = lambda self, *args, **kwargs: ""
    for evaluator_class, similarity in EVALUATORS.items():
        _make_constant(evaluator_class, f"NanoBEIR_mean_{similarity}_ndcg@10")
    if importlib.util.find_spec("nltk") is None:
        _stand_in_for_nltk()


def _make_constant(evaluator_class: type, metric: str) -> None:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.primary_metric, self.greater_is_better, self.name = metric, True, "NanoBEIR"

    evaluator_class.__init__ = init
    evaluator_class.__call__ = lambda self, *args, **kwargs: {metric: 0.5}


def _stand_in_for_nltk() -> None:
    """Words are what white space separates; the real one would need a download beside the package."""

    class TreebankWordDetokenizer:
        def detokenize(self, words: list[str]) -> str:
            return " ".join(words)

    names = ("nltk", "nltk.tokenize", "nltk.tokenize.treebank")
    root, tokenize, treebank = (ModuleType(name) for name in names)
    root.word_tokenize = str.split
    treebank.TreebankWordDetokenizer = TreebankWordDetokenizer
    root.tokenize, tokenize.treebank = tokenize, treebank
    sys.modules.update(zip(names, (root, tokenize, treebank), strict=True))
