"""What a finished run leaves in its `results.json`, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

# What only the runs of a comparison have.
_OF_COMPARISONS = (
    "seconds_mining", "seconds_total", "seconds_dev", "rows_without_mined_negative", "dev_steps", "dev_metric", "dev_curve",
    "plan_log",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run: how it was trained, what it scores, and where both come from."""

    scores: dict[str, float]  # x 100, by name
    steps: int
    train_loss: float
    gap_closed: float  # mean over the plans as they were made; 0 for random batches by definition
    plans: int
    seconds_training: float
    seconds_embedding: float
    seconds_planning: float
    run: str
    seed: int
    corpus_hash: str
    training_rows: int
    tasks: dict[str, Any] | None = None  # sizes and hashes of those that are made of installed code
    commit: str | None
    python: str
    versions: dict[str, str | None]
    best_step: int | None = None  # of the checkpoint that was loaded at the end
    seconds_mining: float | None = None
    seconds_total: float = 0.0  # training and mining
    seconds_dev: float | None = None
    rows_without_mined_negative: int | None = None
    dev_steps: int | None = None  # steps between dev scores; None for a run that is not part of a comparison
    dev_metric: str | None = None  # that the dev curve is of
    dev_curve: list[list[float]] | None = None  # [step, seconds, score] each
    plan_log: list[dict[str, float]] | None = None  # step and quality of each plan

    def to_json(self) -> dict[str, Any]:
        """Returns one flat mapping, the scores under their names, as files hold it."""
        flat = asdict(self)
        left_out = {name for name in ("tasks", "best_step") if flat[name] is None}
        left_out |= set(_OF_COMPARISONS) if self.dev_steps is None else set()
        return {**flat.pop("scores"), **{name: value for name, value in flat.items() if name not in left_out}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunResult:
        """Returns what `to_json` was made of; raises a ValueError for a record that lacks something."""
        own = {field.name: field for field in fields(cls) if field.name != "scores"}
        missing = [name for name, field in own.items() if field.default is MISSING and name not in record]
        if missing:
            raise ValueError(f"a run's results lack {', '.join(missing)}")
        given = {name: record[name] for name in own if name in record}
        # Tasks may have any name: a number that is no field is a score.
        scores = {name: value for name, value in record.items() if name not in own and isinstance(value, (int, float))}
        return cls(scores=scores, **given)


def is_score(name: str) -> bool:
    """Returns whether an entry of a run's record is a score: of an STS task, a mean, an MRR, a recall or an nDCG."""
    kinds = ("_mrr@", "_recall@", "_ndcg@")
    return (
        name.startswith(("STS", "SICK"))
        or name in ("avg", "retrieval_avg")
        or name.endswith("_mrr")
        or any(kind in name for kind in kinds)
    )
