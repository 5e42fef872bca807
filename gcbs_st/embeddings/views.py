"""What is planned on of a pass: (B, d) floats, small enough to be kept of every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What is planned on, (B, d) of the outputs of a pass of B texts; None where a pass shows nothing of the kind.
View = Callable[[Mapping[str, Any]], Tensor | None]
# A text without any active term has no direction. It gets that of a term which all texts have this much of.
_SHARED_TERM = 1e-6


class RandomProjection:
    """Sparse embeddings as wide as a vocabulary, multiplied with a fixed matrix of random signs.

    Inner products survive (Johnson and Lindenstrauss 1984; random signs: Achlioptas 2003): with d `dimensions` that of
    two rows of cosine c comes out with a standard error of at most sqrt((1 + c^2) / d), times both norms. Random signs
    err less on sparse rows than Gaussian numbers do. Cost: O(B V d) time per pass, far below that of a transformer;
    the matrix takes 4 (V + 1) d bytes, 62 MB for 30,522 words and 512 dimensions.

    >>> rows = torch.eye(1000)[[3, 3, 7]]
    >>> found = RandomProjection(512, seed=1)({"sentence_embedding": rows})
    >>> (found @ found.T).round().int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    def __init__(self, dimensions: int, seed: int) -> None:
        self.dimensions, self.seed = dimensions, seed
        self._signs: dict[torch.device, Tensor] = {}

    def __call__(self, output: Mapping[str, Any]) -> Tensor | None:
        """Returns (B, d) float32 projections of a pass's (B, V) embeddings, dense or sparse; None without any."""
        embeddings = output.get("sentence_embedding")
        if embeddings is None:
            return None
        # In full precision whatever that of training, so that encoded and harvested rows are the same.
        with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
            rows = (embeddings.to_dense() if embeddings.is_sparse else embeddings).detach().float()
            signs = self._signs_for(rows)
            return rows @ signs[:-1] + _SHARED_TERM * signs[-1]

    def _signs_for(self, rows: Tensor) -> Tensor:
        if rows.device not in self._signs:
            rng = np.random.default_rng([self.seed, self.dimensions])
            signs = rng.integers(0, 2, (rows.shape[1] + 1, self.dimensions), dtype=np.int8)
            scaled = (signs.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(self.dimensions))
            self._signs[rows.device] = torch.from_numpy(scaled).to(rows.device)
        return self._signs[rows.device]

    def __repr__(self) -> str:
        return f"RandomProjection(dimensions={self.dimensions}, seed={self.seed})"


def alike_and_not(alike: list[np.ndarray], not_alike: list[np.ndarray]) -> list[np.ndarray]:
    """Returns anchors and positives whose products are half of what those of one view have above those of another.

    Both are (m, d) arrays of unit rows, one for each column, of as many columns; of the results, which are unit rows
    too, the product of the first and the last is (a1 . p1 - a2 . p2) / 2. Rows are near there that are alike in the
    first view and not in the second: what a learner takes for alike and a reference does not, as in JEST
    (arXiv 2406.17711), which takes losses where these are scores.

    >>> near, far = np.array([[1.0, 0.0], [0.8, 0.6]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> left, right = alike_and_not([near, near], [far, far])
    >>> (2 * left @ right.T).round(2).tolist()
    [[0.0, 0.8], [0.8, 0.0]]
    """
    half = np.float32(np.sqrt(0.5))
    left = np.concatenate([half * alike[0], -half * not_alike[0]], axis=1)
    return [left, np.concatenate([half * alike[-1], half * not_alike[-1]], axis=1)]


def mean_of_tokens(output: Mapping[str, Any]) -> Tensor | None:
    """Returns the (B, d) float32 means of the token vectors that a late-interaction model scores, if there are any.

    The output holds (B, T, d) token vectors and the (B, T) mask of those that count. Zeros for a text without any.

    >>> tokens, mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]])
    >>> mean_of_tokens({"token_embeddings": tokens, "attention_mask": mask}).tolist()
    [[0.5, 0.5]]
    """
    tokens, mask = output.get("token_embeddings"), output.get("attention_mask")
    if tokens is None or mask is None:
        return None
    weights = mask.float().unsqueeze(-1)
    mean: Tensor = (tokens.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return mean


def sentence_embedding(output: Mapping[str, Any]) -> Tensor | None:
    """Returns the (B, d) embeddings of a pass of a dense model.

    Of a late-interaction model of another library, such as PyLate's, the mean of its token vectors; None where there
    are neither.
    """
    embeddings = output.get("sentence_embedding")
    return mean_of_tokens(output) if embeddings is None else embeddings
