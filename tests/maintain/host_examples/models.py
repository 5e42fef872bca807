"""A folder that Hugging Face's libraries take for their cache, with tiny random models under the names of the hub.

Each is of the architecture of its name, so that adapters and layers are found where a script looks for them, and has
two layers, or as many as a script counts on.
"""

from __future__ import annotations

import hashlib
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from host_examples.texts import WORDS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*string.ascii_lowercase, *string.digits, *string.punctuation]
VOCABULARY = {piece: i for i, piece in enumerate([*SPECIAL, *WORDS, *PIECES, *(f"##{piece}" for piece in PIECES)])}
WIDTH = 128
LENGTH = 512
PIXELS = 32

# Encoders with the head of a language model: architecture by name.
ENCODERS = {
    "distilbert/distilbert-base-uncased": "distilbert",
    "distilbert/distilroberta-base": "roberta",
    "google-bert/bert-base-uncased": "bert",
    "FacebookAI/roberta-base": "roberta",
    "FacebookAI/xlm-roberta-base": "xlm-roberta",
    "microsoft/mpnet-base": "mpnet",
    "answerdotai/ModernBERT-base": "modernbert",
    "Alibaba-NLP/gte-modernbert-base": "modernbert",
    "Luyu/co-condenser-marco": "bert",
    "nreimers/TinyBERT_L-4_H-312_v2": "bert",
    "naver/splade-cocondenser-ensembledistil": "bert",
}
# Models of sentence embeddings: architecture and pooling by name.
SENTENCE_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", "mean"),
    "sentence-transformers/paraphrase-MiniLM-L6-v2": ("bert", "mean"),
    "sentence-transformers/all-mpnet-base-v2": ("mpnet", "mean"),
    "sentence-transformers/all-distilroberta-v1": ("roberta", "mean"),
    "sentence-transformers/paraphrase-distilroberta-base-v2": ("roberta", "mean"),
    "sentence-transformers/stsb-distilbert-base": ("distilbert", "mean"),
    "sentence-transformers/stsb-roberta-base-v2": ("roberta", "mean"),
    "mixedbread-ai/mxbai-embed-large-v1": ("bert", "cls"),
}
PICTURES = "openai/clip-vit-base-patch32"
# A script keeps every third of 24 layers; a student is narrower than its teacher.
LAYERS = {"mixedbread-ai/mxbai-embed-large-v1": 24}
WIDTHS = {"nreimers/TinyBERT_L-4_H-312_v2": WIDTH // 2}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer, which knows the words of the texts and spells all others."""
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, **dict(zip(names, SPECIAL, strict=True))
    )


def make_config(architecture: str, width: int = WIDTH, layers: int = 2) -> Any:
    """A small configuration; architectures name the same things differently."""
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    if architecture == "distilbert":
        sizes = {"dim": width, "n_layers": layers, "n_heads": 4, "hidden_dim": width}
    else:
        sizes["intermediate_size"] = width
    return AutoConfig.for_model(
        architecture,
        vocab_size=len(VOCABULARY),
        max_position_embeddings=LENGTH + 2,
        initializer_range=0.1,
        pad_token_id=VOCABULARY["[PAD]"],
        bos_token_id=VOCABULARY["[CLS]"],
        eos_token_id=VOCABULARY["[SEP]"],
        cls_token_id=VOCABULARY["[CLS]"],
        sep_token_id=VOCABULARY["[SEP]"],
        **sizes,
    )


def save_encoder(folder: Path, name: str, architecture: str) -> None:
    """Saves a random encoder and its tokenizer."""
    config = make_config(architecture, WIDTHS.get(name, WIDTH), LAYERS.get(name, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def save_sentence_model(folder: Path, name: str, architecture: str, pooling: str, scratch: Path) -> None:
    """Saves a random model of sentence embeddings."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    save_encoder(scratch, name, architecture)
    transformer = Transformer(str(scratch))
    pool = Pooling(transformer.get_embedding_dimension(), pooling)
    SentenceTransformer(modules=[transformer, pool], device="cpu").save(str(folder))


def save_clip(folder: Path) -> None:
    """Saves a random model of pictures and texts."""
    # Not at the top: the import itself says on the terminal what is not installed.
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": VOCABULARY["[CLS]"], "eos_token_id": VOCABULARY["[SEP]"], "pad_token_id": 0}
    config = CLIPConfig(
        text_config={"vocab_size": len(VOCABULARY), "max_position_embeddings": LENGTH, **sizes, **ids},
        vision_config={"image_size": PIXELS, "patch_size": PIXELS // 4, **sizes},
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS})
    CLIPProcessor(image_processor=pictures, tokenizer=make_tokenizer()).save_pretrained(folder)


def make_hub(home: Path) -> Path:
    """Returns the cache folder, for the environment variable HF_HUB_CACHE.

    Args:
        home: where it is made.
    """
    hub = home / "hub"
    for name, architecture in ENCODERS.items():
        save_encoder(_snapshot(hub, name), name, architecture)
    for number, (name, (architecture, pooling)) in enumerate(SENTENCE_MODELS.items()):
        save_sentence_model(_snapshot(hub, name), name, architecture, pooling, home / f"encoder_{number}")
    save_clip(_snapshot(hub, PICTURES))
    return hub


def _snapshot(hub: Path, name: str) -> Path:
    """The folder of a model's files, as `huggingface_hub` lays them out."""
    repository = hub / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    return repository / "snapshots" / commit
