"""Streams read in windows: each row once, from where a state says, and no row of another stream unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from datasets import Dataset, Features, IterableDataset, Value

from gcbs_st.rows.stream import digest_rows, read_windows, resume_windows

ROWS = [{"anchor": f"a{i}", "positive": f"p{i}"} for i in range(23)]


def stream() -> IterableDataset:
    """23 rows in three shards."""
    return Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)


def from_generator(rows: list[dict[str, str]]) -> IterableDataset:
    """A stream that declares what its rows hold, as the host demands."""

    def make() -> Iterator[dict[str, str]]:
        yield from rows

    return IterableDataset.from_generator(
        make, features=Features({"anchor": Value("string"), "positive": Value("string")})
    )


@pytest.mark.parametrize("size", [1, 5, 23, 24, 100])
def test_each_row_is_in_one_window(size):
    """All windows but the last are full, and say where they begin."""
    windows = list(read_windows(stream(), size))
    assert ROWS == [row for window in windows for row in window.rows]
    assert [size] * (len(windows) - 1) == [len(window.rows) for window in windows[:-1]]
    assert [i * size for i in range(len(windows))] == [window.first for window in windows]
    assert all(window.dataset.to_list() == window.rows for window in windows)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_window_is_found_again(shuffled, number):
    """By the stream's state, or by reading on from its beginning where its state does not lead to the same rows."""
    rows = stream().shuffle(seed=1, buffer_size=10) if shuffled else stream()
    whole = list(read_windows(rows, 5))
    window = whole[number]
    found, same = resume_windows(rows, 5, number, window.first, window.digest, window.state)
    assert same
    assert [one.rows for one in whole[number:]] == [one.rows for one in found]
    again, same = resume_windows(rows, 5, number, window.first, window.digest, None)
    assert same
    assert [(one.number, one.first) for one in whole[number:]] == [(one.number, one.first) for one in again]


def test_a_state_that_was_resumed_from_leads_on(monkeypatch):
    """The windows of a resumed stream have states of their own, that of the first included."""
    whole = list(read_windows(stream(), 5))
    resumed, _ = resume_windows(stream(), 5, 2, 10, whole[2].digest, whole[2].state)
    second = list(resumed)
    skipped = []
    monkeypatch.setattr("gcbs_st.rows.stream.islice", lambda rows, count: skipped.append(count) or _take(rows, count))
    for window in second:
        found, same = resume_windows(stream(), 5, window.number, window.first, window.digest, window.state)
        assert same
        assert window.rows == next(found).rows
        found.close()
    assert {5} == set(skipped), "no row was read that a state could lead past"


def _take(rows: Iterator[dict[str, str]], count: int) -> list[dict[str, str]]:
    return [row for _, row in zip(range(count), rows, strict=False)]


def test_other_rows_are_noticed():
    """A window with another digest is handed out as what it is."""
    window = list(read_windows(stream(), 5))[1]
    found, same = resume_windows(stream(), 5, 1, 5, digest_rows(ROWS[:5]), window.state)
    assert not same
    assert window.rows == next(found).rows
    found, same = resume_windows(stream(), 5, 9, 45, window.digest, None)
    assert (not same, []) == (True, list(found)), "a stream that has become shorter"


def test_the_next_window_is_read_meanwhile_and_no_further():
    """One window ahead, by another thread; none after the stream is closed."""
    read, threads = [], set()

    def make() -> Iterator[dict[str, str]]:
        for row in ROWS:
            read.append(row["anchor"])
            threads.add(threading.current_thread())
            yield row

    features = Features({"anchor": Value("string"), "positive": Value("string")})
    windows = read_windows(IterableDataset.from_generator(make, features=features), 5)
    read.clear()  # what from_generator itself has looked at
    next(windows)
    for _ in range(200):
        if len(read) == 10:
            break
        threading.Event().wait(0.01)
    assert 10 == len(read)
    windows.close()
    assert 10 == len(read)
    assert threading.main_thread() not in threads


def test_nothing_is_read_after_the_windows_are_closed():
    """A thread that is in the middle of a window ends before the stream may be read anew."""
    read = []

    def make() -> Iterator[dict[str, str]]:
        for row in ROWS:
            threading.Event().wait(0.01)
            read.append(row["anchor"])
            yield row

    features = Features({"anchor": Value("string"), "positive": Value("string")})
    windows = read_windows(IterableDataset.from_generator(make, features=features), 5)
    read.clear()
    next(windows)
    while len(read) < 6:
        threading.Event().wait(0.001)
    windows.close()
    count = len(read)
    threading.Event().wait(0.1)
    assert count == len(read) < 10


def test_columns_that_change_are_refused():
    """The row is named, with what it has and what the others have."""
    rows = [*ROWS[:7], {"anchor": "a", "other": "b"}]

    class Changing(IterableDataset):
        def __iter__(self):
            return iter(rows)

    changing = stream()
    changing.__class__ = Changing
    windows = read_windows(changing, 5)
    next(windows)
    with pytest.raises(ValueError, match=r"row 7 has \['anchor', 'other'\], and those before it \['anchor', 'pos"):
        next(windows)


def test_an_error_of_the_stream_arrives():
    """What goes wrong while a window is read ahead is raised when the window is due."""

    def make() -> Iterator[dict[str, str]]:
        yield from ROWS[:5]
        raise OSError("the network is gone")

    features = Features({"anchor": Value("string"), "positive": Value("string")})
    windows = read_windows(IterableDataset.from_generator(make, features=features), 5)
    assert 5 == len(next(windows).rows)
    with pytest.raises(OSError, match="the network is gone"):
        next(windows)
