"""Advice in, text for a terminal or one HTML page out. Texts of the data are never markup."""

from __future__ import annotations

from collections.abc import Sequence

from gcbs_st.advice.advise import Advice
from gcbs_st.reports.html import escape, fill_page, read_template
from gcbs_st.reports.runs.page import table_html
from gcbs_st.reports.runs.run_report import Table

_TITLES = {"random": "random", "bisect": "bisect (auto)", "best": "best"}
_SHOWN = 3  # examples in the terminal, which shows each in a line
_LINE = 70  # characters of a text there


def advice_text(advice: Advice, source: str) -> str:
    """Returns the advice as a terminal shows it."""
    parts = [f"{source}: {_size(advice)}", *(f"  {line}" for line in _data_lines(advice))]
    if advice.figures:
        parts += [
            "",
            f"In batches of {advice.batch_size}, of {advice.sampled_rows:,} rows:",
            *_aligned(_figures(advice)),
        ]
        parts += [f"  {note}" for note in advice.notes]
    if advice.cost is not None:
        parts += ["", _cost(advice)]
    if advice.examples:
        parts += ["", "Probable false negatives of planned batches (cosine):"]
        for one in advice.examples[:_SHOWN]:
            parts += [
                f"  anchor          {_cut(one.anchor)}",
                f"  its positive    {_cut(one.positive)}  {one.own:.2f}",
                f"  of another row  {_cut(one.negative)}  {one.score:.2f}",
            ]
    parts += ["", _verdict(advice)]
    if advice.recommendation.use:
        parts += [*(f"  {line}" for line in (*advice.recommendation.imports, *advice.recommendation.lines)), "Since:"]
    parts += [f"- {reason}" for reason in advice.recommendation.why]
    return "\n".join(parts)


def advice_html(advice: Advice, source: str) -> str:
    """Returns the advice as one HTML page that needs nothing else."""
    title = f"Which rows of {source} should train together?"
    why = "".join(f"<li>{escape(reason)}</li>" for reason in advice.recommendation.why)
    code = "\n".join((*advice.recommendation.imports, "", *advice.recommendation.lines))
    shown = f"<pre><code>{escape(code)}</code></pre>" if advice.recommendation.use else ""
    body = [f"<section>\n<h2>{escape(_verdict(advice))}</h2>\n{shown}\n<ul>{why}</ul>\n</section>"]
    lines = "".join(f"<li>{escape(line)}</li>" for line in (_size(advice), *_data_lines(advice)))
    body.append(f"<section>\n<h2>The data</h2>\n<ul>{lines}</ul>\n</section>")
    if advice.figures:
        (_, *planners), *rows = _figures(advice)
        note = " ".join([f"{advice.sampled_rows:,} rows in batches of {advice.batch_size}.", *advice.notes])
        body.append(table_html(Table("What batches hold", note, ["", *planners], rows)))
    if advice.examples:
        examples = [
            (one.anchor, f"{one.positive} ({one.own:.2f})", f"{one.negative} ({one.score:.2f})")
            for one in advice.examples
        ]
        note = "Negatives of planned batches that score above the row's own positive, with cosines to the anchor."
        header = ("Anchor", "Its positive", "The positive of another row")
        body.append(table_html(Table("Probable false negatives", note, header, examples)))
    if advice.cost is not None:
        body.append(f"<section>\n<h2>Cost</h2>\n<p>{escape(_cost(advice))}</p>\n</section>")
    style = read_template("batches.css") + read_template("report.css")
    return fill_page("report.html", title, style, BODY="\n".join(body))


def _verdict(advice: Advice) -> str:
    if advice.recommendation.use:
        return "Recommended: compose the batches."
    return "Do not use this here: keep random batches."


def _size(advice: Advice) -> str:
    return f"{advice.facts.rows:,} rows of {', '.join(advice.facts.columns)}"


def _data_lines(advice: Advice) -> list[str]:
    facts = advice.facts
    lines = []
    if facts.blank_rows:
        lines.append(f"{facts.blank_rows:,} further rows lack a text and are left out: remove them before training.")
    if facts.duplicate_rows:
        lines.append(f"{facts.duplicate_rows:,} rows repeat an earlier one word for word.")
    if facts.shared_rows and facts.widest_text is not None:
        lines.append(
            f"{facts.shared_rows:,} rows ({100 * facts.shared_rows / facts.rows:.1f} %) share a text with another, and are kept "
            f"apart; the widest stands in {facts.widest_rows:,} rows: {_cut(facts.widest_text)!r}."
        )
        if facts.widest_rows > facts.rows // advice.batch_size:
            lines.append("That is more rows than there are batches, so some of them have to meet.")
    if facts.unused_texts:
        lines.append(
            f"Further columns of texts are left out: {', '.join(facts.unused_texts)}. The trainer would take them for "
            "negatives; name all that count with --columns."
        )
    for group in advice.groups:
        lines.append(
            f"Column {group.column!r}: of rows with an equal value {100 * group.mates:.0f} % mean the same to the model, of "
            f"others {100 * group.strangers:.0f} %"
            + (": it says which rows must not meet." if group.means_alike else ", so it marks no groups.")
        )
    return lines or ["No text stands in two rows, and no column marks groups."]


def _figures(advice: Advice) -> list[list[str]]:
    figures = [advice.figures[name] for name in _TITLES if name in advice.figures]
    return [
        ["", *(_TITLES[name] for name in _TITLES if name in advice.figures)],
        ["closed of the gap to all rows", *(f"{one.closed:.2f}" for one in figures)],
        ["negatives per row that score above its positive", *(f"{one.false_negatives:.2f}" for one in figures)],
        ["share of negatives above 0.95 of that score", *(f"{100 * one.guarded:.1f} %" for one in figures)],
    ]


def _cost(advice: Advice) -> str:
    assert advice.cost is not None
    cost = advice.cost
    return (
        f"Cost of all {advice.facts.rows:,} rows on this machine, about: embedding {_seconds(cost.embedding)}, "
        f"planning {_seconds(cost.planning)}, {cost.plans}."
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        f"  {row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"
