"""Watches a trainer from outside: which rows each training batch held, and how alike they are to the untrained model.

A frozen copy of the model, made before its first step, embeds the first two texts of each row of each training batch.
What a batch holds is measured on them, so it does not matter what the trainer says of its own batches.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.trainer import BaseTrainer
from torch import Tensor, nn

PERMUTATIONS = 200


class Probe:
    """What was seen of the trainings of one script."""

    def __init__(self) -> None:
        self.loss = ""
        self.steps = 0
        self.finished = 0
        self.passes_before_steps = False
        self._run = 0
        self._depth = 0
        self._stepping = False
        self._frozen: nn.Module | None = None
        # Rows are dealt anew within one dataset of one training only: (training, dataset) of each batch.
        self._groups: list[tuple[int, str]] = []
        self._vectors: list[np.ndarray] = []
        self._rows: Counter[str] = Counter()
        self._names: dict[str, str] | None = None
        nn.modules.module.register_module_forward_pre_hook(self._on_pass)

    def watch(self, trainer_class: type[BaseTrainer]) -> None:
        """Wraps what a trainer is made with, trains with and computes losses with.

        Args:
            trainer_class: the class that the script will use.
        """
        init, train, compute_loss = trainer_class.__init__, trainer_class.train, trainer_class.compute_loss

        @functools.wraps(init)
        def watched_init(trainer: Any, *args: Any, **kwargs: Any) -> None:
            with self._inside():
                init(trainer, *args, **kwargs)

        @functools.wraps(train)
        def watched_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self._run, self._frozen, self._stepping = self._run + 1, None, False
            try:
                with self._inside():
                    output = train(trainer, *args, **kwargs)
                self.finished += 1
            finally:
                self.steps += trainer.state.global_step
                self.loss = describe_loss(trainer.loss)
            return output

        @functools.wraps(compute_loss)
        def watched_loss(trainer: Any, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if model.training:
                self._see(trainer, inputs)
            return compute_loss(trainer, model, inputs, *args, **kwargs)

        trainer_class.__init__, trainer_class.train, trainer_class.compute_loss = (
            watched_init, watched_train, watched_loss,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """Returns what was seen, for JSON."""
        rows = sorted(self._rows.items())
        return {
            "loss": self.loss,
            "steps": self.steps,
            "finished": self.finished,
            "passes_before_steps": self.passes_before_steps,
            "batches": len(self._vectors),
            "rows": self._rows.total(),
            "different_rows": len(self._rows),
            "rows_digest": hashlib.sha1(repr(rows).encode(), usedforsecurity=False).hexdigest(),
            **compare_with_redealt(self._vectors, self._groups),
            "parts": {name: self._compare_part(name) for name in dict.fromkeys(name for _, name in self._groups)},
        }

    def _dataset_of(self, trainer: BaseTrainer, key: str) -> str:
        """Returns the dataset of a row; the host names it only where each dataset has a loss or prompts of its own."""
        if self._names is None:
            self._names = name_rows(trainer)
        return self._names.get(key, "")

    def _compare_part(self, name: str) -> dict[str, float | None]:
        own = [i for i, (_, dataset) in enumerate(self._groups) if dataset == name]
        return compare_with_redealt([self._vectors[i] for i in own], [self._groups[i] for i in own])

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _on_pass(self, *_: Any) -> None:
        if self._depth and not self._stepping:
            self.passes_before_steps = True

    def _see(self, trainer: BaseTrainer, inputs: dict[str, Any]) -> None:
        self._stepping = True
        if self._frozen is None:
            self._frozen = freeze(trainer.model)
        # The host's own method, since a trainer's may do more than look.
        features, _ = BaseTrainer.collect_features(trainer, inputs)
        keys = row_keys(features)
        self._rows.update(keys)
        self._groups.append((self._run, inputs.get("dataset_name") or self._dataset_of(trainer, keys[0])))
        self._vectors.append(embed(self._frozen, features))


def freeze(model: nn.Module) -> nn.Module:
    """Returns a copy of a model as it is, for evaluation; its card, which knows the trainer, is not copied."""
    card = model.model_card_data
    return copy.deepcopy(model, {id(card): card}).eval()


def embed(model: nn.Module, features: list[dict[str, Any]]) -> np.ndarray:
    """Returns the (B, d) means of the unit embeddings of the first two columns, or those of the only one."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        columns = [_unit_rows(model, dict(column), place) for place, column in enumerate(features[:2])]
    return torch.stack(columns).mean(dim=0).numpy()


