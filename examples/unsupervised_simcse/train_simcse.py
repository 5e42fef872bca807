"""Trains unsupervised SimCSE: each sentence is its own positive, and dropout makes the two embeddings differ.

python examples/unsupervised_simcse/train_simcse.py
python examples/unsupervised_simcse/train_simcse.py --model distilbert/distilroberta-base --out models/simcse_roberta
python examples/unsupervised_simcse/train_simcse.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def sts_evaluator(rows: Dataset, name: str) -> EmbeddingSimilarityEvaluator:
    """Returns the evaluator of scored pairs of sentences."""
    return EmbeddingSimilarityEvaluator(
        list(rows["sentence1"]), list(rows["sentence2"]), list(rows["score"]), name=name
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google-bert/bert-base-uncased", help="encoder to train (%(default)s)")
    parser.add_argument(
        "--out", default="models/unsupervised_simcse", help="folder of checkpoints and model (%(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data, one sentence per row, and make it a pair with itself
    if options.smoke:
        options.model = smoke.random_model()
        rows, dev, test = smoke.sentences(), smoke.scored_pairs(), smoke.scored_pairs()
    else:
        rows = load_dataset("sentence-transformers/wikipedia-en-sentences", split="train[:1000000]")
        dev = load_dataset("sentence-transformers/stsb", split="validation")
        test = load_dataset("sentence-transformers/stsb", split="test")
    train = rows.map(lambda batch: {"anchor": batch["sentence"], "positive": batch["sentence"]}, batched=True)
    train = train.select_columns(["anchor", "positive"])

    # 2. Load the model
    model = SentenceTransformer(options.model)
    model.max_seq_length = 32

    # 3. Define the loss
    loss = MultipleNegativesRankingLoss(model)

    # 4. Define the training arguments. Of rows of one text planner="auto" makes random batches, embeds nothing, and says so:
    # planned batches lost points here. planner="bisect" would plan them all the same.
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=3e-5,
        bf16=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=250,
        save_strategy="steps",
        save_steps=250,
        save_total_limit=2,
        logging_steps=100,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train
    evaluator = sts_evaluator(dev, "sts-dev")
    evaluator(model)
    trainer = GCBSTrainer(model, args, train, loss=loss, evaluator=evaluator)
    trainer.train()

    # 6. Evaluate and save
    scores = sts_evaluator(test, "sts-test")(model)
    print(f"STS-B test, Spearman: {scores['sts-test_spearman_cosine']:.4f}")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
