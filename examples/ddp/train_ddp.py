"""Trains on several processes, each with a GPU, whose negatives are gathered: a step's batches are planned as one.

torchrun --nproc_per_node=2 examples/ddp/train_ddp.py
accelerate launch --multi_gpu --num_processes=2 examples/ddp/train_ddp.py
torchrun --nproc_per_node=2 examples/ddp/train_ddp.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from datasets import load_dataset
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
    parser.add_argument("--out", default="models/ddp", help="folder of checkpoints and model (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts, on CPUs")
    options = parser.parse_args()

    # 1. Load the data; every process reads all rows, and trains on its share of each step
    if options.smoke:
        options.model = smoke.random_model()
        rows, held_out = smoke.questions(), smoke.HELD_OUT
    else:
        rows, held_out = load_dataset("sentence-transformers/gooaq", split="train"), 10_000
    parts = rows.train_test_split(test_size=held_out, seed=1)
    train, test = parts["train"], parts["test"]

    # 2. Load the model
    model = SentenceTransformer(options.model)

    # 3. Define the loss. With gather_across_devices each row meets the rows of all processes: two processes of 64 rows are
    # one batch of 128, and are planned as such. Without it each process has a batch of its own.
    loss = MultipleNegativesRankingLoss(model, gather_across_devices=True)

    # 4. Define the training arguments; per_device_train_batch_size is that of one process
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        num_train_epochs=1,
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

    # 5. Train. Each process embeds its share of the rows before a plan.
    trainer = GCBSTrainer(model, args, train, loss=loss)
    trainer.train()

    # 6. Evaluate and save, in one of the processes
    if trainer.is_world_process_zero():
        evaluator = InformationRetrievalEvaluator(
            queries={str(number): question for number, question in enumerate(test["question"])},
            corpus={str(number): answer for number, answer in enumerate(test["answer"])},
            relevant_docs={str(number): {str(number)} for number in range(len(test))},
            name="answers",
        )
        print(f"held-out questions, nDCG@10: {evaluator(model)['answers_cosine_ndcg@10']:.4f}")
        model.save_pretrained(f"{options.out}/final")
        print(f"saved to {options.out}/final by one of {args.world_size} processes")

    # 7. End together: a process that leaves early may take the others' connections with it
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# Processes that load data import this file; without this line they would train too.
if __name__ == "__main__":
    main()
