"""Embeddings and orders in, pictures out. Needs the `report` extra (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gcbs_st.files import write_bytes
from gcbs_st.reports.charts.charts import mean_curve
from gcbs_st.reports.charts.figures import COLOURS, add_legend, draw_lines, line_chart, new_figure, plain_label, png_of

_PLAN_TITLES = {
    "gap": "gap to the global loss, nats",
    "tail_coverage": "share of the 10 hardest negatives in the batch",
    "false_negatives": "negatives above the positive, rows per anchor",
}
_SCORE_TITLES = {
    "avg": "mean of the STS tests",
    "retrieval_avg": "mean nDCG@10 of the retrieval tests",
    "heldout_mrr": "held-out pairs, MRR",
    "STSBenchmark": "STS-B test",
    "STSBenchmark-dev": "STS-B dev",
    "code-dev_mrr": "code search dev, MRR",
    "code-test_mrr": "code search test, MRR",
    "CoSQA-dev_mrr": "CoSQA dev, MRR",
}


def draw_similarity(
    anchors: np.ndarray,
    positives: np.ndarray,
    orders: Mapping[str, np.ndarray],
    batch_size: int,
    file: str | Path,
    *,
    batches: int = 8,
) -> None:
    """Writes a PNG of anchor-positive similarities within and between some batches, one panel per order.

    `anchors` and `positives` are (n, d) floats, unit rows; `orders` maps titles to (n,) row ids, whose blocks are
    batches. A good plan shows bright squares along the diagonal: rows that are near one another share a batch. The shown
    batches are at even distances in the order. Raises a ValueError if there is no order, or no full batch.
    """
    if not orders or len(anchors) < batch_size:
        raise ValueError(
            f"got {len(orders)} orders of {len(anchors)} rows, expected at least one, of a batch of {batch_size}."
        )
    columns = min(3, len(orders))
    lines = math.ceil(len(orders) / columns)
    figure = new_figure(5.2 * columns, 5.2 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
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
        panel.set(xlabel="positives, by batch", ylabel="anchors, by batch")
    for panel in axes.flat[len(orders) :]:
        panel.set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine of anchor and positive", shrink=0.8)
    write_bytes(Path(file), png_of(figure, dpi=80))


def draw_comparison(content: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Writes the pictures of a comparison into a folder and returns their files.

    `content` is what `gcbs_st.experiments.comparison.compare` returns, and `comparison.json` holds. Of the plans there is
    a picture only if an arm made some.
    """
    arms, runs, reference = list(content["arms"]), content["runs"], content["reference"]
    pictures: dict[str, bytes] = {}
    differences = {
        arm: {name: score["difference"] for name, score in content["arms"][arm]["scores"].items()}
        for arm in arms
        if arm != reference
    }
    if differences:
        pictures["differences.png"] = difference_chart(differences, reference)
    metric = content.get("dev_metric", "STSBenchmark-dev")  # older files know no other
    dev = _SCORE_TITLES.get(metric, metric)
    seeds = f"mean over {count} seeds" if (count := len(content["seeds"])) > 1 else "one seed"
    curves = {arm: [{step: dev for step, _, dev in run["dev_curve"]} for run in runs[arm].values()] for arm in arms}
    lines = {arm: curve for arm in arms if (curve := mean_curve(curves[arm]))}
    pictures["dev_scores.png"] = line_chart(f"{dev}, {seeds}", lines, unit=f"{dev}, x 100", order=arms)
    logs = {arm: [run["plan_log"] for run in runs[arm].values()] for arm in arms}
    if planned := {arm: log for arm, log in logs.items() if all(log)}:
        figure = new_figure(16.0, 5.0)
        panels = figure.subplots(1, len(_PLAN_TITLES))
        for panel, (key, unit) in zip(panels, _PLAN_TITLES.items(), strict=True):
            curves = {arm: [{plan["step"]: plan[key] for plan in log} for log in planned[arm]] for arm in planned}
            lines = {arm: curve for arm in planned if (curve := mean_curve(curves[arm]))}
            draw_lines(panel, lines, unit=unit, order=arms)
        figure.suptitle(f"Plans when they are made, {seeds}", fontsize=15)
        add_legend(figure, panels, "right upper", columns=1)
        pictures["plans.png"] = png_of(figure, dpi=80)
    for name, picture in pictures.items():
        write_bytes(Path(folder, name), picture)
    return [Path(folder, name) for name in pictures]


def difference_chart(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], reference: str) -> bytes:
    """Returns a PNG of paired differences with their intervals: one panel per score, one line per way of training.

    `differences` maps way of training -> score -> result of `gcbs_st.records.statistics.paired_difference`, and is not
    empty; `reference` names what they are differences to. At most three panels: means and dev scores come first.
    """
    scores = list(dict.fromkeys(name for of_arm in differences.values() for name in of_arm))
    names = [*(name for name in _SCORE_TITLES if name in scores), *(s for s in scores if s not in _SCORE_TITLES)][:3]
    labels = [plain_label(arm) for arm in differences]
    figure = new_figure(0.4 + 0.1 * max(map(len, labels)) + 3.4 * len(names), 1.9 + 0.36 * len(differences))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False).flat
    for panel, name in zip(panels, names, strict=True):
        for line, of_arm in enumerate(differences.values()):
            if difference := of_arm.get(name):
                mean, interval = difference["mean"], difference["interval"] or [difference["mean"]] * 2
                panel.plot(interval, [line, line], color=COLOURS[4], linewidth=2)
                panel.plot([mean], [line], color=COLOURS[4], marker="o")
        panel.axvline(0, color="black", linewidth=1)
        panel.set_title(plain_label(_SCORE_TITLES.get(name, name)), fontsize=13)
        panel.set_xlabel(f"points (score x 100)\nabove {plain_label(reference)}", fontsize=12)
        panel.tick_params(labelsize=11)
        panel.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(differences)), labels=labels)
    panels[0].set_ylim(len(differences) - 0.4, -0.6)
    pairs = sorted({difference["pairs"] for of_arm in differences.values() for difference in of_arm.values()})
    counts = "-".join(str(count) for count in dict.fromkeys((pairs[0], pairs[-1])))
    words = f"{counts} seed{'s' * (pairs[-1] > 1)}, {'95 % t interval' if pairs[-1] > 1 else 'no interval'}"
    figure.suptitle(f"Paired differences, {words}", fontsize=15)
    return png_of(figure)
