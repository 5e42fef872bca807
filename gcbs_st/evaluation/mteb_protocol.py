"""Scores the same STS and retrieval tasks through mteb, to compare with its leaderboard; no other module imports mteb.

mteb's stock tasks bring its metric and names, but get the caller's rows, need no network and no cache of scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer

from gcbs_st.embeddings.encode import preserved_state
from gcbs_st.evaluation.retrieval_tasks import RetrievalTask
from gcbs_st.evaluation.sts import add_average
from gcbs_st.evaluation.sts_tasks import StsTask

try:
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.models import SentenceTransformerEncoderWrapper
except ImportError as error:
    raise ImportError(f"the mteb protocol needs mteb ({error}); run: pip install 'gcbs_st[eval]'") from error

# Our name -> mteb's. SICK-R-all is what mteb itself means by SICK-R: all pairs, not SimCSE's test part.
_MTEB_NAMES = {name: name for name in ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")}
_MTEB_NAMES["SICK-R-all"] = "SICK-R"


def evaluate_sts_mteb(
    model: SentenceTransformer,
    tasks: Mapping[str, StsTask],
    *,
    model_name: str,
    revision: str = "local",
    output_folder: str | None = None,
    batch_size: int = 128,
) -> dict[str, float]:
    """Returns mteb's main score, Spearman x 100 of the cosine, for each task, and `avg` as `evaluate_sts` has it.

    mteb chooses the prompts: those the model defines for a task's name or type. A model without prompts is encoded as
    `evaluate_sts` does. mteb's seeding of the global random numbers and its switch to evaluation mode are undone.

    The rows are those given, so SICK-R is the part the caller loaded and not mteb's 9,927 pairs. Result files are
    written to `output_folder`, under the model's name, `ORGANISATION/NAME`, and revision, in place of earlier ones;
    None writes nothing. Raises a ValueError if there are no tasks, mteb does not know one (such as a dev split),
    SICK-R is given twice, or a score is undefined.
    """
    refused = [name for name in tasks if name not in _MTEB_NAMES]
    if refused or not tasks:
        raise ValueError(f"mteb protocol: got tasks {refused}, expected one or more of {', '.join(_MTEB_NAMES)}")
    if {"SICK-R", "SICK-R-all"} <= tasks.keys():
        raise ValueError("mteb protocol: got SICK-R and SICK-R-all, expected one; mteb calls both SICK-R")
    with preserved_state(model):  # mteb seeds the global numbers as soon as a task is made
        stock = [_fill_stock_task(_MTEB_NAMES[name], task) for name, task in tasks.items()]
        by_mteb_name = _evaluate(model, stock, (model_name, revision), output_folder, batch_size)
    scores = {name: by_mteb_name[_MTEB_NAMES[name]] for name in tasks}
    if undefined := ", ".join(name for name, score in scores.items() if math.isnan(score)):
        raise ValueError(f"mteb protocol: score of {undefined} is NaN: embeddings or scores are constant or NaN")
    return add_average(scores)


def evaluate_retrieval_mteb(
    model: SentenceTransformer,
    tasks: Mapping[str, RetrievalTask],
    *,
    model_name: str,
    revision: str = "local",
    output_folder: str | None = None,
    batch_size: int = 128,
) -> dict[str, float]:
    """Returns mteb's main score, nDCG@10 x 100, of each task, each a task of mteb's own kind under our name.

    The other arguments are those of `evaluate_sts_mteb`. Raises a ValueError if there are no tasks, or a gain is no
    whole number, which mteb's metric needs.
    """
    if not tasks:
        raise ValueError("mteb protocol: got no retrieval tasks, expected at least one")
    with preserved_state(model):
        local = [_make_retrieval_task(task) for task in tasks.values()]
        return _evaluate(model, local, (model_name, revision), output_folder, batch_size)


def evaluate_hub_tasks(
    model: SentenceTransformer,
    tasks: Sequence[str],
    *,
    model_name: str,
    revision: str,
    output_folder: str | None = None,
    batch_size: int = 128,
) -> dict[str, float]:
    """Returns mteb's main score x 100 of each task, on the data that mteb itself loads from the hub.

    Tasks are of any of mteb's types; the other arguments are those of `evaluate_sts_mteb`. There is no average, since
    mteb's seven are not SimCSE's. Raises a ValueError if mteb does not know a task.
    """
    with preserved_state(model):
        try:
            stock = [mteb.get_task(name) for name in tasks]
        except KeyError as error:
            raise ValueError(f"mteb protocol: {' '.join(map(str, error.args))}") from None
        return _evaluate(model, stock, (model_name, revision), output_folder, batch_size)


def weights_hash(model: SentenceTransformer) -> str:
    """Returns 16 hexadecimal digits of a hash of a model's modules and weights: a revision for a model that has none.

    mteb keys its results by name and revision, and a model that is trained anew in the same folder has the same name.
    """
    digest = hashlib.sha256(str(model).encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _evaluate(
    model: SentenceTransformer,
    tasks: Sequence[mteb.AbsTask],
    identity: tuple[str, str],
    output_folder: str | None,
    batch_size: int,
) -> dict[str, float]:
    """Main score x 100 of each task, by its name in mteb; the caller preserves the state."""
    encoder = SentenceTransformerEncoderWrapper(model)
    # Without a name of its own a fine-tuned model takes its base model's in mteb's records.
    update = dict(zip(("name", "revision"), identity, strict=True))
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update=update)
    results = mteb.evaluate(
        encoder,
        list(tasks),
        # Never the default cache: its key is the model's name, so it returns other weights' scores.
        cache=None if output_folder is None else mteb.ResultCache(output_folder),
        overwrite_strategy="always",
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
    )
    return {result.task_name: 100 * float(result.get_score()) for result in results.task_results}


def _fill_stock_task(name: str, task: StsTask) -> mteb.AbsTask:
    """The task of mteb of that name, with the given rows in place of the hub's."""
    stock = mteb.get_task(name)
    columns = {"sentence1": task.sentence1, "sentence2": task.sentence2, "score": task.scores}
    stock.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
    # The result files say which data they are of, and these rows need not be those of the hub's revision.
    stock.metadata = stock.metadata.model_copy(update={"dataset": {**stock.metadata.dataset, "revision": "local"}})
    stock.data_loaded = True
    return stock


def _make_retrieval_task(task: RetrievalTask) -> mteb.AbsTask:
    """A retrieval task with the given rows, for sets that mteb does not have; ids are row numbers."""
    if not all(float(gain).is_integer() for gains in task.relevant for gain in gains.values()):
        raise ValueError(f"mteb protocol: {task.name} has a gain that is no whole number, which mteb cannot score")

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=task.name,
            description="Queries, a corpus and relevant documents from local files.",
            dataset={"path": "local", "revision": "local"},
            type="Retrieval",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

    local = LocalRetrieval()
    documents = {"id": list(map(str, range(len(task.documents)))), "text": task.documents}
    queries = {"id": list(map(str, range(len(task.queries)))), "text": task.queries}
    relevant = {
        str(query): {str(row): int(gain) for row, gain in gains.items()} for query, gains in enumerate(task.relevant)
    }
    split: RetrievalSplitData = {
        "corpus": Dataset.from_dict(documents),
        "queries": Dataset.from_dict(queries),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    local.dataset = {"default": {"test": split}}
    local.data_loaded = True
    return local
