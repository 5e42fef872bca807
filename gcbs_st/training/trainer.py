"""The trainer of dense models: the host's, whose training batches are composed from the model's own embeddings.

What it does is in `planned_training`, which the trainers of the host's other models share.
"""

from __future__ import annotations

from sentence_transformers import SentenceTransformerTrainer

from gcbs_st.training.arguments import GCBSTrainingArguments
from gcbs_st.training.planned_training import PlannedTraining

__all__ = ["GCBSTrainer", "GCBSTrainingArguments"]


class GCBSTrainer(PlannedTraining, SentenceTransformerTrainer):
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
