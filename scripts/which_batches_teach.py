#!/usr/bin/env python3
"""Read the study of which batches teach: what each arm gained on dev, and which figure of its plans says so beforehand.

Goes in: the folders of `scripts/compare.py`, one for each setting. Comes out: a table of all arms, and the rank correlation
of each figure with the gain, over the arms of all settings, with its bootstrap interval.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gcbs_st.commands.shell import make_parser, run_command
from gcbs_st.config import load_config
from gcbs_st.files import read_json, write_json, write_text
from gcbs_st.records.run_result import RunResult
from gcbs_st.records.statistics import paired_difference
from gcbs_st.records.tables import markdown_table

PROGRAM = "python scripts/which_batches_teach.py"
EXAMPLE = """
{program} --study captions_minilm2=runs/study/captions_minilm2 --study code_static=runs/study/code_static \\
    --markdown table.md --json study.json
"""
DEV = ("STSBenchmark-dev", "code-dev_mrr")
# What is known of a plan when it is made, and of the first steps behind it.
FIGURES = {
    "gcbs/closed": "closed",
    "gcbs/trained_closed": "closed of the trained loss",
    "gcbs/tail_coverage": "tail coverage",
    "gcbs/false_negatives": "false negatives per row",
    "gcbs/plan_masked": "masked in the plan",
    "loss": "loss, first logged",
    "gcbs/masked": "masked, first logged",
    "grad_norm": "gradient norm, first logged",
}
_DRAWS = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(PROGRAM, __doc__, EXAMPLE)
    parser.add_argument("--study", action="append", required=True, metavar="SETTING=DIR", help="may be repeated")
    parser.add_argument("--reference", default="random", help="the arm that gains are counted from")
    parser.add_argument("--json", metavar="FILE", help="write all of it here")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables here")
    arguments = parser.parse_args(argv)
    return run_command(PROGRAM, lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    studies = {}
    for text in arguments.study:
        setting, sign, folder = text.partition("=")
        if not sign:
            raise ValueError(f"--study {text}: expected SETTING=DIR")
        studies[setting] = read_arms(Path(folder), arguments.reference)
    found = correlations(studies)
    text = "\n\n".join([*(f"### {name}\n\n{arms_table(arms)}" for name, arms in studies.items()), ranks_table(found)])
    if arguments.json:
        write_json(Path(arguments.json), {"studies": studies, "correlations": found})
    if arguments.markdown:
        write_text(Path(arguments.markdown), text + "\n")
    print(text)


def read_arms(folder: Path, reference: str = "random") -> dict[str, dict[str, Any]]:
    """Returns what is known of each arm of a comparison: settings, dev score by seed, gain, and figures.

    A gain is the mean difference to the reference over the seeds that both have. Raises a ValueError if the reference
    is not there.
    """
    arms: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/seed-*/results.json")):
        arm, seed = file.parent.parent.name, int(file.parent.name.removeprefix("seed-"))
        scores = RunResult.from_json(read_json(file, dict)).scores
        entry = arms.setdefault(arm, {"dev": {}, "figures": {}, **_settings(file.parent)})
        entry["dev"][seed] = next(scores[name] for name in DEV if name in scores)
        for name, value in first_figures(read_json(file.parent / "log_history.json", list)).items():
            entry["figures"].setdefault(name, {})[seed] = value
    if reference not in arms:
        raise ValueError(f"{folder}: got the arms {', '.join(arms) or 'none'}, expected {reference} among them.")
    plain = arms[reference]["dev"]
    for entry in arms.values():
        seeds = sorted(entry["dev"].keys() & plain.keys())
        entry["figures"] = {name: float(np.mean(list(by.values()))) for name, by in entry["figures"].items()}
        entry["difference"] = (
            paired_difference([entry["dev"][s] for s in seeds], [plain[s] for s in seeds]) if seeds else None
        )
    return arms


def _settings(folder: Path) -> dict[str, Any]:
    """The dials of a run."""
    config = load_config(folder / "config.yaml")
    train, loss = config.train, config.loss
    hardness = train.get("planner_hardness", 1)
    if isinstance(hardness, list):  # a schedule, [share of the run, hardness] each
        hardness = " > ".join(f"{value:g}" for _, value in hardness)
    told = f"plan {train['planner_margin']:g}" if "planner_margin" in train else ""
    planned = train.get("planner", "gcbs") != "random"
    return {
        "planner": train.get("planner", "gcbs"),
        "view": train.get("planner_view", "model") if planned else "",
        "hardness": hardness if planned else "",
        "margin": loss.options.get("margin", told),  # of the loss, or what the planner alone goes by
        "from": train.get("planner_warmup_steps", 0) if planned else "",
        "every": train.get("replan_steps", 0) if planned else "",
        "learning_rate": train["learning_rate"],
    }


def first_figures(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the figures of the first plan of a log and of the first logged step behind it; none without a plan.

    >>> first_figures([{"loss": 3.0, "step": 9}, {"gcbs/closed": 0.4, "step": 9}, {"loss": 2.0, "step": 20}])
    {'gcbs/closed': 0.4, 'loss': 2.0}
    """
    plan = next((entry for entry in log if "gcbs/closed" in entry), None)
    if plan is None:
        return {}
    behind = next((entry for entry in log if "loss" in entry and entry["step"] > plan["step"]), {})
    return {name: float(entry[name]) for entry in (plan, behind) for name in FIGURES if name in entry}


