"""A trainer that keeps what it was trained on and what was planned, for any of our trainers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from recorded import TextCollator

import gcbs_st
from gcbs_st.rows.training_set import parts_of

_VERIFIED_ROWS = 24


def sentence_embedding(output: Any) -> torch.Tensor:
    """What a dense model makes of its texts."""
    return output["sentence_embedding"].float()


class Recording:
    """Keeps batches, losses and plans. To be mixed in before a trainer of ours.

    Attributes:
        trained: (epoch, optimizer step, texts) of each batch.
        plans: {step, name, rows, clusters} of each plan, where plans are made: the order before batches are shuffled.
        verified: how many plans were found to be made from what the model makes of the texts that training sees.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = TextCollator(self.data_collator)
        self.data_collator_class = TextCollator  # not taken for a user's, which may change texts
        self.trained: list[tuple[int, int, list[tuple[str, ...]]]] = []
        self.losses: list[float] = []
        self.plans: list[dict[str, Any]] = []
        self.planned_columns: tuple[str, ...] = ()  # empty: what is planned on is not compared
        self.represent = sentence_embedding
        self.verified, self.verifying = 0, False
        plan_rows = self.replanner.plan_rows

        def keep(name: str, fetched: Any, *rest: Any) -> Any:
            if self.planned_columns and self.args.embedding_source == "encode":
                self.verifying = True
                self.verify(name, fetched)
                self.verifying = False
            rows = plan_rows(name, fetched, *rest)
            clusters = getattr(self.planner, "clusters_per_batch", 1)
            plan = {"step": self.state.global_step, "name": name, "rows": rows.tolist(), "clusters": clusters}
            self.plans.append(plan)
            return rows

        self.replanner.plan_rows = keep

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        self.trained.append((int((self.state.epoch or 0.0) + 1e-6), self.state.global_step + 1, inputs.pop("texts")))
        loss = super().training_step(model, inputs, *args)
        self.losses.append(float(loss.detach()))
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("texts")
        return super().prediction_step(model, inputs, *args, **kwargs)

    def verify(self, name: str, fetched: Any) -> None:
        """Compares what is planned on with what the model makes of the collator's features, as in training."""
        part = parts_of(self.train_dataset)[name]
        some = np.linspace(0, len(fetched.rows) - 1, min(_VERIFIED_ROWS, len(fetched.rows))).astype(int)
        columns = [column for column in part.column_names if column not in self.data_collator.valid_label_columns]
        inputs = self._prepare_inputs(self.data_collator([part[int(row)] for row in fetched.rows[some]]))
        inputs.pop("texts")
        features = super().collect_features(inputs)[0]
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for place, column in enumerate(self.planned_columns):
                index = columns.index(column) if column in columns else place
                task = {"task": features[index]["task"]} if "task" in features[index] else {}
                expected = self.represent(self.model(dict(features[index]), **task))
                expected = torch.nn.functional.normalize(expected, dim=1).numpy()
                given = fetched.arrays[place][some]
                if given.shape[1] != expected.shape[1]:  # a projection, which keeps cosines within some hundredths
                    expected, given = expected @ expected.T, given @ given.T
                error = float(np.abs(expected - given).max())
                # In half precision the padding of a batch tells.
                limit = 0.25 if given.shape[1] == len(given) else 2e-2 if self.args.bf16 else 1e-5
                assert error < limit, f"{column} is planned on with an error of {error}"
        for module, training in modes:
            module.training = training
        self.verified += 1

    def batches(self) -> list[Any]:
        """What was trained on, as [epoch, step, dataset, rows]."""
        labels = {*self.data_collator.valid_label_columns, "dataset_name"}
        ids = {
            tuple(str(value) for key, value in row.items() if key not in labels): (name, index)
            for name, part in parts_of(self.train_dataset).items()
            for index, row in enumerate(part)
        }
        found = []
        for epoch, step, texts in self.trained:
            rows = [ids[one] for one in texts]
            assert 1 == len({name for name, _ in rows}), "a batch of two datasets"
            found.append([epoch, step, rows[0][0], [index for _, index in rows]])
        return found

    def all_finite(self) -> bool:
        """Whether every batch had a finite loss."""
        return bool(self.losses) and all(map(math.isfinite, self.losses))


def recording(name: str) -> tuple[type, type]:
    """A trainer of ours that records, and the class of its arguments."""
    trainer = getattr(gcbs_st, name)
    return type(f"Recording{name}", (Recording, trainer), {}), trainer.training_args_class
