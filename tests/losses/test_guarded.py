"""The guarded losses: the oracle is a double loop over rows; without a guard they are the host's losses."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from conftest import make_static_model
from forked_ranks import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim
from torch import nn

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.losses import CachedGuardedMultipleNegativesRankingLoss, GuardedMultipleNegativesRankingLoss
from gcbs_st.losses.guard import false_negative_threshold

BOTH = [GuardedMultipleNegativesRankingLoss, CachedGuardedMultipleNegativesRankingLoss]
EXTRA = ("query_to_query", "doc_to_query", "doc_to_doc")
MODES = [
    *((("query_to_doc", *extra), "joint") for size in range(4) for extra in itertools.combinations(EXTRA, size)),
    (("query_to_doc",), "per_direction"),
    (("doc_to_query", "query_to_doc"), "per_direction"),
]
HARDNESS = [None, "in_batch_negatives", "hard_negatives", "all_negatives"]
SCORES = {
    "cos": cos_sim,
    "dot": dot_score,
    "euclidean": euclidean_sim,
    "tanh": lambda left, right: torch.tanh(left @ right.T / 10),  # needs its result for the backward pass
}


class Table(nn.Sequential):
    """A model of one layer: the mean of a text's token vectors, in double precision."""

    get_embedding_dimension = get_sentence_embedding_dimension = lambda self: self[0].embedding_dim

    def __init__(self, seed: int = 0, dimensions: int = 6) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Embedding(12, dimensions, dtype=torch.float64))

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": self[0](features["input_ids"]).mean(1)}


def texts(rows: int, columns: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Token ids of (anchor, positive, negatives): few tokens, so that rows are close and some are equal."""
    ids = torch.randint(0, 12, (columns, rows, 2), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": column, "attention_mask": torch.ones_like(column)} for column in ids]


def embeddings(rows: int, columns: int, dimensions: int = 5, seed: int = 0) -> list[torch.Tensor]:
    """Random rows with a common direction, so that scores are of both signs and some pass every threshold."""
    rows_of = torch.randn(
        columns, rows, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return [column.requires_grad_() for column in (rows_of + 0.5).unbind()]


def score(name: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The similarity of two vectors, by its definition."""
    if name == "euclidean":
        return -((left - right) ** 2).sum().sqrt()
    if name == "tanh":
        return torch.tanh((left * right).sum() / 10)
    norm = left.norm().clamp(min=1e-12) * right.norm().clamp(min=1e-12) if name == "cos" else 1.0
    return (left * right).sum() / norm


def oracle(columns, mode, *, margin, scale=20.0, hardness=None, strength=0.0, spare=True, name="cos"):
    """(loss, share of the negatives that are masked): the definition, row by row and candidate by candidate."""
    losses, masked, negatives = [], 0, 0
    for i, (query, doc) in enumerate(zip(columns[0], columns[1], strict=True)):
        positive = score(name, query, doc)
        threshold = positive.item() - (1 - margin) * abs(positive.item())
        pools = []
        for direction in mode[0]:
            pools.append([])
            source = query if direction.startswith("query") else doc
            for c, column in enumerate(columns[1:] if direction.endswith("doc") else columns[:1]):
                for j, text in enumerate(column):
                    if i == j and direction in ("query_to_query", "doc_to_doc"):
                        continue
                    value = score(name, source, text)
                    logit = scale * value
                    if i != j or c > 0:
                        negatives += 1
                        if value.item() > threshold and (i != j or not spare):
                            masked += 1
                            continue
                        weighted = {"in_batch_negatives": i != j, "hard_negatives": i == j, "all_negatives": True}
                        if direction == "query_to_doc" and weighted.get(hardness):
                            logit = logit + strength * value.detach()
                    pools[-1].append(logit)
        pools = [sum(pools, [])] if mode[1] == "joint" else pools
        log_z = sum(torch.stack(pool).logsumexp(0) for pool in pools) / len(pools)
        losses.append(log_z - scale * positive)
    return sum(losses) / len(losses), masked / max(negatives, 1)


def value_and_gradients(loss, columns):
    """The loss of these embeddings and its gradient for each of them; finite, or the test fails."""
    if hasattr(loss, "mini_batch_size"):
        leaves = [[part.detach().requires_grad_() for part in c.split(loss.mini_batch_size)] for c in columns]
        value = loss.calculate_loss(leaves, with_backward=True)
        gradients = [torch.cat([part.grad for part in parts]) for parts in leaves]
    else:
        value = loss.compute_loss_from_embeddings(columns, None)
        gradients = torch.autograd.grad(value, columns)
    assert all(torch.isfinite(tensor).all() for tensor in (value, *gradients))
    return value.detach(), list(gradients)


def assert_is_oracle(loss, columns, mode, **options):
    """The loss, its gradients and its share of masked negatives are the oracle's."""
    expected, share = oracle(columns, mode, **options)
    value, gradients = value_and_gradients(loss, columns)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-9)
    # Texts whose every negative is masked have no part in the oracle's graph.
    expected_gradients = torch.autograd.grad(expected, columns, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradients, list(expected_gradients), rtol=1e-8, atol=1e-9)
    assert share == loss.last_masked
    return share


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("spare", [True, False], ids=["spare", "guard"])
@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join([*mode[0], mode[1]]))
def test_every_option_does_what_the_oracle_does(mode, hardness, columns, spare, loss_class):
    """Loss, gradients and the share of masked negatives, for all options of the host; some but not all are masked."""
    options = {"hardness_mode": hardness, "hardness_strength": 3.0} | (
        {"mini_batch_size": 2} if loss_class is BOTH[1] else {}
    )
    loss = loss_class(
        Table(), margin=0.9, directions=mode[0], partition_mode=mode[1], guard_hard_negatives=not spare, **options
    )
    share = assert_is_oracle(
        loss, embeddings(5, columns), mode, margin=0.9, hardness=hardness, strength=3.0, spare=spare
    )
    assert 0 < share < 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    dimensions=st.integers(1, 5),
    margin=st.floats(0, 1.5).filter(lambda margin: abs(margin - 1) > 1e-6),  # ties at 1 are decided by rounding
    scale=st.floats(0.1, 60),
    mode=st.sampled_from(MODES),
    name=st.sampled_from(sorted(SCORES)),
    seed=st.integers(0, 1000),
)
def test_any_batch_is_as_the_oracle_says(rows, dimensions, margin, scale, mode, name, seed):
    """Any size, margin, scale and similarity, with positive and negative scores of the positives."""
    loss = GuardedMultipleNegativesRankingLoss(
        Table(), scale, SCORES[name], margin=margin, directions=mode[0], partition_mode=mode[1]
    )
    assert_is_oracle(loss, embeddings(rows, 3, dimensions, seed), mode, margin=margin, scale=scale, name=name)


