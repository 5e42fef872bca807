"""A stream as a training set: its rows are read in windows, each planned as a training set of its own.

In: the user's `IterableDataset`. Out: another one, which the host loads as it loads any stream, and whose rows come
batch by batch: each block of rows that the loader makes a batch of is one of the plan. Nothing else is known of a
stream's rows but what passes, so a row is embedded once, right before it is trained.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from datasets import IterableDataset

from gcbs_st.batches.checkpoint import read_stream, write_stream
from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.ranks import agree, failing_together
from gcbs_st.rows.stream import Window, put_back, read_windows, resume_windows
from gcbs_st.rows.training_set import read_row_facts, without_columns

logger = logging.getLogger(__name__)

# Rows of a window where the user names no number: a third of what all rows close on 29,000 captions.
WINDOW_ROWS = 16_384
_REST = 3  # purpose of a sampler's generator


@dataclass(frozen=True)
class Held:
    """A window whose rows are being drawn, or are next."""

    window: Window
    order: np.ndarray  # (m,) int64, of its rows


class PlannedStream(IterableDataset):
    """A stream whose rows come in the order of plans."""

    _feed: StreamFeed

    @classmethod
    def over(cls, stream: IterableDataset, feed: StreamFeed) -> PlannedStream:
        """Returns a stream that the host takes for the one given, with the rows of a feed."""
        planned = copy.copy(stream)
        planned.__class__ = cls
        planned._feed = feed  # type: ignore[attr-defined]
        return planned  # type: ignore[return-value]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of one pass over the stream."""
        return self._feed.rows()

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the feed counts the passes, which the host's epochs are not in a resumed run."""


