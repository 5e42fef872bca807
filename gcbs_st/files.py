"""Files that are whole or not there: each is written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:  # takes seconds to import, which those who only write a text should not wait for
    from sentence_transformers import SentenceTransformer


def cache_folder() -> Path:
    """Returns the folder for what can be made again: `gcbs_st` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gcbs_st"


def save_model(model: SentenceTransformer, folder: Path) -> None:
    """Writes a model beside its folder and renames it, so that the folder is whole whenever it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In a folder that nobody else makes; the model's own folder in it has the rights of any new one.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as private:
        staged = Path(private) / folder.name
        model.save(str(staged))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staged, folder)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a text in UTF-8 as `write_bytes` does."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a file as `whole_file` does."""
    with whole_file(file) as staged:
        staged.write(content)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Opens a file for bytes that appears under its name when the block has ended; makes its folder.

    Whatever ends the block early leaves neither a part of the file nor a temporary one, and an older file as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A plain new file, so that it gets the rights that the user's umask gives; named so that nobody else writes to it.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Makes a folder beside `target` that takes its name when the block has ended.

    Whatever ends the block early leaves neither a part of the folder nor a temporary one, and an older folder as it was.
    A folder that is there is replaced if it is empty, or if `replace` says so; else an OSError is raised.
    """
    target = target.resolve()  # so that "." has a name, and what a link leads to is replaced, not the link
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.{uuid.uuid4().hex[:8]}"
    staged, older = target.with_name(f"{name}.tmp"), target.with_name(f"{name}.old")
    staged.mkdir()
    try:
        yield staged
        if replace and target.is_dir():
            os.replace(target, older)  # no system exchanges two folders in one step everywhere
            try:
                os.replace(staged, target)
            except OSError:
                os.replace(older, target)
                raise
            shutil.rmtree(older, ignore_errors=True)
        else:
            os.replace(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read_json(file: Path, kind: type[Any]) -> Any:
    """Returns the dict or list of a JSON file; raises a ValueError that names a file that is missing or damaged."""
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
    """Writes arrays by name ("state" is taken) and their description under a temporary name and renames it."""
    named: Any = {"state": np.array(json.dumps(described)), **arrays}
    with whole_file(target) as file:
        np.savez(file, **named)


def read_arrays(file: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Returns the arrays and the description that `write_arrays` wrote.

    Raises a ValueError that says whether the file is missing or damaged.
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
