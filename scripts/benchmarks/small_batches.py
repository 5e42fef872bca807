#!/usr/bin/env python3
"""Measure the losses that estimate the global contrastive loss: whether they do, what training makes of it, what it costs.

Goes in: caption pairs and a part. Comes out: for `distribution` the distance of EMC2's samples from the softmax over
all negatives, for `gradient` the bias of averaged gradients, for `training` the exact global loss and STS-B dev after
equal steps over paired seeds, for `cost` the time of a step against the in-batch loss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import COLUMNS, MODEL, parse, run, train

from gcbs_st.commands.shell import make_parser, tell
from gcbs_st.records.tables import markdown_table

PROGRAM = "python scripts/benchmarks/small_batches.py"
EXAMPLE = """
{program} --part distribution --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --picture tv.png
{program} --part gradient --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --json gradient.json
{program} --part training --pairs pairs.jsonl.gz --sts $GCBS_ST_DATA/sts --batch-size 8
{program} --part cost --pairs pairs.jsonl.gz
"""
# Rows, batch size and epochs of each part.
PARTS: dict[str, dict[str, int]] = {
    "distribution": {"rows": 1000, "batch_size": 200, "epochs": 2048},
    "gradient": {"rows": 500, "batch_size": 4, "epochs": 200},
    "training": {"rows": 4000, "batch_size": 8, "epochs": 5},
    "cost": {"rows": 512, "batch_size": 32, "epochs": 4},
}
BASE = "MultipleNegativesRankingLoss"
# Without memory SogCLR is the in-batch loss whose denominator lacks the positive. It tells what of a difference to
# the in-batch loss comes from that alone.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: (BASE, {}),
    "in-batch, negatives alone": ("SogCLRLoss", {"gamma": 1.0}),
    "SogCLRLoss": ("SogCLRLoss", {}),
    "EMC2Loss": ("EMC2Loss", {}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, see `gcbs_st.commands.shell`."""
    arguments = parse_arguments(argv)

    def measure() -> Iterator[tuple[dict[str, Any], str]]:
        parts = {
            "distribution": measure_distribution,
            "gradient": measure_gradient,
            "training": measure_training,
            "cost": measure_cost,
        }
        results, table = parts[arguments.part](arguments, load_pairs(arguments))
        left_out = ("json", "markdown", "job", "picture")
        settings = {key: value for key, value in vars(arguments).items() if key not in left_out}
        yield {**settings, "results": results}, table

    return run(PROGRAM, arguments, measure)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = make_parser(PROGRAM, __doc__, EXAMPLE)
    parser.add_argument("--part", choices=[*PARTS], required=True)
    parser.add_argument("--pairs", required=True, help="file with the columns anchor and positive, and perhaps image")
    parser.add_argument("--model", default=MODEL, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, help="instead of the part's own number")
    parser.add_argument("--batch-size", type=int, help="instead of the part's own")
    parser.add_argument("--epochs", type=int, help="instead of the part's own number")
    parser.add_argument("--scale", type=float, default=20.0, help="1 / temperature (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="paired runs of training (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of training (default: %(default)s)")
    parser.add_argument("--arm", action="append", choices=[*ARMS], help="of training, repeatable (default: all)")
    parser.add_argument("--sts", help="folder with STSBenchmark.dev.jsonl, to score trained models")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of EMC2Loss, repeatable")
    parser.add_argument("--picture", metavar="FILE", help="distribution: draw total variation against visits")
    arguments = parse(parser, argv)
    for key, value in PARTS[arguments.part].items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    if min(arguments.rows, arguments.epochs, arguments.seeds) < 1 or arguments.batch_size < 2:
        parser.error("--rows, --epochs, --seeds: expected at least 1; --batch-size: at least 2")
    return arguments


# ------------------------------------------------------------------ what the parts share


def load_pairs(arguments: argparse.Namespace) -> Any:
    """Returns the first rows, one per photo: two captions of one photo would be negatives of each other."""
    from gcbs_st.corpora.corpus import load_corpus

    try:
        rows = load_corpus(arguments.pairs, columns=COLUMNS, group="image")
        _, first = np.unique(np.asarray(rows["group"]), return_index=True)
        rows = rows.select(np.sort(first)).remove_columns("group")
    except ValueError as error:
        if "image" not in str(error):
            raise
        rows = load_corpus(arguments.pairs, columns=COLUMNS)
    if len(rows) < arguments.rows:
        raise ValueError(f"--pairs: got {len(rows)} rows, expected at least {arguments.rows}.")
    return rows.select(range(arguments.rows))


def loss_options(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Returns the scale and, for EMC2Loss, the options given as NAME=VALUE, numbers as numbers."""
    options: dict[str, Any] = {"scale": arguments.scale}
    for text in arguments.option if name == "EMC2Loss" else []:
        key, _, value = text.partition("=")
        options[key] = float(value) if value.replace(".", "", 1).isdigit() else value
    return options


def make_loss(arguments: argparse.Namespace, arm: str, model: Any) -> Any:
    """Returns the loss of an arm, ours or the host's."""
    from gcbs_st.config import LossConfig
    from gcbs_st.experiments.training_run import make_loss as make

    name, options = ARMS[arm]
    return make(LossConfig(name=name, options={**options, **loss_options(arguments, name)}), model)


def make_table_loss(name: str, positives: Any, arguments: argparse.Namespace) -> Any:
    """Returns a loss over fixed embeddings: its model looks the rows of a batch up."""
    import torch

    from gcbs_st import losses

    class Lookup(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {"sentence_embedding": positives[features["rows"]]}

    loss = getattr(losses, name)(Lookup(), **loss_options(arguments, name))
    loss.prepare(len(positives), lambda rows, _: {"rows": torch.from_numpy(rows)}, seed=0)
    return loss


def scores_of(model: Any, arguments: argparse.Namespace, pairs: Any) -> tuple[list[Any], Any]:
    """Returns the (n, d) unit embeddings of anchors and positives, and the (n, n) scaled cosines in float64."""
    anchors, positives = (
        model.encode(list(pairs[column]), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
        for column in COLUMNS
    )
    return [anchors, positives], (arguments.scale * anchors @ positives.T).double()


def info_nce(scores: Any, *, with_positive: bool) -> Any:
    """Returns the mean contrastive loss of (n, n) logits, with or without the positive in the denominator."""
    import torch

    own = torch.eye(len(scores), dtype=torch.bool)
    among = scores if with_positive else scores.masked_fill(own, -torch.inf)
    return (among.logsumexp(1) - scores.diagonal()).mean()


# ------------------------------------------------------------------ distribution


def measure_distribution(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Returns the mean total variation between each chain's samples and its softmax, by visits, and its slope."""
    import torch

    from gcbs_st.models.load import load_model

    (anchors, positives), scores = scores_of(load_model(arguments.model, static=True), arguments, pairs)
    target = scores.fill_diagonal_(-torch.inf).softmax(1).numpy()
    loss, rng, n = make_table_loss("EMC2Loss", positives, arguments), np.random.default_rng(0), len(pairs)
    seen, points, due = np.zeros((n, n)), [], 4
    for visits in range(1, arguments.epochs + 1):
        for ids in batches_of(rng, n, arguments.batch_size):
            loss.set_rows(ids)
            with torch.no_grad():
                loss.compute_loss_from_embeddings([anchors[ids], positives[ids]])
            inside, outside, came_with = loss.last_samples()
            seen[ids[:, None], ids[None]] += inside
            away = outside > 0
            seen[ids[away], came_with[away]] += outside[away]
        if visits in (due, arguments.epochs):
            due *= 2
            share = seen / np.maximum(seen.sum(1, keepdims=True), 1e-12)
            distance = 0.5 * np.abs(share - target).sum(1)
            points.append([visits, float(distance.mean()), float(distance.max())])
            tell(f"{visits} visits: total variation {distance.mean():.4f}")
    late = np.log(np.array([point[:2] for point in points[len(points) // 2 :]]))
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    support = float(np.median(np.exp(-(target * np.log(np.maximum(target, 1e-300))).sum(1))))
    if arguments.picture:
        draw_distances(points, Path(arguments.picture))
    cells = [[str(visits), f"{mean:.4f}", f"{top:.4f}"] for visits, mean, top in points]
    note = f"\n\nSlope of the later half: {slope:.3f}. exp(entropy) of the softmaxes: median {support:.0f}."
    results = {"points": points, "slope": slope, "median_support": support}
    return results, markdown_table(["visits", "mean total variation", "largest"], cells) + note


def batches_of(rng: np.random.Generator, n: int, size: int) -> Iterator[np.ndarray]:
    """Yields the ids of one epoch of random batches; those that fill no batch are left out."""
    order = rng.permutation(n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


def draw_distances(points: Sequence[Sequence[float]], file: Path) -> None:
    """Draws total variation against visits, both on logarithmic axes, beside a line of slope -1/2."""
    from gcbs_st.files import write_bytes
    from gcbs_st.reports.charts.figures import new_figure, png_of

    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    visits, mean, _ = np.array(points).T
    axes.loglog(visits, mean, "o-", label="mean over chains")
    axes.loglog(visits, mean[-1] * np.sqrt(visits[-1] / visits), "--", color="grey", label="1 / sqrt(visits)")
    axes.axhline(0.05, color="lightgrey")
    axes.set(xlabel="visits of a row", ylabel="total variation to the softmax")
    axes.legend()
    write_bytes(file, png_of(figure))


# ------------------------------------------------------------------ gradient


def measure_gradient(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Returns how averaged gradients of the word vectors differ from the exact global ones, the model standing still.

    Gradients are summed at the embeddings, which is exact, and go through the model once.
    """
    import torch

    from gcbs_st.models.load import load_model

    model = load_model(arguments.model, static=True)
    outputs = [model(model.tokenize(list(pairs[column])))["sentence_embedding"] for column in COLUMNS]
    leaves = [output.detach().requires_grad_() for output in outputs]
    weights = next(model.parameters())

    def at_weights(gradients: Sequence[Any]) -> Any:
        return torch.autograd.grad(outputs, weights, gradients, retain_graph=True)[0].flatten().double()

    everything, targets = torch.arange(len(pairs)), {}
    for target, with_positive in (("without positive", False), ("with positive", True)):
        value = in_batch(arguments, leaves, everything, with_positive=with_positive)
        targets[target] = at_weights(torch.autograd.grad(value, leaves))
    rows, results = [], []
    for epochs, name, gradients in gradient_sums(arguments, leaves):
        average = at_weights(gradients)
        entry: dict[str, Any] = {"epochs": epochs, "loss": name}
        for target, wanted in targets.items():
            entry[f"cosine, {target}"] = float(torch.nn.functional.cosine_similarity(average, wanted, dim=0))
            entry[f"bias, {target}"] = float((average - wanted).norm() / wanted.norm())
        results.append(entry)
        rows.append([str(epochs), name, *[f"{value:.4f}" for key, value in entry.items() if "," in key]])
    header = ["epochs", "loss", *[f"{kind}, {target}" for target in targets for kind in ("cosine", "bias")]]
    note = (
        "\n\nBias: norm of the difference to the exact gradient over the norm of that. EMC2 and SogCLR aim at the "
        "global loss whose denominator has all negatives, the in-batch loss at the one that also has the positive."
    )
    return results, markdown_table(header, rows) + note


def in_batch(arguments: argparse.Namespace, leaves: Sequence[Any], ids: Any, *, with_positive: bool) -> Any:
    """Returns the in-batch loss of the rows `ids`, at their embeddings."""
    import torch

    cosines = torch.nn.functional.cosine_similarity(leaves[0][ids][:, None], leaves[1][ids][None], dim=2)
    return info_nce(arguments.scale * cosines, with_positive=with_positive)


def gradient_sums(arguments: argparse.Namespace, leaves: Sequence[Any]) -> list[tuple[int, str, list[Any]]]:
    """Returns the averaged gradients at the embeddings after doubling numbers of epochs, of each loss."""
    import torch

    values: dict[str, Callable[[Any], Any]] = {
        "in-batch InfoNCE": lambda ids: in_batch(arguments, leaves, ids, with_positive=True),
        "in-batch, negatives alone": lambda ids: in_batch(arguments, leaves, ids, with_positive=False),
    }
    for name in ("EMC2Loss", "SogCLRLoss"):
        loss = make_table_loss(name, leaves[1], arguments)
        values[name] = lambda ids, loss=loss: loss.compute_loss_from_embeddings(
            [leaf[ids] for leaf in leaves], None, ids
        )
    sums = {name: [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves] for name in values}
    # Chains and averages settle for a fifth of the epochs, which count for none of the losses.
    settle, steps, found, due, rng = arguments.epochs // 5, 0, [], 25, np.random.default_rng(0)
    for done in range(1 - settle, arguments.epochs + 1):
        for ids in map(torch.from_numpy, batches_of(rng, len(leaves[0]), arguments.batch_size)):
            steps += done > 0
            for name, value in values.items():
                if done <= 0 and name.startswith("in-batch"):
                    continue
                for total, gradient in zip(sums[name], torch.autograd.grad(value(ids), leaves), strict=True):
                    total += gradient * (done > 0)
        if done in (due, arguments.epochs):
            due *= 2
            for name, totals in sums.items():
                found.append((done, name, [(total / steps).to(leaves[0].dtype) for total in totals]))
            tell(f"{done} of {arguments.epochs} epochs")
    return found


# ------------------------------------------------------------------ training


def measure_training(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Returns the exact global loss and STS-B dev of models trained with each loss, over paired seeds."""
    from gcbs_st.models.load import load_model
    from gcbs_st.records.statistics import paired_difference

    arms = [BASE, *[name for name in arguments.arm or ARMS if name != BASE]]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    before = judge(arguments, pairs, load_model(arguments.model, static=True, device="cpu"))
    for seed in range(arguments.seeds):
        for name in arms:
            runs[name].append(train_once(arguments, pairs, name, seed))
            tell(f"seed {seed}: {name} {runs[name][-1]}")
    columns = {(name, key): [record[key] for record in runs[name]] for name in arms for key in runs[name][0]}
    differences = {
        name: {key: paired_difference(columns[name, key], columns[BASE, key]) for key in before} for name in arms[1:]
    }
    lines = [["before training", *[f"{value:.4f}" for value in before.values()], ""]]
    for name in arms:
        cells = []
        for key in before:
            interval = differences[name][key]["interval"] if name in differences else None
            bounds = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
            cells.append(f"{statistics.fmean(columns[name, key]):.4f}{bounds}")
        lines.append([name, *cells, f"{statistics.median(columns[name, 'seconds']):.1f}"])
    note = (
        f"\n\nB = {arguments.batch_size}, {arguments.rows} pairs, {arguments.epochs} epochs, learning rate "
        f"{arguments.learning_rate:g}, {arguments.seeds} seeds. In brackets: 95 % interval of the paired difference to {BASE}."
    )
    results = {"before": before, "runs": runs, "differences": differences}
    return results, markdown_table(["loss", *before, "seconds"], lines) + note


def train_once(arguments: argparse.Namespace, pairs: Any, name: str, seed: int) -> dict[str, float]:
    """Returns the scores of one run, random batches, the same for all losses of a seed."""
    from transformers import set_seed

    from gcbs_st.models.load import load_model

    set_seed(seed)
    model = load_model(arguments.model, static=True, device="cpu")
    _, seconds, _ = train(
        model, pairs, make_loss(arguments, name, model), planner="random", num_train_epochs=arguments.epochs, seed=seed,
        use_cpu=True, per_device_train_batch_size=arguments.batch_size, learning_rate=arguments.learning_rate,
        logging_strategy="no",
    )  # fmt: skip
    return {**judge(arguments, pairs, model), "seconds": seconds}


def judge(arguments: argparse.Namespace, pairs: Any, model: Any) -> dict[str, float]:
    """Returns the exact global loss over the training rows, in both forms, and STS-B dev."""
    from gcbs_st.evaluation.sts import evaluate_sts
    from gcbs_st.evaluation.sts_tasks import load_sts_tasks

    _, scores = scores_of(model, arguments, pairs)
    judged = {
        "global loss": float(info_nce(scores, with_positive=True)),
        "global loss, negatives alone": float(info_nce(scores, with_positive=False)),
    }
    if arguments.sts:
        tasks = load_sts_tasks(arguments.sts, splits=["dev"])
        name = "STSBenchmark-dev"
        judged[name] = float(evaluate_sts(model, {name: tasks[name]}, batch_size=256)[name])
    return judged


# ------------------------------------------------------------------ cost


def measure_cost(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Returns the time of a training step with each loss, of one model, the losses taking turns at each batch."""
    import torch

    from gcbs_st.models.load import load_model

    torch.manual_seed(0)
    model = load_model(arguments.model, device="cpu").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    texts = [list(pairs[column]) for column in COLUMNS]
    losses = {name: make_loss(arguments, name, model) for name in ARMS}
    for loss in losses.values():
        if hasattr(loss, "prepare"):
            loss.prepare(len(pairs), lambda rows, column: model.tokenize([texts[column][row] for row in rows]), 0)

    def step(name: str, ids: np.ndarray) -> float:
        if hasattr(losses[name], "set_rows"):
            losses[name].set_rows(ids)
        began = time.perf_counter()
        features = [model.tokenize([column[row] for row in ids]) for column in texts]
        losses[name](features, None).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    rng, seconds, encoded = np.random.default_rng(0), {name: [] for name in ARMS}, []
    for epoch in range(arguments.epochs):
        for ids in batches_of(rng, len(pairs), arguments.batch_size):
            of_batch = {name: step(name, ids) for name in ARMS}
            if epoch > 0:  # chains of the first epoch have nothing to encode again
                for name, one in of_batch.items():
                    seconds[name].append(one)
                _, outside, came_with = losses["EMC2Loss"].last_samples()
                encoded.append(len(np.unique(came_with[outside > 0])))
        tell(f"epoch {epoch + 1} of {arguments.epochs}")
    results: dict[str, Any] = {}
    for name in ARMS:
        ratios = [own / other for own, other in zip(seconds[name], seconds[BASE], strict=True)]
        results[name] = {
            "median_seconds": statistics.median(seconds[name]),
            "times_in_batch": statistics.median(ratios),
        }
    lines = [[name, *[f"{value:.3f}" for value in results[name].values()]] for name in ARMS]
    results["encoded_again_a_batch"] = statistics.fmean(encoded)
    note = f"\n\nB = {arguments.batch_size}; texts encoded again a batch: {results['encoded_again_a_batch']:.1f}."
    return results, markdown_table(["loss", "seconds a step", "x in-batch"], lines) + note


if __name__ == "__main__":
    sys.exit(main())
