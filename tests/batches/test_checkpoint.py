"""The plan in a checkpoint: written whole or not at all, and nothing damaged is taken."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcbs_st import files
from gcbs_st.batches.checkpoint import PLAN_FILE, last_whole_checkpoint, read_plan, write_plan


def state(n: int = 12, **changes: Any) -> dict[str, Any]:
    """A sampler's state."""
    order = np.random.default_rng(n).permutation(n)
    return {"order": order, "epoch": 1, "plan_count": 2, "batch_size": 3, "rows": n, "seed": 42, **changes}


def comparable(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The states with lists for arrays."""
    return {name: {**values, "order": values["order"].tolist()} for name, values in states.items()}


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The bytes of a plan of two datasets."""
    with tempfile.TemporaryDirectory() as folder:
        return write_plan(folder, {"first": state(), "second": state(5)}, "hash").read_bytes()


@pytest.mark.parametrize("names", [[""], ["first"], ["b", "a", "ü / .."], []])
def test_round_trip(tmp_path: Path, names: list[str]) -> None:
    """What was written is read: states by name in their order, numbers, orders and fingerprint."""
    states = {name: state(10 + i, epoch=i) for i, name in enumerate(names)}
    assert tmp_path / "checkpoint-3" / PLAN_FILE == write_plan(tmp_path / "checkpoint-3", states, "hash")
    found, fingerprint = read_plan(str(tmp_path / "checkpoint-3"))
    assert "hash" == fingerprint
    assert names == list(found)
    for name, expected in comparable(states).items():
        assert expected == {key: value for key, value in comparable(found)[name].items() if key != "name"}
        assert states[name]["order"].dtype == found[name]["order"].dtype


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    """After writing, and after writing again, the folder holds the plan alone, and it is the last one."""
    for epoch in (1, 2):
        write_plan(tmp_path, {"": state(epoch=epoch)}, "hash")
        assert [PLAN_FILE] == [path.name for path in tmp_path.iterdir()]
    assert 2 == read_plan(tmp_path)[0][""]["epoch"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_failed_writing_leaves_the_old_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """An exception half-way leaves the plan that was there, and no temporary file."""

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half a file")
        raise error

    write_plan(tmp_path, {"": state()}, "old")
    monkeypatch.setattr(files.np, "savez", fail)
    with pytest.raises(type(error)):
        write_plan(tmp_path, {"": state()}, "new")
    assert [PLAN_FILE] == [path.name for path in tmp_path.iterdir()]
    assert "old" == read_plan(tmp_path)[1]


def test_plan_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written there is no file of the plan's name: a killed run leaves none or a whole one."""
    seen = []
    save = np.savez

    def watch(file: Any, **arrays: Any) -> None:
        save(file, **arrays)
        seen.append((tmp_path / PLAN_FILE).exists())

    monkeypatch.setattr(files.np, "savez", watch)
    write_plan(tmp_path, {"": state()}, "hash")
    assert [False] == seen
    assert (tmp_path / PLAN_FILE).exists()


def test_plan_is_as_readable_as_other_files(tmp_path: Path) -> None:
    """The plan has the permissions of any new file, so that whoever may read the checkpoint may resume it."""
    (tmp_path / "other").write_text("")
    assert (tmp_path / "other").stat().st_mode == write_plan(tmp_path, {"": state()}, "hash").stat().st_mode


@pytest.mark.parametrize("folder", [".", "missing"])
def test_missing_plan(tmp_path: Path, folder: str) -> None:
    """A folder without a plan, and no folder, say that it is not there."""
    with pytest.raises(ValueError, match=f"{PLAN_FILE} is not there"):
        read_plan(tmp_path / folder)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 500, b"PK\x03\x04" + b"\xff" * 200, b"\x93NUMPY"])
