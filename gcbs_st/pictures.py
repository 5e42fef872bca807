"""Embeddings and orders in, pictures out. Needs the `report` extra (matplotlib)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
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
