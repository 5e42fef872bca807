"""Records and logs of runs in, the content of a report out: tables, charts, caveats. Nothing is measured here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gcbs_st.records.run_folder import RunRecord, Runs, is_number
from gcbs_st.records.run_result import is_score
from gcbs_st.records.statistics import paired_difference
from gcbs_st.records.tables import difference_words, experiment_rows, has_mean, score_title
from gcbs_st.reports.charts.charts import charts_of_runs, run_charts
from gcbs_st.reports.charts.pictures import difference_chart
from gcbs_st.reports.runs.run_groups import (
    Arms,
    find_reference,
    flat_config,
    group_arms,
    notes_on,
    pairs_of,
    short_path,
)

Differences = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Table:
    """A section of a report; the first text of each row names the row."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """What a report says."""

    title: str
    notes: Sequence[str]  # what the reader should beware of
    results: Sequence[Table]  # scores, differences and seconds
    charts: Mapping[str, bytes]  # title -> PNG
    origins: Sequence[Table]  # configurations and where the figures come from


def make_report(runs: Runs, *, with_charts: bool = True) -> Report:
    """Returns the report on one or more runs, for `gcbs_st.reports.runs.page` to write. Charts need matplotlib."""
    arms = group_arms(runs.runs)
    references = {arm: find_reference(arm, arms) for arm in arms}
    differences = _differences(arms, references)
    records = _records(arms, runs)
    results = [
        _scores(records, arms),
        _task_scores(records, arms),
        _difference_table(differences),
        _seconds(arms, references),
    ]
    return Report(
        title=f"{len(arms)} way{'s' * (len(arms) > 1)} of training, {len(runs.runs)} run{'s' * (len(runs.runs) > 1)}",
        notes=notes_on(arms, references, runs),
        results=[table for table in results if len(table.header) > 1 and table.rows],
        charts=_charts(arms, differences) if with_charts else {},
        origins=[table for table in (_settings(arms), _origins(arms), _folders(arms)) if table.rows],
    )


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) and math.isfinite(value) else None


def _records(arms: Arms, runs: Runs) -> dict[str, dict[str, Any]]:
    """Returns the scores before training, and for each arm the means of the numbers that all its runs have."""
    experiments = list({run.experiment for run in runs.runs})
    records: dict[str, dict[str, Any]] = {}
    for folder, scores in runs.before.items():
        if folder in experiments:
            prefix = "" if len(experiments) == 1 else f"{short_path(folder, experiments)}: "
            records[f"{prefix}before training"] = dict(scores)
    for label, of_arm in arms.items():
        found = [run.record for run in of_arm]
        shared = [key for key in found[0] if all(isinstance(record.get(key), (int, float)) for record in found)]
        means: dict[str, Any] = {key: statistics.fmean(record[key] for record in found) for key in shared}
        records[label] = {**means, "steps": round(means["steps"])}
    return records


def _scores(records: Mapping[str, Mapping[str, Any]], arms: Arms) -> Table:
    """Returns the scores that have a column of their own everywhere."""
    shown = {label: {key: of[key] for key in of if not key.startswith("seconds")} for label, of in records.items()}
    note = "Scores x 100, the higher the better; hard batches have a higher training loss"
    return _with_seeds("Scores", note, *experiment_rows(shown), arms)


def _task_scores(records: Mapping[str, Mapping[str, Any]], arms: Arms) -> Table:
    """Returns the scores of the tasks that have no column in `_scores`."""
    keys = dict.fromkeys(key for record in records.values() for key in record)
    tasks = [key for key in keys if is_score(key) and score_title(key) == key]
    rows = []
    for label, record in records.items():
        values = [_finite(record.get(task)) for task in tasks]
        rows.append([label, *["" if value is None else f"{value:.2f}" for value in values]])
    note = "Scores x 100, the higher the better"
    return _with_seeds("Scores of single tasks", note, ["batches", *tasks], rows, arms)


def _with_seeds(title: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]], arms: Arms) -> Table:
    if max(map(len, arms.values())) > 1:
        note += "; means over the seeds"
        rows = [[row[0], str(len(arms[row[0]])) if row[0] in arms else "", *row[1:]] for row in rows]
        header = [header[0], "seeds", *header[1:]] if len(header) > 1 else header
    return Table(title, f"{note}.", header, rows)


def _differences(arms: Arms, references: Mapping[str, str | None]) -> Differences:
    """Returns paired differences of all scores to random batches: arm -> score -> difference."""
    found: Differences = {}
    for arm, reference in references.items():
        pairs = pairs_of(arms[arm], arms[reference]) if reference else []
        for name in pairs[0][0].record if pairs else ():
            values = [[_finite(run.record.get(name)) for run in side] for side in zip(*pairs, strict=True)]
            shown = is_score(name) and (name != "avg" or has_mean(pairs[0][0].record))
            if shown and None not in [*values[0], *values[1]]:
                found.setdefault(arm, {})[name] = paired_difference(*values)  # type: ignore[arg-type] # no None here
    return found


def _difference_table(found: Differences) -> Table:
    """Returns the differences as text, one row per score, so that the table stays narrow."""
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
    used = [key for key in columns if any(_finite(record.get(key)) for of in records.values() for record in of)]
    rows = []
    for label, of_arm in records.items():
        values = [[v for record in of_arm if (v := _finite(record.get(key))) is not None] for key in used]
        pairs = pairs_of(arms[label], arms[reference]) if (reference := references[label]) else []
        ratios = [_whole(run) / _whole(other) for run, other in pairs if _whole(other)]
        cells = [f"{statistics.median(v):.1f}" if v else "" for v in values]
        rows.append([label, *cells, f"x {statistics.median(ratios):.2f}" if ratios else ""])
    note = "Medians over the seeds. Times of other machines, or of one that was busy, cannot be compared."
    return Table("Seconds", note, ["batches", *[columns[key] for key in used], "of random batches'"], rows)


def _whole(run: RunRecord) -> float:
    """Returns the seconds of a run in all; mining comes before the training."""
    return _finite(run.record.get("seconds_total")) or _finite(run.record["seconds_training"]) or 0.0


def _charts(arms: Arms, differences: Differences) -> dict[str, bytes]:
    steps = max(run.record["steps"] for runs in arms.values() for run in runs)
    (first, *others) = arms.values()
    if not others and len(first) == 1:
        return run_charts(first[0].log, steps)
    charts = {"Paired differences": difference_chart(differences, "random batches")} if differences else {}
    return charts | charts_of_runs({label: [run.log for run in runs] for label, runs in arms.items()}, steps)


def _settings(arms: Arms) -> Table:
    configs = {label: flat_config(runs[0]) for label, runs in arms.items()}
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    different = [key for key in keys if len({config.get(key) for config in configs.values()}) > 1]
    rows = [[key, *[config.get(key, "–") for config in configs.values()]] for key in different]
    note = "All other keys of their configurations are equal."
    return Table("What the runs differ in", note, ["key", *configs], rows)


def _origins(arms: Arms) -> Table:
    """Returns commit, data and versions; where they differ, which runs have which."""
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
    runs = [(label, run.seed, run.record["steps"], run.folder) for label, of_arm in arms.items() for run in of_arm]
    return Table("Runs", "", ["batches", "seed", "steps", "folder"], [list(map(str, row)) for row in runs])
