"""A folder that Hugging Face's libraries take for their cache, with tiny random models and rows under hub names.

The host's own tests load models and data sets by name. Here the names of those that its trainer's tests use stand for
models of two random layers and for made-up rows, so the tests run where there is no hub, and the same everywhere.
"""

from __future__ import annotations

import hashlib
import shutil
import string
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"word{i}" for i in range(100)]
PIECES = [*string.ascii_lowercase, *string.digits, *string.punctuation]
# The tests take ids of 400 and 500 for special tokens, so there have to be as many.
SIZE = 1000

DENSE = "sentence-transformers-testing/stsb-bert-tiny-safetensors"
SPARSE = "sparse-encoder-testing/splade-bert-tiny-nq"
TOKENIZER = "google-bert/bert-base-uncased"
ROWS = {"sentence-transformers/stsb": {"train": 200, "validation": 100, "test": 100}}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer, which knows a hundred words and spells all others."""
    pieces = [*SPECIAL, *WORDS, *PIECES, *(f"##{piece}" for piece in PIECES)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *(f"[unused{i}]" for i in range(SIZE - len(pieces)))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **dict(zip(names, SPECIAL, strict=True))
    )


def make_bert(folder: Path, architecture: type[BertModel] | type[BertForMaskedLM]) -> None:
    """Saves a random BERT of two narrow layers and its tokenizer."""
    config = BertConfig(
        vocab_size=SIZE, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_hub(home: Path) -> Path:
    """Returns the cache folder, for the environment variable HF_HUB_CACHE.

    Args:
        home: where it is made; of an earlier call it is taken as it is.
    """
    hub = home / "hub"
    if hub.exists():
        return hub
    staged = home / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    make_bert(staged / "bert", BertModel)
    transformer = Transformer(str(staged / "bert"), max_seq_length=128)
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(_snapshot(staged / "hub", DENSE)))
    _save_sparse(staged)
    make_tokenizer().save_pretrained(_snapshot(staged / "hub", TOKENIZER))
    (staged / "hub").rename(hub)
    shutil.rmtree(staged)
    return hub


def _save_sparse(staged: Path) -> None:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    make_bert(staged / "masked", BertForMaskedLM)
    encoder = SparseEncoder(modules=[MLMTransformer(str(staged / "masked")), SpladePooling()], device="cpu")
    encoder.save(str(_snapshot(staged / "hub", SPARSE)))


def _snapshot(hub: Path, name: str) -> Path:
    """The folder of a model's files, as `huggingface_hub` lays them out."""
    repository = hub / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    return repository / "snapshots" / commit


def load_rows(name: str, *args: object, **kwargs: object) -> DatasetDict:
    """Stands for `datasets.load_dataset`: scored pairs of made-up sentences.

    Raises:
        ConnectionError: another data set than those of `ROWS`, as without a network.
    """
    if name not in ROWS or args or kwargs:
        raise ConnectionError(f"no hub: the data set {name!r} is not among those that are made here")
    rng = np.random.default_rng(0)

    def make(rows: int) -> Dataset:
        first, second = [
            [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 9)))) for _ in range(rows)] for _ in range(2)
        ]
        return Dataset.from_dict(
            {"sentence1": first, "sentence2": second, "score": (rng.integers(6, size=rows) / 5).tolist()}
        )

    return DatasetDict({split: make(rows) for split, rows in ROWS[name].items()})
