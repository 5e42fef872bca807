"""A run's folder, a checkpoint, or files in, the plan to inspect out. All is checked before anything is measured.

What is damaged, half-written or of other data raises a ValueError, with one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME

from gcbs_st.batches.checkpoint import PLAN_FILE, last_whole_checkpoint, read_plan
from gcbs_st.batches.plan_history import PLANS_FOLDER, StoredPlan, plan_files, read_stored_plan, step_of, stored_plan
from gcbs_st.config import ExperimentConfig, LossConfig
from gcbs_st.embeddings.harvested_rows import EMBEDDINGS_FOLDER
from gcbs_st.experiments.training_run import initial_model
from gcbs_st.files import read_json
from gcbs_st.models.load import open_model, resolve_model_name
from gcbs_st.planners.quality import SCALE
from gcbs_st.records.run_folder import CONFIG_FILE, read_config, read_run, run_settings
from gcbs_st.reports.inspection.inspector import Embed, Subject
from gcbs_st.reports.inspection.pair_texts import PAIR, PairTexts, read_run_texts, texts_of_file
from gcbs_st.reports.inspection.plan_embeddings import encoded_subject, encoder, stored_subject

Entry = TypeVar("Entry")
_RECORDED = {"planner": "Planner", "options": "Options", "seconds": "Seconds of planning"}


@dataclass(frozen=True)
class Inspected:
    """A plan to inspect, and what is known of its run, if it belongs to one."""

    subject: Subject
    plans: Sequence[StoredPlan] = ()  # all that the run kept, by step
    log_history: Sequence[Mapping[str, Any]] = ()
    step: int | None = None  # at which the plan was made
    origin: Mapping[str, str] = field(default_factory=dict)  # label -> text: where all of this comes from


def open_run(
    folder: Path, *, step: int | None = None, texts: Path | None = None, max_rows: int | None = None
) -> Inspected:
    """Returns a plan of a finished run, as embedded by the trained model and by the one that training started from.

    `folder` holds config.yaml, results.json, model/ and plans/. The plan is the one in force at `step`, by default the
    last one. `texts` are JSON lines with `anchor` and `positive`, all rows that were trained on; without them the corpus
    is read again. At most `max_rows` rows are encoded, see `encoded_subject`.
    """
    config, run = read_run(folder)
    if not (files := plan_files(folder / PLANS_FOLDER)):
        raise ValueError(
            f"{folder} keeps no plans (plans/step-*.npz): it was trained by an earlier version, or not by this package's "
            "trainer. Train it again."
        )
    if not (folder / "model").is_dir():
        raise ValueError(f"{folder} holds no model/, expected the trained model. Train it again.")
    chosen = sum(step is None or step_of(file) <= step for file in files) - 1
    if chosen < 0:
        raise ValueError(f"--step: got {step}, expected {step_of(files[0])} or more, the step of the first plan.")
    plans = [_only(read_stored_plan(file), None, file) for file in files]
    plan = plans[chosen]
    read = texts_of_file(texts) if texts is not None else read_run_texts(folder, config, run.record["corpus_hash"])
    _check_rows(folder, plan, read)
    notes = [f"The plan was made at step {plan.step:,}, with the model of then."]
    if plan.drawn:
        notes.append(f"Batches 0 to {plan.drawn - 1:,} had been drawn before it, from earlier plans.")
    earlier, missing = _initial(config, read)
    subject = encoded_subject(
        open_model(str(folder / "model"), None),
        plan,
        read,
        max_rows,
        title=f"Batches of {folder}",
        model="the model after training",
        scale=configured_scale(config.loss),
        earlier=earlier,
        facts=_facts(plan, run.record),
        notes=[*notes, *missing],
    )
    names = ("corpus_hash", "commit", "versions")
    recorded = {name: str(run.record[name]) for name in names if run.record.get(name)}
    origin = {"run": str(folder), **recorded, "configuration": (folder / CONFIG_FILE).read_text(encoding="utf-8")}
    return Inspected(subject, plans, run.log, plan.step, origin)


def open_checkpoint(
    folder: Path,
    *,
    texts: Path | None = None,
    columns: Sequence[str] = PAIR,
    dataset: str | None = None,
    max_rows: int | None = None,
) -> Inspected:
    """Returns the plan of a checkpoint, with its harvested embeddings, or its model's if there are none.

    `folder` holds gcbs_plan.npz, or checkpoints of which the newest whole one is taken; `texts` and `max_rows` are those
    of `open_run`, the corpus being that of the config.yaml beside the checkpoint. `columns` name anchors and positives in
    `texts`. `dataset` chooses one of several.
    """
    if not folder.is_dir():
        raise ValueError(f"--checkpoint: {folder} is not there, expected a folder that holds {PLAN_FILE}.")
    if not (folder / PLAN_FILE).is_file() and (newest := last_whole_checkpoint(str(folder))) is not None:
        folder = Path(newest)
    states, fingerprint = read_plan(folder)
    state = _only(states, dataset, folder / PLAN_FILE)
    history = read_json(folder / TRAINER_STATE_NAME, dict)
    step = int(history.get("global_step", 0))
    config = read_config(folder.parent / CONFIG_FILE) if (folder.parent / CONFIG_FILE).is_file() else None
    settings = run_settings(config) if config is not None else {}
    planner, options = str(settings.get("planner", "")), settings.get("planner_options")
    plan = stored_plan(state, folder / PLAN_FILE, step=step, planner=planner, options=options)
    if texts is not None:
        read = texts_of_file(texts, columns)
    elif config is not None and not state["name"]:
        read = read_run_texts(folder, config, fingerprint)
    else:
        raise ValueError(
            f"{folder} holds no texts: give the rows that were trained on with --texts FILE.jsonl (anchor, positive, or "
            "--columns)."
        )
    _check_rows(folder, plan, read)
    described: dict[str, Any] = {
        "title": f"Batches of {folder}",
        "scale": configured_scale(config.loss) if config is not None else SCALE,
        "facts": _facts(plan, {}),
        "notes": [f"This is the plan in force at step {step}."],
    }
    store = folder / EMBEDDINGS_FOLDER / str(list(states).index(state["name"]))
    if (subject := stored_subject(store, step, plan, read, **described)) is None:
        model = open_model(str(folder), None)
        subject = encoded_subject(model, plan, read, max_rows, model=f"the model of step {step}", **described)
    return Inspected(subject, [plan], history.get("log_history", []), step, {"checkpoint": str(folder)})


def open_files(  # noqa: PLR0913 - one argument for each file
    anchors: Path,
    positives: Path,
    order: Path,
    batch_size: int,
    texts: Path,
    *,
    record: Path | None = None,
    scale: float = SCALE,
) -> Inspected:
    """Returns a plan of saved embeddings, which are not read into memory.

    `anchors` and `positives` are .npy files of (n, d) floats, unit rows; `order` of (n,) integers, each row once, whose
    blocks are batches, a shorter last one being left out; `texts` n JSON lines with `anchor` and `positive`; `record` the
    JSON that planning printed, for the page's summary. `scale` is 1 / temperature.
    """
    left, right = _open_array(anchors), _open_array(positives)
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(
            f"got {anchors} of shape {left.shape} and {positives} of {right.shape}, expected both (rows, dimensions)."
        )
    found, rows = _open_array(order), len(left)
    whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer) and len(found) == rows
    if not whole or not np.array_equal(np.sort(found), np.arange(rows)):
        raise ValueError(
            f"{order}: got {found.dtype} of shape {found.shape}, expected each of the rows 0..{rows - 1} once, one for each "
            f"row of {anchors}."
        )
    if not 1 <= batch_size <= rows:
        raise ValueError(f"--batch-size: got {batch_size}, expected 1 to {rows}, the rows of {anchors}.")
    read = texts_of_file(texts)
    if read.rows != rows:
        raise ValueError(f"{texts} holds {read.rows} rows of text, but {anchors} {rows} embeddings, expected as many.")
    described = read_json(record, dict) if record is not None else {}
    subject = Subject(
        f"Batches of {order.name}",
        left,
        right,
        batches=found[: rows // batch_size * batch_size].astype(np.int64).reshape(-1, batch_size),
        rows=np.arange(rows),
        read_texts=read.read,
        model=f"the embeddings of {anchors.name} and {positives.name}",
        scale=scale,
        facts={label: str(described.get(key, "not recorded")) for key, label in _RECORDED.items()},
    )
    return Inspected(subject, origin={"order": str(order), "texts": str(texts)})


def configured_scale(loss: LossConfig) -> float:
    """Returns 1 / temperature of a configured loss, 20 if its options name neither."""
    scale, temperature = (loss.options.get(key) for key in ("scale", "temperature"))
    if isinstance(scale, (int, float)) and scale > 0:
        return float(scale)
    return 1.0 / temperature if isinstance(temperature, (int, float)) and temperature > 0 else SCALE


def _open_array(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is not a whole .npy file ({error})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{file} holds several arrays, expected a .npy file of one.")
    return array


def _only(entries: Mapping[str, Entry], dataset: str | None, file: Path) -> Entry:
    if dataset is None and len(entries) == 1:
        return next(iter(entries.values()))
    if dataset is None or dataset not in entries:
        raise ValueError(f"--dataset: got {dataset!r}, expected one of those of {file}: {', '.join(entries)}.")
    return entries[dataset]


def _check_rows(folder: Path, plan: StoredPlan, texts: PairTexts) -> None:
    if plan.rows != texts.rows:
        raise ValueError(f"{folder} has a plan of {plan.rows} rows, but {texts.source} holds {texts.rows}.")


def _facts(plan: StoredPlan, results: Mapping[str, Any]) -> dict[str, str]:
    planned = plan.plan_count or plan.planner == "random"
    facts = {
        "Planner": (plan.planner or "not recorded") + ("" if planned else " (random batches: no plan was due yet)"),
        "Options": ", ".join(f"{key}={value}" for key, value in (plan.options or {}).items()) or "its defaults",
        "Plan": f"of step {plan.step:,}, epoch {plan.epoch + 1}",
    }
    labels = {
        "steps": "Steps of the run",
        "plans": "Plans of the run",
        "gap_closed": "Closed, mean of the plans as logged",
        "seconds_training": "Seconds of training",
        "seconds_embedding": "Seconds of it embedding",
        "seconds_planning": "Seconds of it planning",
    }
    return facts | {label: str(results[key]) for key, label in labels.items() if key in results}


def _initial(config: ExperimentConfig, texts: PairTexts) -> tuple[dict[str, Embed], list[str]]:
    """Returns the model that training started from if it is on this machine, else a note that it is not."""
    try:
        here = Path(resolve_model_name(config.model.name)).is_dir()
    except (ValueError, FileNotFoundError):
        here = False
    if not here:
        return {}, [f"The model before training, {config.model.name}, is not on this machine, so it is not shown."]
    set_seed(run_settings(config).get("seed", 42))  # as in the run: a new head is drawn at random
    return {"the model before training": encoder(initial_model(config), texts)}, []
