"""Embedding rows for planning: as training embeds them, each text once, and without a trace in the run."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_static_model, word_tokenizer
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding

from gcbs_st.embeddings import encode as embeddings
from gcbs_st.embeddings.encode import encode_rows, evaluation_mode
from gcbs_st.rows.columns import TextColumn, text_columns

COLUMNS = [TextColumn("anchor"), TextColumn("positive")]
NAMES = st.sampled_from(["anchor", "positive", "first", "second"])
SETTINGS = st.one_of(
    st.none(), st.dictionaries(NAMES, st.sampled_from(["query", "passage"])),
    st.dictionaries(NAMES, st.dictionaries(NAMES, st.sampled_from(["query", "passage"]))),
)  # fmt: skip


@pytest.fixture
def bert(bert_folder: str) -> SentenceTransformer:
    """A freshly loaded BERT with dropout, in the mode of training."""
    return SentenceTransformer(bert_folder, device="cpu").train()


def training_forward(
    model: SentenceTransformer, dataset: Dataset, names: list[str], **options: Any
) -> list[np.ndarray]:
    """Unit rows of the collator's features through the model in evaluation mode, as a loss would get them."""
    batch = SentenceTransformerDataCollator(model.preprocess, **options)(list(dataset))
    modes = [module.training for module in model.modules()]
    model.eval()
    made = []
    with torch.no_grad():
        for name in names:
            features = {key.removeprefix(f"{name}_"): batch[key] for key in batch if key.startswith(f"{name}_")}
            task = features.pop("task", None)
            out = model(features, **({"task": task} if task else {}))["sentence_embedding"]
            made.append(torch.nn.functional.normalize(out, dim=1).numpy())
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return made


def global_states() -> list[str]:
    """The states of the three global generators."""
    return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]  # noqa: NPY002


# ------------------------------------------------------------------ text_columns


@settings(max_examples=400, deadline=None)
@given(
    prompts=st.one_of(st.sampled_from(["", "query : "]), SETTINGS), router_mapping=SETTINGS,
    dataset_name=st.one_of(st.none(), NAMES),
)  # fmt: skip
def test_prompts_and_routes_are_those_of_the_collator(
    prompts: Any, router_mapping: Any, dataset_name: str | None
) -> None:
    """In every form, and with any names, a column gets the prompt and route that the host's collator gives it."""
    asked = []

    def preprocess(texts: list[str], prompt: str | None = None, task: str | None = None) -> dict[str, torch.Tensor]:
        asked.append((prompt or "", task))
        return {"input_ids": torch.zeros(1, 1)}

    collator = SentenceTransformerDataCollator(preprocess, prompts=prompts, router_mapping=router_mapping or {})
    dataset = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    row = dataset[0] if dataset_name is None else {**dataset[0], "dataset_name": dataset_name}
    try:
        collator([row])
    except ValueError:
        return  # prompts a dataset without datasets: the host refuses to train
    expected = [TextColumn(name, *given) for name, given in zip(["anchor", "positive"], asked, strict=True)]
    found = text_columns(dataset, prompts=prompts, router_mapping=router_mapping, dataset_name=dataset_name)
    assert expected == found


@pytest.mark.parametrize(
    ("prompts", "name", "expected"),
    [
        ("query : ", None, ["query : ", "query : "]),
        ({"anchor": "query : "}, None, ["query : ", ""]),
        ({"first": "passage : ", "second": "query : "}, "first", ["passage : ", "passage : "]),
        ({"first": {"positive": "passage : "}, "second": {"anchor": "query : "}}, "first", ["", "passage : "]),
        (None, None, ["", ""]),
    ],
)
def test_four_forms_of_prompts(prompts: Any, name: str | None, expected: list[str]) -> None:
    """One prompt for all, by column, by dataset, and by dataset and column."""
    dataset = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    assert expected == [column.prompt for column in text_columns(dataset, prompts=prompts, dataset_name=name)]


def test_order_of_columns_decides() -> None:
    """The first two columns that are no labels are taken, whatever their names."""
    dataset = Dataset.from_dict(
        dict.fromkeys(("score", "dataset_name", "positive", "label", "anchor", "negative"), ["a"])
    )
    found = text_columns(dataset, label_columns=["label", "score"])
    # As in the host's collator a second name of labels is a text.
    assert ["score", "positive"] == [column.name for column in found]
    found = text_columns(dataset, label_columns=["score", "label"])
    assert ["positive", "label"] == [column.name for column in found]


@pytest.mark.parametrize("columns", [["text"], ["label", "text"]])
def test_a_single_column_is_anchor_and_positive(columns: list[str]) -> None:
    """There is nothing else to plan on."""
    dataset = Dataset.from_dict(dict.fromkeys(columns, ["a"]))
    assert ["text"] == [column.name for column in text_columns(dataset, label_columns=["label"])]