def correlations(studies: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Returns for each figure its rank correlation with the gain: ranks are within a setting, arms of all of them count.

    `interval` holds 95 % of the values that arms drawn anew within each setting give. Settings with fewer than three
    arms of a figure are left out.
    """
    found = {}
    for name in FIGURES:
        by_setting = []
        for arms in studies.values():
            known = [
                (arm["figures"][name], arm["difference"]["mean"])
                for arm in arms.values()
                if name in arm["figures"] and arm["difference"] is not None
            ]
            if len(known) >= 3:
                by_setting.append(np.array(known))
        if by_setting:
            rng = np.random.default_rng(0)
            drawn = [
                _pooled([points[rng.integers(len(points), size=len(points))] for points in by_setting])
                for _ in range(_DRAWS)
            ]
            finite = np.array(drawn)[np.isfinite(drawn)]  # arms drawn anew may all be alike
            low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
            found[name] = {
                "correlation": _pooled(by_setting), "interval": [float(low), float(high)],
                "arms": sum(map(len, by_setting)),
                "by_setting": [_pooled([points]) for points in by_setting],
            }  # fmt: skip
    return found


def _pooled(by_setting: Sequence[np.ndarray]) -> float:
    """The correlation of ranks, each counted from the middle of its setting and in shares of it."""
    sides = []
    for side in (0, 1):
        ranks = [(rankdata(points[:, side]) - (len(points) + 1) / 2) / len(points) for points in by_setting]
        sides.append(np.concatenate(ranks))
    norm = np.linalg.norm(sides[0]) * np.linalg.norm(sides[1])
    return float(sides[0] @ sides[1] / norm) if norm > 0 else float("nan")


def arms_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the arms of a setting as a table, the best first."""
    rows = []
    for name, arm in sorted(arms.items(), key=lambda item: -float(np.mean(list(item[1]["dev"].values())))):
        difference = arm["difference"]
        view = arm["view"]
        view = " less ".join(Path(str(one)).name for one in (view if isinstance(view, list) else [view]))
        dev = list(arm["dev"].values())
        figures = [arm["figures"].get(key) for key in ("gcbs/closed", "gcbs/trained_closed", "gcbs/plan_masked")]
        rows.append([
            name, arm["planner"], view, str(arm["hardness"]), str(arm["margin"]), str(arm["from"]), str(arm["every"]),
            f"{arm['learning_rate']:g}", f"{np.mean(dev):.2f} ({len(dev)})",
            "" if difference is None else f"{difference['mean']:+.2f}, {difference['wins']}/{difference['pairs']}",
            *("" if value is None else f"{value:.2f}" for value in figures),
        ])  # fmt: skip
    titles = ["arm", "planner", "view", "hardness", "margin", "from step", "every", "learning rate", "dev (seeds)"]
    return markdown_table([*titles, "to random", "closed", "trained closed", "masked"], rows)


def ranks_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the correlations as a table."""
    rows = [
        [
            FIGURES[name], str(entry["arms"]), f"{entry['correlation']:+.2f}",
            f"[{entry['interval'][0]:+.2f}, {entry['interval'][1]:+.2f}]",
            ", ".join(f"{value:+.2f}" for value in entry["by_setting"]),
        ]
        for name, entry in found.items()
    ]  # fmt: skip
    return markdown_table(["figure", "arms", "rank correlation with the gain", "95 % interval", "by setting"], rows)


if __name__ == "__main__":
    sys.exit(main())
