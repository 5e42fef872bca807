"""What a case of the matrix is: a small training, what has to come of it, and what each column expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from matrix.materials import pairs, static
from matrix.recording import sentence_embedding

SINGLE, RESUME, DDP, DDP_RESUME = "single process", "resume", "DDP", "DDP resume"
COLUMNS = (SINGLE, RESUME, DDP, DDP_RESUME)
GROUPS = ("Losses", "Data", "Loop", "Model", "Planning", "Several processes", "Other trainers")
BATCH = 8


@dataclass(frozen=True)
class Cell:
    """What is expected of a case in a column.

    Attributes:
        kind: "works", "refused", or "n/a" for what does not apply.
        why: of what is refused or does not apply, as the table says it.
        error: that refuses it.
        match: a part of its message.
    """

    kind: str = "works"
    why: str = ""
    error: str = ""
    match: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}" if self.why else self.kind


WORKS = Cell()


def refused(why: str, error: str, match: str) -> Cell:
    """A cell that is refused with a clear error."""
    return Cell("refused", why, error, match)


def not_applicable(why: str) -> Cell:
    """A cell that means nothing."""
    return Cell("n/a", why)


def everywhere(cell: Cell) -> dict[str, Cell]:
    """The same in all columns."""
    return dict.fromkeys(COLUMNS, cell)


def one_process_only(why: str) -> dict[str, Cell]:
    """Works in one process; of several there is nothing to say."""
    return {SINGLE: WORKS, RESUME: WORKS, DDP: not_applicable(why), DDP_RESUME: not_applicable(why)}


@dataclass(frozen=True)
class Place:
    """Where a case runs.

    Attributes:
        folder: for its files, empty; the same on all ranks.
        models: the folder of saved models, see `materials.save_models`.
        ranks: processes.
    """

    folder: Path
    models: Path
    ranks: int


@dataclass
class Run:
    """What one process saw of a training.

    Attributes:
        case: what was run.
        place: where.
        trainer: after training.
        watched: what `Case.watch` returned, filled meanwhile.
        before: the weights as they were.
        by_rank: of each rank the batches in order, as [epoch, step, dataset, rows].
        plans: made by the rank that plans, as {step, name, rows}.
        weights: their hash at the end.
    """

    case: Case
    place: Place
    trainer: Any
    watched: Any
    before: dict[str, Any]
    by_rank: list[list[Any]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)
    weights: str = ""

    @property
    def model(self) -> Any:
        return self.trainer.model

    def logged(self, key: str) -> list[float]:
        """The values that were logged under a name."""
        return [entry[key] for entry in self.trainer.state.log_history if key in entry]


def nothing(*_: Any) -> dict[str, Any]:
    """For what a case has no need of."""
    return {}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: as a reader of the table knows it.
        model: given the place, the model.
        rows: the training set.
        loss: given the model, the loss.
        arguments: beside those of every case; given the place where they depend on it.
        given: given place and model, further arguments of the trainer.
        trainer: name in `gcbs_st`.
        watch: given the trainer before it trains, what it is to be checked by afterwards.
        check: given the `Run`, raises AssertionError where the feature took no effect.
        train: given the trainer and a checkpoint or None, trains.
        resumed: given the whole and the resumed `Run`, in place of the comparison bit by bit.
        steps: optimizer steps, in one process and in two.
        save_at: the step of the checkpoint that is resumed from, in the middle of an epoch; in one process and in two.
        planned_from: the first step whose batches are planned, in one process and in two; None if none is.
        planned_until: the last such step, in one process and in two; None if the run ends with planned batches.
        host_batches: the loss contrasts no rows, so that batches are the host's own: the last of an epoch may be short.
        planned_size: rows that are planned as one batch, times the processes where `gathers`.
        gathers: the loss contrasts the rows of all processes.
        repeats: rows may be drawn again.
        columns: that have to be planned on.
        verify: compare what is planned on with what the model makes of the texts as training hands them over.
        represent: of the model's output, what has to be planned on.
        cells: what is expected of each column.
        quick: part of what CI runs.
        ranks: processes of the columns of several.
        needs: a module, or "c++", without which the case is skipped, with that as the reason.
        group: of the table; given by the module of the case.
    """

    name: str
    model: Callable[[Place], Any] = static
    rows: Callable[[], Any] = pairs
    loss: Callable[[Any], Any] = MultipleNegativesRankingLoss
    arguments: Mapping[str, Any] | Callable[[Place], Mapping[str, Any]] = field(default_factory=dict)
    given: Callable[[Place, Any], dict[str, Any]] = nothing
    trainer: str = "GCBSTrainer"
    watch: Callable[[Any], Any] = nothing
    check: Callable[[Run], Any] = nothing
    train: Callable[[Any, str | None], Any] | None = None
    resumed: Callable[[Run, Run], None] | None = None
    steps: tuple[int, int] = (22, 10)
    save_at: tuple[int, int] = (16, 7)
    planned_from: tuple[int, int] | None = (1, 1)
    planned_until: tuple[int, int] | None = None
    host_batches: bool = False
    planned_size: int = BATCH
    gathers: bool = False
    repeats: bool = False
    columns: tuple[str, ...] = ("anchor", "positive")
    verify: bool = True
    represent: Callable[[Any], Any] = sentence_embedding
    cells: Mapping[str, Cell] = field(default_factory=lambda: everywhere(WORKS))
    quick: bool = False
    ranks: int = 2
    needs: str = ""
    group: str = ""
