"""Rows that wait on disk until their cell is planned: chunks of rows of many cells in, the rows of one cell out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

# Bytes that wait in memory to be written, of all cells together.
BUFFERED = 64 * 2**20


class RowContent(NamedTuple):
    """What a planner needs of each row, as it is written to disk."""

    widths: tuple[int, ...]  # numbers per row, of each array
    dtype: np.dtype
    on_axes: bool  # the pair on the main axes, and not the embeddings

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(self.widths) * self.dtype.itemsize


class Spill:
    """Rows on disk, cell by cell, in the order in which they came.

    The file is a row of extents, each of one cell and written when it is full.
    """

    def __init__(self, file: IO[bytes], cells: int, content: RowContent, row_count: int) -> None:
        self._file, self._content = file, content
        self._rows = max(1, min(BUFFERED // (cells * content.row_bytes), row_count))  # per extent
        self._buffers: list[list[list[np.ndarray]]] = [[] for _ in range(cells)]
        self._waiting = np.zeros(cells, np.int64)
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(cells)]  # where each begins, and its rows
        self._end = 0

    def add(self, cells: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        """Takes the (m, width) arrays of rows and their (m,) cells."""
        order = np.argsort(cells, kind="stable")
        held = cells[order]
        bounds = np.flatnonzero(np.diff(held, prepend=-1, append=-2))
        for low, high in zip(bounds[:-1], bounds[1:], strict=True):
            cell = int(held[low])
            self._buffers[cell].append([array[order[low:high]] for array in arrays])
            self._waiting[cell] += high - low
            if self._waiting[cell] >= self._rows:
                self._write(cell)

    def flush(self) -> None:
        """Writes what still waits."""
        for cell in np.flatnonzero(self._waiting):
            self._write(int(cell))

    def _write(self, cell: int) -> None:
        count = int(self._waiting[cell])
        for parts in zip(*self._buffers[cell], strict=True):
            self._file.write(np.concatenate(parts).tobytes())
        self._extents[cell].append((self._end, count))
        self._end += count * self._content.row_bytes
        self._buffers[cell], self._waiting[cell] = [], 0

    def read(self, cell: int, first: int, last: int) -> list[np.ndarray]:
        """Returns the (last - first, width) arrays of some rows of a cell, by their places in it."""
        arrays = [np.empty((last - first, width), self._content.dtype) for width in self._content.widths]
        place = 0  # of the extent's first row
        for begins, count in self._extents[cell]:
            low, high = max(first, place), min(last, place + count)
            if low < high:
                at = begins
                for array, width in zip(arrays, self._content.widths, strict=True):
                    bytes_each = width * self._content.dtype.itemsize
                    self._file.seek(at + (low - place) * bytes_each)
                    self._file.readinto(array[low - first : high - first].view(np.uint8))  # type: ignore[attr-defined]
                    at += count * bytes_each
            place += count
        return arrays


def check_room(folder: Path | None, needed: int) -> None:
    """Raises a ValueError where the rows' copy does not fit on the disk."""
    where = Path(tempfile.gettempdir() if folder is None else folder)
    room = shutil.disk_usage(where).free
    if room < needed:
        raise ValueError(
            f"folder: {where} has {room / 1e9:.1f} GB left, expected at least {needed / 1e9:.1f} GB, for a copy of what is "
            "planned on. Name a folder of a larger disk, or give more memory."
        )