def test_garbage_is_damaged(tmp_path: Path, content: bytes) -> None:
    """What is no plan at all is said to be damaged, with the file's name."""
    (tmp_path / PLAN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{PLAN_FILE} is damaged \(\w+"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "described",
    ["not json", "[]", "{}", "null", '{"samplers": [{}], "fingerprint": ""}', '{"samplers": [{"name": ""}]}',
     '{"samplers": [3], "fingerprint": ""}', '{"samplers": [{"name": []}], "fingerprint": ""}', '{"samplers": []}'],
)  # fmt: skip
def test_foreign_description_is_damaged(tmp_path: Path, described: str) -> None:
    """A file of the right kind whose description lacks something is damaged too."""
    np.savez(tmp_path / PLAN_FILE, state=np.array(described))
    with pytest.raises(ValueError, match="is damaged"):
        read_plan(tmp_path)


def test_pickled_plan_is_refused(tmp_path: Path) -> None:
    """Nothing in a checkpoint's plan is unpickled."""
    np.savez(tmp_path / PLAN_FILE, state=np.array({"samplers": [], "fingerprint": ""}, dtype=object))
    with pytest.raises(ValueError, match="is damaged .*pickle"):
        read_plan(tmp_path)


@settings(deadline=None, max_examples=300)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncation_is_always_noticed(whole: bytes, share: float) -> None:
    """Cut off at any byte, the plan is damaged: never another exception, never taken."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PLAN_FILE).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="is damaged"):
            read_plan(folder)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_changed_byte_is_noticed_or_harmless(whole: bytes, data: st.DataObject) -> None:
    """With any byte changed the plan is damaged, or is what it was: never another exception or plan."""
    position = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[position] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PLAN_FILE).write_bytes(whole)
        expected = comparable(read_plan(folder)[0])
        (Path(folder) / PLAN_FILE).write_bytes(bytes(changed))
        try:
            states, fingerprint = read_plan(folder)
        except ValueError as error:
            assert "is damaged" in str(error)
        else:
            assert ("hash", expected) == (fingerprint, comparable(states))


@pytest.mark.parametrize("offset", range(4, 10))
def test_foreign_zip_features_are_damage(tmp_path: Path, whole: bytes, offset: int) -> None:
    """Bytes that read as encryption, a later zip version or another compression are damage as well."""
    central = whole.index(b"PK\x01\x02")
    for bit in range(8):
        changed = bytearray(whole)
        changed[central + 2 + offset] ^= 1 << bit
        (tmp_path / PLAN_FILE).write_bytes(bytes(changed))
        try:
            read_plan(tmp_path)
        except ValueError as error:
            assert "is damaged" in str(error)


# ------------------------------------------------------------------ last_whole_checkpoint


def add_checkpoint(folder: Path, name: str, content: str | None = '{"global_step": 1}') -> Path:
    """A checkpoint's folder with the host's state in it."""
    (folder / name).mkdir()
    if content is not None:
        (folder / name / "trainer_state.json").write_text(content)
    return folder / name


def test_newest_by_number(tmp_path: Path) -> None:
    """The highest step is the newest, as a number and not as a text."""
    for step in (9, 100, 20):
        add_checkpoint(tmp_path, f"checkpoint-{step}")
    assert str(tmp_path / "checkpoint-100") == last_whole_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", [None, "", '{"global_step": 1', "\udcff", json.dumps([1] * 99)[:-1]])
def test_torn_checkpoints_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    """A checkpoint without the state that is written last, or with half of it, is passed over with a warning."""
    expected = add_checkpoint(tmp_path, "checkpoint-5")
    for step in (7, 30):
        torn = add_checkpoint(tmp_path, f"checkpoint-{step}", None)
        if content is not None:
            (torn / "trainer_state.json").write_bytes(content.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert str(expected) == last_whole_checkpoint(tmp_path)
    assert ["checkpoint-30" in caplog.messages[0], "checkpoint-7" in caplog.messages[1]] == [True, True]
    assert 2 == len(caplog.messages)


def test_other_folders_and_files_are_no_checkpoints(tmp_path: Path) -> None:
    """Only folders named checkpoint-<step> count."""
    for name in ("checkpoint", "checkpoint-", "checkpoint-x", "checkpoint-7-old", "my-checkpoint-8", "runs"):
        add_checkpoint(tmp_path, name)
    (tmp_path / "checkpoint-9").write_text("a file")
    assert None is last_whole_checkpoint(tmp_path)
    expected = add_checkpoint(tmp_path, "checkpoint-1")
    assert str(expected) == last_whole_checkpoint(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    """An empty folder, one that is not there, and only torn ones give None."""
    assert None is last_whole_checkpoint(tmp_path)
    assert None is last_whole_checkpoint(tmp_path / "missing")
    add_checkpoint(tmp_path, "checkpoint-3", None)
    assert None is last_whole_checkpoint(tmp_path)
