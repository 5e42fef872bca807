"""Files that are whole or not there: each is written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # takes seconds to import, which those who only write a text should not wait for
    from sentence_transformers import SentenceTransformer


def save_model(model: SentenceTransformer, folder: Path) -> None:
    """Writes a model beside its folder and renames it, so that a folder that is there is whole.

    Args:
        model: to be saved.
        folder: where; an older model there is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In a folder that nobody else makes; the model's own folder in it has the rights of any new one.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as private:
        staged = Path(private) / folder.name
        model.save(str(staged))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staged, folder)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON under a temporary name and renames it.

    Args:
        file: the target; its folder is made.
        content: what `json.dumps` takes.
    """
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a text, in UTF-8, under a temporary name and renames it.

    Args:
        file: the target; its folder is made.
        text: its content.
    """
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it; what cannot be written leaves nothing behind.

    Args:
        file: the target; its folder is made.
        content: all of it.

    Raises:
        OSError: it cannot be written, for want of room or leave.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False, suffix=".tmp") as staged:
        try:
            staged.write(content)
        except OSError:
            os.unlink(staged.name)
            raise
    os.chmod(staged.name, 0o644)
    os.replace(staged.name, file)


def read_json(file: Path, kind: type[Any]) -> Any:
    """Returns what a JSON file holds.

    Args:
        file: that is there or is not.
        kind: dict or list.

    Raises:
        ValueError: it is not there, not JSON, or something else than that; the message names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error})") from None
    if not isinstance(content, kind):
        raise ValueError(f"{file} is damaged: it holds {type(content).__name__}, expected {kind.__name__}")
    return content


def write_arrays(target: Path, arrays: Mapping[str, np.ndarray], described: Any) -> None:
    """Writes arrays and what they are under a temporary name and renames it.

    Args:
        target: the file, whose folder is made if it is not there.
        arrays: by name; "state" is taken.
        described: anything that JSON holds.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".npz.tmp")
    try:
        with temporary.open("wb") as file:
            named: Any = {"state": np.array(json.dumps(described)), **arrays}
            np.savez(file, **named)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(file: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Returns what `write_arrays` wrote.

    Args:
        file: the file.

    Returns:
        The arrays by name, and what they are.

    Raises:
        ValueError: the file is not there or is damaged; the message says which.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not there")
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return arrays, json.loads(str(arrays.pop("state")))
    # RuntimeError: a damaged byte can also read as a zip feature that Python lacks, or as encryption.
    except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None
