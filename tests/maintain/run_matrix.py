"""Runs the feature matrix: every case of `tests/matrix`, in one process, resumed, and by several processes.

    python tests/maintain/run_matrix.py                                # all cells; prints those that are not as expected
    python tests/maintain/run_matrix.py --write docs/works-with.md     # and writes the table, if all are
    python tests/maintain/run_matrix.py --only MatryoshkaLoss --only "`bf16`" --processes 1

Needs the dev extra. Exit code 1 if a cell is not as expected, or was not run.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in (".", "support"))

from matrix.cases import CASES
from matrix.launch import run_cases
from matrix.optional import why_unusable
from matrix.table import block, disagreements, table_in, with_block


def main() -> int:
    """Reads the command line, runs the cases, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a file with the lines <!-- matrix --> and <!-- /matrix -->")
    parser.add_argument("--only", action="append", help="names of cases; default: all")
    parser.add_argument("--processes", type=int, action="append", choices=(1, 2, 3), help="default: 1, 2 and 3")
    given = parser.parse_args()
    if unknown := set(given.only or ()) - {case.name for case in CASES}:
        parser.error(f"--only: got {sorted(unknown)}, expected names of the table, such as {CASES[0].name!r}")
    if given.write and (given.only or given.processes):
        parser.error("--write: the table is of all cases; leave --only and --processes out")
    if given.write:
        table_in(given.write.read_text())  # before minutes of work
        if reasons := sorted({why for case in CASES if case.needs and (why := why_unusable(case.needs))}):
            parser.error(f"--write: {'; '.join(reasons)}, and a cell must not be left out")
    cases = [case for case in CASES if given.only is None or case.name in given.only]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="matrix_") as folder:
        records = run_cases(cases, Path(folder), given.processes or (1, 2, 3))
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_seconds = used.ru_utime + used.ru_stime
    for (name, column), record in records.items():
        print(f"{name}, {column}: {record['outcome']} ({record['seconds']} s)")
    wrong = disagreements(cases, records)
    if given.processes:
        wrong = [line for line in wrong if ": not run" not in line]
    print(f"{len(records)} cells in {seconds:.0f} s, {processor_seconds:.0f} s of processors")
    for line in wrong:
        print(f"NOT AS EXPECTED: {line}", file=sys.stderr)
    if given.write and not wrong:
        given.write.write_text(with_block(given.write.read_text(), block(cases, records, seconds, processor_seconds)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
