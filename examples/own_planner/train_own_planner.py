"""Trains with a planner of your own, and says how its batches compare with those of the package's planners.

python examples/own_planner/train_own_planner.py
python examples/own_planner/train_own_planner.py --rows 20000 --out models/own_planner_small
python examples/own_planner/train_own_planner.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.planners import make_planner, register
from gcbs_st.planners.quality import plan_quality

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


@register("greedy_neighbours")
@dataclass(frozen=True)
class GreedyNeighboursPlanner:
    """Fills each batch with a random row that is left and the rows left that are nearest to it.

    Batches get worse as rows get rare: those of the end hold what nobody wanted. Cost: O(n^2 d / B) time.

    Args:
        easy_share: share of a batch, in [0, 1), that is drawn at random instead, for batches that are less hard.
    """

    easy_share: float = 0.0

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) row numbers, each once; consecutive blocks of `batch_size` rows are batches.

        `anchors` and `positives` are (n, d) unit rows. All randomness comes from `rng`, so that a resumed run plans the
        same batches.
        """
        rows = (anchors + positives).astype(np.float32)
        left = rng.permutation(len(rows))
        easy = int(self.easy_share * batch_size)
        batches = []
        while len(left) >= batch_size:
            near = batch_size - easy
            scores = rows[left] @ rows[left[0]]
            scores[0] = np.inf  # the row itself
            chosen = np.argpartition(-scores, near - 1)[:near]
            others = np.setdiff1d(np.arange(len(left)), chosen)
            chosen = np.concatenate([chosen, rng.choice(others, size=easy, replace=False)])
            batches.append(left[chosen])
            left = np.delete(left, chosen)
        return np.concatenate([*batches, left])  # the trainer draws the rows that fill no batch anew in each epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="model to train (%(default)s)"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="to train on, at most (%(default)s)")
    parser.add_argument("--out", default="models/own_planner", help="folder of checkpoints and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data
    if options.smoke:
        options.model = smoke.random_model()
        train = smoke.pairs()
    else:
        train = load_dataset("sentence-transformers/quora-duplicates", "pair", split="train")
    train = train.select(range(min(options.rows, len(train))))

    # 2. Load the model and define the loss
    model = SentenceTransformer(options.model)
    loss = MultipleNegativesRankingLoss(model)

    # 3. Define the training arguments. A planner goes by its registered name, with its options, or as an object:
    # planner=GreedyNeighboursPlanner(easy_share=0.25). The trainer checks that its order holds each row once.
    args = GCBSTrainingArguments(
        options.out,
        planner="greedy_neighbours",
        planner_options={"easy_share": 0.25},
        planner_view="initial",  # by whose embeddings rows are alike; planner="auto" would choose
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

    # 4. Look at its batches before training on them: how much of the gap between random batches and the hardest ones that
    # could be they close, and how many negatives of a row score above its positive
    anchors, positives = (
        model.encode(list(train[column]), normalize_embeddings=True, show_progress_bar=False)
        for column in ("anchor", "positive")
    )
    for name in ("random", "bisect", "greedy_neighbours"):
        order = make_planner(name).plan(anchors, positives, args.per_device_train_batch_size, np.random.default_rng(1))
        quality = plan_quality(anchors, positives, order, args.per_device_train_batch_size)
        print(f"{name}: closed {quality.closed:.3f}, false negatives per row {quality.false_negatives:.2f}")

    # 5. Train; gcbs/closed and gcbs/false_negatives are logged for every planner
    trainer = GCBSTrainer(model, args, train, loss=loss)
    trainer.train()

    # 6. Save
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