def test_no_text_column_is_refused() -> None:
    """The message names the columns there are."""
    with pytest.raises(ValueError, match=r"columns \['label'\], expected at least one that holds texts"):
        text_columns(Dataset.from_dict({"label": [1]}), label_columns=["label"])


def test_columns_are_those_that_a_transform_makes() -> None:
    """Ids that are resolved to texts when a row is read are no columns of texts; what is made of them is."""
    dataset = Dataset.from_dict({"query_id": [1], "passage_id": [2]})
    dataset.set_transform(
        lambda rows: {"query": ["q"] * len(rows["query_id"]), "passage": ["p"] * len(rows["query_id"])}
    )
    assert ["query", "passage"] == [column.name for column in text_columns(dataset)]


# ------------------------------------------------------------------ encode_rows


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    "prompts", [None, "query : ", {"anchor": "query : ", "positive": "passage : "}, {"anchor": "query : "}]
)
def test_equals_training_forward(
    bert: SentenceTransformer, pairs: Dataset, prompts: Any, include_prompt: bool
) -> None:
    """The rows are what collator and model give in evaluation mode, prompts and their masking included."""
    bert.set_pooling_include_prompt(include_prompt)
    pairs = pairs.select(range(40))
    columns = text_columns(pairs, prompts=prompts)
    expected = training_forward(bert, pairs, ["anchor", "positive"], prompts=prompts)
    found = encode_rows(bert, pairs, np.arange(40), columns, batch_size=7)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert (np.float32, (40, 16)) == (other.dtype, other.shape)
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-5)


def test_prompt_makes_a_difference(bert: SentenceTransformer, pairs: Dataset) -> None:
    """With other prompts the rows are other ones, so that the comparison above can fail."""
    rows = np.arange(10)
    plain = encode_rows(bert, pairs, rows, COLUMNS, batch_size=8)
    prompted = encode_rows(bert, pairs, rows, text_columns(pairs, prompts={"anchor": "query : "}), batch_size=8)
    assert 1e-3 < np.abs(plain[0] - prompted[0]).max()
    np.testing.assert_allclose(plain[1], prompted[1], atol=1e-5)


def test_precision_of_training(bert: SentenceTransformer, pairs: Dataset) -> None:
    """Rows are embedded in the half precision that they are trained in, and have unit norm in full precision."""
    bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    plain = encode_rows(bert, pairs, np.arange(40), COLUMNS, batch_size=8)
    found = encode_rows(bert, pairs, np.arange(40), COLUMNS, batch_size=8, autocast=bfloat16)
    for one, other in zip(plain, found, strict=True):
        assert 1e-5 < np.abs(one - other).max() < 0.05
        assert np.float32 == other.dtype
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-6)


def test_default_prompt_is_not_applied(bert: SentenceTransformer, pairs: Dataset) -> None:
    """The prompt that the model puts before texts at inference is not used, as training does not use it."""
    expected = encode_rows(bert, pairs, np.arange(10), COLUMNS, batch_size=8)
    bert.prompts = {"query": "query : ", "document": "passage : "}
    bert.default_prompt_name = "query"
    assert 1e-3 < np.abs(bert.encode(pairs["anchor"][:10], normalize_embeddings=True) - expected[0]).max()
    bert.train()
    found = encode_rows(bert, pairs, np.arange(10), COLUMNS, batch_size=8)
    assert [array.tolist() for array in expected] == [array.tolist() for array in found]
    np.testing.assert_allclose(training_forward(bert, pairs.select(range(10)), ["anchor"])[0], found[0], atol=1e-5)


def test_routes_of_training(pairs: Dataset) -> None:
    """Each column goes the route that training sends it, also where both hold the same texts."""
    weights = [np.random.default_rng(seed).normal(size=(67, 16)).astype(np.float32) for seed in (1, 2)]
    query, document = (StaticEmbedding(word_tokenizer(), embedding_weights=array) for array in weights)
    router = Router.for_query_document([query], [document])
    model = SentenceTransformer(modules=[router], device="cpu")
    pairs = Dataset.from_dict({"anchor": pairs["anchor"], "positive": pairs["anchor"]})
    mapping = {"anchor": "query", "positive": "document"}
    expected = training_forward(model, pairs, ["anchor", "positive"], router_mapping=mapping)
    found = encode_rows(model, pairs, np.arange(200), text_columns(pairs, router_mapping=mapping), batch_size=32)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert 0.1 < np.abs(found[0] - found[1]).max()


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 29), max_size=60), texts=st.integers(1, 70), block=st.integers(1, 70))
def test_rows_come_in_the_order_asked_for(rows: list[int], texts: int, block: int) -> None:
    """Row i of the result is row rows[i] of the dataset: any sub-set, order and repetition, read in any blocks."""
    words = [f"w{i}" for i in range(60)]
    # Texts of one to three equal words: known vectors, unsorted lengths.
    dataset = Dataset.from_dict(
        {"a": [" ".join([words[i]] * (i % 3 + 1)) for i in range(30)], "b": [words[i + 30] for i in range(30)]}
    )
    model = make_static_model()
    vectors = model[0].embedding.weight.detach().numpy()[7:]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = [TextColumn("a"), TextColumn("b")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "_ENCODE_TEXTS", texts)
        patch.setattr("gcbs_st.rows.columns._READ_ROWS", block)
        found = encode_rows(model, dataset, np.array(rows, dtype=np.int64), columns, batch_size=4)
    assert len(rows) == len(found[0]) == len(found[1])
    if rows:
        np.testing.assert_allclose(vectors[rows], found[0], atol=1e-6)
        np.testing.assert_allclose(vectors[np.array(rows) + 30], found[1], atol=1e-6)


