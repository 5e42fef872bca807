"""Rows of memory maps, read without staying in the process's memory: an array in, copies of some of its rows out."""

from __future__ import annotations

import mmap

import numpy as np

# Rows that lie apart and are read at a time: with each of them the system maps its whole neighbourhood, 64 KB.
_SCATTERED_ROWS = 256


class ReleasedRows:
    """Rows of a memory map, which are read where they are asked for and do not stay in the process's memory.

    >>> ReleasedRows(np.eye(3))[np.array([2, 0])].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of (m,) numbers, a copy."""
        found = np.empty((len(rows), self.shape[1]), self._array.dtype)
        for start in range(0, len(rows), _SCATTERED_ROWS):
            part = rows[start : start + _SCATTERED_ROWS]
            found[start : start + len(part)] = self._array[part]
            forget_pages(self._array)
        return found


def map_of(array: np.ndarray) -> mmap.mmap | None:
    """Returns the memory map that an array is a part of, or None."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def forget_pages(*arrays: np.ndarray) -> None:
    """Gives back the pages of memory maps that were read, which would count as memory of the process."""
    for array in arrays:
        found = map_of(array)
        # What was written to a map of its own ("c") would be lost with its pages.
        if (
            found is not None
            and not (isinstance(array, np.memmap) and array.mode == "c")
            and hasattr(mmap, "MADV_DONTNEED")
        ):
            found.madvise(mmap.MADV_DONTNEED)
