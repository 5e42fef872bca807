"""What `planner="auto"` and `planner_view="auto"` stand for in one trainer: model and rows in, view and hardness out.

The rule is `gcbs_st.training.rule`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.ranks import agree, failing_together
from gcbs_st.rows.columns import has_one_text
from gcbs_st.training.auto_hardness import choose_hardness
from gcbs_st.training.loss_facts import masks_negatives
from gcbs_st.training.rule import AUTO, PLANNER, Setting, is_static, supported_setting

logger = logging.getLogger(__name__)


class AutoChoices:
    """What is left to us to choose. Holds nothing but what was found out about rows."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._of_one_text: dict[str, bool] = {}

    def forget_rows(self) -> None:
        """Looks at the training set anew when it is asked next."""
        self._of_one_text.clear()

    @property
    def setting(self) -> Setting | None:
        """What the view "auto" stands for; None for any other view."""
        args = self.trainer.args
        if args.views != [AUTO] or self.trainer.train_dataset is None:
            return None
        if args.embedding_source == "harvest":  # which has no other view
            return Setting("model", "harvested embeddings are the model's own")
        return supported_setting(self.trainer.model)

    @property
    def views(self) -> list[Any]:
        """The views of the arguments, with that of the rule in the place of "auto"."""
        setting = self.setting
        given: list[Any] = self.trainer.args.views
        return given if setting is None else [setting.view]

    def leaves_random(self, name: str) -> bool:
        """Whether the batches of a dataset are left to chance: dropout makes pairs of its single texts.

        Unsupervised training lost by the hardest batches planned before it, and softer ones could not be told from random
        ones (docs/results.md), which is no ground for a default.
        """
        args = self.trainer.args
        if args.planner != AUTO or args.planner_columns is not None or self.trainer.plans_differently:
            return False
        if name not in self._of_one_text:
            dataset = self.trainer.training_parts()[name]
            self._of_one_text[name] = has_one_text(dataset, self.trainer.data_collator.valid_label_columns)
        return self._of_one_text[name]

    def chooses_hardness(self, name: str) -> bool:
        """Whether a dataset's first plan says how hard its batches are."""
        if not self.trainer.args.chooses_hardness or self.trainer.plans_differently:
            return False
        if is_static(self.trainer.model) or masks_negatives(self.trainer.loss_of(name)):
            return False
        return len(self.trainer.source.parts[name].columns) > 1

    def choose_hardness(
        self,
        name: str,
        pairs: Callable[[], tuple[np.ndarray, np.ndarray]],
        shared: Callable[[], Contradictions | None],
        rng: np.random.Generator,
    ) -> float:
        """Returns how hard the batches of a dataset are in this run, the same on all ranks; logged where not the hardest.

        Asked on the main process alone, `pairs` are (m, d) unit rows of anchors and positives, and `shared` which of them
        are no negatives of each other.
        """
        ranks, chosen, why = self.trainer.args.world_size, 1.0, ""
        with failing_together("planning", ranks):
            if self.trainer.is_world_process_zero():
                texts = self.trainer.row_memory.texts_of(name)
                size = self.trainer.contrast_size(name)
                chosen, why = choose_hardness(pairs(), shared(), size, rng, has_negatives=len(texts) > 2)
        if chosen < 1:
            logger.info(
                "planner: auto composes the batches of %s at planner_hardness=%g. %s Set planner_hardness=1 for the hardest.",
                name or "the training set",
                chosen,
                why,
            )
        return agree(chosen, ranks)

    def say(self) -> None:
        """Logs what "auto" stands for, when training begins."""
        names = self.trainer.planned_samplers
        left = [name for name in names if self.leaves_random(name)]
        for name in left:
            logger.info(
                "planner: auto leaves the batches of %s random: its rows are one text each, and training on two views "
                "of one text lost by batches planned before it. Name a planner to plan them all the same.",
                name or "the training set",
            )
        if (setting := self.setting) is not None and len(left) < len(names):
            field = "planner" if self.trainer.args.planner == AUTO else "planner_view"
            what = f"{PLANNER!r} with " if field == "planner" else ""
            logger.info("%s: auto stands for %s%s.", field, what, setting)
