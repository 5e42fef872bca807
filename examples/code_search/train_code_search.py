"""Trains a static model to find functions by what their comments say, with the planner `best` at temperature 0.1.

python examples/code_search/train_code_search.py
python examples/code_search/train_code_search.py --rows 200000 --out models/code_search_small
python examples/code_search/train_code_search.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def search_evaluator(asked: Dataset, name: str) -> InformationRetrievalEvaluator:
    """Returns the evaluator that looks for each comment's function among those of all rows."""
    texts = dict.fromkeys(asked["code"])  # each function once
    ids = {text: str(number) for number, text in enumerate(texts)}
    return InformationRetrievalEvaluator(
        queries={str(number): comment for number, comment in enumerate(asked["comment"])},
        corpus={ids[text]: text for text in texts},
        relevant_docs={str(number): {ids[text]} for number, text in enumerate(asked["code"])},
        name=name,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/static-retrieval-mrl-en-v1", help="model to train (%(default)s)"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="to train on, at most (%(default)s)")
    parser.add_argument("--out", default="models/code_search", help="folder of checkpoints and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data, pairs of comment and code, and hold some out
    if options.smoke:
        options.model = smoke.random_model()
        rows, held_out = smoke.functions(), smoke.HELD_OUT
    else:
        rows, held_out = load_dataset("sentence-transformers/codesearchnet", "pair", split="train"), 5000
    parts = rows.train_test_split(test_size=held_out, seed=1)
    train, test = parts["train"], parts["test"]
    train = train.select(range(min(options.rows, len(train))))

    # 2. Load the model
    model = SentenceTransformer(options.model)

    # 3. Define the loss: the plain one at temperature 0.1, its scale being 1 / temperature. Functions are rarely false
    # negatives of each other, so a guard gains nothing.
    loss = MultipleNegativesRankingLoss(model, scale=10.0)

    # 4. Define the training arguments. planner_columns=["comment"] would put rows together whose comments are alike, whatever
    # their functions are: better where queries will be others than those that are trained on.
    args = GCBSTrainingArguments(
        options.out,
        planner="best",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=1.5e-3,  # of static models; a transformer takes about a hundredth of it
        save_strategy="steps",
        save_steps=2000,
        save_total_limit=2,
        logging_steps=200,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train
    evaluator = search_evaluator(test, "functions")
    before = evaluator(model)["functions_cosine_mrr@10"]
    trainer = GCBSTrainer(model, args, train, loss=loss)
    trainer.train()

    # 6. Evaluate and save
    after = evaluator(model)["functions_cosine_mrr@10"]
    print(f"held-out functions, MRR@10: {before:.4f} before training, {after:.4f} after")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
