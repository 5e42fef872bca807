"""Arms and seeds in, a comparison or a selection out: what `scripts/compare.py` does."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import set_seed

from gcbs_st.config import ConfigError, ExperimentConfig, dump_config
from gcbs_st.experiments.arms import plan_runs
from gcbs_st.experiments.data import ExperimentData
from gcbs_st.experiments.runner import Runner, run_all
from gcbs_st.experiments.tasks import HELD_OUT, STS, scoring_of
from gcbs_st.experiments.training_run import initial_model, score, task_facts
from gcbs_st.files import read_json, write_json, write_text
from gcbs_st.records.run_result import RunResult
from gcbs_st.records.statistics import summarise
from gcbs_st.records.tables import comparison_report, markdown_table

Tell = Callable[[str], None]
Content = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, beside the configuration."""

    out: Path  # folder of the comparison
    arms: tuple[str, ...]  # their names
    seeds: tuple[int, ...]  # a run each for each arm
    fewer: Mapping[str, int] = dataclasses.field(default_factory=dict)  # arm -> how many of the first seeds it has
    reference: str = "random"  # the arm that the others are compared with
    dev_steps: int = 100  # steps between dev scores; 0 for at the end only
    save_models: bool = False  # keep each run's model
    command: str = ""  # that the report names
    config_file: str = ""  # that the report names


def parse_seeds(text: str) -> tuple[int, ...]:
    """Returns the seeds of a text: K for 1..K, or a list with commas; one seed alone is `3,`. Raises a ConfigError.

    >>> parse_seeds("3"), parse_seeds("3,5"), parse_seeds("3,")
    ((1, 2, 3), (3, 5), (3,))
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    seeds = tuple(numbers) if "," in text else tuple(range(1, numbers[0] + 1)) if numbers else ()
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds: got {text!r}, expected a count such as 8 or a list such as 3,5,8.")
    return seeds


def parse_arms(text: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the arms of a text, and how many seeds those have that say so. Raises a ConfigError for another number.

    >>> parse_arms("random,bisect,gcbs@2")
    (('random', 'bisect', 'gcbs'), {'gcbs': 2})
    """
    parts = [part.strip().partition("@") for part in text.split(",")]
    for name, sign, count in parts:
        if sign and not (count.isdigit() and int(count)):
            raise ConfigError(f"--planners: got {name}@{count}, expected ARM, or ARM@N for N of the seeds.")
    return tuple(name for name, _, _ in parts), {name: int(count) for name, sign, count in parts if sign}


def compare(config: ExperimentConfig, options: Options, tell: Tell) -> Content:
    """Returns a comparison, after running what is not finished.

    `comparison.json` and `comparison.md` are written after each seed that its arms have finished; `tell` is given one
    line per finished run. Raises a ConfigError for an arm, a field or a reference that cannot be.
    """
    if options.reference not in options.arms:
        raise ConfigError(
            f"--reference: got {options.reference!r}, expected one of the arms, {', '.join(options.arms)}. "
            "Add it to --planners, or name another."
        )
    if options.reference in options.fewer:
        raise ConfigError(
            f"--planners: {options.reference} is what the others are compared with, on all seeds: drop @N."
        )
    runs = plan_runs(config, options.arms, options.seeds, options.out, fewer=options.fewer)
    runner = Runner(config, dev_steps=options.dev_steps, save_models=options.save_models)
    before = _score_untrained(config, runner.data, options.out)
    records: dict[str, dict[int, RunResult]] = {arm: {} for arm in options.arms}
    content: Content = {}
    last_of = {run.seed: run.arm for run in runs}
    for run, record in run_all(runs, runner, tell):
        records[run.arm][run.seed] = record
        if run.arm == last_of[run.seed]:
            steps = {of_arm[run.seed].steps for of_arm in records.values() if run.seed in of_arm}
            if len(steps) > 1:
                tell(f"warning: the arms of seed {run.seed} took {sorted(steps)} steps, not as many each.")
            content = _write_comparison(config, options, records, before)
    return content


def _score_untrained(config: ExperimentConfig, data: ExperimentData, out: Path) -> dict[str, float]:
    """Scores of the untrained model, read from `untrained.json` where they are of the same model and tasks.

    Whole corpora take minutes to encode, and seeds are added to a comparison again and again.
    """
    of = {
        "model": dataclasses.asdict(config.model),
        "evaluation": dataclasses.asdict(config.evaluation),
        "tasks": task_facts(data),
        "corpus_hash": data.corpus_hash,
    }
    file = out / "untrained.json"
    try:
        stored = read_json(file, dict)
    except (OSError, ValueError):
        stored = {}
    if stored.get("of") != of:
        set_seed(0)  # a new head of the model is drawn at random
        stored = {"of": of, "scores": score(initial_model(config), config, data)}
        write_json(file, stored)
    scores: dict[str, float] = stored["scores"]
    return scores


