"""Embeddings and orders in, pictures out. Needs the `report` extra (matplotlib)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 - the backend is chosen first: there may be no screen


def draw_similarity(
    anchors: np.ndarray,
    positives: np.ndarray,
    orders: Mapping[str, np.ndarray],
    batch_size: int,
    file: str | Path,
    *,
    batches: int = 8,
) -> None:
    """Writes a PNG of anchor-positive similarities in some batches of each order, one panel an order.

    A good plan shows bright squares along the diagonal: rows that are near one another share a batch. The
    batches are taken at even distances through the order, so each panel shows rows of its own.

    Args:
        anchors: (n, d) floats, unit rows.
        positives: (n, d) floats, unit rows.
        orders: title -> (n,) rows, blocks being batches.
        batch_size: rows a batch.
        file: the PNG, written under a temporary name and renamed.
        batches: how many batches a panel shows.

    Raises:
        ValueError: no order, or fewer rows than a batch.
    """
    if not orders or len(anchors) < batch_size:
        raise ValueError(
            f"got {len(orders)} orders of {len(anchors)} rows, expected at least one, of a batch of {batch_size}."
        )
    columns = min(3, len(orders))
    lines = math.ceil(len(orders) / columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5.2 * columns, 5.2 * lines), squeeze=False, layout="constrained"
    )
    image: Any = None
    for panel, (title, order) in zip(axes.flat, orders.items(), strict=False):
        blocks = np.asarray(order)[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        rows = blocks[np.linspace(0, len(blocks) - 1, min(batches, len(blocks))).astype(int)].ravel()
        scores = anchors[rows].astype(np.float32) @ positives[rows].astype(np.float32).T
        image = panel.imshow(scores, cmap="viridis", vmin=0.0, vmax=1.0, interpolation="nearest")
        inside = scores.reshape(len(rows) // batch_size, batch_size, -1, batch_size)
        within = np.mean([inside[b, :, b].mean() for b in range(len(inside))])
        panel.set_title(f"{title}\nmean similarity within batches {within:.2f}", fontsize=13)
        marks = np.arange(0, len(rows), batch_size)
        panel.set_xticks(marks, labels=range(len(marks)))
        panel.set_yticks(marks, labels=range(len(marks)))
        panel.set_xlabel("positives, by batch")
        panel.set_ylabel("anchors, by batch")
    for panel in axes.flat[len(orders) :]:
        panel.set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine of anchor and positive", shrink=0.8)
    save_figure(figure, Path(file))


def draw_comparison(content: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Writes the pictures of a comparison, as PNG.

    Args:
        content: what `gcbs_st.comparison.compare` returns, and `comparison.json` holds.
        folder: where.

    Returns:
        The files: differences to the reference with their intervals, STS-B dev over the steps, and, if any
        arm made plans, their quality over the steps. Random batches are not planned, and have none.
    """
    place, runs = Path(folder), content["runs"]
    arms = list(content["arms"])
    files = [place / "differences.png", place / "dev_scores.png"]
    _draw_differences(content, files[0])
    curves = {arm: [run["dev_curve"] for run in runs[arm].values()] for arm in arms}
    panel = {"STS-B dev, Spearman x 100": {arm: _mean_line(lines, 2) for arm, lines in curves.items()}}
    _draw_lines(f"STS-B dev, mean over {len(content['seeds'])} seeds", panel, arms, files[1])
    logs = {arm: [run["plan_log"] for run in runs[arm].values()] for arm in arms}
    if planned := {arm: log for arm, log in logs.items() if all(log)}:
        titles = {
            "gap": "gap to the global loss, nats",
            "tail_coverage": "share of the 10 hardest negatives in the batch",
            "false_negatives": "negatives above the positive, rows an anchor",
        }
        panels = {
            title: {
                arm: _mean_line([[(plan["step"], plan[key]) for plan in log] for log in seeds], 1)
                for arm, seeds in planned.items()
            }
            for key, title in titles.items()
        }
        files.append(place / "plans.png")
        _draw_lines("Plans when they are made, mean over the seeds", panels, arms, files[2])
    return files


# Okabe and Ito's colours, which the colour-blind can tell apart; a second round of them is dashed.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
_LINES = ("-", "--", ":")
_MARKS = ("o", "s", "^")


def _style(number: int) -> dict[str, Any]:
    round_ = number // len(_COLOURS) % len(_LINES)
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _LINES[round_], "marker": _MARKS[round_]}


def _mean_line(lines: Sequence[Sequence[Sequence[float]]], column: int) -> tuple[list[float], list[float]]:
    """Steps that all seeds have, and the mean over the seeds of a column there."""
    tables = [{point[0]: point[column] for point in line} for line in lines]
    steps = [step for step in tables[0] if all(step in table for table in tables)]
    return steps, [float(np.mean([table[step] for table in tables])) for step in steps]


def _draw_differences(content: Mapping[str, Any], file: Path) -> None:
    reference, summary = content["reference"], content["arms"]
    names = [name for name in ("avg", "STSBenchmark", "STSBenchmark-dev") if name in summary[reference]["scores"]]
    arms = [arm for arm in summary if arm != reference]
    figure, axes = pyplot.subplots(
        1,
        len(names),
        figsize=(4.6 * len(names), 1.6 + 0.34 * len(arms)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    titles = {"avg": "mean of the STS tests", "STSBenchmark": "STS-B test", "STSBenchmark-dev": "STS-B dev"}
    for panel, name in zip(axes.flat, names, strict=True):
        for line, arm in enumerate(arms):
            difference = summary[arm]["scores"][name]["difference"]
            mean, interval = difference["mean"], difference["interval"] or [difference["mean"]] * 2
            panel.plot(interval, [line, line], color=_COLOURS[4], linewidth=2)
            panel.plot([mean], [line], color=_COLOURS[4], marker="o")
        panel.axvline(0, color="black", linewidth=1)
        panel.set_title(titles[name], fontsize=13)
        panel.set_xlabel(f"difference to {reference},\npoints of Spearman x 100")
        panel.grid(axis="x", alpha=0.3)
    axes.flat[0].set_yticks(range(len(arms)), labels=arms)
    axes.flat[0].invert_yaxis()
    seeds = len(content["seeds"])
    interval_words = "95 % t interval" if seeds > 1 else "no interval"
    figure.suptitle(f"Paired differences, {seeds} seed{'s' * (seeds > 1)}, {interval_words}", fontsize=14)
    save_figure(figure, file)


def _draw_lines(
    title: str, panels: Mapping[str, Mapping[str, tuple[list[float], list[float]]]], arms: Sequence[str], file: Path
) -> None:
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1.8 + 5.6 * len(panels), 5.2), squeeze=False, layout="constrained"
    )
    for panel, (label, lines) in zip(axes.flat, panels.items(), strict=True):
        for arm, (steps, values) in lines.items():
            panel.plot(steps, values, label=arm, markersize=3.5, linewidth=1.4, **_style(arms.index(arm)))
        panel.set_xlabel("optimizer steps")
        panel.set_ylabel(label, fontsize=12)
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=14)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=11)
    save_figure(figure, file)


def save_figure(figure: Figure, file: Path) -> None:
    """Writes a figure as PNG under a temporary name, renames it, and closes the figure.

    Args:
        figure: to be written.
        file: the target; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.tmp")
    try:
        figure.savefig(staged, format="png", dpi=80)
        os.replace(staged, file)
    finally:
        staged.unlink(missing_ok=True)
        pyplot.close(figure)
