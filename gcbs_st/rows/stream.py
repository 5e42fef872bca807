"""Rows that can only be streamed, in windows: one is read while the rows of the one before are drawn."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import xxhash
from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class Window:
    """Successive rows of a stream."""

    number: int  # of the window in its pass over the stream, from 0
    first: int  # rows of the pass before it
    rows: list[dict[str, Any]]  # as the stream gives them
    dataset: Dataset  # the same rows, which can be read by number
    digest: str  # that other rows would not have
    state: dict[str, Any] | None  # of the stream before its first row, None where it tells none


def read_windows(
    stream: IterableDataset, size: int, *, number: int = 0, first: int = 0, state: Mapping[str, Any] | None = None
) -> Iterator[Window]:
    """Yields windows of `size` rows, the last one with what is left, from the window `number` on.

    `first` are the rows before it, which are read and dropped unless `state`, that of the stream, leads past them.
    The next window is read by a thread of its own as soon as one is handed out. Raises a ValueError for a row that has
    other columns than the first one.
    """
    rows = _iterate(stream, state)
    if state is None:
        for _ in islice(rows, first):
            pass
    columns: list[str] = []
    begun, ended = False, threading.Event()
    rows = takewhile(lambda _: not ended.is_set(), rows)

    def read(number: int, first: int) -> Window | None:
        nonlocal begun
        before = state if not begun else stream.state_dict() if hasattr(stream, "state_dict") else None
        begun = True
        block = list(islice(rows, size))
        if not block:
            return None
        columns[:] = columns or list(block[0])
        for place, row in enumerate(block):
            if list(row) != columns:
                raise ValueError(
                    f"the training stream changes its columns: row {first + place} has {list(row)}, and those before it "
                    f"{columns}. Give all rows the same columns, in the same order."
                )
        told = None if before is None else dict(before)
        return Window(number, first, block, _as_dataset(stream, block), digest_rows(block), told)

    pool = ThreadPoolExecutor(1, "gcbs_st_stream")
    try:
        coming = pool.submit(read, number, first)
        while (window := coming.result()) is not None:
            number, first = window.number + 1, window.first + len(window.rows)
            coming = pool.submit(read, number, first)
            yield window
    finally:  # also where the rest of the stream is not wanted; two threads must not read it at a time
        ended.set()
        pool.shutdown(cancel_futures=True)


def resume_windows(
    stream: IterableDataset, size: int, number: int, first: int, digest: str, state: Mapping[str, Any] | None
) -> tuple[Iterator[Window], bool]:
    """Returns what `read_windows` yields from a window on, and whether its rows are those that it had, by their digest.

    The stream's own state leads there quickest, but one that shuffles may not come back to the same rows by it. They
    are then looked for from the stream's beginning.
    """
    if state is not None:
        windows = read_windows(stream, size, number=number, first=first, state=state)
        found = next(windows, None)
        if found is not None and found.digest == digest:
            return put_back(found, windows), True
        windows.close()  # type: ignore[attr-defined]
    windows = read_windows(stream, size, number=number, first=first)
    found = next(windows, None)
    if found is None:
        return windows, False
    return put_back(found, windows), found.digest == digest


def digest_rows(rows: list[dict[str, Any]]) -> str:
    """Returns a hash of rows; of what is no text, number or list of such its kind counts alone."""
    written = json.dumps(rows, default=lambda value: type(value).__name__)
    return xxhash.xxh3_128_hexdigest(written.encode(errors="surrogatepass"))


def put_back(window: Window, windows: Iterator[Window]) -> Iterator[Window]:
    """Yields a window that was taken out, and then the others."""
    try:
        yield window
        yield from windows
    finally:
        windows.close()  # type: ignore[attr-defined]


def _iterate(stream: IterableDataset, state: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if state is not None:
        stream.load_state_dict(dict(state))
    elif hasattr(stream, "load_state_dict"):
        stream.load_state_dict(None)  # of an earlier pass
    return iter(stream)


def _as_dataset(stream: IterableDataset, rows: list[dict[str, Any]]) -> Dataset:
    features = stream.features
    known = features is not None and list(features) == list(rows[0])
    return Dataset.from_list(rows, features=features if known else None)
