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
    """One plan that was timed."""

    method: str  # the planner, with its options if they are known
    seconds: float  # above 0
    closed: float  # of the closable gap: 0 is random, 1 a limit that no partition reaches
    rows: int | None = None  # None: not recorded
    batch_size: int | None = None


def read_measurements(file: Path) -> list[Measurement]:
    """Returns the measurements that a file holds, in its order.

    The file is what `benchmarks/planners.py --json` wrote (an object with `results`), or the JSON lines that `gcbs-st
    plan` printed. Entries without a quality, such as mining, are skipped. Raises a ValueError that names file and line
    if the file is damaged or holds no measurement.
    """
    text = file.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("results"), list):
        entries = {f"{file}, result {number}": entry for number, entry in enumerate(whole["results"], start=1)}
    else:
        lines = {f"{file}, line {number}": line for number, line in enumerate(text.splitlines(), start=1)}
        entries = {place: _parse(place, line) for place, line in lines.items() if line.strip()}
    found = [measurement for place, entry in entries.items() if (measurement := _measurement(place, entry))]
    if not found:
        raise ValueError(f"{file}: got no planner with seconds and closed, expected at least one.")
    return found


def _parse(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{place}: got no JSON ({error}), expected what benchmarks/planners.py --json wrote or a line for each call of "
            "gcbs-st plan."
        ) from None


def _measurement(place: str, entry: Any) -> Measurement | None:
    name = entry.get("method", entry.get("planner")) if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{place}: got {str(entry)[:60]}, expected an object with the name of a planner.")
    if entry.get("closed") is None:
        return None
    for key, low, words in (("seconds", 0.0, " from 0 on"), ("closed", -math.inf, "")):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
            raise ValueError(f"{place}: got {key} {value!r}, expected a finite number{words}.")
    given = entry.get("n", entry.get("rows")), entry.get("batch_size")
    sizes = [value if isinstance(value, int) else None for value in given]
    # A logarithm has no place for what took less than the clock shows.
    return Measurement(name, max(entry["seconds"], 1e-3), entry["closed"], *sizes)


def planner_chart(measurements: Sequence[Measurement]) -> bytes:
    """Returns a PNG of what planners close against their seconds, one panel per number of rows and batch size.

    Raises a ValueError if there would be no panel, or more than can be read.
    """
    settings = list(dict.fromkeys((m.rows, m.batch_size) for m in measurements))
    if not 1 <= len(settings) <= _MOST_PANELS:
        raise ValueError(
            f"planners compared: got {len(settings)} settings of rows and batch size, expected 1 to {_MOST_PANELS}; "
            "give a file with fewer."
        )
    methods = list(dict.fromkeys(m.method for m in measurements))
    lines, columns = math.ceil(len(settings) / 2), min(2, len(settings))
    figure = new_figure(min(11.6, 2.6 + 5.4 * columns), 4.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel, (rows, batch_size) in zip(panels.flat, settings, strict=False):
        here = [m for m in measurements if (m.rows, m.batch_size) == (rows, batch_size)]
        for number, method in enumerate(methods):
            if points := [(m.seconds, m.closed) for m in here if m.method == method]:
                style = {**style_of(number), "linestyle": ""}
                panel.plot(*zip(*points, strict=True), label=plain_label(method), markersize=9, **style)
        panel.set_xscale("log")
        panel.margins(0.12)
        low, high = panel.get_xlim()
        ticks = [m * 10.0**power for power in range(-4, 7) for m in (1, 2, 5) if low <= m * 10.0**power <= high]
        panel.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
        words = [f"{rows:,} rows" if rows else "", f"{batch_size} per batch" if batch_size else ""]
        panel.set_title(", ".join(filter(None, words)) or "rows and batch size not recorded", fontsize=13)
        panel.set_xlabel("seconds of planning (log scale)", fontsize=12)
        panel.set_ylabel("closed: 0 random, 1 unreachable", fontsize=12)
        panel.tick_params(labelsize=11)
        panel.grid(alpha=0.25, which="both")
    for panel in panels.flat[len(settings) :]:
        panel.set_visible(False)
    figure.suptitle("Planners: share of the closable gap against seconds", fontsize=15)
    add_legend(figure, panels.flat, "right center", columns=1)
    return png_of(figure)
