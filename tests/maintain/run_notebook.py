"""Runs the notebook of the examples from top to bottom.

    python tests/maintain/run_notebook.py            # runs it and says how long it took
    python tests/maintain/run_notebook.py --write    # and keeps what it shows in the file

What is kept is small, so that the file can be read on a web page and compared by lines: tables, texts, and pictures of few
colours. What libraries say on the way (progress, warnings) and times are not.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "examples" / "look_at_batches.ipynb"
SECONDS_A_CELL = 300
COLOURS = 64


def execute(file: Path = NOTEBOOK) -> Any:
    """Returns the notebook with what its cells show; raises nbclient's CellExecutionError if one fails.

    Args:
        file: of the notebook, whose folder is the working directory. It is not written.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    place = {"metadata": {"path": str(file.parent)}}
    NotebookClient(notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=place).execute()
    return notebook


def lighten(notebook: Any) -> None:
    """Takes times and side remarks off an executed notebook, and most colours off its pictures.

    Args:
        notebook: is changed.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if picture := output.get("data", {}).get("image/png"):
                    output.data["image/png"] = _few_colours(picture)


def _few_colours(picture: str) -> str:
    """A PNG of fewer colours, both in base64."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what the cells show in the file")
    write = parser.parse_args().write
    began = time.perf_counter()
    notebook = execute()
    print(f"{NOTEBOOK.name}: {time.perf_counter() - began:.0f} s")
    if write:
        import nbformat

        lighten(notebook)
        nbformat.write(notebook, NOTEBOOK)
        print(f"written, {NOTEBOOK.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