@pytest.mark.parametrize("margin", [None, math.inf, 1e9])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join([*mode[0], mode[1]]))
def test_without_a_guard_it_is_the_hosts_loss(mode, margin):
    """No margin, or one that no score passes, gives the host's numbers bit by bit, forward and backward."""
    for hardness, (ours, host, more) in itertools.product(
        HARDNESS,
        [
            (BOTH[0], MultipleNegativesRankingLoss, {}),
            (BOTH[1], CachedMultipleNegativesRankingLoss, {"mini_batch_size": 3}),
        ],
    ):
        options = {"directions": mode[0], "partition_mode": mode[1], "hardness_mode": hardness, **more}
        options["hardness_strength"] = 2.0
        expected = value_and_gradients(host(Table(), **options), embeddings(7, 3))
        loss = ours(Table(), margin=margin, **options)
        torch.testing.assert_close(value_and_gradients(loss, embeddings(7, 3)), expected, rtol=0, atol=0)
        assert 0.0 == loss.last_masked


@pytest.mark.parametrize(
    ("positive", "margin", "expected"), [(0.8, 0.5, 0.4), (-0.8, 0.5, -1.2), (0.0, 0.5, 0.0), (0.8, 1.25, 1.0)]
)
def test_the_threshold_lies_below_the_positive_whatever_its_sign(positive, margin, expected):
    """A share of a positive score; the same distance below a negative one."""
    assert [expected] == pytest.approx(false_negative_threshold(torch.tensor([positive]), margin).tolist())


def test_the_threshold_is_not_rounded_to_half_precision():
    """A margin of 0.2 % is finer than bfloat16, and is still below the positive."""
    positive = torch.tensor([0.75], dtype=torch.bfloat16)
    assert [0.7485] == pytest.approx(false_negative_threshold(positive, 0.998).tolist(), abs=1e-6)


