"""What a planner is, what the trainer may ask of one, and the checks of what goes in and comes out.

In: one (n, d) array of anchor embeddings and one of positive embeddings, unit rows, row i of the
second being the positive of row i of the first.
Out: an order of the n rows, whose consecutive blocks of B rows are the batches.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import numpy as np

# Unit rows that were computed or stored in half precision have norms up to 0.5 % off. Rows within this
# are taken as they are, so that a plan does not depend on a second rounding.
UNIT_TOLERANCE = 1e-2
_CHUNK_ROWS = 65536
# 1 / temperature of the losses that planners prepare for, where nobody says another.
DEFAULT_SCALE = 20.0


class Planner(Protocol):
    """Decides which rows share a batch.

    A planner is a pure function of its arguments: the same input gives the same order. It sees rows,
    not texts, and knows nothing of ranks or checkpoints.

    Example:
        >>> import numpy as np
        >>> class ByFirstCoordinate:
        ...     def plan(self, anchors, positives, batch_size, rng):
        ...         return np.argsort(anchors[:, 0])
        >>> rows = np.eye(4)
        >>> ByFirstCoordinate().plan(rows, rows, 2, np.random.default_rng(0)).tolist()
        [1, 2, 3, 0]
    """

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, a bijection of 0..n-1; consecutive blocks of `batch_size` rows are batches."""
        ...


@dataclass(frozen=True, kw_only=True)
class BasePlanner:
    """A planner of ours: its options are its fields, and it says what the trainer needs to know of it.

    A planner of a user needs no more than `plan`; `abilities_of` fills in the rest.
    """

    # Several processes may each plan rows that lie together, see `gcbs_st.training.parallel_planning`.
    splits: ClassVar[bool] = False
    # Nothing but products of anchors with positives is asked for, so that two views can be planned on at once.
    plans_on_products: ClassVar[bool] = True
    # Nothing but anchor + positive on the main axes of all pairs is asked for.
    plans_on_axes: ClassVar[bool] = False

    @property
    def needs_embeddings(self) -> bool:
        """Whether the order depends on the embeddings."""
        return True

    @property
    def covers_each_row_once(self) -> bool:
        """Whether the order is a bijection; otherwise only the rows within a batch are distinct."""
        return True

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, the order of the rows; the last n mod `batch_size` of them fill no batch.

        `anchors` and `positives` are (n, d) floats, unit rows, row i of the second being the positive of row i of the
        first. All randomness comes from `rng`. Raises a ValueError for input that cannot be planned, see
        `check_pairs`, or a batch size that does not suit the options.
        """
        return self.order_rows(*check_pairs(anchors, positives, batch_size), batch_size, rng)

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns what `plan` returns, of rows that were checked."""
        raise NotImplementedError

    def bytes_needed(self, row_count: int, dimensions: int) -> int:
        """Returns about how many bytes a plan of `row_count` rows takes at its peak, beside the embeddings given."""
        # Both columns in float32, and a graph of some dozens of neighbours in both directions.
        return row_count * (8 * dimensions + 4096)


@dataclass(frozen=True)
class Abilities:
    """What is known of a planner, whoever wrote it."""

    splits: bool  # several processes may each plan a part of the rows
    needs_embeddings: bool  # the order depends on the embeddings
    covers_each_row_once: bool  # the order is a bijection
    plans_on_products: bool  # it asks for nothing but products of anchors with positives
    plans_on_axes: bool  # it asks for nothing but anchor + positive on the main axes of all pairs
    clusters_per_batch: int | None  # clusters that make a batch; None for a planner that knows no clusters


def abilities_of(planner: Planner) -> Abilities:
    """Returns what a planner says of itself; what a user's planner does not say is what most planners are.

    >>> from gcbs_st.planners import BestPlanner
    >>> abilities_of(BestPlanner(clusters_per_batch=2))
    Abilities(splits=True, ..., clusters_per_batch=2)
    """
    usual = BasePlanner()
    known = ("splits", "needs_embeddings", "covers_each_row_once", "plans_on_products", "plans_on_axes")
    said = {name: bool(getattr(planner, name, getattr(usual, name))) for name in known}
    return Abilities(**said, clusters_per_batch=getattr(planner, "clusters_per_batch", None))


def order_checked_rows(
    planner: Planner, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns a planner's order of rows that `check_pairs` has seen; planners of ours do not check them again."""
    # A user may have derived a planner from one of ours and given it a `plan` of its own.
    ours = isinstance(planner, BasePlanner) and type(planner).plan is BasePlanner.plan
    plan = planner.order_rows if ours else planner.plan  # type: ignore[attr-defined]
    return np.asarray(plan(anchors, positives, batch_size, rng))


def scale_or_default(scale: float | None) -> float:
    """Returns the 1 / temperature to plan for; 20 where neither the user nor the trainer says another."""
    return DEFAULT_SCALE if scale is None else scale


def configured(planner: Planner, *, scale: float | None = None, device: str | None = None, **settings: Any) -> Planner:
    """Returns a copy of a planner that knows how far training has come and what loss it plans for.

    `settings` are `epoch`, `clusters_per_batch`, `show_progress` and `threads`; those that the planner has no
    attribute for are left out. `scale` is 1 / temperature of the loss and `device` the accelerator that is trained on,
    for a planner whose own is None. Where nothing would change it is the planner itself.
    """
    if getattr(planner, "device", 0) is None:
        settings["device"] = device
    if getattr(planner, "scale", 0) is None:
        settings["scale"] = scale_or_default(scale)
    settings = {name: value for name, value in settings.items() if getattr(planner, name, value) != value}
    if not settings:
        return planner
    if isinstance(planner, BasePlanner) and settings.keys() <= {field.name for field in fields(planner)}:
        return replace(planner, **settings)
    changed = copy.copy(planner)
    for name, value in settings.items():
        object.__setattr__(changed, name, value)
    return changed


def count_threads(threads: int) -> int:
    """Returns how many threads to start: the number asked for, or one for each core that the process may use."""
    return threads or len(os.sched_getaffinity(0))


def check_least(least: int, **options: float | None) -> None:
    """Raises a ValueError that names the option if one that is given is below the least value."""
    for name, value in options.items():
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}.")