def _write_comparison(
    config: ExperimentConfig,
    options: Options,
    records: Mapping[str, Mapping[int, RunResult]],
    before: dict[str, float],
) -> Content:
    dev = scoring_of(config.evaluation).dev_metric
    summary = summarise(records, options.reference, dev)
    seeds = list(records[options.reference])
    base = records[options.reference][seeds[0]]
    content = {
        "command": options.command,
        "config_file": options.config_file,
        "seeds": seeds,
        "reference": options.reference,
        "dev_steps": options.dev_steps,
        "dev_metric": dev,
        # Of all runs: a comparison that was interrupted may have gone on at another commit.
        "commits": sorted({str(record.commit) for runs in records.values() for record in runs.values()}),
        **{key: getattr(base, key) for key in ("corpus_hash", "training_rows", "python", "versions")},
        "tasks": base.tasks or {},
        "config": yaml.safe_load(dump_config(config)),
        "before": before,
        "arms": summary,
        "runs": {arm: {str(seed): record.to_json() for seed, record in runs.items()} for arm, runs in records.items()},
    }
    write_json(options.out / "comparison.json", content)
    write_text(options.out / "comparison.md", comparison_report(content) + "\n")
    return content


def settings_of(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the settings of a sweep: the Cartesian product of its keys' values, as overrides `KEY=V`.

    Each sweep is `KEY=V1,V2` with a key of train, loss or model; others raise a ConfigError.

    >>> settings_of(["train.a=1,2", "loss.b=3"])
    [('train.a=1', 'loss.b=3'), ('train.a=2', 'loss.b=3')]
    """
    choices = []
    for sweep in sweeps:
        key, sign, values = sweep.partition("=")
        if not sign or not all(values.split(",")) or key.split(".")[0] not in ("train", "loss", "model"):
            raise ConfigError(
                f"--sweep {sweep}: expected KEY=V1,V2 with a key of train, loss or model, for example "
                "--sweep train.learning_rate=0.001,0.002"
            )
        choices.append([f"{key}={value}" for value in values.split(",")])
    if not choices:
        raise ConfigError(
            "--select: got no --sweep, expected at least one, such as --sweep train.learning_rate=0.001,0.002"
        )
    return list(itertools.product(*choices))


def select(config: ExperimentConfig, options: Options, sweeps: Sequence[str], tell: Tell) -> str:
    """Returns a table of the settings of a sweep, the best of each arm marked, by the dev task alone.

    Beside it stands the other figure that a choice may rest on, STS-B dev or pairs that are kept back, where the
    configuration has it: a setting that wins on one alone has misled. Test tasks are not even read. `selection.json` holds the same. Raises a ConfigError for an arm, a field or a sweep
    that cannot be.
    """
    runs = plan_runs(config, options.arms, options.seeds, options.out, settings_of(sweeps), options.fewer)
    runner = Runner(config, dev_steps=options.dev_steps, dev_only=True, save_models=options.save_models)
    dev = runner.scoring.dev_metric
    others = [STS.dev_metric, HELD_OUT.dev_metric]
    found: dict[str, dict[str, dict[str, list[float]]]] = {}  # figure -> arm -> setting -> a score each seed
    for run, record in run_all(runs, runner, tell):
        for name in dict.fromkeys([dev, *others]):
            if name in record.scores:
                by = found.setdefault(name, {arm: {} for arm in options.arms})
                by[run.arm].setdefault(" ".join(run.setting), []).append(record.scores[name])
    scores = found.pop(dev)
    means = _means(scores)
    best = {arm: max(by, key=lambda setting: by[setting]) for arm, by in means.items()}
    beside = {name: _means(values) for name, values in found.items()}
    write_json(
        options.out / "selection.json",
        {
            "command": options.command,
            "seeds": options.seeds,
            "task": dev,
            "best": best,
            "mean": means,
            "scores": scores,
            "beside": found,
        },
    )
    rows = [
        [arm, setting, f"{mean:.2f}", *(f"{by_arm[arm][setting]:.2f}" for by_arm in beside.values())]
        + ["best" if setting == best[arm] else ""]
        for arm, by in means.items()
        for setting, mean in by.items()
    ]
    return markdown_table(["arm", "setting", dev, *beside, ""], rows)


def _means(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {arm: {setting: statistics.fmean(values) for setting, values in by.items()} for arm, by in scores.items()}
