"""The trainer: the host's trainer, whose training batches are composed from the model's own embeddings.

The way of a plan: `ReplanCallback` says when, this module embeds the rows, asks the planner and hands the
order to the `PlannedBatchSampler`. Everything that several processes have to agree on is in this file.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from torch.utils.data import BatchSampler, DataLoader
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gcbs_st.arguments import GCBSTrainingArguments
from gcbs_st.callback import ReplanCallback
from gcbs_st.checkpoint import last_whole_checkpoint, read_plan, write_plan
from gcbs_st.corpus import require_map_style
from gcbs_st.duplicates import SharedValues
from gcbs_st.embeddings import text_columns
from gcbs_st.harvest import ROWS_KEY, number_rows
from gcbs_st.planners import RandomPlanner, check_order
from gcbs_st.planners.base import check_batches
from gcbs_st.planning import clusters_at, fingerprint, loss_scale, parts_of, plan_record, source_options, take_groups
from gcbs_st.ranks import agree, agree_on_rows, on_one_node
from gcbs_st.row_states import RowStates
from gcbs_st.sampler import PlannedBatchSampler
from gcbs_st.sources import EmbeddingSource, Fetched, Part

logger = logging.getLogger(__name__)

__all__ = ["GCBSTrainer", "GCBSTrainingArguments"]

# Purposes of a sampler's generators.
_PLAN, _SHUFFLE = 1, 2


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
        self._resume_folder: str | None = None
        self._source: EmbeddingSource | None = None
        self._row_states: RowStates | None = None
        self._began = 0.0
        self._fingerprint: str | None = None
        self.planner = args.make_planner() if args is not None else GCBSTrainingArguments("unused").make_planner()
        self._groups: dict[str, list[Any]] = {}
        if args is not None and args.group_column is not None:
            train_dataset, self._groups = take_groups(train_dataset, args.group_column)
        super().__init__(model, args, train_dataset, *rest, **kwargs)
        self._clusters_at_end: int = getattr(self.planner, "clusters_per_batch", 1)
        if hasattr(self.planner, "show_progress"):
            self.planner.show_progress = not self.args.disable_tqdm and self.is_world_process_zero()
        self.add_callback(ReplanCallback(self._begin_epoch, self._replan_tails, self._steps_an_epoch))

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

    # ---------------------------------------------------------------- what the host calls

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the host's loader over samplers of ours.

        Only this loader's batches are planned: the same dataset may also be the one that is evaluated.
        """
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
        self._resume_folder = resume_from_checkpoint or None
        self._began = time.perf_counter()
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
        if rows is None or self._source is None or self._row_states is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self._row_states.telling(rows), self._source.watching(rows, self.state.global_step):
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
        if with_plan and self._row_states is not None:
            self._row_states.merge(self.args.device)
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
            if self._row_states is not None:
                self._row_states.save(Path(output_dir))
            states = {name: sampler.state_dict() for name, sampler in self.planned_samplers.items()}
            write_plan(output_dir, states, self._training_set_fingerprint())

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
        self._row_states = RowStates(self.loss, sizes, self._features_of, seed=self.args.seed, processes=ranks)
        if harvest or self._row_states.losses:
            number_rows(loader)
        self._source = EmbeddingSource(
            self.model,
            parts,
            source_options(self.args, in_files=ranks > 1 and on_one_node(ranks)),
            fingerprint=self._training_set_fingerprint() if harvest else "",
            processes=ranks,
            is_main=self.is_world_process_zero(),
            device=self.args.device,
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
        if self._row_states is not None:
            self._row_states.close()
        self._source = None

    # ---------------------------------------------------------------- planning

    def _begin_epoch(self, epoch: int, plan: bool) -> None:
        for sampler in self.planned_samplers.values():
            sampler.begin_epoch(epoch)
        self.source.sync()  # rows of two epochs must not wait side by side: which is newer would be left to chance
        if self._restore(epoch) or not plan:
            return
        self._replan_tails()

    def _restore(self, epoch: int) -> bool:
        """Takes the plan of the checkpoint that the run resumes from, in its first epoch; whether it did."""
        folder, self._resume_folder = self._resume_folder, None
        if folder is None:
            return False
        self.source.load(Path(folder))
        if self._row_states is not None:
            self._row_states.load(Path(folder))
        if self.args.ignore_data_skip:
            return False
        try:
            states, fingerprint = read_plan(folder)
            if fingerprint != self._training_set_fingerprint() or set(states) != set(self.planned_samplers):
                raise ValueError("it was made for another training set")
            for name, state in states.items():
                self.planned_samplers[name].load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            logger.warning(
                "The plan of %s cannot be resumed: %s. This epoch is planned anew: its batches are not those of "
                "the interrupted run, so some rows may be drawn twice or not at all in this epoch.",
                folder,
                error,
            )
            restored = False
        else:
            # Saved at an epoch's end: the next epoch is planned anew, as it was to be.
            restored = all(sampler.epoch == epoch for sampler in self.planned_samplers.values())
        if not restored:
            for sampler in self.planned_samplers.values():
                sampler.begin_epoch(epoch)
        return restored

    def _replan_tails(self) -> None:
        for index, name in enumerate(self.planned_samplers):
            self._replan_tail(name, index)

    def _replan_tail(self, name: str, index: int) -> None:
        """Plans the rows of one dataset that are not drawn yet, in whole steps of all ranks."""
        sampler, ranks = self.planned_samplers[name], self.args.world_size
        start = sampler.cursor
        # The batches that do not fill a step of all ranks are never drawn. They stay at the end as they
        # are, random rows, so that it is not always the end of a plan that is lost.
        steps = (len(sampler) - start) // ranks
        if steps * ranks < 2:
            return
        stop = (start + steps * ranks) * sampler.batch_size
        tail = sampler.order[start * sampler.batch_size :].copy()
        planned = stop - start * sampler.batch_size
        overlapping: bool = getattr(self.planner, "overlapping", False)
        rng = sampler.rng(_PLAN, sampler.plan_count, index)
        new: np.ndarray | None
        blind = isinstance(self.planner, RandomPlanner) and not self.planner.measure
        if blind and type(self).plan_batches is GCBSTrainer.plan_batches:
            new = self._separated(rng.permutation(np.sort(tail[:planned])), sampler)  # needs no embeddings
        else:
            # In the order of their ids, so that a plan depends on which rows are left and not on their last order.
            # Where rows recur while others wait there are all of them to choose from, drawn before or not.
            rows = np.arange(sampler.rows) if overlapping else np.sort(tail[:planned])
            began, harvesting = time.perf_counter(), self.source.seconds
            fetched = self.source.fetch(name, rows, self.state.global_step, everything=overlapping)
            seconds = time.perf_counter() - began
            self.source.seconds = harvesting + seconds
            new = None
            if self.is_world_process_zero() and len(fetched.rows) >= 2 * sampler.batch_size:
                new = self._plan_rows(name, fetched, tail[:planned], rng, seconds)[:planned]
            if not agree(new is not None, ranks):
                return
            new = agree_on_rows(np.empty(planned, np.int64) if new is None else new, ranks, self.args.device)
        tail[:planned] = self._shuffled(new, sampler, ranks) if self.args.shuffle_planned_batches else new
        sampler.replace_tail(tail, start, repeats=overlapping)

    def _plan_rows(
        self, name: str, fetched: Fetched, tail: np.ndarray, rng: np.random.Generator, embed_seconds: float
    ) -> np.ndarray:
        """Plans the rows that there are embeddings of, keeps what must not meet apart, and logs what came of it."""
        sampler, planner = self.planned_samplers[name], cast("Any", self.planner)
        if hasattr(planner, "epoch"):
            planner.epoch = sampler.epoch  # some methods change over the epochs, which a planner does not know
        if self.args.cluster_schedule == "curriculum":
            done = self.state.global_step / max(1, self.state.max_steps)
            planner.clusters_per_batch = clusters_at(done, sampler.batch_size, self._clusters_at_end)
        began = time.perf_counter()
        overlapping = getattr(planner, "overlapping", False)
        rows, (anchors, positives) = fetched.rows, fetched.arrays
        if not overlapping and (rest := len(rows) % sampler.batch_size):
            keep = np.sort(rng.choice(len(rows), len(rows) - rest, replace=False))
            rows, anchors, positives = rows[keep], anchors[keep], positives[keep]
        order = self.plan_batches(anchors, positives, sampler.batch_size, rng)
        if overlapping:
            new = rows[check_batches(order, len(rows), sampler.batch_size, repr(planner))]
        else:
            # Rows without embeddings fill batches of their own, in the order that they had.
            new = rows[check_order(order, len(rows), repr(planner))]
            new = self._separated(np.concatenate([new, tail[~np.isin(tail, rows)]]), sampler)
        planned = np.arange(len(new)) if overlapping else np.flatnonzero(np.isin(new, rows))
        quality = plan_record(
            anchors,
            positives,
            np.searchsorted(rows, new[planned]),
            sampler.batch_size,
            loss_scale(self.loss.get(name) if isinstance(self.loss, dict) else self.loss),
            repeats=overlapping,
        )
        plan_seconds = time.perf_counter() - began
        self.source.seconds += plan_seconds
        record = {
            **quality,
            "planned_rows": len(planned),
            "embed_seconds": round(embed_seconds, 4),
            "plan_seconds": round(plan_seconds, 4),
            "time_share": round(self.source.seconds / max(1e-9, time.perf_counter() - self._began), 4),
        }
        if len(fetched.ages):
            record |= {"embedding_age": float(fetched.ages.mean()), "embedding_age_max": float(fetched.ages.max())}
        prefix = f"gcbs/{name}/" if name else "gcbs/"
        self.log({prefix + key: value for key, value in record.items()})
        return new

    def _separated(self, order: np.ndarray, sampler: PlannedBatchSampler) -> np.ndarray:
        if sampler.shared_values is None:
            return order
        separated = sampler.shared_values.separate(order, sampler.batch_size)
        if separated is not None:
            return separated
        logger.warning(
            "No exchange of rows keeps duplicates apart in this plan; these rows keep their former batches."
        )
        start = sampler.cursor * sampler.batch_size
        return sampler.order[start : start + len(order)].copy()

    def _shuffled(self, order: np.ndarray, sampler: PlannedBatchSampler, ranks: int) -> np.ndarray:
        """Batches in random order; the batches that the ranks draw in one step stay side by side."""
        steps = order.reshape(-1, ranks * sampler.batch_size)
        return sampler.rng(_SHUFFLE, sampler.plan_count).permutation(steps).ravel()

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
        batches: int = sum(len(sampler) for sampler in self.planned_samplers.values()) // self.args.world_size
        return max(1, -(-batches // self.args.gradient_accumulation_steps))

    def _training_set_fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.train_dataset)
        return self._fingerprint
