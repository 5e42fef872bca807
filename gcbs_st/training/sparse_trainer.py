"""The trainer of sparse models (SPLADE and its like): the host's, with batches composed from the model's embeddings.

A sparse embedding is as wide as the vocabulary, 30,522 numbers a text. Plans are made on a random projection of it
(`RandomProjection`), applied to each pass as it is made, so that neither encoding nor harvesting ever holds more than
one batch of whole embeddings. It costs little: of 8,192 pairs of captions as TF-IDF rows of 7,517 words, `bisect` in
batches of 64 closes 0.36 of the gap with the whole rows, 0.34 with 1,024 dimensions, 0.31 with 512 and 0.28 with 256.

The host scores sparse embeddings with dot products, planners see unit rows: a row is as near to another as their
cosine says, and that a long document scores higher with everybody is no reason to put it anywhere. What is logged of
a plan is measured on these cosines, times the loss's scale and the mean squared norm of the embeddings, as if all
were of that norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sentence_transformers import SparseEncoderTrainer, SparseEncoderTrainingArguments

from gcbs_st.embeddings.views import RandomProjection, View
from gcbs_st.training.arguments import PlanningArguments
from gcbs_st.training.planned_training import PlannedTraining

__all__ = ["GCBSSparseEncoderTrainer", "GCBSSparseEncoderTrainingArguments"]


@dataclass
class GCBSSparseEncoderTrainingArguments(PlanningArguments, SparseEncoderTrainingArguments):
    """`SparseEncoderTrainingArguments` and how batches are composed: the fields of `PlanningArguments`, and one.

    Args:
        projection_dimensions: d of the random projection that is planned on. Cosines come out with a standard
            error of about 1 / sqrt(d), 0.04 with the default of 512.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> from gcbs_st import GCBSSparseEncoderTrainingArguments
        >>> GCBSSparseEncoderTrainingArguments("out", planner="bisect", report_to="none").projection_dimensions
        512
    """

    plain_class = SparseEncoderTrainingArguments

    projection_dimensions: int = field(
        default=512, metadata={"help": "Dimensions of the random projection of sparse embeddings that is planned on."}
    )

    def check_planning(self) -> None:
        """Refuses fields that cannot be planned with.

        Raises:
            ValueError: says the field, what it holds and what it may hold.
        """
        super().check_planning()
        if self.projection_dimensions < 1:
            raise ValueError(f"projection_dimensions: got {self.projection_dimensions}, expected at least 1.")


class GCBSSparseEncoderTrainer(PlannedTraining, SparseEncoderTrainer):
    """`SparseEncoderTrainer` that decides which rows train together.

    Takes what the host's trainer takes, see `PlannedTraining`, and plans on a random projection of the embeddings to
    `projection_dimensions`, whose signs depend on `seed` alone.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from sentence_transformers import SparseEncoder
        >>> from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
        >>> from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from gcbs_st import GCBSSparseEncoderTrainer, GCBSSparseEncoderTrainingArguments
        >>> words = ["[PAD]", "[UNK]", *"a red blue cat dog runs sleeps one the".split()]
        >>> tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=16)
        >>> model = SparseEncoder(modules=[SparseStaticEmbedding(fast)], device="cpu")
        >>> pairs = Dataset.from_dict({
        ...     "anchor": ["a red cat", "a blue cat", "a red dog", "a blue dog"],
        ...     "positive": ["the red cat sleeps", "the blue cat runs", "one red dog", "one blue dog runs"]})
        >>> args = GCBSSparseEncoderTrainingArguments(
        ...     tempfile.mkdtemp(), planner="bisect", per_device_train_batch_size=2, num_train_epochs=2,
        ...     report_to="none", disable_tqdm=True, use_cpu=True)
        >>> loss = SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), 3e-5, 5e-5)
        >>> GCBSSparseEncoderTrainer(model, args, pairs, loss=loss).train().global_step
        {'gcbs/gap': ...
        4
    """

    training_args_class = GCBSSparseEncoderTrainingArguments
    args: GCBSSparseEncoderTrainingArguments

    def planning_view(self) -> View:
        """Returns the random projection that plans are made on."""
        return RandomProjection(self.args.projection_dimensions, self.args.seed)
