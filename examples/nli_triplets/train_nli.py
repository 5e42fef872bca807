"""Trains sentence embeddings on NLI triplets from a raw encoder, in planned batches.

python examples/nli_triplets/train_nli.py
python examples/nli_triplets/train_nli.py --model google-bert/bert-base-uncased --out models/bert_nli
python examples/nli_triplets/train_nli.py --smoke
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
    parser.add_argument("--model", default="distilbert/distilroberta-base", help="encoder to train (%(default)s)")
    parser.add_argument("--out", default="models/nli_triplets", help="folder of checkpoints and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data: triplets (anchor, entailed, contradiction), and scored pairs to evaluate on
    if options.smoke:
        options.model = smoke.random_model()
        train, dev, test = smoke.triplets(), smoke.scored_pairs(), smoke.scored_pairs()
    else:
        train = load_dataset("sentence-transformers/all-nli", "triplet", split="train")
        dev = load_dataset("sentence-transformers/stsb", split="validation")
        test = load_dataset("sentence-transformers/stsb", split="test")

    # 2. Load the model; an encoder without pooling is given mean pooling
    model = SentenceTransformer(options.model)

    # 3. Define the loss: the plain one. Rows bring negatives of their own, and an encoder that was never trained on pairs
    # is no judge of which negatives are false, so a guarded loss would throw away what it should learn from.
    loss = MultipleNegativesRankingLoss(model)

    # 4. Define the training arguments. planner="auto" is the default; for a transformer it composes batches of rows that
    # the model found alike before training, and the log says so.
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=2e-5,  # choose it anew: planned batches may prefer another one than random batches do
        warmup_steps=0.1,
        bf16=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=500,
        save_strategy="steps",
        save_steps=500,
        save_total_limit=2,
        logging_steps=100,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train. A run that was stopped goes on with trainer.train(resume_from_checkpoint=True), in the same batches.
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