def test_a_copy_of_the_positive_is_masked_and_the_positive_is_not():
    """Two rows with the same positive: each keeps its own, and loses the other's."""
    queries, documents = torch.eye(3), torch.eye(3)
    documents[1] = documents[0]
    queries[1] = queries[0]
    loss = GuardedMultipleNegativesRankingLoss(nn.Identity())
    value = loss.compute_loss_from_embeddings([queries, documents], None)
    assert 2 / 6 == loss.last_masked
    assert math.log1p(math.exp(-20)) * 2 / 3 + math.log1p(2 * math.exp(-20)) / 3 == pytest.approx(
        value.item(), abs=1e-7
    )


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join([*mode[0], mode[1]]))
@pytest.mark.parametrize("rows", [1, 4])
def test_when_all_negatives_are_masked_nothing_is_left_to_learn(mode, rows):
    """Identical rows, or a batch of one: the least loss there is and gradients of 0, not NaN."""
    columns = [torch.ones(rows, 3, requires_grad=True) for _ in range(2)]
    loss = GuardedMultipleNegativesRankingLoss(nn.Identity(), directions=mode[0], partition_mode=mode[1])
    value, gradients = value_and_gradients(loss, columns)
    # In the host's joint softmax a row's own pair stands twice if doc_to_query is one of the directions.
    least = math.log(2) if mode[1] == "joint" and "doc_to_query" in mode[0] else 0.0
    found = [value.item(), *(gradient.abs().max().item() for gradient in gradients)]
    assert [least, 0.0, 0.0] == pytest.approx(found, abs=1e-5)
    assert float(rows > 1) == loss.last_masked


def test_rows_of_zeros_are_no_trouble():
    """Zero rows score 0 with everything: their threshold is 0, which nothing passes."""
    columns = [torch.zeros(3, 4, requires_grad=True) for _ in range(2)]
    loss = GuardedMultipleNegativesRankingLoss(nn.Identity(), directions=MODES[7][0])
    value, _ = value_and_gradients(loss, columns)
    assert (math.log(3 + 2 + 3 + 2), 0.0) == (pytest.approx(value.item()), loss.last_masked)


def test_given_negatives_stay_for_their_own_row_only():
    """The same text is a given negative of row 0 and, in the batch, a false negative of row 1."""
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    positives = torch.tensor([[1.0, 0.5], [1.0, 0.6]])
    negatives = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    shares = {}
    for guard in (False, True):
        loss = GuardedMultipleNegativesRankingLoss(nn.Identity(), guard_hard_negatives=guard)
        loss.compute_loss_from_embeddings([queries, positives, negatives], None)
        shares[guard] = loss.last_masked
    # A row has 3 negatives: the other's positive and both given ones. Row 0: the other's positive lies at 0.96 of it.
    assert {False: 3 / 6, True: 4 / 6} == shares


