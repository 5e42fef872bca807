"""The embeddings that plans are made from: a model and rows of text in, one array of unit rows for each column out.

Texts are embedded as training embeds them (its prompts and routes, not those of inference), each distinct text once,
and nothing of the training run is disturbed: no global random number is drawn and every module is left in the mode it
was in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import batch_to_device
from torch import Tensor
from tqdm import trange

from gcbs_st.embeddings.views import View, sentence_embedding
from gcbs_st.rows.columns import TextColumn, read_columns

# Texts handed to `encode` at a time: it keeps all results in a list before it stacks them. Also a progress bar's step.
_ENCODE_TEXTS = 4096

# One batch of rows in, the features of each text column out, as the training loader and the host make them.
Collate = Callable[[list[dict[str, Any]]], Sequence[dict[str, Any]]]


class NoEmbeddingError(ValueError):
    """No text of those that were embedded has an embedding."""


class MeanSquare:
    """The mean squared norm of embeddings: a loss's dot products are that much larger than a plan's cosines."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, norms: np.ndarray) -> None:
        """Adds the (m,) norms of some embeddings; those that are not finite do not count."""
        finite = norms[np.isfinite(norms)].astype(np.float64)
        self.total += float(finite @ finite)
        self.count += len(finite)

    @property
    def value(self) -> float:
        """The mean; 1 before anything was measured."""
        return self.total / self.count if self.count and self.total > 0 else 1.0


def encode_rows(  # noqa: PLR0913 - a keyword for each way in which training may differ from inference
    model: Any,
    dataset: Dataset,
    rows: np.ndarray,
    columns: Sequence[TextColumn],
    *,
    batch_size: int,
    progress: str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    view: View = sentence_embedding,
    norms: MeanSquare | None = None,
) -> list[np.ndarray]:
    """Returns one (m, d) float32 array of unit rows for each of the `columns`, of the (m,) `rows` of a dataset.

    It is the same object where two columns hold the same texts with the same prompt, as in unsupervised training. A
    text that the model, unwrapped, makes nothing of, or NaN, is a row of zeros; raises a ValueError that shows one if
    no text at all has an embedding. `progress` is what the progress bar says, None for no bar. `autocast` makes the
    context of a training pass: half precision is several times faster where it is meant, and the embeddings are those
    of the training passes. `view` is what is planned on of the outputs of a pass, and `norms` is told the norms of the
    embeddings.

    Cost: one forward pass over the distinct texts; O(m d) memory, d being the width of the view.
    """
    arrays: list[np.ndarray | None] = [None] * len(columns)
    # `truncate_dim` cuts the embeddings of inference, those of training never.
    whole = model.truncate_embeddings(None) if hasattr(model, "truncate_embeddings") else nullcontext()
    with preserved_state(model), whole, autocast():
        texts = read_columns(dataset, rows, [column.name for column in columns])
        # Columns that are embedded alike share a pass, but not pictures and texts, which no model takes together.
        plain = all(isinstance(text, str) for column in texts for text in column)
        ways = [replace(column, name="") if plain else column for column in columns]
        for way in dict.fromkeys(ways):
            mine = [i for i, one in enumerate(ways) if one == way]
            distinct, positions = _distinct([texts[i] for i in mine])
            embeddings = _encode(model, distinct, way, batch_size, progress, view, norms or MeanSquare())
            if len(distinct) and not embeddings.any():
                raise NoEmbeddingError(no_embeddings(distinct[0]))
            made: dict[bytes, np.ndarray] = {}
            for i, position in zip(mine, positions, strict=True):
                arrays[i] = made.setdefault(position.tobytes(), embeddings[position])
    return [array for array in arrays if array is not None]


def encode_collated(  # noqa: PLR0913 - as above
    model: Any,
    dataset: Dataset,
    rows: np.ndarray,
    columns: Sequence[TextColumn],
    column_positions: Sequence[int],
    collate: Collate,
    *,
    batch_size: int,
    progress: str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    view: View = sentence_embedding,
    norms: MeanSquare | None = None,
) -> list[np.ndarray]:
    """Returns what `encode_rows` returns, of texts as the user's collator makes them.

    Whole rows go through the collator, so that it may change texts, join columns or add noise; each row is embedded,
    also where its text stands in another one. `columns` say by which lengths rows are put together and which routes
    they take, `column_positions` which of the features that `collate` makes (on the model's device) are embedded.
    """
    parts: list[list[np.ndarray]] = [[] for _ in column_positions]
    with preserved_state(model), torch.inference_mode(), autocast():
        model.eval()
        texts = read_columns(dataset, rows, [column.name for column in columns])
        lengths = np.array([max(_length(text) for text in row) for row in zip(*texts, strict=True)], dtype=np.int64)
        by_length = np.argsort(-lengths, kind="stable")
        for start in trange(0, len(rows), batch_size, desc=progress, disable=progress is None):
            block = dataset[rows[by_length[start : start + batch_size]]]
            features = collate([dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True)])
            for part, column, position in zip(parts, columns, column_positions, strict=True):
                route = {} if column.task is None else {"task": column.task}
                part.append(_shown(model, view(model(features[position], **route)), view))
    arrays = []
    for part in parts:
        found = np.concatenate(part)
        array = np.empty_like(found)
        array[by_length] = _to_units(found, norms or MeanSquare())
        if not array.any():
            raise NoEmbeddingError(no_embeddings(texts[0][0]))
        arrays.append(array)
    return arrays


