#!/usr/bin/env python3
"""Train sentence embeddings once for each run of a configuration, and print one table of what came of it.

Goes in: a YAML file. Comes out: a folder a run, a table on stdout, and JSON where asked.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

EXAMPLE = """examples:
  python scripts/train_sts.py --config configs/quickstart.yaml
  python scripts/train_sts.py --config configs/quickstart.yaml --set train.learning_rate=0.001 --json results.json
  python scripts/train_sts.py --config configs/simcse_sup_bert_base.yaml --dry-run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 on success, 2 on a user's mistake, which is explained in one line on stderr.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as train.seed=1"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the records there")
    parser.add_argument("--resume", action="store_true", help="keep finished runs and go on with an interrupted one")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything on a tiny random model without network, take two steps a run, and say what the full run "
        "would download and cost",
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and the libraries' messages")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if not arguments.verbose:
        warnings.filterwarnings("ignore", category=UserWarning)
    if arguments.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the hub's library when it is imported
    began = time.perf_counter()
    # After the arguments: the libraries take seconds to import, and --help should not.
    from gcbs_st.config import load_config
    from gcbs_st.experiment import run_experiment
    from gcbs_st.files import write_json
    from gcbs_st.report import experiment_table

    try:
        config = load_config(arguments.config, arguments.set)
        if arguments.dry_run:
            from gcbs_st.dry_run import dry_run

            with contextlib.redirect_stdout(sys.stderr):
                report = dry_run(config)
            print(f"{report}\n\n{time.perf_counter() - began:.0f} seconds in all; nothing was kept or downloaded.")
            return 0
        # What the host prints while it trains must not get between the caller and the table.
        with contextlib.redirect_stdout(sys.stderr):
            records = run_experiment(config, resume=arguments.resume)
        if arguments.json:
            write_json(Path(arguments.json), records)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if arguments.verbose:
            raise
        print(f"train_sts.py: {error}", file=sys.stderr)
        return 2
    print(experiment_table(records))
    print(f"\n{time.perf_counter() - began:.0f} seconds in all; models and results are in {config.output}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
