"""Embeddings that do not change while a model trains: made once, and kept on disk for every later run.

They are those of the model that training began with, or of a reference model. The key of what is kept on disk holds
all that the embeddings depend on: weights, architecture, tokenizer, texts, prompts, precision.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset

from gcbs_st.embeddings.encode import Collate
from gcbs_st.embeddings.views import View, sentence_embedding
from gcbs_st.files import cache_folder, read_json, whole_file, write_json
from gcbs_st.rows.columns import TextColumn, read_columns

logger = logging.getLogger(__name__)

# Of unit rows a number in half precision is off by 0.0005 at most, less than the passes of bfloat16 are.
_DTYPE = np.dtype(np.float16)
_DESCRIPTION = "view.json"
_READ_ROWS = 10_000


@dataclass(frozen=True)
class Embedder:
    """A model, and how it embeds the rows of the training set."""

    model: Any  # unwrapped
    columns: Mapping[str, Sequence[TextColumn]]  # that it embeds, by name of the dataset, with their prompts
    view: View = sentence_embedding  # what is planned on of the outputs of a pass
    collate: Collate | None = None  # makes the features of rows, see `SourceOptions`
    # That the model embeds with, where it has others meanwhile: those that a resumed run began with. None for its own.
    weights: Mapping[str, torch.Tensor] | None = None

    @contextmanager
    def with_own_weights(self) -> Iterator[None]:
        """Gives the model its `weights`, and back those that it has, bit by bit."""
        if self.weights is None:
            yield
            return
        present = copy_weights(self.model)
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(present)


class FixedView:
    """The unit rows of all texts by a model that does not change.

    `name` is for messages. `digest` is that of the model's weights, None to compute it; `only_on_disk` says that these
    are gone, so that nothing can be embedded. Rows are read from files, which several runs may share, or from memory
    where nothing may be kept on disk: rows that a collator of the user's makes, pictures and the like.
    """

    def __init__(
        self, name: str, embedder: Embedder, digest: str | None = None, *, only_on_disk: bool = False
    ) -> None:
        self.name, self.embedder, self.only_on_disk = name, embedder, only_on_disk
        self.digest = weights_digest(embedder.model.state_dict()) if digest is None else digest
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._useful: dict[str, np.ndarray] = {}
        self._norms: dict[str, float] = {}

    def release(self) -> None:
        """Lets go of the model, which nobody asks again."""
        self.embedder = replace(self.embedder, model=None, weights=None)

    def forget(self, name: str) -> None:
        """Forgets a dataset, whose rows are others from now on."""
        self._arrays.pop(name, None)

    def has(self, name: str) -> bool:
        """Returns whether there are embeddings of a dataset."""
        return name in self._arrays

    def open(self, name: str, key: str | None) -> bool:
        """Opens what an earlier run has kept of a dataset under a key; returns whether there was anything."""
        if key is None:
            return False
        folder = _folder(key)
        try:
            described = read_json(folder / _DESCRIPTION, dict)
            files = [np.load(folder / _file(number), mmap_mode="r") for number in range(int(described["files"]))]
            self._take(name, [files[number] for number in described["columns"]], float(described["mean_square_norm"]))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            if (folder / _DESCRIPTION).exists():
                logger.warning("The embeddings in %s are made anew: %s", folder, error)
            return False
        return True

    def keep(self, name: str, key: str | None, arrays: Sequence[np.ndarray], mean_square_norm: float) -> None:
        """Takes one (n, d) array of unit rows for each column of a dataset, and keeps them on disk under a key.

        Rounded to half precision either way, so that a run which finds them plans what the one that made them planned.
        """
        distinct = list({id(array): array for array in arrays}.values())
        rounded = [array.astype(_DTYPE) for array in distinct]
        columns = [next(i for i, one in enumerate(distinct) if one is array) for array in arrays]
        self._take(name, [rounded[number] for number in columns], mean_square_norm)
        if key is None:
            return
        folder = _folder(key)
        try:
            for number, array in enumerate(rounded):
                with whole_file(folder / _file(number)) as file:
                    np.save(file, array)
            facts = {"files": len(rounded), "columns": columns, "mean_square_norm": mean_square_norm}
            write_json(folder / _DESCRIPTION, facts)  # last: it says that the others are whole
        except OSError as error:
            logger.warning("The embeddings of %s are not kept for later runs: %s", self.name, error)

    def _take(self, name: str, arrays: list[np.ndarray], mean_square_norm: float) -> None:
        with_text = np.ones(len(arrays[0]), bool)
        for array in arrays:
            for start in range(0, len(array), _READ_ROWS):
                with_text[start : start + _READ_ROWS] &= array[start : start + _READ_ROWS].any(axis=1)
        self._arrays[name], self._useful[name], self._norms[name] = arrays, with_text, mean_square_norm

    def without_text(self, name: str) -> np.ndarray:
        """Returns the rows of a dataset one of whose texts has no embedding."""
        return np.flatnonzero(~self._useful[name])

    def useful(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Returns (m,) bool, whether all texts of some rows have an embedding."""
        return self._useful[name][rows]

    def read(self, name: str, rows: np.ndarray) -> list[np.ndarray]:
        """Returns one (m, d) float32 array for each column of the (m,) rows; one object where columns are alike."""
        read: dict[int, np.ndarray] = {}
        found = []
        for array in self._arrays[name]:
            if id(array) not in read:
                read[id(array)] = array[rows].astype(np.float32)
            found.append(read[id(array)])
        return found

    def mean_square_norm(self, name: str) -> float:
        """Returns the mean squared norm of the embeddings of a dataset before they became unit rows."""
        return self._norms[name]


