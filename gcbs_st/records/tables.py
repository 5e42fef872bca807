"""Records in, tables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("STSBenchmark-dev", "STS-B dev", "{:.2f}"),
    ("STSBenchmark", "STS-B test", "{:.2f}"),
    ("avg", "STS mean", "{:.2f}"),
    ("code-dev_mrr", "dev MRR", "{:.2f}"),
    ("code-test_mrr", "test MRR", "{:.2f}"),
    ("code-test_recall@1", "recall@1", "{:.2f}"),
    ("code-test_recall@10", "recall@10", "{:.2f}"),
    ("CoSQA-dev_mrr", "CoSQA MRR", "{:.2f}"),
    ("retrieval_avg", "retrieval mean nDCG@10", "{:.2f}"),
    ("heldout_mrr", "held-out MRR", "{:.2f}"),
    ("train_loss", "training loss", "{:.3f}"),
    ("gap_closed", "gap closed", "{:.3f}"),
    ("steps", "steps", "{:d}"),
    ("seconds_training", "training s", "{:.1f}"),
    ("seconds_embedding", "of it embedding s", "{:.1f}"),
    ("seconds_planning", "of it planning s", "{:.1f}"),
)


def experiment_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table, one row per run; "before" is the untrained model.

    A column that no record has is left out, and so is a mean over a single task.
    """
    return markdown_table(*experiment_rows(records))


def experiment_rows(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the titles of the columns of `experiment_table`, and the texts of its rows."""
    mean = has_mean(key for record in records.values() for key in record)
    columns = [
        (key, title, form)
        for key, title, form in _COLUMNS
        if any(key in record for record in records.values()) and not (key == "avg" and not mean)
    ]
    rows = [
        ["before training" if name == "before" else name]
        + [form.format(record[key]) if record.get(key) is not None else "" for key, _, form in columns]
        for name, record in records.items()
    ]
    return ["batches", *[title for _, title, _ in columns]], rows


def has_mean(names: Iterable[str]) -> bool:
    """Returns whether a mean over the STS tests tells anything: there are two or more of them.

    >>> has_mean(["STS12", "avg", "STSBenchmark-dev"]), has_mean(["STS12", "SICK-R"])
    (False, True)
    """
    tasks = {name for name in names if name.startswith(("STS", "SICK"))}
    return len([task for task in tasks if not task.endswith(("-dev", "-train", "-all"))]) > 1


def score_title(name: str) -> str:
    """Returns what a score is called in tables.

    >>> score_title("avg"), score_title("STS12")
    ('STS mean', 'STS12')
    """
    return next((title for key, title, _ in _COLUMNS if key == name), name)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are also aligned in plain text, the first to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *[line(row) for row in rows]])


def comparison_report(content: Mapping[str, Any]) -> str:
    """Returns a comparison as Markdown: its tables, and what they come from."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    facts = [
        f"command: `{content['command']}`",
        f"config: {content['config_file']}",
        f"commit of the runs: {', '.join(content['commits'])}",
        f"corpus: {content['training_rows']} rows, hash {content['corpus_hash']}",
        f"seeds: {', '.join(map(str, content['seeds']))}",
        f"Python {content['python']}, {versions}",
    ]
    dev = content.get("dev_metric", "STSBenchmark-dev")  # older files know no other
    facts[4:4] = [
        f"{name}: {task['queries']} queries over {task['functions']} functions, hash {task['hash']}"
        for name, task in content.get("tasks", {}).items()
    ]
    before = ", ".join(f"{name} {value:.2f}" for name, value in content["before"].items())
    return "\n\n".join(
        [
            f"# {len(content['arms'])} arms, {len(content['seeds'])} seeds",
            comparison_tables(content["arms"], content["reference"], dev),
            f"Before training: {before}.",
            "\n".join(f"- {fact}" for fact in facts),
            f"The configuration:\n\n```yaml\n{yaml.safe_dump(content['config'], sort_keys=False).rstrip()}\n```",
        ]
    )


def comparison_tables(summary: Mapping[str, Any], reference: str, dev: str = "STSBenchmark-dev") -> str:
    """Returns the Markdown tables of a comparison: differences to the reference, mean scores, and times."""
    names = list(summary[reference]["scores"])
    titles = {key: title for key, title, _ in _COLUMNS}
    order = sorted(names, key=lambda name: {"avg": 0, "retrieval_avg": 0, dev: 1}.get(name, 2))
    header = ["arm", *[titles.get(name, name) for name in order]]
    scores = [[arm, *[f"{entry['scores'][name]['mean']:.2f}" for name in order]] for arm, entry in summary.items()]
    differences = [
        [arm, *[difference_words(entry["scores"][name]["difference"]) for name in order]]
        for arm, entry in summary.items()
        if arm != reference
    ]
    times = [[arm, *_times(entry)] for arm, entry in summary.items()]
    columns = ["steps", "seconds", "of the reference's", "reached", "steps to it", "seconds to it", "of its seconds"]
    return "\n\n".join(
        [
            f"Differences to {reference}, in points (scores x 100): mean over the seeds [95 % t interval] wins/pairs.",
            markdown_table(header, differences),
            "Mean scores over the seeds.",
            markdown_table(header, scores),
            f"Medians over the seeds, dev scoring not counted, planning and mining counted. Reached: seeds whose "
            f"{titles.get(dev, dev)} score comes to what {reference} of that seed ends with.",
            markdown_table(["arm", *columns], times),
        ]
    )


def difference_words(difference: Mapping[str, Any] | None) -> str:
    """Returns a paired difference as text: mean, interval where there is one, and wins of pairs; "" for None.

    >>> difference_words({"mean": 0.5, "interval": [-0.1, 1.1], "wins": 2, "pairs": 3})
    '+0.50 [-0.10, +1.10] 2/3'
    """
    if difference is None:
        return ""
    low_high = "[{:+.2f}, {:+.2f}] ".format(*difference["interval"]) if difference["interval"] else ""
    return f"{difference['mean']:+.2f} {low_high}{difference['wins']}/{difference['pairs']}"


def _times(entry: Mapping[str, Any]) -> list[str]:
    time, steps = entry["time_to_score"], sorted(set(entry["steps"]))
    return [
        "-".join(str(step) for step in (steps[:1] + steps[1:][-1:])),
        f"{entry['seconds']['median']:.1f}",
        f"x {entry['seconds_ratio']:.2f}",
        f"{time['reached']}/{time['of']}",
        f"{time['median_step']:.0f}" if time["reached"] else "",
        f"{time['median_seconds']:.1f}" if time["reached"] else "",
        f"x {time['median_seconds_share']:.2f}" if time["reached"] else "",
    ]
