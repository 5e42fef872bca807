"""Trains on a stream whose rows are never all in memory: windows of it are embedded and planned, one after the other.

python examples/streaming/train_stream.py
python examples/streaming/train_stream.py --steps 50000 --out models/streaming_long
python examples/streaming/train_stream.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="model to train (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=10_000, help="of training (%(default)s)")
    parser.add_argument("--out", default="models/streaming", help="folder of checkpoints and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data as a stream. Its first rows are held out, and shuffling the rest is up to you: a window holds rows
    # that come one after the other.
    if options.smoke:
        options.model = smoke.random_model()
        rows, held_out, window = smoke.questions().to_iterable_dataset(), smoke.HELD_OUT, 64
    else:
        rows = load_dataset("sentence-transformers/gooaq", split="train", streaming=True)
        held_out, window = 2000, 16_384
    test = Dataset.from_list(list(rows.take(held_out)))
    train = rows.skip(held_out).shuffle(seed=1, buffer_size=10_000)

    # 2. Load the model
    model = SentenceTransformer(options.model)

    # 3. Define the loss
    loss = MultipleNegativesRankingLoss(model)

    # 4. Define the training arguments. A stream does not say how long it is, so max_steps says when training ends. A larger
    # window makes harder batches: a batch is composed of the rows of one window.
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        planning_window=window,
        max_steps=options.steps,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=2e-5,
        warmup_steps=0.1,
        bf16=torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=1000,
        save_total_limit=2,
        logging_steps=100,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train; the figures of plans are logged for each window
    trainer = GCBSTrainer(model, args, train, loss=loss)
    trainer.train()

    # 6. Evaluate and save
    evaluator = InformationRetrievalEvaluator(
        queries={str(number): question for number, question in enumerate(test["question"])},
        corpus={str(number): answer for number, answer in enumerate(test["answer"])},
        relevant_docs={str(number): {str(number)} for number in range(len(test))},
        name="answers",
    )
    print(f"held-out questions, nDCG@10: {evaluator(model)['answers_cosine_ndcg@10']:.4f}")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