def view_key(
    view: FixedView, name: str, dataset: Dataset, autocast: Callable[[], AbstractContextManager[Any]]
) -> str | None:
    """Returns a name that only these embeddings have; None where their texts cannot be told from others.

    That is so of pictures and the like, and of texts that a collator of the user's makes.
    """
    embedder = view.embedder
    columns = embedder.columns[name]
    if embedder.collate is not None:
        return None
    texts = _hash_texts(dataset, [column.name for column in columns])
    if texts is None:
        return None
    described = {
        "weights": view.digest,
        "model": describe_model(embedder.model),
        "view": ""
        if embedder.view is sentence_embedding
        else getattr(embedder.view, "__qualname__", repr(embedder.view)),
        "texts": texts,
        "columns": [{**asdict(column), "name": ""} for column in columns],
        "precision": _precision(embedder.model, autocast),
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of a model's weights, in main memory."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def weights_digest(state: Mapping[str, Any]) -> str:
    """Returns a hash of a model's weights, whatever device they are on."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _write_tokenizer(backend: Any, bare: bool) -> str:
    """What a tokenizer does, as text, the same before and after it was used.

    transformers sets the truncation and padding of its tokenizers at each call, to what the model asks for. Those of a
    `bare` one, of a static model, are its own.
    """
    content = json.loads(backend.to_str())
    for key in ("padding", *(() if bare else ("truncation",))):
        content.pop(key, None)
    return json.dumps(content)


def describe_model(model: Any) -> list[str]:
    """Returns what else than its weights says what a model makes of a text: its modules and its tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    written = _write_tokenizer(backend, tokenizer is backend) if hasattr(backend, "to_str") else repr(tokenizer)
    prompts = [getattr(model, "prompts", None), getattr(model, "default_prompt_name", None)]
    return [
        type(model).__name__,
        repr(model),
        str(getattr(model, "max_seq_length", None)),
        repr(prompts),
        xxhash.xxh3_128_hexdigest(written.encode(errors="surrogatepass")),
    ]


def _precision(model: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> str:
    device = getattr(model, "device", torch.device("cpu")).type
    with autocast():
        return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "none"


def _hash_texts(dataset: Dataset, names: Sequence[str]) -> str | None:
    """A hash of texts as the training loader reads them; None where they are something else than text."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(dataset), _READ_ROWS):
        rows = np.arange(start, min(start + _READ_ROWS, len(dataset)))
        for column in read_columns(dataset, rows, names):
            if not all(isinstance(text, str) for text in column):
                return None
            digest.update(json.dumps(column).encode())
    return digest.hexdigest()


def _folder(key: str) -> Path:
    return cache_folder() / "embeddings" / key


def _file(number: int) -> str:
    return f"column-{number}.npy"