class StreamFeed:
    """Reads a trainer's stream, plans its windows, and hands their rows out.

    The first window is read at once, so that what is wrong with the rows is told before anything costly has run.
    Raises a ValueError for a stream that ends before it has filled a batch of each rank, or whose rows are not the same
    on all ranks.
    """

    def __init__(self, trainer: Any, stream: IterableDataset, batch_size: int) -> None:
        self.trainer, self.stream = trainer, stream
        self.batch_size, self.ranks, self.dropped = batch_size, trainer.args.world_size, {*trainer.fact_columns}
        step = batch_size * self.ranks
        self.size = max(2 * step, (trainer.args.planning_window or WINDOW_ROWS) // step * step)
        self.passes, self.began_at, self.exhausted = 0, 0, False
        self.held: list[Held] = []
        self._saved: dict[str, Any] | None = None
        self._skipped = 0  # rows that the host asks for and drops
        self._windows: Iterator[Window] | None = None  # of the pass that is under way
        windows = self._read()
        first = next(windows, None)
        rows = 0 if first is None else len(first.rows)
        if first is None or rows < step:
            raise ValueError(
                f"the training stream ended after {rows} rows, but a batch of {self.ranks} process"
                f"{'es' if self.ranks > 1 else ''} takes {step}: lower per_device_train_batch_size, or give more rows."
            )
        self._begun: Iterator[Window] | None = put_back(first, windows)  # the first pass, of which a window is read
        self.look_at(first)

    def close(self) -> None:
        """Stops reading."""
        for windows in (self._begun, self._windows):
            if windows is not None:
                windows.close()  # type: ignore[attr-defined]
        self._begun, self._windows, self.held = None, None, []

    def _read(self) -> Iterator[Window]:
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(self.passes)
        return read_windows(self.stream, self.size)

    # ---------------------------------------------------------------- what is drawn

    def begin_epoch(self, resume_folder: str | None) -> None:
        """Takes what a checkpoint says of the stream, or begins another pass; before the host asks for rows."""
        step = self.trainer.state.global_step
        self.began_at, self._skipped, self._saved = step, 0, None
        if resume_folder is None or self.trainer.args.ignore_data_skip:
            return
        self._skipped = self._rows_of(step)
        try:
            saved = read_stream(resume_folder)
            for key, own in (("size", self.size), ("batch_size", self.batch_size), ("ranks", self.ranks)):
                if saved[key] != own:
                    raise ValueError(f"its {key} is {saved[key]}, but that of this run is {own}")
            self._saved = saved
        except (KeyError, TypeError, ValueError) as error:
            self.began_at = 0
            logger.warning(
                "The plan of %s cannot be resumed: %s. As many rows as were trained are passed over, and those that come "
                "after are planned anew.",
                resume_folder,
                error,
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of one pass, or what is left of the pass that a resumed run was in."""
        saved, self._saved = self._saved, None
        skipped, self._skipped = self._skipped, 0
        self.held, self.exhausted = [], False
        orders: dict[int, np.ndarray] = {}
        drop = 0
        if saved is not None:
            windows, drop, orders = self._resume(saved)
            # The host asks for the rows of all steps so far, to drop them. Those of this window are the same to it.
            first = next(windows, None)
            if first is not None:
                yield from repeat(self._plain(first.rows[0]), skipped)
                windows = put_back(first, windows)
            skipped = 0
        else:
            windows, self._begun = self._begun or self._read(), None
        self._windows = windows
        for window in windows:
            if skipped >= len(window.rows):  # without a plan to go on with, as the host passes over them
                skipped -= len(window.rows)
                yield from map(self._plain, window.rows)
                continue
            skipped = 0
            held = self._hold(window, orders.get(window.number))
            for row in held.order[drop:].tolist():
                yield self._plain(window.rows[row])
            drop = 0
        self.exhausted, self._windows = True, None
        self.passes += 1

    def _plain(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row without the columns of facts, which the host would embed as texts."""
        return {name: value for name, value in row.items() if name not in self.dropped}

    def _hold(self, window: Window, order: np.ndarray | None) -> Held:
        """A window with its order, a new one if there is none, in place of those that were drawn."""
        self._agree_on(window)
        self.look_at(window)
        held = Held(window, self._plan(window) if order is None else order)
        drawn = self.drawn
        self.held = [one for one in self.held if one.window.first + len(one.window.rows) > drawn] + [held]
        return held

    def _agree_on(self, window: Window) -> None:
        with failing_together("reading the training stream", self.ranks):
            if agree(window.digest, self.ranks) != window.digest:
                raise ValueError(
                    f"window {window.number} of the training stream, from row {window.first} on, has other rows on this "
                    "process than on the main one. Every process reads the whole stream and trains on its share of each "
                    "step: give all of them the same stream, shuffled by the same seed, and do not split it by node."
                )

    def look_at(self, window: Window) -> None:
        """Makes a window what the trainer trains on, for all that it asks of rows; not one of less than a batch."""
        dataset = window.dataset
        facts = read_row_facts(dataset, *self.trainer.given_columns)[""]
        if len(dataset) >= self.batch_size:
            key = [self.trainer.data_seed, self.passes, window.number]
            seed = int(np.random.SeedSequence(key).generate_state(1)[0])
            dataset = without_columns(dataset, self.dropped)
            self.trainer.take_window(dataset, facts, self.batch_size, seed)

    def _plan(self, window: Window) -> np.ndarray:
        """(m,) order of a window's rows: batches, planned if a plan is due, and what fills none."""
        trainer, count = self.trainer, len(window.rows)
        if count < self.batch_size:
            return np.random.default_rng([self.passes, window.number]).permutation(count)
        sampler: PlannedBatchSampler = trainer.planned_samplers[""]
        rest = np.setdiff1d(np.arange(count), sampler.order, assume_unique=True)
        if trainer.plans_now():
            # The plan is logged, and the host takes any log for the one that is due at this step.
            should_log = trainer.control.should_log
            trainer.replanner.replan_tails()
            trainer.control.should_log = should_log
        return np.concatenate([sampler.order, sampler.rng(_REST).permutation(rest)])

    # ---------------------------------------------------------------- checkpoints

    def _rows_of(self, steps: int) -> int:
        return int(steps) * int(self.trainer.args.gradient_accumulation_steps) * self.batch_size * self.ranks

    @property
    def drawn(self) -> int:
        """The rows of this pass that training has taken so far; those that the loader holds ready are not among them."""
        return self._rows_of(self.trainer.state.global_step - self.began_at)

    def save(self, folder: str | Path) -> None:
        """Writes into a checkpoint where in the stream it was made, and the plans of rows that were not trained yet."""
        drawn = self.drawn
        held = [one for one in self.held if one.window.first + len(one.window.rows) > drawn]
        last = self.held[-1].window if self.held else None
        described = {
            "passes": self.passes - (1 if self.exhausted and held else 0),
            "began_at": self.began_at,
            "drawn": drawn,
            "size": self.size,
            "batch_size": self.batch_size,
            "ranks": self.ranks,
            # Where the next window begins, if none is held.
            "number": 0 if self.exhausted or last is None else last.number + 1,
            "first": 0 if self.exhausted or last is None else last.first + len(last.rows),
            "windows": [{"number": one.window.number, "first": one.window.first, "digest": one.window.digest} for one in held],
            "state": _as_json(held[0].window.state) if held else None,
        }  # fmt: skip
        write_stream(folder, [one.order for one in held], described)

    def _resume(self, saved: dict[str, Any]) -> tuple[Iterator[Window], int, dict[int, np.ndarray]]:
        """The windows that are left of the pass of a checkpoint, the rows to drop of the first, and the orders known."""
        self.passes = int(saved["passes"])
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(self.passes)
        self.close()
        if not saved["windows"]:
            number, first = int(saved["number"]), int(saved["first"])
            if number:
                self.began_at = int(saved["began_at"])
            return read_windows(self.stream, self.size, number=number, first=first), 0, {}
        self.began_at = int(saved["began_at"])
        head = saved["windows"][0]
        windows, same = resume_windows(
            self.stream, self.size, head["number"], head["first"], head["digest"], saved["state"]
        )
        if not same:
            logger.warning(
                "The training stream is another one than before: window %d, from row %d on, has other rows. It goes on "
                "with them, planned anew: some rows may be trained twice or not at all in this pass.",
                head["number"],
                head["first"],
            )
        orders = {one["number"]: order for one, order in zip(saved["windows"], saved["orders"], strict=True)}
        return windows, int(saved["drawn"]) - int(head["first"]), orders if same else {}


def _as_json(state: Any) -> Any:
    """A stream's state if it can be written, or else None: it is then passed over from its beginning."""
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError):
        return None
