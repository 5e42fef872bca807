"""What batches are composed instead of: mined hard negatives, a guide that masks them, and the host's own trainer.

Texts and models in, what the host trains on or with out. Kept apart so that a comparison runs the host's own
code for each of them, with only what it needs to train the models that ours trains.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.util import mine_hard_negatives
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class MinedRows:
    """Training rows with hard negatives."""

    rows: Dataset  # those that were given, in their order; their last columns are `negative`, or `negative_1`, `negative_2`
    filled: int  # rows that lack a mined negative and got a random one in some column
    seconds: float  # that embedding and searching took


def mine_negatives(
    rows: Dataset,
    model: SentenceTransformer,
    *,
    num_negatives: int = 1,
    relative_margin: float | None = None,
    range_max: int | None = None,
    batch_size: int = 128,
) -> MinedRows:
    """Returns the rows with the hard negatives that the host's `mine_hard_negatives` finds with faiss.

    `rows` have the columns anchor and positive; negatives that they bring stay, and the mined ones come after them.
    `relative_margin` None is no bound and `range_max` None the host's choice. The host drops rows for which it finds no
    negative. Here each row stays, so that all arms of a comparison take the same steps over the same rows: what was not
    found is the positive of another row, drawn at random. Raises a ValueError for options that the host refuses.
    """
    given = [name for name in rows.column_names if name.startswith("negative")]
    if num_negatives < 1:
        raise ValueError(f"mine: got num_negatives={num_negatives}, expected at least 1.")
    began = time.perf_counter()
    triplets = mine_hard_negatives(
        rows.select_columns(["anchor", "positive"]),
        model,
        num_negatives=num_negatives,
        relative_margin=relative_margin,
        range_max=range_max,
        batch_size=batch_size,
        use_faiss=True,
        verbose=False,
    )
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for anchor, positive, negative in zip(
        *(triplets[name] for name in ("anchor", "positive", "negative")), strict=True
    ):
        found[anchor, positive].append(negative)
    negatives, filled = _fill(rows, found, num_negatives)
    names = [f"negative_{i + 1}" for i in range(len(given) + num_negatives)]
    names = ["negative"] if len(names) == 1 else names
    rows = rows.rename_columns(dict(zip(given, names, strict=False)))
    for name, column in zip(names[len(given) :], zip(*negatives, strict=True), strict=True):
        rows = rows.add_column(name, list(column))
    return MinedRows(rows, filled, time.perf_counter() - began)


def _fill(rows: Dataset, found: dict[tuple[str, str], list[str]], num_negatives: int) -> tuple[list[list[str]], int]:
    """For each row its negatives, random ones in place of those that were not found, and the rows that needed them."""
    anchors, positives = list(rows["anchor"]), list(rows["positive"])
    rng = np.random.default_rng(0)
    negatives, filled = [], 0
    for anchor, positive in zip(anchors, positives, strict=True):
        # A pair that stands twice in the rows was mined once, and a repeated one has its negatives repeated.
        mine = list(dict.fromkeys(found.get((anchor, positive), [])))[:num_negatives]
        filled += len(mine) < num_negatives
        own = {anchor, positive, *mine}
        for _ in range(1000):
            if len(mine) == num_negatives:
                break
            other = positives[int(rng.integers(len(positives)))]
            if other not in own:
                mine.append(other)
                own.add(other)
        if len(mine) < num_negatives:
            raise ValueError(
                f"mine: no {num_negatives} negatives for {anchor!r}: the rows hold too few different positives. "
                "Ask for fewer, or train without mining."
            )
        negatives.append(mine)
    return negatives, filled


def freeze(model: SentenceTransformer) -> SentenceTransformer:
    """Returns the model, whose weights are no longer trained, in evaluation mode: a guide."""
    return model.eval().requires_grad_(False)


@contextmanager
def with_transformers_tokenizers(*models: SentenceTransformer) -> Iterator[None]:
    """Gives static models a tokenizer of transformers' class meanwhile.

    GISTEmbedLoss refuses the bare tokenizer of a static model when it is made. It takes the tokenizer only to
    see that model and guide have the same one, and it tokenizes nothing where they do.
    """
    bare: list[tuple[Any, Tokenizer]] = [(m[0], m.tokenizer) for m in models if isinstance(m.tokenizer, Tokenizer)]
    for module, tokenizer in bare:
        module.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    try:
        yield
    finally:
        for module, tokenizer in bare:
            module.tokenizer = tokenizer


class HostTrainer(SentenceTransformerTrainer):
    """The host's trainer as it is, but for the norm that it logs, which it cannot compute of sparse gradients."""

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        sparse = any(p.grad is not None and p.grad.is_sparse for p in model.parameters())
        return 0.0 if grad_norm is None and sparse else super()._get_grad_norm(model, grad_norm)
