"""Records of runs in, the content of a report out: tables, charts, and what the reader should beware of.

Nothing is measured here: every figure comes from the records and logs that the runs left.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gcbs_st.reports.charts.charts import charts_of_runs, run_charts
from gcbs_st.reports.charts.pictures import difference_chart
from gcbs_st.records.tables import difference_words, experiment_rows, has_mean, score_title
from gcbs_st.reports.runs.run_groups import Arms, find_reference, group_arms, notes_on, pairs_of, short_path
from gcbs_st.records.run_folder import RunRecord, Runs
from gcbs_st.reports.runs.run_groups import finite, flat_config
from gcbs_st.records.statistics import is_score, paired_difference

Differences = dict[str, dict[str, dict[str, Any]]]
_REFERENCE = "random batches"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: of the section that it stands in.
        note: what a reader needs to know to read it.
        header: titles of the columns.
        rows: as many texts each; the first names the row.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        title: in one line.
        notes: what the reader should beware of.
        results: scores, differences and seconds.
        charts: title -> PNG.
        origins: configurations and where the figures come from.
    """

    title: str
    notes: Sequence[str]
    results: Sequence[Table]
    charts: Mapping[str, bytes]
    origins: Sequence[Table]


def make_report(runs: Runs, *, with_charts: bool = True) -> Report:
    """Returns the report over runs.

    Args:
        runs: what `gcbs_st.records.run_folder.read_runs` returns, at least one run.
        with_charts: draw them; needs matplotlib.

    Returns:
        The content, to be written by `gcbs_st.reports.runs.page`.

    Raises:
        ImportError: charts are wanted and matplotlib is not installed.
    """
    arms = group_arms(runs.runs)
    references = {arm: find_reference(arm, arms) for arm in arms}
    differences = _differences(arms, references)
    results = [
        _scores(arms, runs, _summary_of),
        _scores(arms, runs, _tasks_of),
        _difference_table(differences),
        _seconds(arms, references),
    ]
    return Report(
        title=f"{_count(len(arms), 'way', 'ways')} of training, {_count(len(runs.runs), 'run', 'runs')}",
        notes=notes_on(arms, references, runs),
        results=[table for table in results if len(table.header) > 1 and table.rows],
        charts=_charts(arms, differences) if with_charts else {},
        origins=[table for table in (_settings(arms), _origins(arms), _folders(arms)) if table.rows],
    )


