"""Plans batches once, writes them as Parquet files, and trains on them with the host's own trainer.

python examples/export_to_another_trainer/export_and_train.py
python examples/export_to_another_trainer/export_and_train.py --planner best --out models/exported_best
python examples/export_to_another_trainer/export_and_train.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.utils.data import SequentialSampler

from gcbs_st.batches.export import export_batches, read_manifest, shard_files, shuffled_batches
from gcbs_st.planners import make_planner

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def in_order(dataset: Dataset, **options: Any) -> DefaultBatchSampler:
    """Returns a batch sampler that leaves rows where they are; a function of a module, so that checkpoints can name it."""
    return DefaultBatchSampler(SequentialSampler(dataset), **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="model to train (%(default)s)"
    )
    parser.add_argument("--planner", default="bisect", help="that composes the batches (%(default)s)")
    parser.add_argument("--out", default="models/exported", help="folder of batches and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data and the model
    batch_size, folder = 64, Path(options.out, "batches")
    if options.smoke:
        options.model, batch_size = smoke.random_model(), smoke.BATCH_SIZE
        pairs = smoke.pairs()
    else:
        pairs = load_dataset("sentence-transformers/quora-duplicates", "pair", split="train")
    model = SentenceTransformer(options.model)

    # 2. Embed both texts of each row, as unit rows
    anchors, positives = (
        model.encode(list(pairs[column]), normalize_embeddings=True) for column in ("anchor", "positive")
    )

    # 3. Plan: an order of the rows, whose blocks are batches
    order = make_planner(options.planner).plan(anchors, positives, batch_size, np.random.default_rng(1))

    # 4. Export. Planners leave like batches side by side, so whole batches are put in random order first.
    order = shuffled_batches(order, batch_size, seed=1)
    manifest = export_batches(pairs, order, batch_size, folder, overwrite=True, facts={"planner": options.planner})
    print(f"exported {manifest['batches']} batches of {batch_size} rows, {manifest['left_out']} rows left out")

    # 5. From here on nothing of gcbs_st trains. Any trainer may read the files from front to back; here the host's does.
    rows = load_dataset("parquet", data_files=shard_files(folder), split="train")
    rows = rows.select_columns(["anchor", "positive"])  # every other column would be embedded as a text
    args = SentenceTransformerTrainingArguments(
        options.out,
        batch_sampler=in_order,
        num_train_epochs=1,
        per_device_train_batch_size=read_manifest(folder)["batch_size"],
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
    trainer = SentenceTransformerTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train()

    # 6. Save
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
