"""EMC2 and SogCLR: slow oracles, the softmax that chains converge to, the exact global gradient, row ids, checkpoints."""

from __future__ import annotations

import json

import losses_job
import numpy as np
import pytest
import torch
from conftest import make_static_model
from datasets import DatasetDict
from forked_ranks import run_ranks
from oracles import SlowChains
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim
from torch import nn

import gcbs_st
from gcbs_st import EMC2Loss, GCBSTrainingArguments
from gcbs_st.config import LossConfig
from gcbs_st.experiments.training_run import make_loss
from gcbs_st.files import read_arrays
from gcbs_st.losses import SogCLRLoss
from gcbs_st.training.loss_states import LOSSES_FILE, RowStates, find_row_losses

BOTH = ("query_to_doc", "doc_to_query")
KINDS = [EMC2Loss, SogCLRLoss]


pytestmark = pytest.mark.usefixtures("one_thread")


class Table(nn.Module):
    """A model that looks its embeddings up: 'texts' are row numbers, of column 0 or 1; counts its passes."""

    def __init__(self, rows: int, dimensions: int = 6, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(2, rows, dimensions, generator=generator, dtype=torch.float64)
        self.weights = nn.Parameter(weights + weights.flip(0) * 0.3)
        self.passes = 0

    def get_embedding_dimension(self):
        """As the host's models."""
        return self.weights.shape[2]

    get_sentence_embedding_dimension = get_embedding_dimension

    def forward(self, features):
        self.passes += 1
        return {"sentence_embedding": self.weights[features["column"], features["rows"]]}

    def scores(self, scale, direction="query_to_doc"):
        """Of all rows with all rows, scaled."""
        anchors, positives = self.weights
        return scale * (cos_sim(anchors, positives) if direction == "query_to_doc" else cos_sim(positives, anchors))


def table_features(rows, column):
    """What `Table` takes."""
    return {"rows": torch.as_tensor(np.asarray(rows)), "column": column}


def batch(ids):
    """The features of anchors and positives."""
    return [table_features(ids, column) for column in (0, 1)]


def make(kind, model, **options):
    """A loss that knows its rows and how to get at them."""
    loss = kind(model, **options)
    loss.prepare(model.weights.shape[1], table_features, seed=0)
    return loss


def batches(rows, size, epochs, seed=0):
    """Random batches, each row once an epoch."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(rows)
        yield from (order[start : start + size].tolist() for start in range(0, rows - size + 1, size))


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("directions, mix, size", [(("query_to_doc",), 0.0, 4), (BOTH, 0.3, 5), (BOTH[1:], 0.0, 2)])
def test_equals_one_row_at_a_time(directions, mix, size):
    """Value, gradient and chains are those of a loop over rows and proposals, while the model changes."""
    model, scale = Table(11), 6.0
    loss = make(EMC2Loss, model, scale=scale, directions=directions, mix=mix)
    slow = [SlowChains() for _ in directions]
    away = 0
    for ids in batches(11, size, epochs=12):
        values = []
        for number, direction in enumerate(directions):
            scores = model.scores(scale, direction)
            samples = slow[number].visit(ids, scores.detach().numpy(), number)
            away += sum(state not in ids for states in samples.values() for state in states)
            of_rows = [
                sum(scores[row, state] for state in states) / len(states) - scores[row, row]
                for row, states in samples.items()
            ]
            in_batch = nn.functional.cross_entropy(scores[ids][:, ids], torch.arange(len(ids)))
            values.append((1 - mix) * sum(of_rows) / len(of_rows) + mix * in_batch)
        expected = sum(values) / len(values)
        (wanted,) = torch.autograd.grad(expected, model.weights)
        value = loss(batch(ids), None, row_ids=ids)
        (gradient,) = torch.autograd.grad(value, model.weights)
        torch.testing.assert_close(value, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            model.weights -= 0.3 * gradient
    state = loss.row_state()
    for chains, direction in zip(slow, directions, strict=True):
        rows = sorted(chains.state)
        assert [chains.state[row] for row in rows] == state[f"{direction} state"][rows].tolist()
        assert not np.isin(np.arange(11), state[f"{direction} state"][rows]).all()
    assert away > 0, "no chain kept a state from outside of its batch"


@pytest.mark.parametrize("gamma", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("directions", [("query_to_doc",), BOTH])
def test_sogclr_equals_the_definition(gamma, directions):
    """Denominators and weights, not in log space, over several visits while the model changes."""
    model, scale = Table(11), 3.0
    loss = make(SogCLRLoss, model, scale=scale, gamma=gamma, directions=directions)
    averages = [{} for _ in directions]
    for ids in batches(11, 4, epochs=6):
        terms = []
        for u, direction in zip(averages, directions, strict=True):
            scores = model.scores(scale, direction)
            for row in ids:
                others = [other for other in ids if other != row]
                now = sum(scores[row, other].exp().item() for other in others) / len(others)
                u[row] = (1 - gamma) * u[row] + gamma * now if row in u else now
                pulled = sum(scores[row, o].exp().item() / u[row] * scores[row, o] for o in others) / len(others)
                terms.append(pulled - scores[row, row])
        expected = sum(terms) / len(terms)
        (wanted,) = torch.autograd.grad(expected, model.weights)
        value = loss(batch(ids), None, row_ids=ids)
        (gradient,) = torch.autograd.grad(value, model.weights)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            model.weights -= 0.3 * gradient
    stored = loss.row_state()[f"{directions[-1]} log u"]
    assert [pytest.approx(np.log(averages[-1][row]), abs=1e-5) for row in sorted(averages[-1])] == [
        stored[row] for row in sorted(averages[-1])
    ]


def test_sogclr_without_memory():
    """Its gradient is that of the in-batch loss whose denominator lacks the positive."""
    model = Table(9)
    loss = make(SogCLRLoss, model, gamma=1.0)
    for ids in batches(9, 3, epochs=2):
        scores = model.scores(20.0)[ids][:, ids]
        alone = scores.masked_fill(torch.eye(3, dtype=torch.bool), -torch.inf)
        expected = torch.autograd.grad((alone.logsumexp(1) - scores.diagonal()).mean(), model.weights)
        torch.testing.assert_close(
            torch.autograd.grad(loss(batch(ids), None, ids), model.weights), expected, rtol=1e-5, atol=1e-5
        )


def test_sogclr_does_not_overflow():
    """Scores whose exponentials are no float32 numbers give finite weights."""
    model = Table(8)
    loss = make(SogCLRLoss, model, scale=500.0)
    for ids in batches(8, 4, epochs=3):
        value = loss(batch(ids), None, row_ids=ids)
        (gradient,) = torch.autograd.grad(value, model.weights)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


# ---------------------------------------------------------------- what chains converge to


def sampled_distance(rows, size, scale, dues):
    """Mean total variation between the chains' samples and the softmaxes, after each number of visits."""
    model = Table(rows, dimensions=8)
    loss = make(EMC2Loss, model, scale=scale)
    scores = model.scores(scale).detach().fill_diagonal_(-torch.inf)
    target, seen, distances = scores.softmax(1).numpy(), np.zeros((rows, rows)), []
    per_epoch = rows // size
    with torch.no_grad():
        for number, ids in enumerate(batches(rows, size, max(dues)), start=1):
            loss.set_rows(ids)
            loss(batch(ids))
            inside, outside, came_with = loss.last_samples()
            seen[np.ix_(ids, ids)] += inside
            for row, share, state in zip(ids, outside, came_with, strict=True):
                if share:
                    seen[row, state] += share
            if number % per_epoch == 0 and number // per_epoch in dues:
                share = seen / seen.sum(1, keepdims=True)
                distances.append(0.5 * np.abs(share - target).sum(1).mean())
    return distances


def test_chains_sample_the_softmax_over_all_negatives():
    """On 64 fixed rows total variation falls below 0.05, as one over the root of the visits."""
    dues = [64, 128, 256, 512, 1024]
    distances = sampled_distance(64, 16, scale=4.0, dues=dues)
    slope = np.polyfit(np.log(dues), np.log(distances), 1)[0]
    assert distances[-1] < 0.05
    assert -0.6 < slope < -0.4, distances


def averaged_gradient(model, loss, size, epochs):
    """Over random batches, the model standing still."""
    total, count = torch.zeros_like(model.weights), 0
    for ids in batches(model.weights.shape[1], size, epochs):
        count += 1
        total += torch.autograd.grad(loss(ids), model.weights)[0]
    return total / count


def test_the_averaged_gradient_is_that_of_the_global_loss():
    """On 24 rows in batches of 4: cosine above 0.98, and a tenth of the bias of the in-batch loss at most."""
    model, scale = Table(24, dimensions=8), 5.0
    scores = model.scores(scale)
    alone = scores.masked_fill(torch.eye(24, dtype=torch.bool), -torch.inf)
    (exact,) = torch.autograd.grad((alone.logsumexp(1) - scores.diagonal()).mean(), model.weights)
    emc2, host = make(EMC2Loss, model, scale=scale), MultipleNegativesRankingLoss(model, scale=scale)
    ours = averaged_gradient(model, lambda ids: emc2(batch(ids), None, ids), size=4, epochs=900)
    in_batch = averaged_gradient(model, lambda ids: host(batch(ids), None), size=4, epochs=100)
    assert nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > 0.98
    assert 10 * (ours - exact).norm() < (in_batch - exact).norm()


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", [("query_to_doc",), BOTH])
def test_evaluation_gives_the_in_batch_loss_and_leaves_states(kind, directions):
    """In evaluation mode no ids are needed, the host's loss comes out, and nothing is remembered."""
    model = Table(9)
    loss = make(kind, model, directions=directions)
    loss(batch([1, 5, 8]), None, row_ids=[1, 5, 8])
    before = loss.row_state()
    model.eval()
    host = MultipleNegativesRankingLoss(model, directions=directions, partition_mode="per_direction")
    torch.testing.assert_close(loss(batch([0, 1, 2, 3])), host(batch([0, 1, 2, 3]), None))
    loss(batch([0, 1]), None, row_ids=[0, 1])
    after = loss.row_state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    model.train()
    loss(batch([0, 1]), None, row_ids=[0, 1])
    assert not np.array_equal(before["visited"], loss.row_state()["visited"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_row(kind):
    """There are no negatives: the loss is 0, with gradients of 0, and a chain stays where it is."""
    model = Table(5)
    loss = make(kind, model)
    loss(batch([0, 1, 2]), None, [0, 1, 2])
    before = loss.row_state()
    value = loss(batch([1]), None, [1])
    (gradient,) = torch.autograd.grad(value, model.weights)
    assert (0.0, 0.0) == (value.item(), gradient.abs().max().item())
    after = loss.row_state()
    assert all(np.array_equal(before[name], after[name]) for name in before if name not in ("visited", "clock"))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_all_equal(kind):
    """Every proposal is as good as the state: a chain takes each, and ends with the last one."""
    model = Table(6)
    with torch.no_grad():
        model.weights.copy_(torch.ones_like(model.weights))
    loss = make(kind, model)
    for ids in ([0, 1, 2, 3], [3, 4, 0, 5]):
        assert 0.0 == pytest.approx(loss(batch(ids), None, ids).item(), abs=1e-5)
    if kind is EMC2Loss:
        states = loss.row_state()["query_to_doc state"]
        assert {3: 5, 4: 3, 0: 4, 5: 0} == {row: int(states[row]) for row in (3, 4, 0, 5)}


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    """Shares of samples still sum to 1, so that a batch of equal rows costs nothing; gradients are finite."""
    model = Table(32).to(torch.bfloat16)
    loss = make(kind, model)
    for ids in batches(32, 8, epochs=6):
        (gradient,) = torch.autograd.grad(loss(batch(ids), None, ids), model.weights)
        assert torch.isfinite(gradient).all()
    with torch.no_grad():
        model.weights.fill_(1.0)
    value = loss(batch([0, 3, 5]), None, [0, 3, 5])
    if kind is EMC2Loss:
        assert 0.0 == pytest.approx(value.item(), abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_nan_are_refused(kind):
    """They would enter the states and stay there."""
    model = Table(5)
    loss = make(kind, model)
    with torch.no_grad():
        model.weights[1, 3] = torch.nan
    with pytest.raises(ValueError, match="3 of 9 scores of a batch are NaN or infinite.*learning rate"):
        loss(batch([1, 2, 3]), None, [1, 2, 3])
    assert 0 == loss.row_state()["visited"].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_wanted_once_each_and_in_range(kind):
    """Messages say what was given, what is expected and what to do."""
    model = Table(5)
    loss = make(kind, model)
    with pytest.raises(ValueError, match="does not know which rows.*GCBSTrainer.*row_ids"):
        loss(batch([0, 1]))
    with pytest.raises(ValueError, match=r"got \[1, 1\], expected each row once"):
        loss(batch([1, 1]), None, [1, 1])
    with pytest.raises(ValueError, match="got 3 to 5, expected ids below 5"):
        loss(batch([1, 2]), None, [3, 5])
    with pytest.raises(ValueError, match="got 3 ids for a batch of 2"):
        loss(batch([1, 2]), None, [0, 1, 2])
    with pytest.raises(ValueError, match="got 3 text columns.*Drop"):
        loss([*batch([1, 2]), table_features([3, 4], 1)], None, [1, 2])
    loss(batch([0, 1]), None, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="does not know which rows"):
        loss(batch([2, 3]))  # ids that were given with a batch are of no other
    with pytest.raises(ValueError, match="holds the states of 5 rows, but the training set has 6"):
        loss.prepare(6)


@pytest.mark.parametrize(
    "kind, options",
    [
        (EMC2Loss, {"mix": 1.5}), (EMC2Loss, {"scale": 0}), (EMC2Loss, {"rows": 0}),
        (EMC2Loss, {"directions": ("doc_to_doc",)}), (EMC2Loss, {"directions": ()}),
        (SogCLRLoss, {"gamma": 0.0}), (SogCLRLoss, {"gamma": 1.1}), (SogCLRLoss, {"directions": ("query",)}),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(kind, options):
    """The message names the option."""
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: got"):
        kind(nn.Identity(), **options)


def test_the_authors_burn_in_is_no_option():
    """Nor is what else they fixed."""
    with pytest.raises(TypeError, match="burn_in"):
        EMC2Loss(nn.Identity(), burn_in=0.3)


def test_states_grow_in_a_plain_loop():
    """Without a number of rows the ids that come decide; a known number gives the same."""
    model, known = Table(50), None
    for rows in (50, None):
        loss = EMC2Loss(model, rows=rows)
        loss._features_of = table_features  # as `prepare` sets it, which would tell the rows too
        values = [loss(batch(ids), None, ids).item() for ids in batches(40, 4, epochs=4)]
        state = loss.row_state()
        assert len(state["visited"]) == (rows or 40)
        known = known or (values, state["query_to_doc state"][:40].tolist())
        assert known == (values, state["query_to_doc state"][:40].tolist())
        loss.prepare(50)
        assert 50 == len(loss.row_state()["visited"])


def test_texts_that_nobody_can_get_at():
    """A chain whose state is not in the batch needs its text; the message says how to give it."""
    model = Table(12)
    loss = EMC2Loss(model, scale=20.0)
    with pytest.raises(ValueError, match="nobody has told how.*prepare"):
        for ids in batches(12, 3, epochs=9):
            loss(batch(ids), None, ids)


def test_the_names_are_where_they_are_looked_for():
    """At the package's front door, among the losses, and in configurations."""
    assert gcbs_st.EMC2Loss is gcbs_st.losses.EMC2Loss
    loss = make_loss(LossConfig(name="EMC2Loss", options={"scale": 14.28, "mix": 0.1}), Table(3))
    assert (14.28, 0.1) == (loss.scale, loss.get_config_dict()["mix"])
    assert 0.5 == make_loss(LossConfig(name="SogCLRLoss", options={"gamma": 0.5}), Table(3)).get_config_dict()["gamma"]
    assert all("@inproceedings" in kind(Table(3)).citation for kind in KINDS)


# ---------------------------------------------------------------- Matryoshka


@pytest.mark.parametrize("kind", KINDS)
def test_matryoshka_moves_chains_once_a_step(kind):
    """The smaller dimensionality takes the full one's samples; each stored text passes the model once."""
    model, plain = Table(9, dimensions=6), Table(9, dimensions=6)
    base, alone = make(kind, model, scale=8.0), make(kind, plain, scale=8.0)
    loss, encoded = MatryoshkaLoss(model, base, [6, 2], [1.0, 0.5]), 0
    assert [base] == find_row_losses(loss)
    for number, ids in enumerate(batches(9, 3, epochs=8), start=1):
        base.set_rows(ids)
        alone.set_rows(ids)
        model.passes = plain.passes = 0
        both = loss(batch(ids), None)
        full = alone(batch(ids))
        assert model.passes == plain.passes, "each text passes once"
        encoded += plain.passes - 2
        cut = [plain.weights[column, ids][:, :2] for column in (0, 1)]
        scores = 8.0 * cos_sim(*cut)
        if kind is EMC2Loss:
            inside, outside, came_with = (torch.from_numpy(one) for one in alone.last_samples())
            stored = 8.0 * cos_sim(cut[0], plain.weights[1][came_with.clamp(min=0)][:, :2]).diagonal()
            small = ((inside * scores).sum(1) + outside * stored - scores.diagonal()).mean()
        else:
            small = (alone._drawn["query_to_doc"] * scores).sum() / 3 - scores.diagonal().mean()
        torch.testing.assert_close(both, full + 0.5 * small, check_dtype=False, rtol=1e-5, atol=1e-6)
        assert number == int(base.row_state()["clock"])
    states, others = base.row_state(), alone.row_state()
    assert all(np.array_equal(states[name], others[name]) for name in states)
    assert (kind is EMC2Loss) == (encoded > 0)


# ---------------------------------------------------------------- row ids in the trainer


class Spying(EMC2Loss):
    """Keeps, of each batch in training, the ids, and the token ids of its texts and of the stored rows it asked for."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.batches, self.asked = [], []

    def forward(self, sentence_features, labels=None, row_ids=None):
        if self.model.training:
            tokens = [column["input_ids"].tolist() for column in sentence_features]
            self.batches.append((self._ids.tolist(), tokens))
        return super().forward(sentence_features, labels, row_ids)

    def features_of(self, direction, rows):
        features = super().features_of(direction, rows)
        self.asked.append((rows.tolist(), features["input_ids"].tolist()))
        return features


def tokens_of(model, texts):
    """As the collator makes them."""
    return model.tokenize(list(texts))["input_ids"].tolist()


def check_spy(spy, model, rows):
    """Ids and texts belong together, in batches and where stored rows were asked for."""
    for ids, tokens in spy.batches:
        assert tokens == [tokens_of(model, rows[ids][column]) for column in ("anchor", "positive")]
    for ids, tokens in spy.asked:
        assert tokens == tokens_of(model, rows[ids]["positive"])


def train(folder, rows, loss, model, resume=None, **given):
    """Trains to the end, from the start or from a checkpoint."""
    defaults = {
        "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 1e-3, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "planner": "bisect",
    }  # fmt: skip
    more = {key: given.pop(key) for key in ("eval_dataset",) if key in given}
    trainer = RecordingTrainer(
        model, GCBSTrainingArguments(str(folder), **{**defaults, **given}), rows, loss=loss, **more
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    "given",
    [
        {}, {"dataloader_num_workers": 2}, {"gradient_accumulation_steps": 3, "embedding_source": "harvest"},
        {"prompts": {"positive": "passage: "}},
    ],
    ids=["plain", "workers", "accumulation, harvest", "prompts"],
)  # fmt: skip
def test_the_trainer_tells_which_rows(tmp_path, pairs, given):
    """Whatever loader, accumulation or source: ids, batches and stored rows belong together."""
    rows, model = pairs.select(range(50)), make_static_model()
    spy = Spying(model)
    train(tmp_path, rows, spy, model, **given)
    assert 18 == len(spy.batches) == int(spy.row_state()["clock"])
    prompts = given.get("prompts", {})
    check_spy(spy, model, rows.map(lambda row: {name: prompts.get(name, "") + text for name, text in row.items()}))
    assert spy.asked
    assert (None, None) == (spy._ids, spy._features_of), "it would reach into a trainer that is done"
    assert 50 == len(spy.row_state()["visited"])


def test_the_trainer_tells_the_rows_of_a_wrapped_loss(tmp_path, pairs):
    """Inside of Matryoshka, where each batch asks twice."""
    rows, model = pairs.select(range(50)), make_static_model()
    spy = Spying(model)
    train(tmp_path, rows, MatryoshkaLoss(model, spy, [16, 8]), model)
    assert 36 == len(spy.batches)
    assert 18 == int(spy.row_state()["clock"])
    check_spy(spy, model, rows)


@pytest.mark.parametrize("shared", [True, False, "one has none"])
def test_the_trainer_tells_the_rows_of_several_datasets(tmp_path, pairs, shared):
    """A shared loss counts through all datasets, one for each dataset begins at 0 in each."""
    parts, model = DatasetDict(a=pairs.select(range(30)), b=pairs.select(range(30, 80))), make_static_model()
    spies = [Spying(model), Spying(model)]
    if shared == "one has none":
        train(tmp_path, parts, {"a": MultipleNegativesRankingLoss(model), "b": spies[1]}, model)
        check_spy(spies[1], model, parts["b"])
        assert [] == spies[0].batches
        return
    train(tmp_path, parts, spies[0] if shared else {"a": spies[0], "b": spies[1]}, model)
    check_spy(spies[0], model, pairs if shared else parts["a"])
    assert (80 if shared else 30) == len(spies[0].row_state()["visited"])
    if not shared:
        check_spy(spies[1], model, parts["b"])
        assert all(len(spy.batches) > 5 for spy in spies)


def test_the_ids_of_one_loss_for_two_of_three_datasets():
    """Such a loss counts through its own datasets alone."""
    model = nn.Identity()
    one, other, told = EMC2Loss(model), SogCLRLoss(model), []
    losses = {"a": one, "b": other, "c": one}
    states = RowStates(
        losses, {"a": 3, "b": 4, "c": 5}, lambda *given: told.append((given[0], given[1].tolist(), given[2])), seed=0
    )
    assert (8, 4) == (one.rows, other.rows)
    with states.telling("c", np.array([1, 0, 4])):
        assert ([4, 3, 7], None) == (one._ids.tolist(), other._ids)
    with states.telling("b", np.array([0, 3])):
        assert (None, [0, 3]) == (one._ids, other._ids.tolist())
    one._features_of(np.array([3, 7]), 1)
    one._features_of(np.array([2]), 0)
    assert [("c", [0, 4], 1), ("a", [2], 0)] == told


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_in_training_leaves_states_alone(tmp_path, pairs, kind):
    """A run that evaluates ends as one that does not, and its evaluation loss is the host's."""
    rows, states = pairs.select(range(48)), []
    for given in ({}, {"eval_dataset": pairs.select(range(48)), "eval_strategy": "epoch"}):
        model = make_static_model()
        loss = kind(model)
        trainer = train(tmp_path, rows, loss, model, **given)
        states.append((weights_hash(trainer.model), {k: v.tolist() for k, v in loss.row_state().items()}))
    assert states[0] == states[1]
    ours = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.loss = MultipleNegativesRankingLoss(model)
    assert ours[-1] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)


def test_a_loss_without_states_costs_nothing(tmp_path, pairs):
    """Batches are not numbered then, and a checkpoint holds no file of ours beside the plan."""
    model = make_static_model()
    trainer = train(
        tmp_path, pairs, MultipleNegativesRankingLoss(model), model, max_steps=2, save_steps=1, save_strategy="steps"
    )
    assert [] == trainer.row_states.losses
    assert [] == [*tmp_path.rglob(LOSSES_FILE)]
    assert "Numbered" not in type(trainer.get_train_dataloader().dataset).__name__


def test_another_training_set_is_refused(tmp_path, pairs):
    """A loss that has seen other rows is not trained on with these."""
    model = make_static_model()
    loss = EMC2Loss(model)
    train(tmp_path, pairs.select(range(40)), loss, model, max_steps=2)
    with pytest.raises(ValueError, match="states of 40 rows, but the training set has 48.*Make a new loss"):
        train(tmp_path, pairs.select(range(48)), loss, model, max_steps=2)


# ---------------------------------------------------------------- checkpoints

CASES = {
    "emc2": (EMC2Loss, {}, {}, (1, 6, 11)),
    "both directions, harvest, accumulation": (
        EMC2Loss, {"directions": BOTH, "mix": 0.2},
        {"embedding_source": "harvest", "gradient_accumulation_steps": 2, "replan_steps": 2}, (2, 5),
    ),
    "workers": (EMC2Loss, {}, {"dataloader_num_workers": 1}, (4,)),
    "sogclr": (SogCLRLoss, {"gamma": 0.5}, {}, (7,)),
}  # fmt: skip


def plain_state(loss):
    """The states as lists, which compare as one."""
    return {name: array.tolist() for name, array in loss.row_state().items()}


@pytest.mark.parametrize("kind, options, given, checkpoints", CASES.values(), ids=CASES)
def test_every_checkpoint_resumes_bitwise(tmp_path, bert_folder, pairs, kind, options, given, checkpoints):
    """The same weights and the same states as those of a run that was never stopped, dropout on."""
    rows = pairs.select(range(53))

    def trained(folder, resume=None, **more):
        model = SentenceTransformer(bert_folder, device="cpu")
        loss = kind(model, **options)
        return train(
            folder, rows, loss, model, resume, **{"num_train_epochs": 2, "replan_steps": 3, **given, **more}
        ), loss

    whole, loss = trained(tmp_path / "whole", save_strategy="steps", save_steps=1)
    for step in checkpoints:
        resumed, again = trained(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert [one for one in whole.trained if one[0] > step] == resumed.trained
        assert weights_hash(whole.model) == weights_hash(resumed.model), step
        assert plain_state(loss) == plain_state(again)
    # The states matter: without them the run ends elsewhere.
    (tmp_path / "whole" / f"checkpoint-{checkpoints[-1]}" / LOSSES_FILE).unlink()
    forgetful, _ = trained(tmp_path / "more", str(tmp_path / "whole" / f"checkpoint-{checkpoints[-1]}"))
    assert weights_hash(whole.model) != weights_hash(forgetful.model)


def test_states_in_a_checkpoint(tmp_path, pairs, caplog):
    """Small, whole, refused for another training set or loss, and missed with a warning."""
    rows = pairs.select(range(64))

    def trained(rows, kind=EMC2Loss, resume=None, **options):
        model = make_static_model()
        folder = tmp_path if resume is None else tmp_path / "more"
        return train(
            folder,
            rows,
            kind(model, **options),
            model,
            resume,
            num_train_epochs=1,
            save_strategy="steps",
            save_steps=4,
        )

    trained(rows)
    checkpoint = tmp_path / "checkpoint-4"
    assert [] == [*checkpoint.glob("*.tmp")]
    assert 64 * 20 < (checkpoint / LOSSES_FILE).stat().st_size < 64 * 20 + 3000
    arrays, kinds = read_arrays(checkpoint / LOSSES_FILE)
    assert (["EMC2Loss"], 32) == (kinds, (arrays["0 visited"] > 0).sum())
    with pytest.raises(ValueError, match=r"gcbs_losses.npz cannot be resumed from.*64 rows, expected those of 80"):
        trained(pairs.select(range(80)), resume=str(checkpoint))
    with pytest.raises(ValueError, match="states of .'EMC2Loss'., expected those of .'SogCLRLoss'."):
        trained(rows, SogCLRLoss, resume=str(checkpoint))
    with pytest.raises(ValueError, match="other directions"):
        trained(rows, directions=BOTH, resume=str(checkpoint))
    (checkpoint / LOSSES_FILE).write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged"):
        trained(rows, resume=str(checkpoint))
    (checkpoint / LOSSES_FILE).unlink()
    trained(rows, resume=str(checkpoint))
    assert "states that losses keep of rows start as in a new run" in caplog.text


# ---------------------------------------------------------------- two processes


@pytest.mark.parametrize(
    "kind",
    ["emc2", pytest.param("both directions", marks=pytest.mark.slow), pytest.param("sogclr", marks=pytest.mark.slow)],
)
def test_two_processes_agree_at_checkpoints(tmp_path, bert_folder, kind):
    """Each row's newest state goes to both; weights stay equal; a resumed run equals one that was not stopped."""
    run_ranks(losses_job.work, 2, bert_folder, tmp_path, kind, folder=tmp_path)
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["whole"]["weights"] == ranks[1]["whole"]["weights"]
    merges = [rank["whole"]["merges"] for rank in ranks]
    assert 3 == len(merges[0]) == len(merges[1])
    moved = twice = last = 0
    for (first, after), (second, also) in zip(*merges, strict=True):
        assert after == also
        for row, visits in enumerate(zip(first["visited"], second["visited"], strict=True)):
            newest = (first, second)[visits[1] >= visits[0]]
            assert all(after[name][row] == newest[name][row] for name in after if name != "clock")
            moved += visits[0] != visits[1]
            twice += min(visits) > last
        last = after["clock"]
    assert moved > 100
    assert twice > 0, "no row was drawn by both processes since they last agreed"
    for rank in ranks:
        for step, resumed in rank["resumed"].items():
            assert rank["whole"]["weights"] == resumed["weights"], step
            assert rank["whole"]["state"] == resumed["state"], step
    own = [{row for ids in rank["whole"]["rows"] for row in ids} for rank in ranks]
    assert own[0] != own[1]
    if kind != "sogclr":
        assert any(rank["whole"]["asked"] for rank in ranks)
