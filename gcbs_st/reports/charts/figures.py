"""Lines over the steps in, a PNG out: what all charts share, so that they look alike. Drawing needs matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[float, float]  # step -> value

# Okabe and Ito's colours, which the colour-blind can tell apart, without their yellow, which is hard to see on white. A
# second round of colours is dashed.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
_LINES, _MARKS = ("-", "--", ":"), ("o", "s", "^", "D", "v", "P", "X")
_MANY_POINTS, _MANY_PLANS = 60, 40


def line_chart(
    title: str,
    lines: Mapping[str, Curve],
    *,
    unit: str,
    steps: int | None = None,
    plans: Mapping[str, Sequence[float]] | None = None,
    order: Sequence[str] = (),
) -> bytes:
    """Returns a chart of values over the optimizer steps, as PNG.

    `lines` maps labels to points, "" being a line that needs no name. `plans` are the steps at which plans were made:
    under "" for all lines, else by the name of a line. The horizontal axis ends at `steps`, or at the last point. Names
    in `order` keep their colour from chart to chart; a line takes that of the name it begins with.
    """
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    draw_lines(axes, lines, unit=unit, order=order)
    for name, made in (plans or {}).items():
        _mark_plans(axes, made, list(order).index(name) if name in order else None)
    if steps:
        axes.set_xlim(-0.02 * steps, 1.02 * steps)
    axes.set_title(title, fontsize=15)
    add_legend(figure, [axes])
    return png_of(figure)


def draw_lines(axes: Axes, lines: Mapping[str, Curve], *, unit: str, order: Sequence[str] = ()) -> None:
    """Draws lines over the optimizer steps into a panel; the arguments are those of `line_chart`."""
    for number, (label, curve) in enumerate(lines.items()):
        style = style_of(_place_in(order, label, number))
        if len(curve) > _MANY_POINTS:
            style.pop("marker")
        points = zip(*sorted(curve.items()), strict=True)
        axes.plot(*points, label=plain_label(label), markersize=5, linewidth=1.6, **style)
    axes.set_xlabel("optimizer steps", fontsize=12)
    axes.set_ylabel(unit, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.25)


def add_legend(figure: Figure, panels: Iterable[Axes], place: str = "lower center", columns: int = 3) -> None:
    """Adds one legend for all panels, outside of them; none if no line has a name."""
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels]
    named = {label: handle for lines in pairs for handle, label in lines if label.strip()}
    if named:
        where: Any = f"outside {place}"  # typed as a list of literals
        figure.legend(list(named.values()), list(named), loc=where, ncols=columns, fontsize=11, frameon=False)


def _place_in(order: Sequence[str], label: str, number: int) -> int:
    """Returns which colour a line takes: that of the longest name that it begins with, else its own number."""
    known = [name for name in order if label == name or label.startswith(f"{name}, ")]
    return list(order).index(max(known, key=len)) if known else number


def _mark_plans(axes: Axes, made: Sequence[float], place: int | None) -> None:
    """Marks the steps of plans: over the whole height for one run of few plans, else with ticks at the bottom."""
    low = 0.04 * (place or 0)  # several runs often plan at the same steps
    top = 1.0 if place is None and len(made) <= _MANY_PLANS else low + 0.035
    colour = "#666666" if place is None else COLOURS[place % len(COLOURS)]
    for number, step in enumerate(made):
        label = plain_label("a plan is made" if number == 0 and place is None else "")
        line = ":" if top == 1.0 else "-"
        axes.axvline(step, low, top, color=colour, linestyle=line, linewidth=1.5, label=label, zorder=1)


def style_of(number: int) -> dict[str, Any]:
    """Returns colour, line and mark of the n-th line, from 0: 21 that differ in colour or in both of the others."""
    turn = number // len(COLOURS) % len(_LINES)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": _LINES[turn],
        # Moved on a turn, so that no colour meets its mark again: charts of points have no dashes.
        "marker": _MARKS[(number + turn) % len(_MARKS)],
    }


def plain_label(text: str) -> str:
    r"""Returns a text that matplotlib shows as it is, in one line of at most 60 characters.

    In a name given by a user, `$` would start a formula and a leading `_` hide the label.

    >>> plain_label("_a\n$b$"), plain_label("")
    (' _a \\$b\\$', ' ')
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= 60 else f"{line[:59]}…"
    return (" " if line[:1] in ("", "_") else "") + line.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, sized in inches, outside of pyplot's global state.

    Raises an ImportError that says what to install if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"charts need matplotlib ({error}); run: pip install 'gcbs_st[report]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Figure, dpi: int = 110) -> bytes:
    """Returns a figure as PNG, at `dpi` pixels per inch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; a warning for each character helps nobody.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
