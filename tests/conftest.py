"""Tiny models and rows that every test may use; nothing here needs a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from light_host import compile_templates_once, spare_what_is_loaded
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{i}" for i in range(60)]
PROMPT_WORDS = ["query", "passage", ":"]
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *PROMPT_WORDS, *WORDS])}
PAIRS = 200


def word_tokenizer() -> Tokenizer:
    """A tokenizer that knows the words of `VOCABULARY` and splits at white space and punctuation."""
    tokenizer = Tokenizer(models.WordLevel(dict(VOCABULARY), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def make_static_model(seed: int = 0, dimensions: int = 16) -> SentenceTransformer:
    """A new static model with random word vectors, the same for the same seed; draws no global number."""
    weights = np.random.default_rng(seed).normal(size=(len(VOCABULARY), dimensions)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(word_tokenizer(), embedding_weights=weights)], device="cpu")


def make_bert(folder: Path, seed: int = 0, dropout: float = 0.1) -> str:
    """Saves a random BERT of two layers, with mean pooling, as a sentence-transformers model; its path."""
    tokenizer = word_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = BertModel(config)
    bert.save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def make_pairs(rows: int = PAIRS, seed: int = 0) -> Dataset:
    """Pairs of different texts that share some of their words, the same for the same seed."""
    rng = np.random.default_rng(seed)
    anchors, positives = [], []
    for _ in range(rows):
        words = rng.choice(WORDS, size=int(rng.integers(4, 9)), replace=False)
        half = len(words) // 2
        anchors.append(" ".join(words))
        positives.append(" ".join([*words[:half], *rng.choice(WORDS, size=3, replace=False)]))
    return Dataset.from_dict({"anchor": anchors, "positive": positives})


def planted_pairs(clusters: int, rows: int = 160, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """(rows * clusters, 24) unit anchors and positives; row i is of cluster i % clusters, and clusters lie far apart."""
    rng = np.random.default_rng(5)
    centers = (
        np.repeat(np.eye(24)[:clusters] * 2, rows, axis=0).reshape(clusters, rows, 24).swapaxes(0, 1).reshape(-1, 24)
    )
    topics = rng.normal(size=(len(centers), 24)) * noise
    sides = [centers + topics + rng.normal(size=topics.shape) * noise / 3 for _ in range(2)]
    return tuple((side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in sides)


def pytest_configure() -> None:
    """Examples of properties have no deadline: beside other processes one that takes 50 ms may take 300."""
    from hypothesis import settings  # not at the top: jobs import this file for its models

    settings.register_profile("tests", deadline=None)
    settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def light_templates() -> None:
    """Each save renders a model card; its template is compiled once."""
    compile_templates_once()


@pytest.fixture(scope="module", autouse=True)
def light_memory() -> None:
    """Each training ends with a garbage collection, which need not walk all that modules before this one left."""
    spare_what_is_loaded()


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Hosts before transformers 5 leave the precision and compiler of a run in the environment, for all runs after it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Runs the tiny models of a module on one thread: two that wait for each other are several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which embeddings are kept for later runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gcbs_st" / "embeddings"


@pytest.fixture
def static_model() -> SentenceTransformer:
    """A new static model; training it disturbs no other test."""
    return make_static_model()


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a saved BERT of two random layers with dropout; load it anew in each test."""
    return make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def pairs() -> Dataset:
    """200 rows of the columns anchor and positive."""
    return make_pairs()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real embeddings and corpora that the environment variable GCBS_ST_DATA names."""
    folder = os.environ.get("GCBS_ST_DATA")
    if not folder:
        pytest.skip("GCBS_ST_DATA does not name a folder of real data")
    return Path(folder)
