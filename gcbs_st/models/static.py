"""Trains static models at their speed: on one torch thread, and tokenizing each text once.

A step takes a few milliseconds, tokenizing a batch of functions ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding


@contextmanager
def remembered_tokens(model: SentenceTransformer, known: dict[str, np.ndarray] | None = None) -> Iterator[None]:
    """Keeps the tokens of each text that a static model meets, at 4 bytes per token.

    What the model returns is the same, and other models are left as they are. `known` has the tokens that an earlier model with the same tokenizer met, and
    is added to.
    """
    if not isinstance(model[0], StaticEmbedding):
        yield
        return
    first: Any = model[0]
    known = {} if known is None else known

    def preprocess(inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        texts = [f"{prompt or ''}{text}" for text in inputs]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for text, encoding in zip(new, first.tokenizer.encode_batch(new, add_special_tokens=False), strict=True):
            known[text] = np.array(encoding.ids, dtype=np.int32)
        tokens = [known[text] for text in texts]
        offsets = np.cumsum([0, *map(len, tokens[:-1])])
        # The leading empty array: of no texts there is nothing to join.
        ids = np.concatenate([np.empty(0, dtype=np.int32), *tokens]).astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(offsets)}

    first.preprocess = preprocess
    try:
        yield
    finally:
        del first.preprocess


def meet_texts(model: SentenceTransformer, dataset: Dataset) -> None:
    """Tokenizes all texts of a dataset if the model is static, for `remembered_tokens`."""
    if isinstance(model[0], StaticEmbedding):
        for name, feature in dataset.features.items():
            if getattr(feature, "dtype", None) == "string":
                model[0].preprocess(list(dataset[name]))


@contextmanager
def few_threads(model: SentenceTransformer) -> Iterator[None]:
    """Trains static models on one torch thread: their steps are too small to be shared out.

    Two threads that wait for each other made 2 steps per second on a busy machine of two cores where one made
    17, and no more than one on a quiet machine.
    """
    threads = torch.get_num_threads()
    if isinstance(model[0], StaticEmbedding) and model.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
