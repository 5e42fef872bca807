"""The guarded ranking loss for batches whose activations do not fit into memory, embedded in mini-batches."""

from __future__ import annotations

from typing import Any

from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from gcbs_st.losses.guarded import Guarded


class CachedGuardedMultipleNegativesRankingLoss(Guarded, CachedMultipleNegativesRankingLoss):
    """The host's CachedMultipleNegativesRankingLoss (GradCache) without in-batch negatives that score like a positive.

    The same loss as :class:`GuardedMultipleNegativesRankingLoss`, slower and in less memory: its arguments and inputs,
    and the host's `mini_batch_size`, `show_progress_bar` and, where the installed host has it,
    `mini_batch_num_tokens`. Use a large batch and a small `mini_batch_size`. The host refuses static embeddings here.

    References:
        - GradCache: https://huggingface.co/papers/2101.06983
        - Positive-aware mining (NV-Retriever): https://huggingface.co/papers/2407.15831

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
        with self._watch(len(reps) - 1, sum(len(part) for part in reps[0])):
            return super().calculate_loss(reps, *args, **kwargs)
