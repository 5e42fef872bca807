"""What one call of `train` keeps of rows: their embeddings for plans, and the states that losses keep of them.

In: the ids of a batch's rows, as the training loader hands them out. Both are opened when the loader is made, told
which rows pass the model, saved in checkpoints, and closed when training ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from gcbs_st.embeddings.encode import preserved_state
from gcbs_st.embeddings.fixed import Embedder, FixedView, copy_weights, weights_digest
from gcbs_st.embeddings.harvested_rows import EMBEDDINGS_FOLDER
from gcbs_st.embeddings.source import INITIAL, EmbeddingSource
from gcbs_st.embeddings.source_options import SourceOptions
from gcbs_st.files import read_json, write_json
from gcbs_st.planners.base import abilities_of
from gcbs_st.ranks import on_one_node
from gcbs_st.rows.columns import TextColumn, refuse_numbers, text_columns, text_names
from gcbs_st.rows.row_ids import locate
from gcbs_st.rows.training_set import TrainingPart, planned_names
from gcbs_st.training.identities import KnownRows
from gcbs_st.training.loss_facts import needs_pairs
from gcbs_st.training.loss_states import RowStates
from gcbs_st.training.sharding import is_sharded

VIEW_FILE = "gcbs_view.json"  # in a checkpoint: which weights the run began with
# Tokens of a forward pass without gradients: a few hundred MB for a base model.
_PASS_TOKENS, _PASS_TEXTS, _STATIC_TEXTS = 2**16, 128, 1024


class RowMemory:
    """The source of embeddings and the states of losses, of one trainer; both are there while it trains."""

    def __init__(self, trainer: Any, collect_features: Callable[[dict[str, Any]], tuple[list[Any], Any]]) -> None:
        self.trainer, self._collect_features = trainer, collect_features
        self.source: EmbeddingSource | None = None
        self.row_states: RowStates | None = None
        self.known_rows: KnownRows | None = None
        self._views: dict[Any, FixedView] = {}  # of this run, by what stands for them in the arguments
        self._initial: tuple[str, dict[str, torch.Tensor] | None] | None = None  # digest of the weights, and a copy
        self._texts: dict[str, list[str]] = {}
        self._row_counts: dict[str, int] = {}

    def open(self, folder: Path) -> None:
        """Starts anew with the rows of the training set. To be called by all ranks."""
        self.close()
        trainer, args = self.trainer, self.trainer.args
        parts = self._parts()
        self._row_counts = {name: len(part.dataset) for name, part in parts.items()}
        counts = self._row_counts
        self.row_states = RowStates(trainer.loss, counts, self._features_of, seed=args.seed, ranks=args.world_size)
        labels = trainer.data_collator.valid_label_columns
        self.known_rows = KnownRows(trainer.loss, trainer.training_parts(), trainer.facts, labels)
        harvest = args.embedding_source == "harvest"
        self.source = EmbeddingSource(
            getattr(trainer.model, "_orig_mod", trainer.model),  # under FSDP the host keeps the compiled one
            parts,
            self._source_options(folder, parts),
            fingerprint=trainer.training_set_fingerprint() if harvest else "",
            ranks=args.world_size,
            is_main=trainer.is_world_process_zero(),
            device=args.device,
            autocast=trainer.accelerator.autocast,
        )
        if self._initial is not None:
            self._initial = (self._initial[0], None)  # a whole copy of the model, which nobody needs any more

    def close(self) -> None:
        """Stops watching the model. The states of the losses stay in the losses."""
        if self.source is not None:
            self.source.close()
        if self.row_states is not None:
            self.row_states.close()
        if self.known_rows is not None:
            self.known_rows.close()
        self.source = None

    def remember_initial(self) -> None:
        """Puts aside the weights that training begins with, which a checkpoint is about to replace, if they are needed."""
        if (
            INITIAL in (*map(str, self.trainer.auto.views), str(self.trainer.args.planner_reference))
            and self.embeds_rows
        ):
            weights = copy_weights(self.trainer.model)
            self._initial = (weights_digest(weights), weights)

    def forget(self) -> None:
        """Forgets what belongs to one run."""
        self._views, self._initial = {}, None

    @property
    def embeds_rows(self) -> bool:
        """Whether any plan will ask for embeddings."""
        asked = abilities_of(self.trainer.planner).needs_embeddings or self.trainer.plans_differently
        names = self.trainer.training_parts()  # none of a stream of which nothing was read
        return asked and not (names and all(map(self.trainer.auto.leaves_random, names)))

    def _fixed_view(self, given: Any, parts: Mapping[str, TrainingPart]) -> FixedView | None:
        """What stands for a view in the arguments; None for the model as it is. The same object until the run ends."""
        if isinstance(given, str) and given == "model":
            return None
        key = given if isinstance(given, str) else id(given)
        if key not in self._views:
            made = self._initial_view(parts) if key == INITIAL else self._reference_view(given, parts)
            self._views[key] = made
        return self._views[key]

    def _initial_view(self, parts: Mapping[str, TrainingPart]) -> FixedView:
        trainer = self.trainer
        digest, weights = self._initial or (weights_digest(trainer.model.state_dict()), None)
        if weights is None and trainer.feed is not None:  # which embeds by them until its end
            weights = copy_weights(trainer.model)
        file = Path(trainer.resume_folder or "") / VIEW_FILE
        resumes = trainer.resume_folder is not None and file.is_file()
        began_with = str(read_json(file, dict).get(INITIAL)) if resumes else digest
        columns = {name: part.columns for name, part in parts.items()}
        collate = None if self._collates_as_host() else self._collate
        embedder = Embedder(trainer.model, columns, trainer.planning_view(), collate, weights)
        # Of other weights than the run began with nobody can make its embeddings; they may be on disk.
        return FixedView(INITIAL, embedder, began_with, only_on_disk=began_with != digest)

    def _reference_view(self, given: Any, parts: Mapping[str, TrainingPart]) -> FixedView:
        if given is self.trainer.model:
            raise ValueError(
                "planner_view: got the model that is trained as a reference, expected another one. Its embeddings of "
                'before training are the view "initial", and those of each moment "model".'
            )
        model = SentenceTransformer(given, device=str(self.trainer.args.device)) if isinstance(given, str) else given
        columns = {name: [TextColumn(one.name, prompt=None) for one in part.columns] for name, part in parts.items()}
        return FixedView(given if isinstance(given, str) else type(given).__name__, Embedder(model, columns))

    @contextmanager
    def watching(self, rows: np.ndarray, step: int) -> Iterator[None]:
        """Tells the losses which rows of the concatenated datasets pass meanwhile, and harvests what passes."""
        if self.source is None or self.row_states is None or self.known_rows is None:
            yield
            return
        name, local = locate(rows, self._row_counts)
        told = self.row_states.telling(name, local), self.known_rows.telling(rows)
        with told[0], told[1], self.source.watching(name, local, step):
            yield

    def number(self, features: Sequence[dict[str, Any]]) -> None:
        """Puts a number beside each text of a training batch, if it is harvested."""
        if self.source is not None:
            self.source.number(features)

    def sync(self) -> None:
        """Brings what all ranks know together. To be called by all of them, before one of them saves."""
        if self.source is not None:
            self.source.sync()
        if self.row_states is not None:
            self.row_states.merge(self.trainer.args.device)

    def save(self, folder: Path) -> None:
        """Writes into a checkpoint; on one process."""
        if self.source is not None:
            self.source.save(folder)
        if self.row_states is not None:
            self.row_states.save(folder)
        if INITIAL in self._views:
            write_json(folder / VIEW_FILE, {INITIAL: self._views[INITIAL].digest})

    def load(self, folder: Path) -> None:
        """Takes what a checkpoint holds, in the order in which it was saved."""
        if self.source is not None:
            self.source.load(folder)
        if self.row_states is not None:
            self.row_states.load(folder)

    def texts_of(self, name: str) -> list[str]:
        """Returns the columns of texts that the loss sees of a dataset's rows."""
        return self._texts[name]

    def _parts(self) -> dict[str, TrainingPart]:
        trainer, parts = self.trainer, {}
        labels = trainer.data_collator.valid_label_columns
        planned = planned_names(trainer.args.planner_columns, trainer.train_dataset)
        for name, dataset in trainer.training_parts().items():
            self._texts[name] = text_names(dataset, labels)
            if name not in trainer.planned_samplers:
                parts[name] = TrainingPart(dataset, (), ())
                continue
            if len(self._texts[name]) == 1 and needs_pairs(loss := trainer.loss_of(name)):
                raise ValueError(
                    f"the training set{f' {name!r}' if name else ''} has the text columns {self._texts[name]}, but "
                    f"{type(loss).__name__} needs at least two (anchor and positive). For unsupervised training give the "
                    "same sentence twice, as columns anchor and positive."
                )
            columns = text_columns(
                dataset,
                label_columns=labels,
                prompts=trainer.args.prompts,
                router_mapping=trainer.args.router_mapping,
                dataset_name=name or None,
                names=planned[name],
            )
            self._rehearse(dataset, self._texts[name], name or None)
            positions = [self._texts[name].index(column.name) for column in columns]
            columns = [trainer.as_trained(*pair) for pair in zip(columns, positions, strict=True)]
            parts[name] = TrainingPart(dataset, columns, positions)
        return parts

    def _rehearse(self, dataset: Any, texts: Sequence[str], name: str | None) -> None:
        """Lets the host warn of columns, and fail on them, before the rows are embedded and not after."""
        with preserved_state(self.trainer.model):
            refuse_numbers(dataset, texts, name)
            if self._collates_as_host():
                self.trainer.data_collator([dataset[0]])

    def _collates_as_host(self) -> bool:
        """Whether texts reach the model as they stand in the columns; a collator of the user's may change them."""
        return type(self.trainer.data_collator) is self.trainer.data_collator_class

    def _source_options(self, folder: Path, parts: Mapping[str, TrainingPart] | None = None) -> SourceOptions:
        """How rows are embedded.

        Several ranks keep embeddings in files if they see the same ones, and in the memory of the one that plans
        if they do not, whatever the arguments say.
        """
        trainer, args, parts = self.trainer, self.trainer.args, parts or {}
        judge = args.planner_reference
        views = [self._fixed_view(view, parts) for view in self.trainer.auto.views] if self.embeds_rows else [None]
        in_files = args.embedding_storage == "disk" if args.world_size == 1 else on_one_node(args.world_size)
        # Static models have no limit, and take as many texts as anybody has.
        length = getattr(trainer.model, "max_seq_length", None) or math.inf
        texts = _STATIC_TEXTS if math.isinf(length) else max(8, min(_PASS_TEXTS, _PASS_TOKENS // int(length)))
        return SourceOptions(
            harvest=args.embedding_source == "harvest",
            first_plan=args.first_plan,
            max_age=args.embedding_max_age,
            budget=args.embedding_budget,
            dtype=args.embedding_dtype,
            folder=folder / EMBEDDINGS_FOLDER if in_files else None,
            batch_size=args.embedding_batch_size or texts,
            show_progress=not args.disable_tqdm,
            view=trainer.planning_view(),
            collate=None if self._collates_as_host() else self._collate,
            planned_views=views,
            in_windows=trainer.feed is not None,
            encodes=not is_sharded(trainer),
            judge=None if judge is None or not self.embeds_rows else self._fixed_view(judge, parts),
        )

    def _collate(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The features of rows, one mapping for each text column, as the training loader and the host make them."""
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(examples))
        inputs.pop("dataset_name", None)
        return self._collect_features(inputs)[0]

    def _features_of(self, name: str, rows: np.ndarray, column: int) -> dict[str, Any]:
        """The features of some rows of one text column of the loss, as the training loader and the host make them."""
        assert self.source is not None
        block = self.source.parts[name].dataset[rows]
        kept = {self._texts[name][column], "dataset_name"}
        values = {key: block[key] for key in block if key in kept}
        examples = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return self._collate(examples)[0]
