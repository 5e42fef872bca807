"""Plans of more rows than memory holds: cells of near rows are cut first, and each is planned by itself.

In: embeddings, which may be memory maps, a planner and how much memory may be used. Out: an order of the rows.
A sample of the rows is cut into cells by the first levels of a bisection; one pass over all rows sends each down the same
bisectors, and writes what the planner needs of it to disk, cell by cell; then each cell is read and planned. What fills
no batch in its cell is planned together at the end, so that no batch is short.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.mapped_rows import ReleasedRows, forget_pages, map_of
from gcbs_st.planners.algorithms.spill import BUFFERED, RowContent, Spill, check_room
from gcbs_st.planners.algorithms.trees import DIMS, CellTree, cut_cells, find_axes, find_cells
from gcbs_st.planners.base import (
    BasePlanner,
    Planner,
    abilities_of,
    check_rows,
    check_shapes,
    configured,
    count_threads,
    order_checked_rows,
)

_CHUNK_ROWS = 2048
# Rows that the bisectors are found on, and the least of each cell, which then differ by a few percent in size.
_SAMPLE_ROWS, _SAMPLE_PER_CELL = 65536, 256
# A cell is planned for that many times its mean number of rows; what is larger all the same is cut by its rows' numbers.
_SPREAD = 1.2
# Of each row, in the result and while the rows are sorted by their cells.
_BYTES_PER_ROW = 32
# Whatever is planned, numba and BLAS take so much for themselves.
_OVERHEAD = 128 * 2**20


def plan_in_cells(
    planner: Planner,
    anchors: np.ndarray,
    positives: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    memory_budget: int,
    folder: Path | None = None,
) -> np.ndarray:
    """Returns a planner's order of rows, while the process holds at most `memory_budget` bytes.

    `anchors` and `positives` are (n, d) floats, which may be memory maps. Where embeddings and plan fit, the order is
    the planner's own. Otherwise it is made cell by cell, from a copy of the rows on disk, a quarter of a kilobyte each
    for `bisect` and as large as the embeddings for others, in a file of `folder`, the system's for temporary ones if
    None, that is gone when the process is. What the process holds when it is called counts as well.

    Raises a ValueError for input that cannot be planned, see `check_pairs`, for a budget that holds not even small
    cells, and for a folder without room.

    Cost beside the planner's own: O(n d 128) time, and reading the embeddings once.
    """
    check_shapes(anchors, positives, batch_size)
    n, d = anchors.shape
    sides = [anchors] if positives is anchors else [anchors, positives]
    # What is in memory already counts with the process; what is mapped would come on top.
    mapped = sum(side.nbytes for side in sides if map_of(side) is not None)
    free = memory_budget - psutil.Process().memory_info().rss - _OVERHEAD
    if mapped + _bytes_needed(planner, n, d) <= free or n <= 2 * batch_size:
        return np.asarray(planner.plan(anchors, positives, batch_size, rng))
    content = _content_of(planner, anchors, positives)
    most = _most_rows(planner, content, n, d, free, memory_budget, batch_size)
    return plan_by_cells(planner, anchors, positives, batch_size, rng, most_rows=most, folder=folder)


def plan_by_cells(
    planner: Planner,
    anchors: np.ndarray,
    positives: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    most_rows: int,
    folder: Path | None = None,
) -> np.ndarray:
    """Returns what `plan_in_cells` returns, from cells of at most `most_rows` rows."""
    n = len(anchors)
    content = _content_of(planner, anchors, positives)
    cells = math.ceil(n / most_rows * _SPREAD)
    check_room(folder, n * content.row_bytes)
    with tempfile.TemporaryFile(dir=folder) as file:
        tree, axes = _grow_tree(anchors, positives, cells, rng)
        spill = Spill(file, cells, content, n)
        threads = count_threads(getattr(planner, "threads", 0))
        of_row = np.empty(n, np.uint16 if cells < 2**16 else np.int32)
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
            for rows, found, arrays in _route(anchors, positives, axes, tree, content, pool, threads):
                of_row[rows] = found
                spill.add(found, arrays)
        spill.flush()
        return _plan_cells(planner, of_row, spill, most_rows, batch_size, rng)


def plan_cell(  # noqa: PLR0913 - what a plan needs, and which cell it is of
    planner: Planner,
    anchors: np.ndarray,
    positives: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    number: int,
    against: Contradictions | None,
) -> np.ndarray:
    """Returns (m,) int64, the planner's order of a cell of m rows, with these checked (m, d) embeddings.

    The order depends on the plan's `seed` and the `number` of the cell, and not on who plans it when. `against` are the
    contradictions of the cell's own rows.
    """
    if against:
        planner = configured(planner, contradictions=against)
    return order_checked_rows(planner, anchors, positives, batch_size, np.random.default_rng([seed, number]))


def _bytes_needed(planner: Planner, row_count: int, dimensions: int) -> int:
    """What a planner says that it takes, or what most take."""
    asked = getattr(planner, "bytes_needed", BasePlanner().bytes_needed)
    return int(asked(row_count, dimensions))


def _content_of(planner: Planner, anchors: np.ndarray, positives: np.ndarray) -> RowContent:
    """What is written of each row: the pair on the main axes where that is all the planner looks at, or the embeddings."""
    d = anchors.shape[1]
    if abilities_of(planner).plans_on_axes:
        return RowContent((min(d, DIMS),), np.dtype(np.float16), True)
    return RowContent((d,) if positives is anchors else (d, d), np.result_type(anchors, positives), False)


def _most_rows(
    planner: Planner, content: RowContent, n: int, d: int, free: int, memory_budget: int, batch_size: int
) -> int:
    """The rows of a cell that a plan has memory for, a multiple of the batch size."""
    width = max(content.widths) if content.on_axes else d
    # Chunks under way, in both precisions, and the sample.
    threads = count_threads(getattr(planner, "threads", 0))
    passing = 3 * threads * _CHUNK_ROWS * (12 * d + 8 * DIMS) + _SAMPLE_ROWS * 4 * (DIMS + 2 * d)
    left = free - n * _BYTES_PER_ROW - BUFFERED
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        enough = middle * content.row_bytes + _bytes_needed(planner, middle, width) <= left
        low, high = (middle, high) if enough else (low, middle - 1)
    least = 2 * batch_size
    if low < least or passing > free:
        small = least * content.row_bytes + _bytes_needed(planner, least, width)
        needed = memory_budget - free + n * _BYTES_PER_ROW + BUFFERED + max(small, passing)
        raise ValueError(
            f"memory_budget: got {memory_budget / 1e9:.2f} GB, expected at least {needed / 1e9:.2f} GB for {n} rows of {d} "
            f"dimensions in batches of {batch_size}: cells are no smaller than two batches, and what the process holds "
            "already counts. Give more, or make the batches smaller."
        )
    return low // batch_size * batch_size


def _grow_tree(
    anchors: np.ndarray, positives: np.ndarray, cells: int, rng: np.random.Generator
) -> tuple[CellTree, np.ndarray | None]:
    """The bisectors of cells of a sample, and the axes that they are on."""
    n = len(anchors)
    picked = np.sort(rng.choice(n, min(n, max(_SAMPLE_ROWS, _SAMPLE_PER_CELL * cells)), replace=False))
    left, right = (
        check_rows(ReleasedRows(side)[picked], f"embeddings, {len(picked)} rows drawn at random")
        for side in (anchors, positives)
    )
    with threadpool_limits(1, "blas"):
        axes = find_axes(left, right, np.arange(len(picked)), rng)
        points = _on_axes(left, right, axes)
    bounds = np.linspace(0, len(picked), cells + 1).astype(int)
    return cut_cells(points, np.diff(bounds).tolist(), rng)[1], axes


def _on_axes(anchors: np.ndarray, positives: np.ndarray, axes: np.ndarray | None) -> np.ndarray:
    pairs = np.add(anchors, positives, dtype=np.float32)
    return pairs if axes is None else pairs @ axes


def _read(array: np.ndarray, rows: slice) -> np.ndarray:
    """Unit rows, checked, in memory."""
    return check_rows(np.array(array[rows]), f"embeddings, rows {rows.start} to {rows.stop - 1}")


def _route(  # noqa: PLR0913 - one pass, with all that it needs
    anchors: np.ndarray,
    positives: np.ndarray,
    axes: np.ndarray | None,
    tree: CellTree,
    content: RowContent,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[tuple[slice, np.ndarray, list[np.ndarray]]]:
    """Yields for each chunk of rows where it lies, the cell of each row, and what is to be written of it."""

    def chunk(start: int) -> tuple[slice, np.ndarray, list[np.ndarray]]:
        rows = slice(start, min(start + _CHUNK_ROWS, len(anchors)))
        left = _read(anchors, rows)
        right = left if positives is anchors else _read(positives, rows)
        points = _on_axes(left, right, axes)
        found = find_cells(points, tree)
        # Halves, so that the sum of a row with itself is the pair again.
        arrays = [points / 2] if content.on_axes else [left, right][: len(content.widths)]
        return rows, found, [array.astype(content.dtype, copy=False) for array in arrays]

    starts = range(0, len(anchors), _CHUNK_ROWS)
    window = 2 * threads
    for first in range(0, len(starts), window):
        yield from pool.map(chunk, starts[first : first + window])
        forget_pages(anchors, positives)


def _plan_cells(
    planner: Planner, of_row: np.ndarray, spill: Spill, most: int, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """The order of all rows, whose cells are on disk."""
    once = abilities_of(planner).covers_each_row_once
    order = np.empty(len(of_row), np.int64)
    end, seed, number = 0, int(rng.integers(2**31)), 0
    told: Contradictions | None = getattr(planner, "contradictions", None)

    def plan(rows: np.ndarray, arrays: Sequence[np.ndarray], number: int) -> np.ndarray:
        against = told.of(rows) if told else None
        return plan_cell(planner, arrays[0], arrays[-1], batch_size, seed=seed, number=number, against=against)

    left_rows: list[np.ndarray] = []
    left_arrays: list[list[np.ndarray]] = []
    by_cell = np.argsort(of_row, kind="stable")
    bounds = np.cumsum([0, *np.bincount(of_row)])
    for cell, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        members = by_cell[low:high]
        # Rows of one text all go one way: a cell may hold more than its share, and alike rows need no plan.
        for part in np.array_split(np.arange(len(members)), max(1, -(-len(members) // most))):
            if len(part) == 0:
                continue
            rows = members[part]
            arrays = []  # before the next ones are read
            arrays = spill.read(cell, int(part[0]), int(part[-1]) + 1)
            planned = plan(rows, arrays, number)
            whole = len(planned) // batch_size * batch_size
            order[end : end + whole] = rows[planned[:whole]]
            end, number = end + whole, number + 1
            if once:
                rest = np.sort(planned[whole:])
                left_rows.append(rows[rest])
                left_arrays.append([array[rest] for array in arrays])
    if once:
        rows = np.concatenate(left_rows)
        arrays = [np.concatenate(parts) for parts in zip(*left_arrays, strict=True)]
        order[end:] = rows[plan(rows, arrays, number)]
        end = len(order)
    return order[:end]
