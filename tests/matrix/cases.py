"""All cases of the matrix, in the order of the table."""

from __future__ import annotations

from dataclasses import replace

from matrix import cases_data, cases_loop, cases_losses, cases_model, cases_other, cases_planning, cases_ranks
from matrix.case import Case

PLAIN = "MultipleNegativesRankingLoss"

MODULES = {
    "Losses": cases_losses,
    "Data": cases_data,
    "Loop": cases_loop,
    "Model": cases_model,
    "Planning": cases_planning,
    "Several processes": cases_ranks,
    "Other trainers": cases_other,
}

CASES: list[Case] = [replace(case, group=group) for group, module in MODULES.items() for case in module.CASES]
