"""What the ranks of a run tell each other: the only module with collectives.

They are accelerate's, and torch's own where accelerate has none. Every function has to be called by all ranks
alike, and costs nothing where there is one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather, gather_object

Value = TypeVar("Value")

# All ranks receive what is gathered and all but one drop it: this many rows at a time.
_GATHERED_ROWS = 8192


def on_one_node(ranks: int) -> bool:
    """Returns whether all ranks run on this node, and so see the same files."""
    return ranks == 1 or int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == ranks


def wait_for_all(ranks: int) -> None:
    """Waits until every process gets here."""
    if ranks > 1:
        PartialState().wait_for_everyone()


@contextmanager
def failing_together(what: str, ranks: int) -> Iterator[None]:
    """Runs a stretch of work; where it fails on one process, all raise, and none waits for the one that failed.

    In between there may be collectives only where every process leaves them alike, as `failing_together` itself.
    `what` is done, as "planning", for the message of the RuntimeError, which also holds the failed process's error.
    """
    if ranks == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failures = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise RuntimeError(f"{what} failed on rank {rank} (its traceback says where): {failure}")


def agree(value: Value, ranks: int) -> Value:
    """Returns the main process's value, anything that can be pickled; the others' values are ignored."""
    if ranks == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def agree_on_rows(rows: np.ndarray, ranks: int, device: torch.device) -> np.ndarray:
    """Returns the main process's (m,) int64 row ids, m being the same everywhere."""
    if ranks == 1:
        return rows
    agreed: Any = broadcast(torch.from_numpy(rows).to(device))
    return np.asarray(agreed.cpu().numpy())


def gather_rows(rows: np.ndarray, ranks: int, device: torch.device) -> np.ndarray:
    """Returns the rows of all ranks one after the other on the main process, and none on the others.

    `rows` are (m, ...) with an m of each process's own. Memory: all rows on the main process; on the others 8,192 of
    each process.
    """
    if ranks == 1:
        return rows
    shapes = gather_object([(len(rows), rows.shape[1:], rows.dtype.str)])
    # A process without rows may not know their width.
    _, width, dtype = max(shapes)
    counts = [count for count, _, _ in shapes]
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    main = PartialState().is_main_process
    for start in range(0, max(counts), _GATHERED_ROWS):
        piece = np.zeros((min(_GATHERED_ROWS, max(counts) - start), *width), dtype)
        if len(own := rows[start : start + len(piece)]):
            piece[: len(own)] = own
        gathered: Any = gather(torch.from_numpy(piece).to(device))
        pieces = gathered.cpu().numpy().reshape(ranks, *piece.shape)
        for part, received, count in zip(parts, pieces, counts, strict=True):
            if main and count > start:
                part.append(received[: count - start].copy())
    kept = [piece for part in parts for piece in part]
    return np.concatenate(kept) if kept else np.zeros((0, *width), dtype)


def scatter_rows(rows: np.ndarray | None, counts: Sequence[int], device: torch.device) -> np.ndarray:
    """Returns this process's share of the main process's rows, where there are several ranks.

    `rows` are (sum of `counts`, ...) on the main process, one share after the other, and None on the others; `counts`
    are the rows of each process, the same everywhere. Memory: its own rows, and 8,192 for each process on the main
    one.
    """
    shape: Any = None if rows is None else (rows.shape[1:], rows.dtype.str)
    width, dtype = agree(shape, len(counts))
    starts, rank = np.cumsum([0, *counts]), dist.get_rank()
    own = np.empty((counts[rank], *width), dtype)
    for start in range(0, max(counts), _GATHERED_ROWS):
        size = min(_GATHERED_ROWS, max(counts) - start)
        received = torch.from_numpy(np.zeros((size, *width), dtype)).to(device)
        sent = None
        if rows is not None:
            pieces = np.zeros((len(counts), size, *width), dtype)
            for piece, first, count in zip(pieces, starts, counts, strict=False):
                piece[: max(0, count - start)] = rows[first + start : first + min(count, start + size)]
            sent = list(torch.from_numpy(pieces).to(device))
        dist.scatter(received, sent, src=0)
        own[start : start + size] = received.cpu().numpy()[: max(0, counts[rank] - start)]
    return own


def fair_threads(ranks: int) -> int:
    """Returns how many threads this process may start beside those that run on the same cores, at least 1."""
    own = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
    everyone = gather_object([own]) if ranks > 1 else [own]
    return max(1, len(own[1]) // everyone.count(own))
