"""What holds for every planner, its checks of the input, and the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gcbs_st import planners
from gcbs_st.planners import GCBSPlanner, RandomPlanner, available, check_order, make_planner, register

# One line a planner and set of options. A registered planner without a line here fails `test_table_is_complete`.
PLANNERS: list[tuple[str, dict[str, Any]]] = [
    ("best", {"neighbors": 5}),
    ("best", {"effort": 2, "neighbors": 5, "ceiling": 0.95}),
    ("bisect", {}),
    ("bisect", {"trees": 2, "threads": 1}),
    ("partition", {"neighbors": 5}),
    ("partition", {"neighbors": 6, "drop_top": 1, "keep": 4, "mutual": True, "exact": True, "ceiling": 1.0}),
    ("hobit", {"pool": 30, "neighbors": 5}),
    ("hobit", {"pool": 2, "swaps": 0}),
    ("gcbs", {"quantile": 0.95}),
    ("gcbs", {"neighbors": 5}),
    ("gcbs", {"quantile": 0.9, "exact": True}),
    ("random", {}),
    ("random_walk", {}),
    ("tbs", {}),
]
BATCH = 8

every_planner = pytest.mark.parametrize(
    ("name", "options"), PLANNERS, ids=[f"{name}-{'-'.join(options)}" for name, options in PLANNERS]
)


def unit_rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    """(n, d) float32 random unit rows."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plan(
    name: str, options: dict[str, Any], anchors: np.ndarray, positives: np.ndarray, batch_size: int = BATCH
) -> np.ndarray:
    """The order of a new planner with a new generator."""
    return make_planner(name, options).plan(anchors, positives, batch_size, np.random.default_rng(3))


def assert_bijection(order: np.ndarray, n: int) -> None:
    """The order is int64 and holds each of n rows once."""
    assert (n,) == order.shape
    assert np.int64 == order.dtype
    assert list(range(n)) == sorted(order.tolist())


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the registry, so that what a test registers is gone after it."""
    monkeypatch.setattr(planners, "_REGISTRY", dict(planners._REGISTRY))
    yield


def test_table_is_complete() -> None:
    """Every planner of the package runs through this file's table."""
    assert set(available()) == {name for name, _ in PLANNERS}


@every_planner
@pytest.mark.parametrize("n", [0, 1, 2, 3, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 131])
def test_order_is_bijection(name: str, options: dict[str, Any], n: int) -> None:
    """Every row comes exactly once, whatever n is next to the batch size, zero included."""
    anchors, positives = unit_rows(n), unit_rows(n, seed=1)
    assert_bijection(plan(name, options, anchors, positives), n)


@every_planner
@pytest.mark.parametrize("batch_size", [1, 131, 1000])
def test_any_batch_size_gives_bijection(name: str, options: dict[str, Any], batch_size: int) -> None:
    """Every row comes exactly once, also with batches of one row and with a batch larger than all rows."""
    assert_bijection(plan(name, options, unit_rows(131), unit_rows(131, seed=1), batch_size), 131)


@every_planner
def test_same_input_gives_same_order(name: str, options: dict[str, Any]) -> None:
    """The order is a function of the arguments: the same twice, by one object and by two, global seeds aside."""
    anchors, positives = unit_rows(150), unit_rows(150, seed=1)
    planner = make_planner(name, options)
    first = planner.plan(anchors, positives, BATCH, np.random.default_rng(5))
    np.random.seed(1)  # noqa: NPY002
    second = planner.plan(anchors.copy(), positives.copy(), BATCH, np.random.default_rng(5))
    third = make_planner(name, options).plan(anchors, positives, BATCH, np.random.default_rng(5))
    assert first.tolist() == second.tolist()
    assert first.tolist() == third.tolist()


@every_planner
def test_no_global_random_numbers_are_drawn(name: str, options: dict[str, Any]) -> None:
    """NumPy's global generator is where it was."""
    np.random.seed(7)  # noqa: NPY002
    before = str(np.random.get_state())  # noqa: NPY002
    plan(name, options, unit_rows(60), unit_rows(60, seed=1))
    assert before == str(np.random.get_state())  # noqa: NPY002


