"""Trains a LoRA adapter of an encoder in planned batches; needs peft.

python examples/peft_lora/train_lora.py
python examples/peft_lora/train_lora.py --model FacebookAI/roberta-base --out models/roberta_lora
python examples/peft_lora/train_lora.py --smoke
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, TaskType
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from gcbs_st import GCBSTrainer, GCBSTrainingArguments

sys.path.append(str(Path(__file__).parents[1]))
import smoke  # examples/smoke.py, for --smoke alone

logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
logging.getLogger("httpx").setLevel(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google-bert/bert-base-uncased", help="encoder to adapt (%(default)s)")
    parser.add_argument("--out", default="models/peft_lora", help="folder of checkpoints and adapter (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a random model on made-up texts")
    options = parser.parse_args()

    # 1. Load the data, and hold some out
    if options.smoke:
        options.model = smoke.random_model()
        rows, held_out = smoke.questions(), smoke.HELD_OUT
    else:
        rows = load_dataset("sentence-transformers/gooaq", split="train").select(range(1_000_000))
        held_out = 10_000
    parts = rows.train_test_split(test_size=held_out, seed=1)
    train, test = parts["train"], parts["test"]

    # 2. Load the model, and add the adapter, which is all that is trained of it. Its first weights are drawn: a seed makes
    # them the same where the run is started again.
    model = SentenceTransformer(options.model)
    set_seed(1)
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=64, lora_alpha=128, lora_dropout=0.1))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logging.info("%.1f %% of the weights are trained", 100 * trained / sum(one.numel() for one in model.parameters()))

    # 3. Define the loss: the plain one, for an encoder that was never trained on pairs
    loss = MultipleNegativesRankingLoss(model)

    # 4. Define the training arguments. The view before training, on which planner="auto" plans, is that of the encoder
    # without an adapter: a new one changes nothing.
    args = GCBSTrainingArguments(
        options.out,
        planner="auto",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=1e-4,  # adapters take more than whole encoders
        warmup_steps=0.1,
        bf16=torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=1000,
        save_total_limit=2,
        logging_steps=100,
    )
    if options.smoke:
        args = smoke.shorten(args)

    # 5. Train
    evaluator = InformationRetrievalEvaluator(
        queries={str(number): question for number, question in enumerate(test["question"])},
        corpus={str(number): answer for number, answer in enumerate(test["answer"])},
        relevant_docs={str(number): {str(number)} for number in range(len(test))},
        name="answers",
    )
    before = evaluator(model)["answers_cosine_ndcg@10"]
    trainer = GCBSTrainer(model, args, train, loss=loss)
    trainer.train()

    # 6. Evaluate and save: the adapter alone, a few MB. SentenceTransformer loads it like any model, on top of the encoder.
    after = evaluator(model)["answers_cosine_ndcg@10"]
    print(f"held-out questions, nDCG@10: {before:.4f} before training, {after:.4f} after")
    model.save_pretrained(f"{options.out}/final")
    print(f"saved to {options.out}/final")


if __name__ == "__main__":
    main()
