"""Files that are whole or not there: each is written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