def check_positive(**options: float | None) -> None:
    """Raises a ValueError that names the option if one that is given is not above 0, or is infinite."""
    for name, value in options.items():
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{name}: got {value}, expected a number above 0.")


def check_share(**options: float) -> None:
    """Raises a ValueError that names the option if one is not between 0 and 1."""
    for name, value in options.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}: got {value}, expected a number between 0 and 1.")


def check_rows(embeddings: np.ndarray, name: str) -> np.ndarray:
    """Returns (n, d) embeddings, scaled to unit length where they are not, after refusing what cannot be planned.

    The same array where all rows are unit within 1 %, otherwise a normalised float32 copy. Raises a ValueError, which
    calls the rows by `name`, if they are no 2-D array of floats or one of them is not finite or all zeros.
    """
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(
            f"{name}: got an array of shape {embeddings.shape} and type {embeddings.dtype}, "
            "expected (rows, dimensions) of floats."
        )
    norms = row_norms(embeddings)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(embeddings)} embeddings hold NaN or infinity (first: row {bad[0]}), expected "
            "finite numbers. The model has diverged or the file is damaged; try a lower learning rate."
        )
    bad = np.flatnonzero(norms == 0)
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(embeddings)} embeddings are all zeros (first: row {bad[0]}), expected rows with "
            "a direction. Remove the texts that the tokenizer turns into nothing."
        )
    if len(norms) and np.abs(norms - 1).max() > UNIT_TOLERANCE:
        return (embeddings / norms[:, None]).astype(np.float32)
    return embeddings


def check_pairs(anchors: np.ndarray, positives: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n, d) anchors and positives as unit rows, after the checks that stand before every plan.

    The same object twice where the input was. Raises a ValueError for different shapes, a batch size below 1, or rows
    that `check_rows` refuses.
    """
    check_shapes(anchors, positives, batch_size)
    unit_anchors = check_rows(anchors, "anchors")
    return unit_anchors, unit_anchors if positives is anchors else check_rows(positives, "positives")


def check_shapes(anchors: np.ndarray, positives: np.ndarray, batch_size: int) -> None:
    """Raises a ValueError for arrays of different shapes, or a batch size below 1."""
    if anchors.shape != positives.shape:
        raise ValueError(f"anchors have shape {anchors.shape} but positives {positives.shape}, expected equal shapes.")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1.")


def row_norms(embeddings: np.ndarray) -> np.ndarray:
    """Returns the (n,) float64 Euclidean norms of the rows, read in chunks so that a memory map stays one."""
    norms = np.empty(len(embeddings))
    for start in range(0, len(embeddings), _CHUNK_ROWS):
        chunk = embeddings[start : start + _CHUNK_ROWS].astype(np.float32, copy=False)
        norms[start : start + len(chunk)] = np.sqrt(np.einsum("ij,ij->i", chunk, chunk))
    return norms


def check_batches(order: Any, rows: int, batch_size: int, planner: str) -> np.ndarray:
    """Returns an order in which rows recur, as int64, after making sure that none recurs within a batch.

    `rows` is n, the number of rows that the planner was given. Raises a ValueError, which names the planner, for
    anything but whole batches of distinct rows.

    >>> check_batches([0, 1, 1, 2], rows=4, batch_size=2, planner="mine").tolist()
    [0, 1, 1, 2]
    """
    found = np.asarray(order)
    valid = found.ndim == 1 and np.issubdtype(found.dtype, np.integer) and len(found) % batch_size == 0
    batches = np.sort(found.reshape(-1, batch_size), axis=1) if valid else np.empty((0, 2))
    if (
        not valid
        or (batches[:, 1:] == batches[:, :-1]).any()
        or (len(found) and not 0 <= found.min() <= found.max() < rows)
    ):
        raise ValueError(
            f"planner {planner}: got {found.dtype} of shape {found.shape}, expected whole batches of {batch_size} distinct "
            f"rows of 0..{rows - 1}."
        )
    return found.astype(np.int64)


def check_order(order: Any, rows: int, planner: str) -> np.ndarray:
    """Returns the order as (n,) int64; raises a ValueError that names the planner if it does not hold every row once.

    >>> check_order([2, 0, 1], rows=3, planner="mine").tolist()
    [2, 0, 1]
    >>> check_order([2, 2, 1], rows=3, planner="mine")
    Traceback (most recent call last):
    ValueError: planner mine: ... expected every row 0..2 exactly once.
    """
    found = np.asarray(order)
    valid = found.shape == (rows,) and np.issubdtype(found.dtype, np.integer)
    if not valid or not np.array_equal(np.sort(found), np.arange(rows)):
        raise ValueError(
            f"planner {planner}: got {found.dtype} of shape {found.shape} with {len(np.unique(found))} distinct values, "
            f"expected every row 0..{rows - 1} exactly once."
        )
    return found.astype(np.int64)
