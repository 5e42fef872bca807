"""What happens in the processes that are started: one makes the models, each other one runs a script once.

A script's text is not changed. What it will import is patched before it runs, so that it finds our trainers where it
imports the host's, and small stand-ins where it asks the hub; what was seen is written when it ends.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {
    "SentenceTransformer": "GCBS",
    "SparseEncoder": "GCBSSparseEncoder",
    "MultiVectorEncoder": "GCBSMultiVectorEncoder",
}
PLANNER = "bisect"
# A cross encoder that a script trains on the way is not what is looked at.
CROSS_ENCODER_STEPS = 3


class Warnings(logging.Handler):
    """Keeps the warnings of our loggers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def run(script: str, whose: str, folder: str, arguments: list[str]) -> None:
    """Runs a script in a folder and writes `record.json` and `log.txt` there.

    Args:
        script: its path.
        whose: "host" or "ours".
        folder: which is made the working directory.
        arguments: of the script's command line.
    """
    os.chdir(folder)
    _print_to(Path("log.txt"))
    kept = Warnings()
    logging.getLogger("gcbs_st").addHandler(kept)
    record: dict[str, Any] = {"error": None}
    probe = None
    try:
        make_files(" ".join([Path(script).read_text(encoding="utf-8"), *arguments]))
        probe = patch(whose)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        record["error"] = describe(error)
    finally:
        record |= {"warnings": kept.messages, **(probe.record() if probe else {})}
        Path("record.json").write_text(json.dumps(record, indent=1))


def make_hub_quietly(home: str) -> None:
    """Makes the folder `hub` of small models; what the libraries print goes to a file beside it.

    Args:
        home: where it is made.
    """
    _print_to(Path(home) / "hub.txt")
    from host_examples.models import make_hub

    make_hub(Path(home))


def _print_to(file: Path) -> None:
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)


def patch(whose: str) -> Any:
    """Changes what the script will import.

    Args:
        whose: trainers, "host" or "ours".

    Returns:
        The probe that watches them.
    """
    import sentence_transformers

    from host_examples import caps
    from host_examples.probe import Probe

    caps.stay_at_home()
    caps.mend()
    caps.cap_sizes()
    caps.cap_arguments(sentence_transformers.CrossEncoderTrainingArguments, max_steps=CROSS_ENCODER_STEPS)
    probe = Probe()
    for kind, prefix in KINDS.items():
        trainer = getattr(sentence_transformers, f"{kind}Trainer")
        arguments = getattr(sentence_transformers, f"{kind}TrainingArguments")
        if whose == "ours":
            import gcbs_st

            trainer = replace_everywhere(trainer, getattr(gcbs_st, f"{prefix}Trainer"))
            arguments = replace_everywhere(arguments, getattr(gcbs_st, f"{prefix}TrainingArguments"))
        caps.cap_arguments(arguments, **({"planner": PLANNER} if whose == "ours" else {}))
        probe.watch(trainer)
    return probe


def replace_everywhere(theirs: type, ours: type) -> type:
    """Puts a class of ours under each name by which a script could import the host's; returns it."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "sentence_transformers":
            for attribute in [key for key, value in vars(module).items() if value is theirs]:
                setattr(module, attribute, ours)
    return ours


def describe(error: BaseException) -> dict[str, Any]:
    """Returns an exception for JSON, and whether a statement of our package raised it, knowing what it refuses."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else Path()
    return {
        "type": type(error).__name__,
        "message": str(error),
        "where": f"{file.parent.name}/{file.name}:{frames[-1].lineno}" if frames else "",
        "by_gcbs_st": "gcbs_st" in file.parts and str(frames[-1].line).startswith("raise "),
    }


def make_files(text: str) -> None:
    """Writes those files into the working directory that a text names: a script's, with its arguments."""
    for name, write in FILES.items():
        if name in text:
            write(Path(name))


def _write_sentences(path: Path) -> None:
    from host_examples.data import ROWS
    from host_examples.texts import Writer

    writer = Writer(0)
    path.write_text("".join(f"{writer.about(fact)}\n" for fact in range(ROWS)))


def _write_queries(path: Path) -> None:
    from host_examples.data import ROWS
    from host_examples.texts import Writer

    writer = Writer(0)
    path.write_text("".join(f"{writer.about(fact)}\t{writer.about(fact, 3)}\n" for fact in range(ROWS)))


def _write_vectors(path: Path) -> None:
    import numpy as np

    from host_examples.texts import WORDS

    rng = np.random.default_rng(0)
    with gzip.open(path, "wt", encoding="utf8") as file:
        for word in WORDS:
            file.write(f"{word} {' '.join(f'{number:.3f}' for number in rng.normal(size=300))}\n")


def _write_frequencies(path: Path) -> None:
    from host_examples.texts import WORDS

    # A script builds a layer for 25,000 words, so there have to be more.
    words = [*WORDS, *(f"other{number}" for number in range(25_000))]
    lines = [f"{word}\t{len(words) // (10 + number) + 1}\n" for number, word in enumerate(words)]
    path.write_text(f"{len(words)}\n{''.join(lines)}", encoding="utf8")


SENTENCES = "sentences.txt"
FILES: dict[str, Callable[[Path], None]] = {
    SENTENCES: _write_sentences,
    "generated_queries.tsv": _write_queries,
    "glove.6B.300d.txt.gz": _write_vectors,
    "wikipedia_doc_frequencies.txt": _write_frequencies,
}
