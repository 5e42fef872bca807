"""Runs in, what belongs together out: ways of training (arms), the random batches to compare with, pairs, caveats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gcbs_st.records.run_folder import RunRecord, Runs

Arms = dict[str, list[RunRecord]]  # label -> one run per seed


def group_arms(runs: Sequence[RunRecord]) -> Arms:
    """Returns the runs by label: their name, after as much of the experiment's path as tells experiments apart."""
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    arms: Arms = {}
    for run in runs:
        prefix = "" if len(experiments) == 1 else f"{short_path(run.experiment, experiments)}/"
        arms.setdefault(f"{prefix}{run.name}", []).append(run)
    return arms


def short_path(path: Path, paths: Sequence[Path]) -> str:
    """Returns the last parts of one of the paths, as many as no other path ends with.

    >>> short_path(Path("a/x"), [Path("a/x"), Path("b/x"), Path("c")])
    'a/x'
    """
    for length in range(1, len(path.parts) + 1):
        tail = path.parts[-length:]
        if sum(other.parts[-length:] == tail for other in paths) == 1:
            break
    return "/".join(tail)


def find_reference(arm: str, arms: Arms) -> str | None:
    """Returns the label of the random batches that an arm is compared with, None if there are none but the arm itself.

    They are the arm named random of the same experiment, or the only one there whose planner is random.
    """
    experiment = arms[arm][0].experiment
    beside = {label: runs[0] for label, runs in arms.items() if runs[0].experiment == experiment}
    named = [label for label, run in beside.items() if run.name == "random"]
    random = [label for label, run in beside.items() if flat_config(run).get("train.planner") == "random"]
    found = named or (random if len(random) == 1 else [])
    return found[0] if found and found[0] != arm else None


def pairs_of(arm: Sequence[RunRecord], reference: Sequence[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
    """Returns pairs of runs of an arm and of its reference with the same seed and training rows, each run once."""
    others = {(run.seed, run.record["corpus_hash"]): run for run in reference}
    keys = {(run.seed, run.record["corpus_hash"]): run for run in arm}
    return [(run, others[key]) for key, run in keys.items() if key in others]


def notes_on(arms: Arms, references: Mapping[str, str | None], runs: Runs) -> list[str]:
    """Returns what the reader should beware of, in one sentence each; `references` maps arms to their references."""
    notes = [note for arm, other in references.items() if other for note in _pairing_notes(arm, other, arms)]
    notes += [note for label, of_arm in arms.items() for note in _seed_notes(label, of_arm)]
    if len({frozenset(run.seed for run in of_arm) for of_arm in arms.values()}) > 1:
        notes.append("Not all have the same seeds: compare them by their differences, not by their means.")
    if len({run.record["corpus_hash"] for run in runs.runs}) > 1:
        notes.append("The runs were not all trained on the same rows; see where the figures come from.")
    commits = {str(run.record.get("commit")) for run in runs.runs}
    if any(commit.endswith("+") for commit in commits):
        notes.append("A + after a commit: files of the checkout differed from it.")
    if "None" in commits:
        notes.append("The commit of some runs is not recorded.")
    if silent := [label for label, of in arms.items() if not any("loss" in e for run in of for e in run.log)]:
        notes.append(f"No loss was logged by {_listed(silent)}, or their log was not kept (log_history.json).")
    if runs.left_out:
        notes.append(f"Left out, as there is no run in them yet: {_listed(runs.left_out)}.")
    return notes


def _pairing_notes(arm: str, reference: str, arms: Arms) -> list[str]:
    pairs, own = pairs_of(arms[arm], arms[reference]), len(arms[arm])
    notes = []
    if lone := own - len(pairs):
        notes.append(f"{arm}: {lone} of {own} runs have no run of {reference} with the same seed and rows.")
    if unlike := [run.seed for run, other in pairs if run.record["steps"] != other.record["steps"]]:
        notes.append(f"{arm}: other numbers of steps than {reference} with the seeds {_listed(unlike)}.")
    return notes


def _seed_notes(label: str, runs: Sequence[RunRecord]) -> list[str]:
    notes = []
    if len({tuple(sorted(flat_config(run).items())) for run in runs}) > 1:
        notes.append(f"{label}: its runs differ in more than the seed; their means mix configurations.")
    if len({run.seed for run in runs}) < len(runs):
        notes.append(f"{label}: some of its runs have the same seed.")
    return notes


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def flat_config(run: RunRecord) -> dict[str, str]:
    """Returns what a run was configured with, dotted key -> value as text.

    The run's entry in `runs` or `arms` overrides `train` and the blocks that it names. Left out are the output folder,
    and the seed, which tells the runs of one name apart.
    """
    blocks = {key: value for key, value in run.config.items() if key not in ("output", "runs", "arms")}
    entry, arm = (_mapping(_mapping(run.config.get(block)).get(run.name)) for block in ("runs", "arms"))
    train = {**_mapping(blocks.get("train")), **_mapping(arm.get("train")), **entry}
    flat = _flatten({**blocks, **{key: value for key, value in arm.items() if value}, "train": train})
    flat.pop("train.seed", None)
    return flat


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _flatten(block: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in block.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flatten(value, f"{name}.")
        elif value is not None:  # null: not given, or unknown to an earlier version
            flat[name] = str(value)
    return flat
