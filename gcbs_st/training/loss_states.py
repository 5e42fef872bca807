"""Losses that keep a state per row (EMC2, SogCLR): told which rows they see, merged between ranks, saved and restored.

Costs nothing where no loss keeps a state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gcbs_st.files import read_arrays, write_arrays
from gcbs_st.losses.guarded import Guarded
from gcbs_st.losses.row_loss import RowLoss
from gcbs_st.ranks import agree, agree_on_rows, gather_rows

logger = logging.getLogger(__name__)

LOSSES_FILE = "gcbs_losses.npz"

# The features of some rows of one dataset: its name, (m,) row ids in it, and the place of a text column.
FeaturesOfPart = Callable[[str, np.ndarray, int], dict[str, Any]]


class RowStates:
    """The losses of one call of `train` that keep a state per row.

    A loss of one dataset knows the rows by their ids in it; one that several datasets share, by their ids in these
    datasets one after the other.
    """

    def __init__(
        self, loss: Any, sizes: Mapping[str, int], features_of: FeaturesOfPart, *, seed: int, ranks: int = 1
    ) -> None:
        """Finds the losses and tells them how many rows there are.

        `loss` is the trainer's, one for all datasets or a dict by name; `sizes` is the row count of each dataset, in
        the order in which they are concatenated. Raises a ValueError if a loss holds the states of another row count.
        """
        self.ranks = ranks
        by_name = {name: find_row_losses(loss[name] if isinstance(loss, dict) else loss) for name in sizes}
        self.losses: list[RowLoss] = []
        # name of the dataset -> its losses, each with what is added to the dataset's ids.
        self._told: dict[str, list[tuple[RowLoss, int]]] = {name: [] for name in sizes}
        for one in (one for losses in by_name.values() for one in losses):
            if any(one is other for other in self.losses):
                continue
            self.losses.append(one)
            served, rows = {}, 0
            for name in sizes:
                if any(one is other for other in by_name[name]):
                    served[name] = rows
                    self._told[name].append((one, rows))
                    rows += sizes[name]
            one.prepare(rows, _features_of_loss(served, features_of), seed)
        self._merged = [0] * len(self.losses)

    @contextmanager
    def telling(self, name: str, rows: np.ndarray) -> Iterator[None]:
        """Tells the losses which rows the batch holds that they see meanwhile: (B,) ids in the dataset `name`."""
        told = self._told[name]
        for loss, start in told:
            loss.set_rows(rows + start)
        try:
            yield
        finally:
            for loss, _ in told:
                loss.set_rows(None)

    def close(self) -> None:
        """Takes the texts from the losses, which they get at through the trainer; their states stay."""
        for loss in self.losses:
            loss.prepare(loss.rows or 0)

    def merge(self, device: torch.device) -> None:
        """Gives all ranks the newest state of each row. To be called by all ranks.

        Of states as new as each other that of the later process counts. Cost: the rows that were visited since the
        last call are sent to one process, and all n rows from it.
        """
        if self.ranks == 1:
            return
        for place, loss in enumerate(self.losses):
            state = loss.row_state()
            clocks = gather_rows(state.pop("clock")[None], self.ranks, device)
            clock = agree(int(clocks.max(initial=0)), self.ranks)
            own = np.flatnonzero(state["visited"] > self._merged[place])
            rows = gather_rows(own, self.ranks, device)
            sent = {name: gather_rows(array[own], self.ranks, device) for name, array in state.items()}
            if len(rows):  # on the one process that was sent them
                newest_last = np.argsort(sent["visited"], kind="stable")
                for name, array in state.items():
                    array[rows[newest_last]] = sent[name][newest_last]
            merged = {name: agree_on_rows(array, self.ranks, device) for name, array in state.items()}
            loss.load_row_state({**merged, "clock": np.array(clock)})
            self._merged[place] = clock

    def save(self, folder: Path) -> None:
        """Writes the states into a checkpoint; all ranks must have called `merge`."""
        if not self.losses:
            return
        arrays = {
            f"{place} {name}": array
            for place, loss in enumerate(self.losses)
            for name, array in loss.row_state().items()
        }
        write_arrays(folder / LOSSES_FILE, arrays, [type(loss).__name__ for loss in self.losses])

    def load(self, folder: Path) -> None:
        """Takes the states of a checkpoint; one without states is reported, and none are taken.

        Raises a ValueError if the states are damaged, or of another loss or number of rows; the message says which.
        """
        if not self.losses:
            return
        file = folder / LOSSES_FILE
        if not agree(file.is_file(), self.ranks):
            logger.warning("%s is not there: the states that losses keep of rows start as in a new run.", file)
            return
        arrays, kinds = read_arrays(file)
        expected = [type(loss).__name__ for loss in self.losses]
        if kinds != expected:
            raise ValueError(f"{file} holds the states of {kinds}, expected those of {expected}. Resume with those.")
        for place, loss in enumerate(self.losses):
            prefix = f"{place} "
            state = {name.removeprefix(prefix): one for name, one in arrays.items() if name.startswith(prefix)}
            try:
                loss.load_row_state(state)
            except ValueError as error:
                raise ValueError(f"{file} cannot be resumed from. {error}") from None
            self._merged[place] = int(state["clock"])


def _features_of_loss(starts: Mapping[str, int], features_of: FeaturesOfPart) -> Callable[..., dict[str, Any]]:
    """The features of rows by the ids that a loss knows them by; all of one dataset, as a chain never leaves its own."""
    names, begins = list(starts), np.array(list(starts.values()))

    def features(rows: np.ndarray, column: int) -> dict[str, Any]:
        index = int(np.searchsorted(begins, rows[0], side="right")) - 1
        return features_of(names[index], rows - begins[index], column)

    return features


def find_row_losses(loss: Any) -> list[RowLoss]:
    """Returns the losses that keep states of rows, each once; wrappers are looked into.

    `loss` is a trainer's, one for all datasets or a dict by name.
    """
    return [one for one in _losses_in(loss) if isinstance(one, RowLoss)]


def find_identity_losses(loss: Any) -> list[Guarded]:
    """Returns the losses that mask by identity, each once, as `find_row_losses`."""
    return [one for one in _losses_in(loss) if isinstance(one, Guarded) and one.guard.mask_by_identity]


def needs_row_ids(loss: Any) -> bool:
    """Returns whether a trainer's loss wants to know which rows are in a batch."""
    return bool(find_row_losses(loss) or find_identity_losses(loss))


def _losses_in(loss: Any) -> list[RowLoss | Guarded]:
    if isinstance(loss, (RowLoss, Guarded)):
        return [loss]
    children = loss.items() if isinstance(loss, dict) else loss.named_children() if isinstance(loss, nn.Module) else ()
    inner = [child for name, child in children if isinstance(loss, dict) or name != "model"]
    found: list[RowLoss | Guarded] = []
    for child in inner:
        found += [one for one in _losses_in(child) if not any(one is other for other in found)]
    return found