def _mean_record(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The numbers that all runs of an arm have, averaged; not finite where one is not."""
    numbers = [key for key, value in runs[0].record.items() if isinstance(value, (int, float))]
    shared = [key for key in numbers if all(isinstance(run.record.get(key), (int, float)) for run in runs)]
    means: dict[str, Any] = {key: statistics.fmean(run.record[key] for run in runs) for key in shared}
    return {**means, "steps": round(means["steps"])}


def _summary_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


def _tasks_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in record.items() if is_score(key) and score_title(key) == key}


def _scores(arms: Arms, runs: Runs, choose: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Table:
    """The scores that have a column of their own everywhere, or those of the single tasks."""
    experiments = {run.experiment for run in runs.runs}
    records: dict[str, Mapping[str, Any]] = {}
    for folder, scores in runs.before.items():
        if folder in experiments:
            alone = len(experiments) == 1
            records["before" if alone else f"{short_path(folder, list(experiments))}: before training"] = scores
    seeds = {label: len(of_arm) for label, of_arm in arms.items()}
    records |= {label: _mean_record(of_arm) for label, of_arm in arms.items()}
    if choose is _summary_of:
        header, rows = experiment_rows({label: choose(record) for label, record in records.items()})
        title, note = "Scores", "Scores x 100, the higher the better; hard batches have a higher training loss"
    else:
        tasks = list(dict.fromkeys(key for record in records.values() for key in choose(record)))
        header = ["batches", *tasks]
        cells = {label: [finite(record.get(task)) for task in tasks] for label, record in records.items()}
        rows = [
            ["before training" if label == "before" else label, *["" if v is None else f"{v:.2f}" for v in row]]
            for label, row in cells.items()
        ]
        title, note = "Scores of single tasks", "Scores x 100, the higher the better"
    if max(seeds.values()) > 1:
        note += "; means over the seeds"
        rows = [[row[0], str(seeds.get(label, "")), *row[1:]] for label, row in zip(records, rows, strict=True)]
        header = [header[0], "seeds", *header[1:]] if len(header) > 1 else header
    return Table(title, f"{note}.", header, rows)


def _differences(arms: Arms, references: Mapping[str, str | None]) -> Differences:
    """Paired differences of all scores to random batches: arm -> score -> difference."""
    found: Differences = {}
    for arm, reference in references.items():
        pairs = pairs_of(arms[arm], arms[reference]) if reference else []
        for name in pairs[0][0].record if pairs else ():
            values = [[finite(run.record.get(name)) for run in side] for side in zip(*pairs, strict=True)]
            shown = is_score(name) and (name != "avg" or has_mean(pairs[0][0].record))
            if shown and None not in [*values[0], *values[1]]:
                difference = paired_difference(*values)  # type: ignore[arg-type] # None was looked for
                found.setdefault(arm, {})[name] = difference
    return found


def _difference_table(found: Differences) -> Table:
    """The differences as text, a row a score: so the table stays narrow."""
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    order = sorted(names, key=lambda name: (name != "avg", not name.endswith(("-dev", "-dev_mrr"))))
    rows = [[score_title(name), *[difference_words(of.get(name)) for of in found.values()]] for name in order]
    note = (
        "Points (scores x 100), runs of the same seed and rows in pairs: mean, 95 % t interval where there are several "
        "seeds, and in how many pairs the score is above that of random batches."
    )
    return Table("Differences to random batches", note, ["score", *found], rows)


def _seconds(arms: Arms, references: Mapping[str, str | None]) -> Table:
    columns = {
        "seconds_total": "in all",
        "seconds_training": "training",
        "seconds_embedding": "of it embedding",
        "seconds_planning": "of it planning",
        "seconds_mining": "mining",
    }
    records = {label: [run.record for run in runs] for label, runs in arms.items()}
    used = [key for key in columns if any(finite(record.get(key)) for of in records.values() for record in of)]
    rows = []
    for label, of_arm in records.items():
        values = [[v for record in of_arm if (v := finite(record.get(key))) is not None] for key in used]
        reference = references[label]
        ratios = [
            _whole(run) / _whole(other)
            for run, other in (pairs_of(arms[label], arms[reference]) if reference else [])
            if _whole(other)
        ]
        cells = [f"{statistics.median(v):.1f}" if v else "" for v in values]
        rows.append([label, *cells, f"x {statistics.median(ratios):.2f}" if ratios else ""])
    note = "Medians over the seeds. Times of other machines, or of one that was busy, cannot be compared."
    return Table("Seconds", note, ["batches", *[columns[key] for key in used], "of random batches'"], rows)


def _whole(run: RunRecord) -> float:
    """Seconds of a run in all; mining comes before the training."""
    return finite(run.record.get("seconds_total")) or finite(run.record["seconds_training"]) or 0.0


def _charts(arms: Arms, differences: Differences) -> dict[str, bytes]:
    steps = max(run.record["steps"] for runs in arms.values() for run in runs)
    (first, *others) = arms.values()
    if not others and len(first) == 1:
        return run_charts(first[0].log, steps)
    charts = {"Paired differences": difference_chart(differences, _REFERENCE)} if differences else {}
    return charts | charts_of_runs({label: [run.log for run in runs] for label, runs in arms.items()}, steps)


def _settings(arms: Arms) -> Table:
    """The keys of the configuration in which the arms differ."""
    configs = {label: flat_config(runs[0]) for label, runs in arms.items()}
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    different = [key for key in keys if len({config.get(key) for config in configs.values()}) > 1]
    rows = [[key, *[config.get(key, "–") for config in configs.values()]] for key in different]
    return Table(
        "What the runs differ in", "All other keys of their configurations are equal.", ["key", *configs], rows
    )


def _origins(arms: Arms) -> Table:
    """Commit, data and versions; where they differ, which runs have which."""
    values: dict[str, dict[str, list[str]]] = {}
    for label, runs in arms.items():
        for run in runs:
            record = run.record
            facts = {
                "commit": record.get("commit") or "not recorded",
                "corpus": f"{record.get('training_rows', '?')} rows, hash {record['corpus_hash']}",
                "Python": record.get("python", "not recorded"),
                **{name: version or "not recorded" for name, version in record["versions"].items()},
            }
            for name, value in facts.items():
                holders = values.setdefault(name, {}).setdefault(str(value), [])
                if label not in holders:
                    holders.append(label)
    rows = [
        [name, "; ".join(found if len(by) == 1 else f"{found} ({', '.join(of)})" for found, of in by.items())]
        for name, by in values.items()
    ]
    return Table("Where the figures come from", "", ["what", "value"], rows)


def _folders(arms: Arms) -> Table:
    rows = [[label, str(run.seed), str(run.record["steps"]), str(run.folder)] for label, runs in arms.items() for run in runs]  # fmt: skip
    return Table("Runs", "", ["batches", "seed", "steps", "folder"], rows)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