@pytest.mark.parametrize("mini_batch_size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("mode", [MODES[0], MODES[7], MODES[9]], ids=["default", "all", "symmetric"])
def test_the_cached_loss_trains_the_same_weights(mode, mini_batch_size):
    """Through a model: equal loss, gradients and statistic, whether the mini-batches divide the batch or not."""
    results = []
    for loss_class, more in zip(BOTH, [{}, {"mini_batch_size": mini_batch_size}], strict=True):
        model = Table()
        loss = loss_class(model, margin=0.9, directions=mode[0], partition_mode=mode[1], **more)
        value = loss(texts(7, 3), None)
        (2 * value).backward()
        results.append((value.item(), model[0].weight.grad, loss.last_masked))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    assert 0 < results[0][2] < 1


@pytest.mark.parametrize("loss_class", BOTH)
def test_evaluation_gives_the_loss_of_training(loss_class):
    """In eval mode, without gradients, the same number; and the statistic is that of the last batch."""
    loss = loss_class(Table(), margin=0.9)
    expected = loss(texts(7, 2), None).item()
    share = loss.last_masked
    loss(texts(1, 2), None)
    assert 0.0 == loss.last_masked
    loss.eval()
    with torch.no_grad():
        assert (expected, share) == (pytest.approx(loss(texts(7, 2), None).item(), rel=1e-12), loss.last_masked)
        loss.guard.margin = None
        assert expected < loss(texts(7, 2), None).item()
        assert 0.0 == loss.last_masked


def test_under_autocast_the_scores_of_the_batch_decide():
    """In bfloat16 the mask is that of the rounded scores, the loss is close and the gradients are finite."""
    columns = [column.detach().float().requires_grad_() for column in embeddings(16, 2, seed=3)]
    loss = GuardedMultipleNegativesRankingLoss(nn.Identity())
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = value_and_gradients(loss, columns)
        scores = cos_sim(*columns).detach()
    assert torch.bfloat16 == scores.dtype
    own = scores.float().diagonal()[:, None]
    keep = (scores.float() <= own - 0.05 * own.abs()) | torch.eye(16, dtype=torch.bool)
    logits = (20 * scores.float()).masked_fill(~keep, -math.inf)
    expected = nn.functional.cross_entropy(logits, torch.arange(16))
    assert ((~keep).sum().item() / 240, expected.item()) == (loss.last_masked, pytest.approx(value.item(), rel=0.02))


@pytest.mark.parametrize("loss_class", BOTH)
def test_inside_matryoshka_each_dimensionality_has_its_own_mask(loss_class):
    """The sum over dimensionalities of the loss of the cut embeddings."""
    model = Table()
    total = MatryoshkaLoss(model, loss_class(model, margin=0.9), [6, 2], [1, 0.5])(texts(7, 2), None)
    columns = [Table()(features)["sentence_embedding"] for features in texts(7, 2)]
    expected = sum(
        weight * oracle([column[:, :cut] for column in columns], MODES[0], margin=0.9)[0]
        for cut, weight in ((6, 1), (2, 0.5))
    )
    assert expected.item() == pytest.approx(total.item(), rel=1e-9)
    total.backward()
    assert torch.isfinite(model[0].weight.grad).all()


class Bilinear(nn.Module):
    """A similarity function with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(5, dtype=torch.float64))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ self.weight @ right.T


@pytest.mark.parametrize("loss_class", BOTH)
def test_a_similarity_function_with_weights_is_trained(loss_class):
    """Its weights are parameters of the loss and get a gradient."""
    loss = loss_class(Table(), similarity_fct=Bilinear(), margin=0.9)
    columns = [[column.detach().requires_grad_()] for column in embeddings(4, 2)]
    if loss_class is BOTH[1]:
        loss.calculate_loss(columns, with_backward=True)
    else:
        loss.compute_loss_from_embeddings([column for (column,) in columns], None).backward()
    gradients = [weight.grad for name, weight in loss.named_parameters() if "similarity_fct" in name]
    assert [(5, 5)] == [tuple(gradient.shape) for gradient in gradients]


@pytest.mark.parametrize("loss_class", BOTH)
def test_the_model_card_names_the_options(loss_class):
    """The host's options with ours, the user's similarity function, both citations."""
    config = loss_class(Table(), 5.0, dot_score, margin=0.8, guard_hard_negatives=True).get_config_dict()
    expected = {"scale": 5.0, "similarity_fct": "dot_score", "margin": 0.8, "guard_hard_negatives": True}
    assert expected == {name: config[name] for name in expected}
    assert "query_to_doc" in config["directions"]
    named = loss_class(Table(), similarity_fct=functools.partial(cos_sim)).get_config_dict()["similarity_fct"]
    assert "cos_sim" in named
    assert 2 == loss_class(Table()).citation.count("@misc")


@pytest.mark.parametrize("loss_class", BOTH)
def test_what_cannot_work_is_refused(loss_class):
    """Margins that mean nothing, and what the host refuses: unknown options, directions, too few columns."""
    for margin in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"margin: got {margin}"):
            loss_class(Table(), margin=margin)
    with pytest.raises(TypeError, match="no_such_option"):
        loss_class(Table(), no_such_option=1)
    with pytest.raises(ValueError, match="query_to_doc"):
        loss_class(Table(), directions=("doc_to_doc",))
    with pytest.raises(ValueError, match="at least 2"):
        loss_class(Table())(texts(3, 1), None)


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("later", [dot_score, nn.CosineSimilarity()], ids=["function", "module"])
def test_a_similarity_function_that_is_set_later_is_guarded_too(later, loss_class):
    """Assigning to the loss, as the host allows, does not put the guard out of place."""
    loss = loss_class(Table(), margin=0.9)
    loss.similarity_fct = later
    assert (later, 0.9) == (loss.guard.similarity_fct, loss.margin)
    name = loss.get_config_dict()["similarity_fct"]
    assert name.startswith(getattr(later, "__name__", "CosineSimilarity"))  # older hosts write arguments too


def test_scores_in_an_unknown_order_are_not_masked_at_random():
    """A host that asked for other scores than expected is refused."""
    left, right = embeddings(4, 2)
    guard = GuardedMultipleNegativesRankingLoss(nn.Identity()).guard
    for directions, calls in [
        (("query_to_doc",), [(right[:3], left), (left, right)]),  # more rows than there are
        (("query_to_doc",), [(left[:3], right)]),  # fewer
        (("query_to_doc", "query_to_query"), [(left, right)]),  # too few calls
        (("query_to_doc", "query_to_query"), [(left, right), (right, left)]),  # another direction
        (("query_to_doc", "doc_to_query"), [(left, right), (left[:2], right)]),  # another shape
    ]:
        with pytest.raises(RuntimeError, match="unknown order"), guard.watch(directions, 1, 4, gathered=False):
            for call in calls:
                guard(*call)


def test_a_failed_batch_does_not_leave_the_guard_on():
    """After an error the similarity function is plain again."""
    guard = GuardedMultipleNegativesRankingLoss(nn.Identity()).guard
    with pytest.raises(KeyError), guard.watch(("query_to_doc",), 1, 4, gathered=False):
        raise KeyError
    left, right = embeddings(4, 2)
    torch.testing.assert_close(guard(left, right), cos_sim(left, right), rtol=0, atol=0)


def one_rank(folder: Path) -> None:
    """What one of two processes does: the losses of its half of the rows, saved to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    results = {}
    for case, (loss, columns) in gathered_cases(gather_across_devices=True).items():
        own = [column.detach()[rank * 3 : rank * 3 + 3].requires_grad_() for column in columns]
        value, gradients = value_and_gradients(loss, own)
        results[case] = (value, gradients, loss.last_masked)
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def gathered_cases(**options):
    """Losses by name, each with the six rows of a batch."""
    cases = {}
    for number, mode in enumerate([MODES[0], MODES[7], MODES[9]]):
        modes = {"directions": mode[0], "partition_mode": mode[1], "margin": 0.9, **options}
        cases[f"plain{number}"] = (BOTH[0](Table(), **modes), embeddings(6, 3))
        cases[f"cached{number}"] = (BOTH[1](Table(), mini_batch_size=2, **modes), embeddings(6, 3))
    return cases


def test_two_processes_mask_as_one_does(tmp_path):
    """With gathered rows, the mean of two processes' losses, gradients and shares is that of the whole batch."""
    run_ranks(one_rank, 2, tmp_path, folder=tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, (loss, columns) in gathered_cases().items():
        value, gradients = value_and_gradients(loss, columns)
        (first, first_gradients, first_share), (second, second_gradients, second_share) = (
            rank[case] for rank in ranks
        )
        torch.testing.assert_close((first + second) / 2, value, rtol=1e-9, atol=1e-9)
        # A gathered row's gradient is the sum over the processes' losses.
        found = [torch.cat(halves) / 2 for halves in zip(first_gradients, second_gradients, strict=True)]
        torch.testing.assert_close(found, gradients, rtol=1e-8, atol=1e-9)
        assert loss.last_masked == pytest.approx((first_share + second_share) / 2)
        assert 0 < loss.last_masked < 1


def test_the_trainer_trains_with_it(pairs, tmp_path):
    """A real training: without a margin the weights are the host loss's, with one they are others and finite."""
    weights = {}
    for name, loss_class, options in [
        ("host", MultipleNegativesRankingLoss, {}),
        ("off", GuardedMultipleNegativesRankingLoss, {"margin": None}),
        ("on", GuardedMultipleNegativesRankingLoss, {"margin": 0.9}),
    ]:
        model = make_static_model()
        loss = loss_class(model, **options)
        args = GCBSTrainingArguments(
            output_dir=str(tmp_path / name),
            planner="random",
            per_device_train_batch_size=16,
            max_steps=12,
            learning_rate=0.01,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        )
        GCBSTrainer(model=model, args=args, train_dataset=pairs, loss=loss).train()
        weights[name] = model[0].embedding.weight.detach()
    torch.testing.assert_close(weights["off"], weights["host"], rtol=0, atol=0)
    assert torch.isfinite(weights["on"]).all()
    assert not torch.allclose(weights["on"], weights["host"])
    assert 0 < loss.last_masked < 1