def test_each_distinct_text_is_encoded_once(
    static_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that stand in several rows or in both columns pass the model once a prompt."""
    seen: list[str] = []
    encode = static_model.encode
    monkeypatch.setattr(
        static_model, "encode", lambda texts, **options: (seen.extend(texts), encode(texts, **options))[1]
    )
    dataset = Dataset.from_dict({"anchor": ["w1", "w2", "w1", "w3"], "positive": ["w2", "w4", "w4", "w3"]})
    found = encode_rows(static_model, dataset, np.arange(4), COLUMNS, batch_size=2)
    assert ["w1", "w2", "w3", "w4"] == sorted(seen)
    assert found[0][0].tolist() == found[0][2].tolist()
    assert found[0][1].tolist() == found[1][0].tolist()
    seen.clear()
    encode_rows(static_model, dataset, np.arange(4), [TextColumn("anchor", "query :"), COLUMNS[1]], batch_size=2)
    assert ["w1", "w2", "w2", "w3", "w3", "w4"] == sorted(seen)


def test_unsupervised_rows_are_one_array(static_model: SentenceTransformer) -> None:
    """Where both columns hold the same texts the two results are one object; where one text differs they are not."""
    texts = [f"w{i} w{i + 1}" for i in range(20)]
    same = Dataset.from_dict({"anchor": texts, "positive": texts})
    first, second = encode_rows(static_model, same, np.arange(20), COLUMNS, batch_size=8)
    assert first is second
    other = Dataset.from_dict({"anchor": texts, "positive": [*texts[:-1], "w50"]})
    first, second = encode_rows(static_model, other, np.arange(20), COLUMNS, batch_size=8)
    assert first is not second
    assert first[:-1].tolist() == second[:-1].tolist()
    prompted = [COLUMNS[0], TextColumn("positive", "query :")]
    first, second = encode_rows(static_model, same, np.arange(20), prompted, batch_size=8)
    assert first is not second


def test_batch_size_reaches_the_model(bert: SentenceTransformer, pairs: Dataset) -> None:
    """At most batch_size texts pass the model at a time."""
    sizes = []
    bert[0].register_forward_hook(lambda module, args, out: sizes.append(len(out["token_embeddings"])))
    encode_rows(bert, pairs, np.arange(25), COLUMNS, batch_size=8)
    assert (50, 8) == (sum(sizes), max(sizes))


# ------------------------------------------------------------------ no trace


def test_mode_of_every_module_is_restored(bert: SentenceTransformer, pairs: Dataset) -> None:
    """Modules in training mode are so afterwards, those that were frozen in evaluation mode too."""
    bert[0].model.encoder.layer[0].eval()
    bert[0].model.embeddings.dropout.eval()
    before = {name: module.training for name, module in bert.named_modules()}
    assert {True, False} == set(before.values())
    encode_rows(bert, pairs, np.arange(20), COLUMNS, batch_size=8)
    assert before == {name: module.training for name, module in bert.named_modules()}


def test_mode_is_restored_after_an_error(static_model: SentenceTransformer) -> None:
    """Also where something raises."""
    static_model.train()
    with pytest.raises(RuntimeError), evaluation_mode(static_model):
        static_model.eval()
        raise RuntimeError
    assert {True} == {module.training for module in static_model.modules()}


def test_dropout_is_off_and_no_global_number_is_drawn(bert: SentenceTransformer, pairs: Dataset) -> None:
    """Twice the same rows, with the generators of Python, NumPy and torch untouched, from a model with dropout."""
    assert 0 < bert[0].model.config.hidden_dropout_prob
    before = global_states()
    first = encode_rows(bert, pairs, np.arange(20), COLUMNS, batch_size=8)
    assert before == global_states()
    second = encode_rows(bert, pairs, np.arange(20), COLUMNS, batch_size=8)
    assert [array.tolist() for array in first] == [array.tolist() for array in second]


def test_no_gradients_and_weights_as_before(bert: SentenceTransformer, pairs: Dataset) -> None:
    """Weights, gradients and what requires them are untouched, and training goes on afterwards."""
    before = {name: parameter.clone() for name, parameter in bert.named_parameters()}
    encode_rows(bert, pairs, np.arange(20), COLUMNS, batch_size=8)
    for name, parameter in bert.named_parameters():
        assert torch.equal(before[name], parameter)
        assert (None, True) == (parameter.grad, parameter.requires_grad)
    bert(bert.preprocess(["w1 w2"]))["sentence_embedding"].sum().backward()


# ------------------------------------------------------------------ input


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nonfinite_embedding_is_a_row_of_zeros(static_model: SentenceTransformer, value: float) -> None:
    """The rows of all other texts are unit rows."""
    with torch.no_grad():
        static_model[0].embedding.weight[7 + 5] = value
    dataset = Dataset.from_dict({"anchor": ["w1", "w5 w2", "w3"], "positive": ["w4", "w6", "w5 w2"]})
    found = encode_rows(static_model, dataset, np.arange(3), COLUMNS, batch_size=2)
    norms = [np.linalg.norm(array, axis=1).round(5).tolist() for array in found]
    assert [[1, 0, 1], [1, 1, 0]] == norms


def test_a_text_of_nothing_is_a_row_of_zeros(static_model: SentenceTransformer) -> None:
    """So is one whose embedding the model makes zero."""
    with torch.no_grad():
        static_model[0].embedding.weight[7] = 0
    dataset = Dataset.from_dict({"anchor": ["w1", "w0 w0"], "positive": ["", "w5"]})
    anchors, positives = encode_rows(static_model, dataset, np.arange(2), COLUMNS, batch_size=2)
    assert [True, False] == anchors.any(axis=1).tolist()
    assert [False, True] == positives.any(axis=1).tolist()


def test_a_model_that_embeds_nothing_is_refused(static_model: SentenceTransformer) -> None:
    """The message shows a text, not more than a line of it, and the model is left as it was."""
    static_model.train()
    with torch.no_grad():
        static_model[0].embedding.weight[:] = np.nan
    dataset = Dataset.from_dict({"anchor": ["w0 " * 1000, "w2"], "positive": ["w4", "w5"]})
    with pytest.raises(
        ValueError, match="all are zero, NaN or infinity, for example that of 'w0 w0.*diverged"
    ) as raised:
        encode_rows(static_model, dataset, np.arange(2), COLUMNS, batch_size=2)
    assert len(str(raised.value)) < 350
    assert {True} == {module.training for module in static_model.modules()}


def test_transform_sees_complete_rows(static_model: SentenceTransformer) -> None:
    """A transform of the user's gets all columns, and what it makes is embedded."""
    dataset = Dataset.from_dict({"anchor": ["w1", "w2"], "positive": ["w3", "w4"], "extra": ["w5", "w6"]})
    seen = []

    def add_extra(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        seen.append(sorted(rows))
        return {**rows, "anchor": [f"{a} {e}" for a, e in zip(rows["anchor"], rows["extra"], strict=True)]}

    dataset.set_transform(add_extra)
    found = encode_rows(static_model, dataset, np.array([1, 0]), COLUMNS, batch_size=2)
    assert [["anchor", "extra", "positive"]] == seen
    expected = static_model.encode(["w2 w6", "w1 w5"], normalize_embeddings=True)
    np.testing.assert_allclose(expected, found[0], atol=1e-6)


def test_items_that_are_no_texts(static_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that are no texts, such as messages, pass the model each by itself, in their order."""

    def encode(items: list[Any], **options: Any) -> np.ndarray:
        return np.stack([np.eye(8, dtype=np.float32)[item["id"]] for item in items])

    monkeypatch.setattr(static_model, "encode", encode)
    dataset = Dataset.from_dict({"anchor": [{"id": i} for i in (3, 1, 2)], "positive": [{"id": i} for i in (5, 1, 4)]})
    found = encode_rows(static_model, dataset, np.array([2, 0, 1]), COLUMNS, batch_size=2)
    assert [[2, 3, 1], [4, 5, 1]] == [array.argmax(axis=1).tolist() for array in found]


def test_progress_bar_only_on_request(
    static_model: SentenceTransformer, pairs: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed unless progress bars were asked for."""
    encode_rows(static_model, pairs, np.arange(20), COLUMNS, batch_size=8)
    assert ("", "") == tuple(capsys.readouterr())
    encode_rows(static_model, pairs, np.arange(20), COLUMNS, batch_size=8, progress="planning pairs")
    assert "planning pairs: 100%" in capsys.readouterr().err
