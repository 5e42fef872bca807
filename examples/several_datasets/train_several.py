"""Trains one model on three datasets with a loss each; those whose loss contrasts rows are planned, each by itself.

python examples/several_datasets/train_several.py
python examples/several_datasets/train_several.py --model sentence-transformers/all-mpnet-base-v2
python examples/several_datasets/train_several.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.losses import GuardedMultipleNegativesRankingLoss

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="model to train (%(default)s)"
    )
    parser.add_argument(
        "--out", default="models/several_datasets", help="folder of checkpoints and model (%(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data, each dataset under a name
    if options.smoke:
        options.model = smoke.random_model()
        train = DatasetDict(nli=smoke.triplets(), questions=smoke.pairs(), sts=smoke.scored_pairs())
        test = smoke.scored_pairs()
    else:
        train = DatasetDict(
            nli=load_dataset("sentence-transformers/all-nli", "triplet", split="train").select(range(100_000)),
            questions=load_dataset("sentence-transformers/quora-duplicates", "pair", split="train"),
            sts=load_dataset("sentence-transformers/stsb", split="train"),
        )
        test = load_dataset("sentence-transformers/stsb", split="test")

    # 2. Load the model
    model = SentenceTransformer(options.model)

    # 3. Define a loss for each dataset, by its name. With mask_by_identity rows that share a text are no negatives of
    # each other, wherever they stand: many questions are asked more than twice. Scored pairs have no in-batch negatives, so
    # nothing can be planned for them; they are trained exactly as the host trains them, and one warning says so.
    losses = {
        "nli": MultipleNegativesRankingLoss(model),
        "questions": GuardedMultipleNegativesRankingLoss(model, margin=None, mask_by_identity=True),
        "sts": CoSENTLoss(model),
    }

    # 4. Define the training arguments. Each step draws a batch of one dataset; dataset_weights says of which: 1 in proportion
    # to their sizes, 0 all alike, 0.5 in between, or {"nli": 2, "questions": 1, "sts": 1}. Without it
    # multi_dataset_batch_sampler decides, as in the host.
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        dataset_weights=0.5,
        num_train_epochs=1,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=2e-5,
        warmup_steps=0.1,
        bf16=torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=500,
        save_total_limit=2,
        logging_steps=100,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train; the figures of plans are logged by dataset, as gcbs/nli/closed
    trainer = GCBSTrainer(model, args, train, loss=losses)
    trainer.train()

    # 6. Evaluate and save
    evaluator = EmbeddingSimilarityEvaluator(
        list(test["sentence1"]), list(test["sentence2"]), list(test["score"]), name="sts-test"
    )
    print(f"STS-B test, Spearman: {evaluator(model)['sts-test_spearman_cosine']:.4f}")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
