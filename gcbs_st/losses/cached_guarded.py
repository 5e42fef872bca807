"""The guarded ranking loss for batches whose activations do not fit into memory, embedded in mini-batches."""

from __future__ import annotations

from typing import Any

from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from gcbs_st.losses.guarded import Guarded


class CachedGuardedMultipleNegativesRankingLoss(Guarded, CachedMultipleNegativesRankingLoss):
    """The host's CachedMultipleNegativesRankingLoss (GradCache) without in-batch negatives that score like a positive.

    Args:
        model: the model to train; the host refuses static embeddings here.
        scale: what the similarities are multiplied with, 1 / temperature.
        similarity_fct: the scores, on which the guard decides before `scale` and hardness weights.
        margin: share of the positive's score above which a negative is masked, at least 0; None or infinity for
            exactly the host's loss. See :class:`GuardedMultipleNegativesRankingLoss`.
        guard_hard_negatives: whether the negatives of a row's own may be masked for that row.
        **options: the host's: `mini_batch_size`, `gather_across_devices`, `directions`, `partition_mode`,
            `show_progress_bar`, `hardness_mode`, `hardness_strength` and, where the installed host has it,
            `mini_batch_num_tokens`.

    Raises:
        ValueError: `margin` below 0 or NaN, or an option or a model that the host refuses.

    References:
        - GradCache: https://huggingface.co/papers/2101.06983
        - Positive-aware mining (NV-Retriever): https://huggingface.co/papers/2407.15831

    Inputs:
        (anchor, positive) pairs, (anchor, positive, negative) triplets or n-tuples; no labels. Use a large batch and a
        small `mini_batch_size`.

    Relations:
        - :class:`GuardedMultipleNegativesRankingLoss` is the same loss, faster and in more memory.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Identity())  # a SentenceTransformer
        >>> loss = CachedGuardedMultipleNegativesRankingLoss(model, margin=0.9, mini_batch_size=2)
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> value = loss.calculate_loss([[rows[:2], rows[2:]], [rows]])
        >>> round(loss.last_masked, 2)
        0.33
    """

    def calculate_loss(self, reps: list[list[Tensor]], *args: Any, **kwargs: Any) -> Tensor:
        """Returns the mean loss of the batch from a list of mini-batches' (b, d) tensors per text column."""
        rows = sum(len(part) for part in reps[0])
        with self.guard.watch(self.directions, len(reps) - 1, rows, self.gather_across_devices):
            return super().calculate_loss(reps, *args, **kwargs)
