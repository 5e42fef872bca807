"""The embeddings that plans are made from: a model and rows of text in, one array of unit rows a column out.

Texts are embedded as training embeds them (its prompts and routes, not those of inference), each
distinct text once, and nothing of the training run is disturbed: no global random number is drawn and
every module is left in the mode it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import batch_to_device
from torch import Tensor
from tqdm import trange

_READ_ROWS = 10_000
# Texts handed to `encode` at a time: it keeps all results in a list before it stacks them.
_ENCODE_TEXTS = 32_768

# What is planned on, (B, d) of the outputs of a pass of B texts; None where a pass shows nothing of the kind.
View = Callable[[Mapping[str, Any]], Tensor | None]


def sentence_embedding(output: Mapping[str, Any]) -> Tensor | None:
    """Returns the embeddings of a pass of a dense model.

    Args:
        output: of the model's last module.

    Returns:
        (B, d) floats, or None where there are none.
    """
    return output.get("sentence_embedding")


@dataclass(frozen=True)
class TextColumn:
    """A column of the dataset and how training preprocesses it.

    Attributes:
        name: of the column.
        prompt: what the collator puts before each text, "" for nothing.
        task: the route of a Router model, such as "query"; None without routes.
        max_length: tokens a text where training says it beside the model; None for the model's own.
    """

    name: str
    prompt: str = ""
    task: str | None = None
    max_length: int | None = None


def text_names(dataset: Dataset, label_columns: Sequence[str] = ()) -> list[str]:
    """Returns the names of the columns that hold texts, in the order in which a loss sees them.

    Args:
        dataset: the training rows.
        label_columns: names that hold labels or scores.
    """
    return [name for name in dataset.column_names if name not in {*label_columns, "dataset_name"}]


def text_columns(
    dataset: Dataset,
    *,
    label_columns: Sequence[str] = (),
    prompts: str | Mapping[str, Any] | None = None,
    router_mapping: str | Mapping[str, Any] | None = None,
    dataset_name: str | None = None,
    names: Sequence[str] | None = None,
) -> list[TextColumn]:
    """Returns the columns that are planned on, with the prompts and routes of training.

    Where no names are given the order of the columns decides, as everywhere in sentence-transformers: the
    first that is not a label holds the anchors, the second the positives.

    Args:
        dataset: the training rows.
        label_columns: names that hold labels or scores.
        prompts: `args.prompts` in any of its four forms.
        router_mapping: `args.router_mapping` in either of its forms.
        dataset_name: of this dataset within a DatasetDict, else None.
        names: of one or two text columns, anchors first; None for the first two.

    Returns:
        As many columns as names.

    Raises:
        ValueError: fewer than two columns that are not labels, or names of other columns than those.
    """
    texts = text_names(dataset, label_columns)
    if len(texts) < 2:
        raise ValueError(
            f"the training set has the text columns {texts}, expected at least two (anchor and positive). For "
            "unsupervised training give the same sentence twice, as columns anchor and positive."
        )
    if names is not None and (wrong := [name for name in names if name not in texts]):
        of = f" {dataset_name!r}" if dataset_name is not None else ""
        labels = " (a column of labels)" if wrong[0] in dataset.column_names else ""
        raise ValueError(
            f"planner_columns: got {wrong[0]!r}{labels}, expected one or two of the text columns {texts} of the training set{of}."
        )
    # Unlike a prompt a route is never given for a dataset as a whole: a flat mapping is one of columns.
    nested = isinstance(router_mapping, Mapping) and any(isinstance(part, Mapping) for part in router_mapping.values())
    columns = []
    for name in names or texts[:2]:
        prompt = _for_column(prompts, dataset_name, name)
        route = _for_column(router_mapping or None, dataset_name if nested else None, name)
        columns.append(TextColumn(name, prompt or "", route))
    return columns


def _for_column(setting: str | Mapping[str, Any] | None, dataset_name: str | None, column: str) -> str | None:
    """Resolves a prompt or route as the host's collator does; both may be keyed by dataset, column or both."""
    if isinstance(setting, Mapping) and dataset_name is not None and dataset_name in setting:
        setting = setting[dataset_name]
    if isinstance(setting, Mapping):
        found = setting.get(column)
        return found if isinstance(found, str) else None
    return setting


def encode_rows(
    model: Any,
    dataset: Dataset,
    rows: np.ndarray,
    columns: Sequence[TextColumn],
    *,
    batch_size: int,
    show_progress: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    view: View = sentence_embedding,
) -> list[np.ndarray]:
    """Returns one (m, d) float32 array of unit rows a column.

    Cost: one forward pass over the distinct texts; O(m d) memory, d being the width of the view.

    Args:
        model: the model that is being trained, unwrapped.
        dataset: the training rows.
        rows: (m,) row ids.
        columns: what to embed.
        batch_size: texts a forward pass.
        show_progress: show the progress bars of `encode`.
        autocast: makes the context of a forward pass, that of training: half precision is several times faster
            where it is meant, and gives what the training passes give.
        view: what is planned on of the outputs of a pass.

    Returns:
        The arrays, in the order of `columns`; the same object where two columns hold the same texts with
        the same prompt, as in unsupervised training.

    Raises:
        ValueError: an embedding that is not finite or is all zeros; the message shows its text.
    """
    texts = read_columns(dataset, rows, [column.name for column in columns])
    arrays: list[np.ndarray | None] = [None] * len(columns)
    with evaluation_mode(model), autocast():
        ways = [replace(column, name="") for column in columns]
        for way in dict.fromkeys(ways):
            mine = [i for i, one in enumerate(ways) if one == way]
            distinct, positions = _distinct([texts[i] for i in mine])
            embeddings = _encode(model, distinct, way, batch_size, show_progress, view)
            _refuse_useless(embeddings, distinct)
            made: dict[bytes, np.ndarray] = {}
            for i, position in zip(mine, positions, strict=True):
                arrays[i] = made.setdefault(position.tobytes(), embeddings[position])
    return [array for array in arrays if array is not None]


