"""Trains embeddings that may be cut short, in large planned batches that fit into little memory.

python examples/matryoshka_cached/train_matryoshka.py
python examples/matryoshka_cached/train_matryoshka.py --model google-bert/bert-base-uncased --out models/bert_matryoshka
python examples/matryoshka_cached/train_matryoshka.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="distilbert/distilroberta-base", help="encoder to train (%(default)s)")
    parser.add_argument(
        "--out", default="models/matryoshka_cached", help="folder of checkpoints and model (%(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data
    if options.smoke:
        options.model = smoke.random_model()
        train, test = smoke.triplets(), smoke.scored_pairs()
    else:
        train = load_dataset("sentence-transformers/all-nli", "triplet", split="train")
        test = load_dataset("sentence-transformers/stsb", split="test")

    # 2. Load the model
    model = SentenceTransformer(options.model)
    width = model.get_embedding_dimension()
    assert width is not None
    dimensions = [width, width // 2, width // 4, width // 8]

    # 3. Define the loss. The cached one embeds 32 texts at a time, whatever the batch; MatryoshkaLoss sums it over the
    # dimensions. Plans are made on whole embeddings.
    cached = CachedMultipleNegativesRankingLoss(model, mini_batch_size=4 if options.smoke else 32)
    loss = MatryoshkaLoss(model, cached, matryoshka_dims=dimensions)

    # 4. Define the training arguments
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        num_train_epochs=1,
        per_device_train_batch_size=512,
        per_device_eval_batch_size=64,
        learning_rate=5e-5,
        warmup_steps=0.1,
        bf16=torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=200,
        save_total_limit=2,
        logging_steps=20,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train
    trainer = GCBSTrainer(model, args, train, loss=loss)
    trainer.train()

    # 6. Evaluate at each of the dimensions, and save
    for dimension in dimensions:
        evaluator = EmbeddingSimilarityEvaluator(
            list(test["sentence1"]), list(test["sentence2"]), list(test["score"]),
            name=f"sts-test-{dimension}", truncate_dim=dimension,
        )  # fmt: skip
        score = evaluator(model)[f"sts-test-{dimension}_spearman_cosine"]
        print(f"STS-B test, Spearman, {dimension} dimensions: {score:.4f}")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
