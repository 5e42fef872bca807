"""The trainer: the host's trainer, whose training batches are composed from the model's own embeddings.

The way of a plan: `ReplanCallback` says when, the `Replanner` fetches embeddings, asks the planner and hands the
order to the `PlannedBatchSampler`. This module is what the host calls and what users override.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gcbs_st.arguments import GCBSTrainingArguments
from gcbs_st.callback import ReplanCallback
from gcbs_st.checkpoint import last_whole_checkpoint, write_plan
from gcbs_st.corpus import require_map_style
from gcbs_st.duplicates import SharedValues
from gcbs_st.embeddings import text_columns
from gcbs_st.harvest import ROWS_KEY, number_rows
from gcbs_st.planning import fingerprint, parts_of, refuse_unsupported, source_options, take_groups
from gcbs_st.replanner import Replanner
from gcbs_st.row_states import RowStates
from gcbs_st.sampler import PlannedBatchSampler
from gcbs_st.sources import EmbeddingSource, Part
from gcbs_st.step_sampler import StepBatches, WholeSteps

logger = logging.getLogger(__name__)

__all__ = ["GCBSTrainer", "GCBSTrainingArguments"]


class GCBSTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` that decides which rows train together.

    Takes what the host's trainer takes. At the start of each epoch, and every `replan_steps` steps, the
    rows are embedded with the model as it is, a planner orders them, and blocks of that order are the
    batches. Loss, model and everything else stay the host's. With plain
    `SentenceTransformerTrainingArguments` our fields have their defaults. To plan in a way of your own,
    override `plan_batches`.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        >>> from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from gcbs_st import GCBSTrainer, GCBSTrainingArguments
        >>> words = ["[UNK]", *"a red blue cat dog runs sleeps one the".split()]
        >>> tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
        >>> pairs = Dataset.from_dict({
        ...     "anchor": ["a red cat", "a blue cat", "a red dog", "a blue dog"],
        ...     "positive": ["the red cat sleeps", "the blue cat runs", "one red dog", "one blue dog runs"]})
        >>> args = GCBSTrainingArguments(
        ...     tempfile.mkdtemp(), planner="gcbs", per_device_train_batch_size=2, num_train_epochs=2,
        ...     report_to="none", disable_tqdm=True, use_cpu=True)
        >>> trainer = GCBSTrainer(model, args, pairs, loss=MultipleNegativesRankingLoss(model))
        >>> trainer.train().global_step
        {'gcbs/gap': ...
        4
    """

    training_args_class = GCBSTrainingArguments
    args: GCBSTrainingArguments

    def __init__(
        self, model: Any = None, args: Any = None, train_dataset: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        """Takes the host's arguments, by position or name.

        Args:
            model: as in the host.
            args: `GCBSTrainingArguments`, or the host's own.
            train_dataset: a `Dataset` or `DatasetDict` of pairs, triplets or n-tuples of text.
            rest: the host's further arguments, in its order.
            kwargs: the host's further arguments, by name.

        Raises:
            TypeError: an IterableDataset, whose rows cannot be put in an order.
            ValueError: what the host or `GCBSTrainingArguments` refuses.
        """
        if train_dataset is not None:
            require_map_style(train_dataset)
        if args is not None:
            args = GCBSTrainingArguments.from_plain(args)
        self.planned_samplers: dict[str, PlannedBatchSampler] = {}
        self._building_train_loader = False
        self.resume_folder: str | None = None
        self._source: EmbeddingSource | None = None
        self.row_states: RowStates | None = None
        self.began = 0.0
        self._fingerprint: str | None = None
        self.planner = args.make_planner() if args is not None else GCBSTrainingArguments("unused").make_planner()
        self._groups: dict[str, list[Any]] = {}
        if args is not None and args.group_column is not None:
            train_dataset, self._groups = take_groups(train_dataset, args.group_column)
        super().__init__(model, args, train_dataset, *rest, **kwargs)
        self.clusters_at_end: int = getattr(self.planner, "clusters_per_batch", 1)
        if hasattr(self.planner, "show_progress"):
            self.planner.show_progress = not self.args.disable_tqdm and self.is_world_process_zero()
        self.replanner = Replanner(self)
        self.add_callback(
            ReplanCallback(self.replanner.begin_epoch, self.replanner.replan_tails, self._steps_an_epoch)
        )

    # ---------------------------------------------------------------- for users to override

    def plan_batches(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns an order of the rows whose consecutive blocks are the batches. Override it to plan in your own way.

        Called on the main process, with the rows that are to be drawn next.

        Args:
            anchors: (n, d) float32, unit rows.
            positives: (n, d) float32, unit rows; row i is the positive of anchor i.
            batch_size: rows a batch; n is a multiple of it.
            rng: depends on seed, epoch and number of the plan alone.

        Returns:
            (n,) integers, a bijection of 0..n-1.
        """
        return self.planner.plan(anchors, positives, batch_size, rng)

    @property
    def plans_differently(self) -> bool:
        """Whether `plan_batches` is overridden, so that it may want embeddings whatever the planner."""
        return type(self).plan_batches is not GCBSTrainer.plan_batches

    # ---------------------------------------------------------------- what the host calls

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the host's loader over samplers of ours.

        Only this loader's batches are planned: the same dataset may also be the one that is evaluated.
        """
        refuse_unsupported(self)
        self.planned_samplers = {}
        self._building_train_loader = True
        try:
            loader = super().get_train_dataloader()
        finally:
            self._building_train_loader = False
        # Each start of its workers draws their seed, by default from the global numbers that dropout draws from
        # too. Persistent workers start once in a run, but again in a resumed one, whose dropout would then differ.
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        self._open_source(loader)
        return loader

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler | None:
        """Returns our sampler for the rows that are trained on, and the host's for those that are evaluated.

        Args:
            dataset: one of the datasets.
            batch_size: rows a batch.
            drop_last: for the host's samplers.
            valid_label_columns: names of columns that are not text.
            generator: for the host's samplers.
            seed: for the host's samplers; ours takes it from the arguments, since not every host passes it.

        Returns:
            The sampler.
        """
        name = self._name_of(dataset)
        if name is None:
            return super().get_batch_sampler(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        require_map_style(dataset)
        labels = valid_label_columns or []
        sampler = PlannedBatchSampler(
            dataset,
            batch_size,
            drop_last,
            valid_label_columns,
            generator,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shared_values=self._shared_values(name, dataset, labels),
        )
        self.planned_samplers[name] = sampler
        return sampler

    def get_multi_dataset_batch_sampler(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int | None = 0,
    ) -> BatchSampler:
        """Returns the host's sampler; on several processes the batches of one training step are of one dataset.

        Args:
            dataset: the datasets one after the other.
            batch_samplers: of each of them.
            generator: the host's.
            seed: the host's.
        """
        ranks = self.args.world_size
        if ranks == 1 or not self._building_train_loader:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, generator, seed)
        whole: list[BatchSampler] = [WholeSteps(batches, ranks) for batches in batch_samplers]
        steps = super().get_multi_dataset_batch_sampler(dataset, whole, generator, seed)
        return StepBatches(steps, self.args.per_device_train_batch_size, ranks)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as the host does; a resumed run draws the batches that the interrupted one would have drawn.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `output_dir`.
            args: the host's.
            kwargs: the host's.

        Returns:
            The host's `TrainOutput`.

        Raises:
            ValueError: True was given, but there is no whole checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint=True, but {self.args.output_dir} holds no checkpoint that was written to its "
                    "end. Start without resuming."
                )
        self.resume_folder = resume_from_checkpoint or None
        self.began = time.perf_counter()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._close_source()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the host does, tells it which rows it sees if it asks, and harvests their embeddings.

        Args:
            model: the host's.
            inputs: a batch; one of the training loader holds the ids of its rows.
            args: the host's.
            kwargs: the host's.

        Returns:
            The host's loss.
        """
        rows = inputs.pop(ROWS_KEY, None)
        if rows is None or self._source is None or self.row_states is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.row_states.telling(rows), self._source.watching(rows, self.state.global_step):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        """Returns the host's features and labels; each text of a training batch with a number beside it.

        Args:
            inputs: the host's.
        """
        features, labels = super().collect_features(inputs)
        if self._source is not None:
            self._source.number(features)
        return features, labels

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and in a checkpoint the plan in force.

        The plan is written here, not in `on_save`: that event comes after the host has written the state
        which makes a checkpoint whole, and after it has deleted older checkpoints, so a run killed in
        between would be left with nothing to resume its batches from.

        Args:
            output_dir: the folder.
            _internal_call: the host's.
        """
        in_checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        if output_dir is None or not (in_checkpoint and self.is_in_train):
            super().save_model(output_dir, _internal_call)
            return
        with_plan = not self.args.save_only_model
        if with_plan and self._source is not None:
            self._source.sync()  # all processes save, but only one writes
        if with_plan and self.row_states is not None:
            self.row_states.merge(self.args.device)
        if not self.args.should_save:
            super().save_model(output_dir, _internal_call)
            return
        # An earlier run in the same folder may have left a whole checkpoint of this step. Without its state
        # it does not look whole while its other files are overwritten.
        (Path(output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)
        if with_plan:
            if self._source is not None:
                self._source.save(Path(output_dir))
            if self.row_states is not None:
                self.row_states.save(Path(output_dir))
            states = {name: sampler.state_dict() for name, sampler in self.planned_samplers.items()}
            write_plan(output_dir, states, self.training_set_fingerprint())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the host does, and beside the training loss which share of the negatives a guarded loss masked.

        Args:
            logs: what is logged.
            args: the host's.
            kwargs: the host's.
        """
        masked = getattr(self.loss, "last_masked", None) if "loss" in logs else None
        super().log(logs if masked is None else {**logs, "gcbs/masked": float(masked)}, *args, **kwargs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Returns the norm that the host logs, also of sparse gradients, on which its own computation fails."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if grad_norm is not None or not any(gradient.is_sparse for gradient in gradients):
            return super()._get_grad_norm(model, grad_norm)
        values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        return torch.nn.utils.get_total_norm(values)

    # ---------------------------------------------------------------- embeddings

    @property
    def source(self) -> EmbeddingSource:
        """Where embeddings come from; there is one while the trainer trains."""
        assert self._source is not None
        return self._source

    def _open_source(self, loader: DataLoader[Any]) -> None:
        self._close_source()
        parts = {}
        for name, dataset in parts_of(self.train_dataset).items():
            columns = text_columns(
                dataset,
                label_columns=self.data_collator.valid_label_columns,
                prompts=self.args.prompts,
                router_mapping=self.args.router_mapping,
                dataset_name=name or None,
            )
            parts[name] = Part(dataset, columns)
        harvest = self.args.embedding_source == "harvest"
        ranks = self.args.world_size
        sizes = {name: len(part.dataset) for name, part in parts.items()}
        self.row_states = RowStates(self.loss, sizes, self._features_of, seed=self.args.seed, processes=ranks)
        if harvest or self.row_states.losses:
            number_rows(loader)
        self._source = EmbeddingSource(
            self.model,
            parts,
            source_options(self.args),
            fingerprint=self.training_set_fingerprint() if harvest else "",
            processes=ranks,
            is_main=self.is_world_process_zero(),
            device=self.args.device,
            autocast=self.accelerator.autocast,
        )

    def _features_of(self, name: str, rows: np.ndarray, column: int) -> dict[str, Any]:
        """The features of some rows of one text column, as the training loader and the host make them."""
        part = self.source.parts[name]
        kept = {part.columns[column].name, "dataset_name"}
        block = part.dataset[rows]
        values = {key: block[key] for key in block if key in kept}
        examples = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        inputs = self._prepare_inputs(self.data_collator(examples))
        return super().collect_features(inputs)[0][0]

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
        if self.row_states is not None:
            self.row_states.close()
        self._source = None

    # ---------------------------------------------------------------- small facts

    def _shared_values(self, name: str, dataset: Dataset, labels: list[str]) -> SharedValues | None:
        groups = self._groups.get(name)
        if not self.args.no_duplicates and groups is None:
            return None
        return SharedValues.from_dataset(dataset, labels, texts=self.args.no_duplicates, groups=groups)

    def _name_of(self, dataset: Dataset) -> str | None:
        """The training set's name within its DatasetDict, "" if it is the only one, None if it is not trained on."""
        if not self._building_train_loader:
            return None
        if isinstance(self.train_dataset, DatasetDict):
            # The same rows may stand under two names, with a loss each.
            new = (name for name in self.train_dataset if name not in self.planned_samplers)
            return next((name for name in new if self.train_dataset[name] is dataset), None)
        return "" if dataset is self.train_dataset else None

    def _steps_an_epoch(self) -> int:
        batches: int = sum(len(sampler) // self.args.world_size for sampler in self.planned_samplers.values())
        return max(1, -(-batches // self.args.gradient_accumulation_steps))

    def training_set_fingerprint(self) -> str:
        """Returns a text that another training set would not have; made once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.train_dataset)
        return self._fingerprint
