"""Trees of balanced 2-means on the device that torch computes on: what `trees` does on a CPU, level by level.

All nodes of a level are split at once. They differ by at most one leaf, so a level is one or two dense arrays of row
numbers, (nodes, rows per node), and everything is a batched product, a sort along the rows, or a gather. The points
stay where they are.

The order depends on the points and on `rng`, and on how the kind of device rounds products; it is not the order that
`trees` finds, whose means start from other rows.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from gcbs_st.planners.algorithms.trees import AXES_ROWS, DIMS, SAMPLE_ROWS, SWEEPS, leading_axes

# Points that are gathered at a time, 128 MB of them beside those that stay.
_CHUNK_ROWS = 2**18


def grow_trees(points: torch.Tensor, size: int, rng: np.random.Generator, *, trees: int = 1) -> np.ndarray:
    """Returns (m,) int64, an order of the points whose blocks of `size` are leaves of the tightest of several trees.

    `points` are (m, dims) float32 with m a multiple of `size`, on any device. `rng` draws the starting pairs, and is
    left as `trees.grow_trees` leaves it. Of rows with equal products the first go to the first side.

    Cost: O(trees m dims log(m / size)) time; about 40 m bytes and 2^18 dims numbers beside the points, on their device.
    """
    best, most = torch.empty(0, dtype=torch.int64), -np.inf
    for _ in range(trees):
        leaves = _grow(points, size, np.random.default_rng(int(rng.integers(2**31))))
        tightness = _measure_leaves(points, leaves)
        if tightness > most:
            best, most = leaves, tightness
    return best.flatten().cpu().numpy()


def project_pairs(
    anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray, rng: np.random.Generator, device: str
) -> torch.Tensor:
    """Returns (m, min(128, d)) float32 on a device: anchor + positive of each of the ascending `rows` on the main axes.

    These are found as by `trees.find_axes`. Half precision and memory maps are sent to the device in chunks, and become
    float32 there.
    """
    axes = _find_axes(anchors, positives, rows, rng, device)
    points = torch.empty((len(rows), min(DIMS, anchors.shape[1])), dtype=torch.float32, device=device)
    # Of both sides and their sum, no more numbers than of the points that are gathered at a time.
    step = max(1, _CHUNK_ROWS * DIMS // (4 * anchors.shape[1]))
    for start in range(0, len(rows), step):
        pairs = _send_pairs(anchors, positives, rows[start : start + step], device)
        points[start : start + step] = pairs if axes is None else pairs @ axes
    return points


def _find_axes(
    anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray, rng: np.random.Generator, device: str
) -> torch.Tensor | None:
    """The (d, 128) main axes of the pairs, or None where d is at most 128."""
    if anchors.shape[1] <= DIMS:
        return None
    drawn = _send_pairs(
        anchors, positives, np.sort(rng.choice(rows, min(len(rows), AXES_ROWS), replace=False)), device
    )
    drawn -= drawn.mean(dim=0)
    # A small matrix, whose eigenvectors not every device can find.
    covariance = (drawn.T @ drawn).cpu().numpy()
    with threadpool_limits(1, "blas"):
        axes = leading_axes(covariance)
    return torch.from_numpy(axes).to(device)


def _send_pairs(anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray, device: str) -> torch.Tensor:
    """Anchor + positive of some rows, float32 on a device."""
    # Ascending rows without a gap are a slice, which is not copied row by row.
    whole = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    taken = slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows
    sides = [anchors] if positives is anchors else [anchors, positives]
    # Half precision is sent as it is; not every device takes double.
    sent = [
        torch.from_numpy(np.array(side[taken], dtype=np.float16 if side.dtype == np.float16 else np.float32))
        .to(device)
        .float()
        for side in sides
    ]
    return sent[0] + sent[-1]


def _grow(points: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
    """The (leaves, size) row numbers of a tree's leaves, in the tree's order."""
    rows = torch.arange(len(points), device=points.device)[None]
    # Leaves per node -> row numbers of these nodes, and the place of each one's first leaf in the tree.
    groups = {len(points) // size: (rows, np.zeros(1, np.int64))}
    while max(groups) > 1:
        parts: dict[int, list[tuple[torch.Tensor, np.ndarray]]] = defaultdict(list)
        for leaves, (rows, places) in groups.items():
            if leaves == 1:
                parts[1].append((rows, places))
                continue
            half = leaves // 2
            rows = _split(points, rows, half * size, rng)
            parts[half].append((rows[:, : half * size], places))
            parts[leaves - half].append((rows[:, half * size :], places + half))
        groups = {
            leaves: (torch.cat([rows for rows, _ in found]), np.concatenate([places for _, places in found]))
            for leaves, found in parts.items()
        }
    ((rows, places),) = groups.values()
    return rows[torch.from_numpy(np.argsort(places)).to(rows.device)]


def _split(points: torch.Tensor, rows: torch.Tensor, half: int, rng: np.random.Generator) -> torch.Tensor:
    """The (nodes, width) row numbers of nodes, reordered so that one side of each bisector is the first `half`."""
    nodes, width = rows.shape
    starts = torch.from_numpy(rng.integers(width, size=(nodes, 2))).to(rows.device)
    sampled = torch.from_numpy(_draw_places(width, rng)).to(rows.device)
    scores = _score(points, rows, _find_directions(points, rows, starts, sampled, half))
    return rows.gather(1, scores.sort(dim=1, descending=True, stable=True).indices)


def _draw_places(width: int, rng: np.random.Generator) -> np.ndarray:
    """The (s,) ascending places in a node of the rows of its sample, one at random out of each of s equal stretches.

    In stretches, because a node's rows are sorted by their products with its parent's direction; at random, because
    rows that come in turn from several sources would otherwise all be of some of these.
    """
    bounds = np.arange(min(width, SAMPLE_ROWS) + 1) * width // min(width, SAMPLE_ROWS)
    return rng.integers(bounds[:-1], bounds[1:])


def _find_directions(
    points: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, sampled: torch.Tensor, half: int
) -> torch.Tensor:
    """The (nodes, dims) differences of the two balanced means after some sweeps over a sample of each node's points.

    `starts` are the (nodes, 2) places in each node of the points that the means start from, `sampled` the (s,) places
    of those that take part in the sweeps.
    """
    nodes, width = rows.shape
    size = len(sampled)
    cut = max(1, min(size - 1, size * half // width))
    directions = torch.empty((nodes, points.shape[1]), dtype=torch.float32, device=points.device)
    step = max(1, _CHUNK_ROWS // size)
    for low in range(0, nodes, step):
        taken = rows[low : low + step]
        first, second = points[taken.gather(1, starts[low : low + step])].unbind(dim=1)
        sample, found = points[taken[:, sampled]], first - second
        for _ in range(SWEEPS):
            scores = torch.bmm(sample, found[:, :, None])[:, :, 0]
            # Sorted and not selected: `kthvalue` is refused where a run is to be deterministic.
            threshold = scores.sort(dim=1).values[:, size - cut - 1, None]
            weights = (scores > threshold).float() * (1 / cut + 1 / (size - cut)) - 1 / (size - cut)
            found = torch.bmm(weights[:, None], sample)[:, 0]
        directions[low : low + step] = found
    return directions


def _score(points: torch.Tensor, rows: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """The (nodes, width) products of each node's points with its direction."""
    nodes, width = rows.shape
    scores = torch.empty((nodes, width), dtype=torch.float32, device=points.device)
    step = max(1, _CHUNK_ROWS // width)
    for low in range(0, nodes, step):
        for left in range(0, width, _CHUNK_ROWS):
            some = (slice(low, low + step), slice(left, left + _CHUNK_ROWS))
            scores[some] = torch.bmm(points[rows[some]], directions[low : low + step, :, None])[:, :, 0]
    return scores


def _measure_leaves(points: torch.Tensor, leaves: torch.Tensor) -> float:
    """The mean over points of the squared norm of the sum of their leaf's points; larger is tighter."""
    step = max(1, _CHUNK_ROWS // leaves.shape[1])
    parts = [points[leaves[low : low + step]].sum(dim=1).square().sum() for low in range(0, len(leaves), step)]
    return float(torch.stack(parts).cpu().double().sum()) / len(points)
