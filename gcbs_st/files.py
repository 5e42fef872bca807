"""Files that are whole or not there: each is written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer


def save_model(model: SentenceTransformer, folder: Path) -> None:
    """Writes a model beside its folder and renames it, so that a folder that is there is whole.

    Args:
        model: to be saved.
        folder: where; an older model there is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
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
    """Writes a file under a temporary name and renames it.

    Args:
        file: the target; its folder is made.
        text: its content.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8", suffix=".tmp") as staged:
        staged.write(text)
    os.chmod(staged.name, 0o644)
    os.replace(staged.name, file)
