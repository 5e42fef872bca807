"""What `--smoke` trains in the place of models and data from the hub: a random BERT of two layers, and made-up captions.

A caption says who does what where, each in one of two wordings. Rows about the same activity or place share words, so
that there is something to plan: batches of such rows are harder than random ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tempfile
from typing import TypeVar

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

Arguments = TypeVar("Arguments", bound=SentenceTransformerTrainingArguments)

BATCH_SIZE, STEPS = 8, 12
ROWS, HELD_OUT = 160, 40
# A fact is one of each; a text says each in one of the two wordings.
SUBJECTS = [
    ("a young man", "the boy"), ("an old woman", "the grandmother"), ("a little girl", "the small child"),
    ("the farmer", "a man in overalls"), ("a tall nurse", "the hospital worker"), ("the student", "a pupil"),
    ("the singer", "a performer"), ("a police officer", "the policeman"),
]  # fmt: skip
ACTIVITIES = [
    ("rides a bicycle", "is cycling"), ("reads a newspaper", "looks at the news"), ("plays the guitar", "makes music"),
    ("eats an apple", "is having fruit"), ("walks the dog", "is out with a pet"), ("sleeps on a bench", "takes a nap"),
    ("paints a picture", "is drawing"), ("throws a ball", "practises sport"), ("waits for the bus", "stands in a queue"),
]  # fmt: skip
PLACES = [
    ("along the river", "by the water"), ("in the park", "among the trees"), ("near the station", "close to the trains"),
    ("on the beach", "at the seaside"), ("behind the church", "next to the chapel"), ("in the snow", "on a winter day"),
]  # fmt: skip
FACTS = list(itertools.product(range(len(SUBJECTS)), range(len(ACTIVITIES)), range(len(PLACES))))
VERBS, NOUNS, OWNERS = (
    ["count", "find", "remove", "sort", "merge", "print"],
    ["words", "lines", "files", "users", "dates", "errors"],
    ["log", "table", "folder", "archive", "report", "page"],
)
SPECIAL = ["[PAD]", "[UNK]"]

_models = tempfile.TemporaryDirectory(prefix="smoke_")


# ---------------------------------------------------------------- rows


def pairs(rows: int = ROWS, seed: int = 0) -> Dataset:
    """Returns rows of anchor and positive, two captions of one fact; no fact stands in two rows."""
    rng = np.random.default_rng(seed)
    facts = [FACTS[i] for i in rng.permutation(len(FACTS))[:rows]]
    texts = [_captions(fact, rng) for fact in facts]
    return Dataset.from_dict({"anchor": [text for text, _ in texts], "positive": [text for _, text in texts]})


def triplets() -> Dataset:
    """Returns pairs with a negative: the subject of the anchor does something else in the same place."""
    rng = np.random.default_rng(1)
    facts = [FACTS[i] for i in rng.permutation(len(FACTS))[:ROWS]]
    others = [
        (who, (what + int(rng.integers(1, len(ACTIVITIES)))) % len(ACTIVITIES), where) for who, what, where in facts
    ]
    texts = [(*_captions(fact, rng), _captions(other, rng)[0]) for fact, other in zip(facts, others, strict=True)]
    return Dataset.from_list([dict(zip(("anchor", "positive", "negative"), row, strict=True)) for row in texts])


def scored_pairs() -> Dataset:
    """Returns rows of sentence1, sentence2 and score, the share of subject, activity and place that they agree in."""
    rng = np.random.default_rng(2)
    drawn = [(FACTS[rng.integers(len(FACTS))], FACTS[rng.integers(len(FACTS))]) for _ in range(ROWS)]
    facts = [(one, tuple(np.where(rng.random(3) < 0.5, one, other))) for one, other in drawn]
    return Dataset.from_list([
        {
            "sentence1": _captions(one, rng)[0], "sentence2": _captions(other, rng)[1],
            "score": sum(a == b for a, b in zip(one, other, strict=True)) / 3,
        }
        for one, other in facts
    ])  # fmt: skip


def sentences() -> Dataset:
    """Returns rows of one sentence."""
    return pairs(seed=3).select_columns(["anchor"]).rename_column("anchor", "sentence")


def questions() -> Dataset:
    """Returns rows of question and answer, with more rows than the others, so that some can be held out."""
    rows = pairs(ROWS + HELD_OUT, seed=4)
    return Dataset.from_dict({"question": [f"{text} ?" for text in rows["anchor"]], "answer": rows["positive"]})


def functions() -> Dataset:
    """Returns rows of comment and code."""
    rng = np.random.default_rng(5)
    made = [
        {
            "comment": f"{verb}s the {noun} of a {owner}",
            "code": f"def {verb}_{noun}({owner}): return [{verb}(one) for one in {owner}.{noun}]",
        }
        for verb, noun, owner in itertools.product(VERBS, NOUNS, OWNERS)
    ]
    return Dataset.from_list([made[i] for i in rng.permutation(len(made))[: ROWS + HELD_OUT]])


def _captions(fact: tuple[int, ...], rng: np.random.Generator) -> tuple[str, str]:
    """Returns two captions of a fact, which differ in the wording of one part."""
    parts = [wordings[number] for wordings, number in zip((SUBJECTS, ACTIVITIES, PLACES), fact, strict=True)]
    chosen = rng.integers(2, size=len(parts))
    other = np.where(np.arange(len(parts)) == rng.integers(len(parts)), 1 - chosen, chosen)
    first, second = ([part[one] for part, one in zip(parts, which, strict=True)] for which in (chosen, other))
    return " ".join(first), " ".join(second)


# ---------------------------------------------------------------- model and arguments


def random_model() -> str:
    """Returns the folder of a new model, which is gone when the process ends: BERT of two layers, mean pooling."""
    texts = [*itertools.chain(*SUBJECTS, *ACTIVITIES, *PLACES), "?"]
    texts += [text for row in functions() for text in row.values()]
    words = sorted({word for text in texts for word in re.findall(r"[^\W_]+|[^\w\s]|_", text)})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("_", " _ ")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]"
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, initializer_range=0.05,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bert = BertModel(config)
        # Words that weigh more than their positions make texts alike that share words, as a trained model finds them.
        bert.embeddings.word_embeddings.weight.data *= 10
        bert.save_pretrained(f"{_models.name}/bert")
    fast.save_pretrained(f"{_models.name}/bert")
    transformer = Transformer(f"{_models.name}/bert", max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(64)], device="cpu").save(f"{_models.name}/model")
    return f"{_models.name}/model"


def shorten(args: Arguments) -> Arguments:
    """Returns training arguments of the same kind for a few small steps on the CPU."""
    return dataclasses.replace(
        args,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        eval_steps=STEPS // 2,
        logging_steps=STEPS // 3,
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
