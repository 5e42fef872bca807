"""A trainer that keeps the texts of every batch that it trains on, and a fingerprint of weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from gcbs_st import GCBSTrainer
from gcbs_st.rows.sub_batches import SUB_BATCHES_KEY


class TextCollator:
    """The host's collator, whose batches also carry the texts they were made of."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.valid_label_columns = collator.valid_label_columns

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = {*self.valid_label_columns, "dataset_name"}
        texts = [tuple(str(value) for name, value in row.items() if name not in labels) for row in rows]
        return {**self.collator(rows), "texts": texts}


class Recording:
    """Keeps the texts of every batch that the model is trained on, in `trained`, as (optimizer step, texts)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = TextCollator(self.data_collator)
        self.data_collator_class = TextCollator  # not taken for a user's, which may change texts
        self.trained: list[tuple[int, list[tuple[str, ...]]]] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        texts = [row for part in inputs.get(SUB_BATCHES_KEY, [inputs]) for row in part.pop("texts")]
        self.trained.append((self.state.global_step + 1, texts))
        return super().training_step(model, inputs, *args)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("texts")
        return super().prediction_step(model, inputs, *args, **kwargs)


class RecordingTrainer(Recording, GCBSTrainer):
    """The trainer of dense models, recording."""


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