def read_columns(dataset: Dataset, rows: np.ndarray, names: Sequence[str]) -> list[list[Any]]:
    """Returns the values of some columns. Rows are read whole, so that a transform of the user's sees all of them.

    Args:
        dataset: the rows.
        rows: (m,) row ids.
        names: of the columns.

    Returns:
        A list of m values a column.
    """
    values: list[list[Any]] = [[] for _ in names]
    for start in range(0, len(rows), _READ_ROWS):
        block = dataset[rows[start : start + _READ_ROWS]]
        for column, name in zip(values, names, strict=True):
            column.extend(block[name])
    return values


def _distinct(columns: list[list[Any]]) -> tuple[list[Any], list[np.ndarray]]:
    """The distinct texts of all columns, and for each column where its texts are among them."""
    if not all(isinstance(text, str) for column in columns for text in column):
        # Images, audio and chat messages do not compare cheaply: take each as it is.
        bounds = np.cumsum([0, *[len(column) for column in columns]])
        return [item for column in columns for item in column], [
            np.arange(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
        ]
    index: dict[str, int] = {}
    positions = [
        np.array([index.setdefault(text, len(index)) for text in column], dtype=np.int64) for column in columns
    ]
    return list(index), positions


def _encode(
    model: Any, texts: list[Any], way: TextColumn, batch_size: int, show_progress: bool, view: View
) -> np.ndarray:
    """(m, d) float32 unit rows. Texts of like length go together, so that little of a batch is padding."""
    lengths = np.array([len(text) if isinstance(text, str) else 0 for text in texts])
    by_length = np.argsort(-lengths, kind="stable")
    pass_texts = _pass_dense if view is sentence_embedding else partial(_pass, view=view)
    embeddings: np.ndarray | None = None
    for start in range(0, len(texts), _ENCODE_TEXTS):
        chosen = by_length[start : start + _ENCODE_TEXTS]
        part = pass_texts(model, [texts[i] for i in chosen], way, batch_size, show_progress)
        if embeddings is None:
            embeddings = np.empty((len(texts), part.shape[1]), dtype=np.float32)
        # Scaled here, because in half precision the norms of `encode` are half a percent off.
        part = part.astype(np.float32, copy=False)
        embeddings[chosen] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return np.empty((0, 0), dtype=np.float32) if embeddings is None else embeddings


def _pass_dense(model: Any, texts: list[Any], way: TextColumn, batch_size: int, show_progress: bool) -> np.ndarray:
    """(m, d) embeddings, not scaled, by the host's own `encode`."""
    # An empty prompt keeps `encode` from adding the model's default prompt, which training never uses.
    embeddings: np.ndarray = model.encode(
        texts,
        prompt=way.prompt,
        task=way.task,
        batch_size=batch_size,
        convert_to_numpy=True,
        show_progress_bar=show_progress,
    )
    return embeddings


def _pass(
    model: Any, texts: list[Any], way: TextColumn, batch_size: int, show_progress: bool, *, view: View
) -> np.ndarray:
    """(m, d) of the view, not scaled. The host's `encode` would hold a whole vocabulary a text, or all its tokens."""
    options: dict[str, Any] = {} if way.max_length is None else {"max_length": way.max_length}
    route = {} if way.task is None else {"task": way.task}
    parts = []
    model.eval()
    for start in trange(0, len(texts), batch_size, desc="Batches", disable=not show_progress):
        chosen = texts[start : start + batch_size]
        features = model.preprocess(chosen, prompt=way.prompt or None, task=way.task, **options)
        with torch.inference_mode():
            seen = view(model(batch_to_device(features, model.device), **route))
        if seen is None:
            raise ValueError(f"the model's passes show nothing to plan on: {type(model).__name__} and {view!r}.")
        parts.append(seen.float().cpu().numpy())
    return np.concatenate(parts)


def _refuse_useless(embeddings: np.ndarray, texts: list[Any]) -> None:
    norms = np.linalg.norm(embeddings, axis=1)
    if (bad := np.flatnonzero(~np.isfinite(norms))).size:
        raise ValueError(
            f"{bad.size} of {len(texts)} distinct texts embed to NaN or infinity, for example {texts[bad[0]]!r:.120}. "
            "The model has diverged: lower the learning rate, or resume from an earlier checkpoint."
        )
    if (bad := np.flatnonzero(norms < 0.5)).size:
        raise ValueError(
            f"{bad.size} of {len(texts)} distinct texts embed to zero, for example {texts[bad[0]]!r:.120}. The tokenizer "
            "makes nothing of them: remove these rows from the training set."
        )


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Restores the mode of every single module afterwards: parts may differ, frozen ones for instance.

    Args:
        model: whose modules may be switched to evaluation mode meanwhile, as `encode` does.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
