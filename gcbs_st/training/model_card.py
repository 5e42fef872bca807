"""What the card of a trained model says of how its batches came about: tags and papers.

The options stand among the hyper-parameters, where the host writes those of any arguments.
"""

from __future__ import annotations

import logging
from importlib.resources import files
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gcbs_st import __version__
from gcbs_st.planners import (
    BestPlanner,
    BisectPlanner,
    GCBSPlanner,
    HobitPlanner,
    PartitionPlanner,
    Planner,
    RandomPlanner,
    RandomWalkPlanner,
    TailBatchPlanner,
    name_of,
)

logger = logging.getLogger(__name__)

SOFTWARE = f"""
@software{{gcbs_st,
    title={{gcbs_st: batches composed from the model's own embeddings, for sentence-transformers}},
    version={{{__version__}}}
}}
"""
# What the planners come from: title and key in citations.bib. A planner of the user's has no paper that we know of.
_PAPERS: dict[type, tuple[str, str]] = {
    BestPlanner: ("NGAME", "dahiya2023ngame"),
    BisectPlanner: ("NGAME", "dahiya2023ngame"),
    GCBSPlanner: ("Global Contrastive Batch Sampling", "sachidananda2023gcbs"),
    HobitPlanner: (
        "Global Contrastive Batch Sampling",
        "sachidananda2023gcbs",
    ),  # its quantity; HOBIT is not to be had
    PartitionPlanner: ("B3", "thirukovalluru2025b3"),
    RandomWalkPlanner: ("BatchSampler", "yang2023batchsampler"),
    TailBatchPlanner: ("Global Contrastive Batch Sampling", "sachidananda2023gcbs"),
}


def read_citation(key: str) -> str:
    """Returns the BibTeX entry of a key in citations.bib."""
    entries = (files("gcbs_st.training") / "citations.bib").read_text(encoding="utf-8").split("\n\n")
    return next(f"\n{entry.strip()}\n" for entry in entries if f"{{{key}," in entry)


def name_method(card: Any, planner: Planner) -> None:
    """Adds tags and citations to the data of a model card; none of random batches."""
    if isinstance(planner, RandomPlanner):
        return
    card.add_tags(["gcbs_st", "planner:" + name_of(planner).replace("_", "-")])
    card.citations["gcbs_st"] = SOFTWARE
    if paper := _PAPERS.get(type(planner)):
        title, key = paper
        card.citations[title] = read_citation(key)


class MethodCallback(TrainerCallback):
    """Names the method in the card of the model that is about to be trained.

    Not earlier: the host writes the citations of the losses anew while a trainer is made, and a search for
    hyper-parameters trains a new model with another planner each time.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Names the method, if there is one; a card that cannot be written to stops no training."""
        if model is None or all(map(self._trainer.auto.leaves_random, self._trainer.planned_samplers)):
            return
        try:
            name_method(model.model_card_data, self._trainer.planner)
        except Exception as error:  # cards of other libraries may be anything
            logger.warning(
                "The model card does not say how batches were composed (%s: %s).", type(error).__name__, error
            )
