"""Measurements of planners in, a chart out: what each closes of the gap against the seconds that it takes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcbs_st.reports.charts.figures import add_legend, new_figure, plain_label, png_of, style_of

_MOST_PANELS = 6


@dataclass(frozen=True)
class Measurement:
    """One plan that was timed.

    Attributes:
        method: the planner, with its options where they were measured.
        seconds: that it took, above 0.
        closed: what it closed of the closable gap: 0 is random, 1 a limit that no partition reaches.
        rows: n; None if it was not recorded.
        batch_size: rows a batch; None if it was not recorded.
    """

    method: str
    seconds: float
    closed: float
    rows: int | None = None
    batch_size: int | None = None


def read_measurements(file: Path) -> list[Measurement]:
    """Returns the measurements that a file holds.

    Args:
        file: what `benchmark_planners.py --json` wrote (an object with `results`), or the JSON lines that
            `gcbs-st plan` printed. Entries without a quality, such as mining, are passed over.

    Returns:
        As many as can be drawn, in the file's order.

    Raises:
        ValueError: the file is damaged or holds no measurement; the message names file and line.
        OSError: it cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("results"), list):
        numbered = [(f"{file}, result {number}", entry) for number, entry in enumerate(whole["results"], start=1)]
    else:
        numbered = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    numbered.append((f"{file}, line {number}", json.loads(line)))
                except ValueError as error:
                    raise ValueError(
                        f"{file}, line {number}: got no JSON ({error}), expected what benchmark_planners.py --json wrote "
                        "or a line for each call of gcbs-st plan."
                    ) from None
    found = [measurement for place, entry in numbered if (measurement := _measurement(place, entry))]
    if not found:
        raise ValueError(f"{file}: got no planner with seconds and closed, expected at least one.")
    return found


def _measurement(place: str, entry: Any) -> Measurement | None:
    name = entry.get("method", entry.get("planner")) if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{place}: got {str(entry)[:60]}, expected an object with the name of a planner.")
    if entry.get("closed") is None:
        return None
    for key, low in (("seconds", 0.0), ("closed", -math.inf)):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
            raise ValueError(
                f"{place}: got {key} {value!r}, expected a finite number{' from 0 on' if not low else ''}."
            )
    sizes = [value if isinstance(value, int) else None for value in (entry.get("n", entry.get("rows")), entry.get("batch_size"))]  # fmt: skip
    # A logarithm has no place for what took less than the clock shows.
    return Measurement(name, max(entry["seconds"], 1e-3), entry["closed"], *sizes)


def planner_chart(measurements: Sequence[Measurement]) -> bytes:
    """Returns a chart of planners: what they close against their seconds, a panel for each number of rows and batch size.

    Args:
        measurements: of one panel or several; a planner that was measured several times has several marks.

    Returns:
        The PNG.

    Raises:
        ValueError: none, or more panels than can be read.
        ImportError: matplotlib is not installed.
    """
    settings = list(dict.fromkeys((m.rows, m.batch_size) for m in measurements))
    if not 1 <= len(settings) <= _MOST_PANELS:
        raise ValueError(
            f"planners compared: got {len(settings)} settings of rows and batch size, expected 1 to {_MOST_PANELS}; "
            "give a file with fewer."
        )
    methods = list(dict.fromkeys(m.method for m in measurements))
    figure = new_figure(min(11.6, 2.6 + 5.4 * min(2, len(settings))), 4.6 * math.ceil(len(settings) / 2))
    panels = figure.subplots(math.ceil(len(settings) / 2), min(2, len(settings)), squeeze=False, sharey=True)
    for panel, setting in zip(panels.flat, settings, strict=False):
        for method in methods:
            points = [(m.seconds, m.closed) for m in measurements if (m.rows, m.batch_size, m.method) == (*setting, method)]  # fmt: skip
            if points:
                style = {**style_of(methods.index(method)), "linestyle": ""}
                panel.plot(*zip(*points, strict=True), label=plain_label(method), markersize=9, **style)
        panel.set_xscale("log")
        panel.margins(0.12)
        low, high = panel.get_xlim()
        ticks = [m * 10.0**power for power in range(-4, 7) for m in (1, 2, 5) if low <= m * 10.0**power <= high]
        panel.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.set_title(_setting_words(setting), fontsize=13)
        panel.set_xlabel("seconds of planning (log scale)", fontsize=12)
        panel.set_ylabel("closed: 0 random, 1 unreachable", fontsize=12)
        panel.tick_params(labelsize=11)
        panel.grid(alpha=0.25, which="both")
    for panel in panels.flat[len(settings) :]:
        panel.set_visible(False)
    figure.suptitle("Planners: share of the closable gap against seconds", fontsize=15)
    add_legend(figure, panels.flat, "right center", columns=1)
    return png_of(figure)


def _setting_words(setting: tuple[int | None, int | None]) -> str:
    rows, batch_size = setting
    words = [f"{rows:,} rows" if rows else "", f"{batch_size} a batch" if batch_size else ""]
    return ", ".join(filter(None, words)) or "rows and batch size not recorded"
