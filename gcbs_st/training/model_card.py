"""What the card of a trained model says of how its batches came about: tags and papers.

The options stand among the hyper-parameters, where the host writes those of any arguments.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gcbs_st import __version__
from gcbs_st.planners import (
    BestPlanner,
    BisectPlanner,
    GCBSPlanner,
    PartitionPlanner,
    Planner,
    RandomPlanner,
    RandomWalkPlanner,
    TailBatchPlanner,
    name_of,
)

logger = logging.getLogger(__name__)

GCBS = """
@inproceedings{sachidananda2023gcbs,
    title={Global Selection of Contrastive Batches via Optimization on Sample Permutations},
    author={Vin Sachidananda and Ziyi Yang and Chenguang Zhu},
    booktitle={International Conference on Machine Learning},
    year={2023},
    eprint={2210.12874},
    archivePrefix={arXiv}
}
"""
NGAME = """
@inproceedings{dahiya2023ngame,
    title={NGAME: Negative Mining-aware Mini-batching for Extreme Classification},
    author={Kunal Dahiya and Nilesh Gupta and Deepak Saini and others},
    booktitle={International Conference on Web Search and Data Mining},
    year={2023},
    eprint={2207.04452},
    archivePrefix={arXiv}
}
"""
BATCH_SAMPLER = """
@inproceedings{yang2023batchsampler,
    title={BatchSampler: Sampling Mini-Batches for Contrastive Learning in Vision, Language, and Graphs},
    author={Zhen Yang and Tinglin Huang and Ming Ding and Yuxiao Dong and Rex Ying and Yukuo Cen and Yangliao Geng and Jie Tang},
    booktitle={ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
    year={2023},
    eprint={2306.03355},
    archivePrefix={arXiv}
}
"""
B3 = """
@misc{thirukovalluru2025b3,
    title={Breaking the Batch Barrier (B3) of Contrastive Learning via Smart Batch Mining},
    author={Raghuveer Thirukovalluru and Rui Meng and Ye Liu and Karthikeyan K and Mingyi Su and Ping Nie and Semih Yavuz and Yingbo Zhou and Wenhu Chen and Bhuwan Dhingra},
    year={2025},
    eprint={2505.11293},
    archivePrefix={arXiv}
}
"""
SOFTWARE = f"""
@software{{gcbs_st,
    title={{gcbs_st: batches composed from the model's own embeddings, for sentence-transformers}},
    version={{{__version__}}}
}}
"""
# What the planners come from; a planner of the user's has no paper that we know of.
_PAPERS: dict[type, tuple[str, str]] = {
    BestPlanner: ("NGAME", NGAME),
    BisectPlanner: ("NGAME", NGAME),
    GCBSPlanner: ("Global Contrastive Batch Sampling", GCBS),
    PartitionPlanner: ("B3", B3),
    RandomWalkPlanner: ("BatchSampler", BATCH_SAMPLER),
    TailBatchPlanner: ("Global Contrastive Batch Sampling", GCBS),
}


def name_method(card: Any, planner: Planner) -> None:
    """Adds tags and citations to the data of a model card; none of random batches.

    >>> from sentence_transformers import SentenceTransformerModelCardData
    >>> card = SentenceTransformerModelCardData()
    >>> name_method(card, RandomWalkPlanner())
    >>> card.tags[-2:], list(card.citations)
    (['gcbs_st', 'planner:random-walk'], ['gcbs_st', 'BatchSampler'])
    """
    if isinstance(planner, RandomPlanner):
        return
    card.add_tags(["gcbs_st", "planner:" + name_of(planner).replace("_", "-")])
    card.citations["gcbs_st"] = SOFTWARE
    if paper := _PAPERS.get(type(planner)):
        title, citation = paper
        card.citations[title] = citation


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
        if model is None or not self._trainer.planned_samplers:
            return
        try:
            name_method(model.model_card_data, self._trainer.planner)
        except Exception as error:  # cards of other libraries may be anything
            logger.warning(
                "The model card does not say how batches were composed (%s: %s).", type(error).__name__, error
            )
