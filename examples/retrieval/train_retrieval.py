"""Trains retrieval of answers to questions, with one mined hard negative per row and planned batches.

python examples/retrieval/train_retrieval.py
python examples/retrieval/train_retrieval.py --model sentence-transformers/all-mpnet-base-v2 --out models/mpnet_nq
python examples/retrieval/train_retrieval.py --smoke
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
from sentence_transformers.util import mine_hard_negatives

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def retrieval_evaluator(asked: Dataset, others: Dataset, name: str) -> InformationRetrievalEvaluator:
    """Returns the evaluator that looks for the answers of `asked` among them and those of `others`."""
    texts = dict.fromkeys([*asked["answer"], *others["answer"]])  # each answer once
    ids = {text: str(number) for number, text in enumerate(texts)}
    return InformationRetrievalEvaluator(
        queries={str(number): question for number, question in enumerate(asked["question"])},
        corpus={ids[text]: text for text in texts},
        relevant_docs={str(number): {ids[text]} for number, text in enumerate(asked["answer"])},
        name=name,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="model to train (%(default)s)"
    )
    parser.add_argument("--out", default="models/retrieval", help="folder of checkpoints and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data, pairs of question and answer, and hold some out
    if options.smoke:
        options.model = smoke.random_model()
        rows, held_out = smoke.questions(), smoke.HELD_OUT
    else:
        rows = load_dataset("sentence-transformers/natural-questions", split="train").rename_column(
            "query", "question"
        )
        held_out = 1000
    parts = rows.train_test_split(test_size=held_out, seed=1)
    pairs, test = parts["train"], parts["test"]

    # 2. Load the model
    model = SentenceTransformer(options.model)

    # 3. Mine one hard negative per row, as the host does it. The margin leaves out what is about as near to the question
    # as the answer, which is often another answer; rows for which nothing is left are dropped.
    train = mine_hard_negatives(
        pairs,
        model,
        num_negatives=1,
        relative_margin=0.05,
        range_max=100,
        output_format="triplet",
        batch_size=128,
        use_faiss=True,
    )
    logging.info("%d of %d rows have a mined negative", len(train), len(pairs))

    # 4. Define the loss: the plain one, since rows bring negatives of their own
    loss = MultipleNegativesRankingLoss(model)

    # 5. Define the training arguments. The mined negatives come on top of those that planned batches hold.
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=2e-5,
        warmup_steps=0.1,
        bf16=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=200,
        save_strategy="steps",
        save_steps=200,
        save_total_limit=2,
        logging_steps=50,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 6. Train
    evaluator = retrieval_evaluator(test, pairs.select(range(min(20_000, len(pairs)))), "answers")
    before = evaluator(model)["answers_cosine_ndcg@10"]
    trainer = GCBSTrainer(model, args, train, loss=loss, evaluator=evaluator)
    trainer.train()

    # 7. Evaluate and save
    after = evaluator(model)["answers_cosine_ndcg@10"]
    print(f"held-out questions, nDCG@10: {before:.4f} before training, {after:.4f} after")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