def _unit_rows(model: nn.Module, column: dict[str, Any], place: int) -> Tensor:
    task = {"task": "document" if place else "query"} if isinstance(model, MultiVectorEncoder) else {}
    output = model(column, **task)
    if "sentence_embedding" in output:
        rows = output["sentence_embedding"]
        rows = rows.to_dense() if rows.layout != torch.strided else rows
    else:
        mask = output["attention_mask"].unsqueeze(-1).float()
        rows = (output["token_embeddings"] * mask).sum(dim=1)
    return nn.functional.normalize(rows.float(), dim=-1)


def name_rows(trainer: BaseTrainer) -> dict[str, str]:
    """Returns the dataset of each row of several datasets, by the row's key; nothing of a single dataset."""
    names: dict[str, str] = {}
    parts = trainer.train_dataset if isinstance(trainer.train_dataset, dict) else {}
    for name, part in parts.items():
        features, _ = BaseTrainer.collect_features(trainer, trainer.data_collator(list(part)))
        names |= dict.fromkeys(row_keys(features), name)
    return names


def row_keys(features: list[dict[str, Any]]) -> list[str]:
    """Returns a text for each row of a batch that rows of other content do not have, however they are padded."""
    columns = [next(column[name] for name in ("input_ids", *column) if name in column) for column in features]
    keys = []
    for row in zip(*columns, strict=True):
        parts = [np.trim_zeros(part.flatten().numpy()).tobytes() for part in row]
        keys.append(hashlib.sha1(b"|".join(parts), usedforsecurity=False).hexdigest())
    return keys


def compare_with_redealt(vectors: list[np.ndarray], groups: list[Any]) -> dict[str, float | None]:
    """Returns how alike the rows of a batch are, and how alike when rows are dealt into the same batches at random.

    Args:
        vectors: (B, d) of each batch; the similarity of two rows is their product.
        groups: of each batch; rows are dealt within a group.

    Returns:
        `within`, `redealt` (the mean over the deals) and `z`, their difference in standard deviations of the deals.
        None without batches of at least two rows.
    """
    sizes = np.array([len(batch) for batch in vectors])
    if not (sizes > 1).any():
        return {"within": None, "redealt": None, "z": None}
    rows = np.concatenate(vectors).astype(np.float64)
    starts = np.cumsum(sizes) - sizes
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of_row = np.repeat([names[group] for group in groups], sizes)
    places = np.argsort(group_of_row, kind="stable")
    rng = np.random.default_rng(0)
    deals = []
    for _ in range(PERMUTATIONS):
        order = np.empty_like(places)
        order[places] = np.lexsort((rng.random(len(rows)), group_of_row))
        deals.append(_mean_product(rows[order], starts, sizes))
    within, redealt = _mean_product(rows, starts, sizes), float(np.mean(deals))
    return {"within": within, "redealt": redealt, "z": (within - redealt) / max(float(np.std(deals)), 1e-12)}


def _mean_product(rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> float:
    """The mean product of two different rows of a batch, over all batches."""
    sums = np.add.reduceat(rows, starts)
    return float(((sums**2).sum() - (rows**2).sum()) / (sizes * (sizes - 1)).sum())


def describe_loss(loss: Any) -> str:
    """Returns the class of a loss, with the one that it wraps in brackets; of a mapping, of all its losses."""
    if isinstance(loss, dict):
        return " + ".join(dict.fromkeys(describe_loss(one) for one in loss.values()))
    inner = getattr(loss, "loss", None)
    return type(loss).__name__ + (f"({describe_loss(inner)})" if isinstance(inner, nn.Module) else "")