def no_embeddings(text: Any) -> str:
    """Returns the message for a training set of which no text has an embedding, with one of the texts."""
    return (
        "no text of the training set has an embedding: all are zero, NaN or infinity, for example that of "
        f"{text!r:.120}. The model has diverged: lower the learning rate, or resume from an earlier checkpoint."
    )


def _length(text: Any) -> int:
    return len(text) if isinstance(text, str) else 0


def _distinct(columns: list[list[Any]]) -> tuple[list[Any], list[np.ndarray]]:
    """Returns the distinct texts of all columns, and for each column where its texts are among them."""
    if not all(isinstance(text, str) for column in columns for text in column):
        # Images, audio and chat messages do not compare cheaply: take each as it is.
        bounds = np.cumsum([len(column) for column in columns])
        items = [item for column in columns for item in column]
        return items, np.split(np.arange(len(items)), bounds[:-1])
    index: dict[str, int] = {}
    positions = [np.array([index.setdefault(text, len(index)) for text in column], np.int64) for column in columns]
    return list(index), positions


def _encode(
    model: Any, texts: list[Any], way: TextColumn, batch_size: int, progress: str | None, view: View, norms: MeanSquare
) -> np.ndarray:
    """Returns (m, d) float32 unit rows. Texts of like length go together, so that little of a batch is padding."""
    by_length = np.argsort([-_length(text) for text in texts], kind="stable")
    pass_texts = _pass_dense if view is sentence_embedding else partial(_pass, view=view)
    embeddings: np.ndarray | None = None
    for start in trange(0, len(texts), _ENCODE_TEXTS, desc=progress, disable=progress is None):
        chosen = by_length[start : start + _ENCODE_TEXTS]
        part = pass_texts(model, [texts[i] for i in chosen], way, batch_size)
        if embeddings is None:
            embeddings = np.empty((len(texts), part.shape[1]), dtype=np.float32)
        embeddings[chosen] = _to_units(part, norms)
    return np.empty((0, 0), dtype=np.float32) if embeddings is None else embeddings


def _to_units(part: np.ndarray, norms: MeanSquare) -> np.ndarray:
    """Returns unit rows, zeros where there is no direction. Those of `encode` in half precision are 0.5 % off."""
    part = part.astype(np.float32, copy=False)
    lengths = np.linalg.norm(part, axis=1, keepdims=True)
    norms.add(lengths.ravel())
    useful = np.isfinite(lengths) & (lengths > 1e-12)
    return np.where(useful, part / np.where(useful, lengths, 1), np.float32(0))


def _pass_dense(model: Any, texts: list[Any], way: TextColumn, batch_size: int) -> np.ndarray:
    """Returns (m, d) embeddings, not scaled, by the host's own `encode`."""
    # Models of other libraries have an `encode` that knows no routes.
    route = {} if way.task is None else {"task": way.task}
    # An empty prompt keeps `encode` from adding the model's default prompt, which training never uses.
    embeddings: np.ndarray = model.encode(
        texts, prompt=way.prompt, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False, **route
    )
    return embeddings


def _pass(model: Any, texts: list[Any], way: TextColumn, batch_size: int, *, view: View) -> np.ndarray:
    """Returns (m, d) of the view, not scaled. `encode` would hold a whole vocabulary per text, or all its tokens."""
    options: dict[str, Any] = {} if way.max_length is None else {"max_length": way.max_length}
    route = {} if way.task is None else {"task": way.task}
    parts = []
    model.eval()
    for start in range(0, len(texts), batch_size):
        chosen = texts[start : start + batch_size]
        features = model.preprocess(chosen, prompt=way.prompt or None, task=way.task, **options)
        with torch.inference_mode():
            parts.append(_shown(model, view(model(batch_to_device(features, model.device), **route)), view))
    return np.concatenate(parts)


def _shown(model: Any, embeddings: Tensor | None, view: View) -> np.ndarray:
    if embeddings is None:
        raise ValueError(f"the model's passes show nothing to plan on: {type(model).__name__} and {view!r}.")
    return embeddings.float().cpu().numpy()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Restores the mode of every single module afterwards: parts may differ, frozen ones for instance."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserved_state(model: torch.nn.Module) -> Iterator[None]:
    """Restores each module's mode and Python's, NumPy's and torch's global random numbers afterwards.

    A transform or collator of the user's may draw numbers.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - restored, not drawn from
    try:
        with evaluation_mode(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