@every_planner
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_input_is_not_modified(name: str, options: dict[str, Any], factor: float) -> None:
    """The arrays are as they were, also where rows had to be scaled to unit length."""
    anchors, positives = factor * unit_rows(90), factor * unit_rows(90, seed=1)
    copies = anchors.copy(), positives.copy()
    plan(name, options, anchors, positives)
    assert copies[0].tobytes() == anchors.tobytes()
    assert copies[1].tobytes() == positives.tobytes()


@every_planner
def test_readonly_and_mapped_arrays_give_same_order(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Read-only, memory-mapped, Fortran-ordered and strided arrays plan like ordinary ones."""
    anchors, positives = unit_rows(90), unit_rows(90, seed=1)
    expected = plan(name, options, anchors, positives).tolist()
    np.save(tmp_path / "a.npy", anchors)
    np.save(tmp_path / "p.npy", positives)
    mapped = [np.load(tmp_path / f"{part}.npy", mmap_mode="r") for part in "ap"]
    strided = [np.repeat(array, 2, axis=0)[::2] for array in (anchors, positives)]
    frozen = [anchors.copy(), positives.copy()]
    for array in frozen:
        array.setflags(write=False)
    for pair in (mapped, strided, frozen, [np.asfortranarray(anchors), np.asfortranarray(positives)]):
        assert expected == plan(name, options, *pair).tolist()


@every_planner
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_accepted(name: str, options: dict[str, Any], dtype: type) -> None:
    """Half and double precision give a bijection, and the same one as the same numbers in float32."""
    anchors, positives = unit_rows(90).astype(dtype), unit_rows(90, seed=1).astype(dtype)
    order = plan(name, options, anchors, positives)
    assert_bijection(order, 90)
    assert plan(name, options, anchors.astype(np.float32), positives.astype(np.float32)).tolist() == order.tolist()


@every_planner
def test_length_of_rows_does_not_matter(name: str, options: dict[str, Any]) -> None:
    """Rows are scaled to unit length first: the plan follows directions only."""
    anchors, positives = unit_rows(90), unit_rows(90, seed=1)
    lengths = np.exp2(np.random.default_rng(2).integers(-3, 4, size=(90, 1))).astype(np.float32)
    # The planner normalises by its own norms, so both sides need a row that makes it do so.
    expected = plan(name, options, 2 * anchors, 2 * positives)
    assert expected.tolist() == plan(name, options, lengths * anchors, lengths[::-1] * positives).tolist()


@every_planner
def test_all_rows_equal(name: str, options: dict[str, Any]) -> None:
    """Rows that are all alike, where no product is above any other, still give every row once."""
    rows = np.repeat(unit_rows(1), 50, axis=0)
    assert_bijection(plan(name, options, rows, rows), 50)


@every_planner
def test_disconnected_groups(name: str, options: dict[str, Any]) -> None:
    """Two groups without any product between them give every row once."""
    rows = np.zeros((60, 12), dtype=np.float32)
    rows[:30, :6] = unit_rows(30, 6)
    rows[30:, 6:] = unit_rows(30, 6, seed=1)
    assert_bijection(plan(name, options, rows, rows), 60)


@every_planner
def test_same_object_as_both_columns(name: str, options: dict[str, Any]) -> None:
    """Unsupervised rows, anchor and positive in one array, plan like two equal arrays."""
    rows = unit_rows(70)
    assert plan(name, options, rows, rows.copy()).tolist() == plan(name, options, rows, rows).tolist()


@every_planner
@pytest.mark.parametrize("column", ["anchors", "positives"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_row_is_refused(name: str, options: dict[str, Any], column: str, value: float) -> None:
    """NaN and infinity raise, and the message says how many, where and in which column."""
    arrays = {"anchors": unit_rows(40), "positives": unit_rows(40, seed=1)}
    arrays[column][[11, 23], 3] = value
    with pytest.raises(ValueError, match=rf"{column}: 2 of 40 embeddings hold NaN or infinity \(first: row 11\)"):
        plan(name, options, **arrays)


@every_planner
@pytest.mark.parametrize("column", ["anchors", "positives"])
def test_zero_row_is_refused(name: str, options: dict[str, Any], column: str) -> None:
    """A row of zeros raises, and the message says which."""
    arrays = {"anchors": unit_rows(40), "positives": unit_rows(40, seed=1)}
    arrays[column][17] = 0
    with pytest.raises(ValueError, match=rf"{column}: 1 of 40 embeddings are all zeros \(first: row 17\)"):
        plan(name, options, **arrays)


@every_planner
@pytest.mark.parametrize(
    ("anchors", "positives", "batch_size", "message"),
    [
        (unit_rows(9), unit_rows(8), 4, r"anchors have shape \(9, 16\) but positives \(8, 16\)"),
        (unit_rows(9), unit_rows(9, 8), 4, r"anchors have shape \(9, 16\) but positives \(9, 8\)"),
        (np.ones(9), np.ones(9), 4, r"anchors: got an array of shape \(9,\).*expected \(rows, dimensions\)"),
        (np.ones((2, 3, 4)), np.ones((2, 3, 4)), 4, r"anchors: got an array of shape \(2, 3, 4\)"),
        (np.ones((9, 2), dtype=int), np.ones((9, 2), dtype=int), 4, r"anchors: got an array .*int64, expected"),
        (unit_rows(9), np.ones((9, 16), dtype=int), 4, r"positives: got an array .*int64, expected"),
        (unit_rows(9), unit_rows(9), 0, "batch_size: got 0, expected at least 1"),
        (unit_rows(9), unit_rows(9), -3, "batch_size: got -3, expected at least 1"),
    ],
    ids=["rows", "dimensions", "1-d", "3-d", "integers", "integer-positives", "batch-0", "batch-negative"],
)
def test_bad_input_is_refused(
    name: str, options: dict[str, Any], anchors: np.ndarray, positives: np.ndarray, batch_size: int, message: str
) -> None:
    """Shapes, types and batch sizes that cannot be planned raise, with what was got and expected."""
    with pytest.raises(ValueError, match=message):
        plan(name, options, anchors, positives, batch_size)


def test_rows_of_half_precision_are_taken_as_they_are() -> None:
    """Rows that are unit within what half precision rounds are not scaled again, and are not copied."""
    rows = unit_rows(40, 384).astype(np.float16)
    assert rows is planners.base.check_rows(rows, "anchors")


def test_other_rows_become_unit_float32() -> None:
    """Rows of other lengths become unit rows of float32 in the same direction."""
    rows = unit_rows(40).astype(np.float64)
    found = planners.base.check_rows(5 * rows, "anchors")
    assert np.float32 == found.dtype
    np.testing.assert_allclose(found, rows, atol=1e-6)


def test_norms_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk the norms are those of all rows, a shorter last chunk included."""
    rows = 3 * unit_rows(50)
    monkeypatch.setattr(planners.base, "_CHUNK_ROWS", 7)
    np.testing.assert_allclose(planners.base.row_norms(rows), np.linalg.norm(rows, axis=1), rtol=1e-6)


def test_random_planner_follows_its_generator() -> None:
    """Random orders differ with the generator, and every position sees every row over many of them."""
    rows = unit_rows(6)
    orders = [RandomPlanner().plan(rows, rows, 2, np.random.default_rng(seed)).tolist() for seed in range(200)]
    assert 100 < len({tuple(order) for order in orders})
    assert [set(range(6))] * 6 == [{order[position] for order in orders} for position in range(6)]


# ------------------------------------------------------------------ registry


def test_unknown_planner_names_the_known() -> None:
    """An unknown name raises, and the message lists the names there are."""
    with pytest.raises(ValueError, match=r"planner: got 'gcsb', expected one of best, .*gcbs, .*random"):
        make_planner("gcsb")


def test_unknown_option_names_the_known() -> None:
    """An option that the planner does not have raises, and the message lists those it has."""
    with pytest.raises(ValueError, match=r"planner_options of 'gcbs': got quantil, expected some of quantile, neigh"):
        make_planner("gcbs", {"quantil": 0.9, "exact": True})
    with pytest.raises(ValueError, match=r"planner_options of 'random': got quantile, expected some of measure"):
        make_planner("random", {"quantile": 0.9})


def test_options_reach_the_planner() -> None:
    """Options are keyword arguments of the planner's constructor, and are not modified."""
    options = {"quantile": 0.9, "exact": True}
    planner = make_planner("gcbs", options)
    assert isinstance(planner, GCBSPlanner)
    assert (0.9, True) == (planner.quantile, planner.exact)
    assert {"quantile": 0.9, "exact": True} == options


@pytest.mark.usefixtures("registry")
def test_users_planner_is_registered() -> None:
    """A registered class is known by its name, takes its options, and is given back unchanged."""

    class ByNorm:
        def __init__(self, *, down: bool = False) -> None:
            self.down = down

        def plan(self, anchors, positives, batch_size, rng):
            return np.arange(len(anchors))[:: -1 if self.down else 1]

    assert ByNorm is register("by_norm")(ByNorm)
    assert "by_norm" in available()
    assert sorted(available()) == available()
    planner = make_planner("by_norm", {"down": True})
    assert isinstance(planner, ByNorm)
    assert [2, 1, 0] == planner.plan(unit_rows(3), unit_rows(3), 1, np.random.default_rng(0)).tolist()
    with pytest.raises(ValueError, match="planner_options of 'by_norm': got up, expected some of down"):
        make_planner("by_norm", {"up": True})


@pytest.mark.usefixtures("registry")
def test_planner_with_any_options_takes_them() -> None:
    """A class whose constructor takes any keyword gets them all."""

    @register("open")
    class Open:
        def __init__(self, **options: Any) -> None:
            self.options = options

        def plan(self, anchors, positives, batch_size, rng):
            return np.arange(len(anchors))

    assert {"depth": 3} == make_planner("open", {"depth": 3}).options


@pytest.mark.usefixtures("registry")
def test_taken_name_is_refused() -> None:
    """A second class under a name raises; the same class again, as when a notebook cell runs twice, does not."""
    with pytest.raises(ValueError, match="planner name 'gcbs' is taken by .*GCBSPlanner.*choose another"):
        register("gcbs")(RandomPlanner)
    assert GCBSPlanner is register("gcbs")(GCBSPlanner)
    assert isinstance(make_planner("gcbs"), GCBSPlanner)


def test_object_is_given_back() -> None:
    """An object with plan() is the planner itself; with options it raises."""
    planner = RandomPlanner()
    assert planner is make_planner(planner)
    with pytest.raises(ValueError, match=r"planner_options \{'a': 1\} go with a planner's name"):
        make_planner(planner, {"a": 1})


@pytest.mark.parametrize("planner", [None, 3, RandomPlanner, np.random.default_rng])
def test_what_is_no_planner_is_refused(planner: Any) -> None:
    """Neither a name nor an object with plan() raises; a class is not an object of it."""
    with pytest.raises(TypeError, match=r"planner: got .*expected a name \(best, .*random.*\) or an object with plan"):
        make_planner(planner)


# ------------------------------------------------------------------ check_order


@pytest.mark.parametrize("order", [[2, 0, 1], np.array([2, 0, 1], dtype=np.uint8), (2, 0, 1)])
def test_bijection_is_taken_as_int64(order: Any) -> None:
    """A list, a tuple and any integer array that hold every row once become int64."""
    found = check_order(order, 3, "mine")
    assert np.int64 == found.dtype
    assert [2, 0, 1] == found.tolist()


def test_empty_order_of_no_rows() -> None:
    """The empty order is a bijection of no rows."""
    assert [] == check_order(np.empty(0, dtype=np.int64), 0, "mine").tolist()


@pytest.mark.parametrize(
    "order",
    [
        [0, 1, 1], [0, 1], [0, 1, 2, 3], [0, 1, 3], [-1, 0, 1], [[0, 1, 2]], [0.0, 1.0, 2.0],
        [True, False, True], None, "012", [],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_bijection_is_refused(order: Any) -> None:
    """A row twice, missing, unknown, another shape or type raises and names the planner."""
    with pytest.raises(ValueError, match=r"planner mine: got .*expected every row 0\.\.2 exactly once"):
        check_order(order, 3, "mine")
