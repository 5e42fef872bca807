"""The embedding store: one array of unit rows per text column and the step at which each row was embedded.

The arrays lie in memory, or in files of the run's folder that the ranks of one node share: rows are written there
with plain writes, not through a memory map, so that resident memory stays small however many rows there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcbs_st.embeddings.views import View, sentence_embedding
from gcbs_st.rows.columns import TextColumn

NEVER = -1
_DESCRIPTION, _STEPS = "store.json", "steps.i32"


class EmbeddingStore:
    """Embeddings of n rows and their ages, of as many arrays as there are text columns.

    A row has one age for all columns, since all its texts take part in the same step. The width of the arrays is that
    of the first rows written. Embeddings of another `key`, see `make_key`, are refused. `dtype` is "float32" or
    "float16"; `folder` is for the files, which all ranks of a node may share, None to hold the arrays in memory.

        >>> import numpy as np
        >>> store = EmbeddingStore(rows=4, columns=2, key="pairs")
        >>> store.write(np.array([2]), [np.ones((1, 3)), np.ones((1, 3))], step=7)
        >>> store.steps().tolist()
        [-1, -1, 7, -1]
    """

    def __init__(
        self, rows: int, columns: int, key: str, *, dtype: str = "float32", folder: str | Path | None = None
    ) -> None:
        self.rows, self.columns, self.key, self.dtype = rows, columns, key, np.dtype(dtype)
        self.folder = None if folder is None else Path(folder)
        self.dim: int | None = None
        self._arrays: list[np.ndarray] = []
        self._steps: np.ndarray = np.zeros(0, np.int32)
        self._files: list[int] = []
        # Sum of squared norms, before they were scaled to unit rows, and their number.
        self.squares, self.squares_count = 0.0, 0

    def clear(self) -> None:
        """Forgets all rows, and deletes the files."""
        self.close()
        self.dim, self._arrays, self._steps = None, [], np.zeros(0, np.int32)
        self.squares, self.squares_count = 0.0, 0
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Closes the files, which stay as they are."""
        for file in self._files:
            os.close(file)
        self._files = []

    def write(self, rows: np.ndarray, arrays: Sequence[np.ndarray], step: int | np.ndarray) -> None:
        """Stores one (m, d) array of unit rows per column; of a row that is given twice the last one counts.

        `step` is the number of optimizer steps that the model had taken, one for all rows or (m,). Raises a ValueError
        for another number of columns, rows outside 0..n-1, or another width than before.
        """
        if len(arrays) != self.columns or any(array.shape != (len(rows), arrays[0].shape[1]) for array in arrays):
            raise ValueError(
                f"got arrays of {[array.shape for array in arrays]}, expected {self.columns} of ({len(rows)}, d)."
            )
        if len(rows) == 0:
            return
        if rows.min() < 0 or rows.max() >= self.rows:
            raise ValueError(f"got rows {rows.min()} to {rows.max()}, expected 0 to {self.rows - 1}.")
        self._open(arrays[0].shape[1])
        if arrays[0].shape[1] != self.dim:
            raise ValueError(f"got embeddings of {arrays[0].shape[1]} dimensions, expected {self.dim} as before.")
        if self.folder is None:
            for own, array in zip(self._arrays, arrays, strict=True):
                own[rows] = array
            self._steps[rows] = step + 1
            return
        # The ages last: a row whose writing was cut short still has its old one.
        ages = np.broadcast_to(np.asarray(step + 1, np.int32), len(rows))
        for file, array in zip(self._files, [*(np.asarray(one, self.dtype) for one in arrays), ages], strict=True):
            for row, value in zip(rows.tolist(), array, strict=True):
                os.pwrite(file, value.tobytes(), row * value.nbytes)

    def steps(self) -> np.ndarray:
        """Returns (n,) int64: the step at which each row was embedded, -1 for never."""
        if not self._attach():
            return np.full(self.rows, NEVER, np.int64)
        stored = self._steps if self.folder is None else np.fromfile(self.folder / _STEPS, np.int32)
        return stored.astype(np.int64) - 1

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns one (m, d) array per column for ascending rows that were written before; not to be written to.

        Where all rows are asked for it is a map of the file. Raises a ValueError if nothing was written yet.
        """
        if not self._attach():
            raise ValueError("no row was embedded yet.")
        arrays = self._arrays
        if self.folder is not None:
            arrays = _map_columns(self.folder, self.dtype, self.columns, (self.rows, self.dim or 0))
        return arrays if len(rows) == self.rows else [array[rows] for array in arrays]

    def save(self, folder: Path) -> None:
        """Writes all of it into a folder whose name is taken on last, so that a folder that is there is whole."""
        staged = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        described = {
            "key": self.key,
            "rows": self.rows,
            "columns": self.columns,
            "dtype": self.dtype.name,
            "dim": self.dim if self._attach() else None,
            "squares": [self.squares, self.squares_count],
        }
        if described["dim"] is not None:
            for column in range(self.columns):
                if self.folder is None:
                    self._arrays[column].tofile(staged / _column(column))
                else:
                    shutil.copyfile(self.folder / _column(column), staged / _column(column))
            (self.steps() + 1).astype(np.int32).tofile(staged / _STEPS)
        (staged / _DESCRIPTION).write_text(json.dumps(described))
        shutil.rmtree(folder, ignore_errors=True)
        staged.replace(folder)

    def load(self, folder: Path) -> None:
        """Takes what `save` wrote.

        Raises a ValueError if it is missing, damaged, or of another dataset, model or form; the store is empty then.
        """
        self.clear()
        try:
            described: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not there or is damaged ({type(error).__name__})") from None
        for name in ("key", "rows", "columns"):
            if described.get(name) != getattr(self, name):
                raise ValueError(f"{folder} has the {name} {described.get(name)}, but this run {getattr(self, name)}")
        if described.get("dtype") != self.dtype.name:
            raise ValueError(f"{folder} is {described.get('dtype')}, but this run stores {self.dtype.name}")
        self.squares, self.squares_count = described.get("squares", (0.0, 0))
        if described["dim"] is None:
            return
        dim = int(described["dim"])
        _refuse_cut(folder, self._sizes(dim))
        if self.folder is None:
            self.dim = dim
            files = [folder / _column(column) for column in range(self.columns)]
            self._arrays = [np.fromfile(file, self.dtype).reshape(self.rows, dim) for file in files]
            self._steps = np.fromfile(folder / _STEPS, np.int32)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            shutil.copyfile(file, self.folder / file.name)
        self._open(dim)

    def _open(self, dim: int) -> None:
        """Makes room for rows of `dim` numbers, unless there is."""
        if self.dim is not None:
            return
        self.dim = dim
        if self.folder is None:
            self._arrays = [np.zeros((self.rows, dim), self.dtype) for _ in range(self.columns)]
            self._steps = np.zeros(self.rows, np.int32)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, size in self._sizes(dim).items():
            # Other ranks may open the same files: nothing that is there is cut off or overwritten.
            file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            if os.fstat(file).st_size != size:
                os.ftruncate(file, size)
            self._files.append(file)

    def _sizes(self, dim: int) -> dict[str, int]:
        return _file_sizes(self.rows, self.columns, dim * self.dtype.itemsize)

    def _attach(self) -> bool:
        """Opens files that another process of the node has made; returns whether there are any rows."""
        if self.dim is None and self.folder is not None and (self.folder / _STEPS).is_file():
            size = (self.folder / _column(0)).stat().st_size
            self._open(size // (self.rows * self.dtype.itemsize))
        return self.dim is not None


def _column(column: int) -> str:
    return f"column-{column}.bin"


def _file_sizes(rows: int, columns: int, row_bytes: int) -> dict[str, int]:
    """Returns the bytes of each file of a store."""
    return {**{_column(column): rows * row_bytes for column in range(columns)}, _STEPS: rows * 4}


def _refuse_cut(folder: Path, sizes: dict[str, int]) -> None:
    for name, expected in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != expected:
            raise ValueError(f"{folder / name} holds {found} bytes, expected {expected}")


def _map_columns(folder: Path, dtype: np.dtype[Any], columns: int, shape: tuple[int, int]) -> list[np.ndarray]:
    return [np.memmap(folder / _column(column), dtype, "r", shape=shape) for column in range(columns)]


def read_saved_store(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns what `EmbeddingStore.save` wrote, without taking it for training: nothing is copied or changed.

    That is one (n, d) map of a file per column, none before the first write, and (n,) int64 steps, -1 for never.
    Raises a ValueError if it is missing or damaged.
    """
    try:
        described = json.loads((folder / _DESCRIPTION).read_text())
        rows, columns, dim = int(described["rows"]), int(described["columns"]), described["dim"]
        if dim is None:
            return [], np.full(rows, NEVER, np.int64)
        dtype = np.dtype(described["dtype"])
        _refuse_cut(folder, _file_sizes(rows, columns, int(dim) * dtype.itemsize))
        arrays = [np.asarray(array) for array in _map_columns(folder, dtype, columns, (rows, int(dim)))]
        return arrays, np.fromfile(folder / _STEPS, np.int32).astype(np.int64) - 1
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is not there or is damaged ({type(error).__name__}: {error})") from None


def make_key(fingerprint: str, name: str, columns: Sequence[TextColumn], model: torch.nn.Module, view: View) -> str:
    """Returns a text that other rows, columns, prompts, another architecture or view of it would not have.

    `fingerprint` and `name` are those of the training set and the dataset; other weights have the same key.
    """
    shapes = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    texts = [asdict(column) for column in columns]
    for text in texts:
        if text["max_length"] is None:  # as in the checkpoints of before there was one
            del text["max_length"]
    described = [fingerprint, name, texts, shapes]
    if view is not sentence_embedding:
        described.append(getattr(view, "__qualname__", repr(view)))  # a function's repr is another one in each process
    return hashlib.sha1(json.dumps(described).encode(), usedforsecurity=False).hexdigest()
