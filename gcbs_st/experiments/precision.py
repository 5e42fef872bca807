"""Whether a run's precision pays on this machine: its training arguments in, a warning out where it does not."""

from __future__ import annotations

import functools
import logging
import statistics
import time

import torch
from transformers import TrainingArguments

from gcbs_st.config import EvaluationConfig

logger = logging.getLogger(__name__)

# Times float32 from which bfloat16 is worth a word. CPUs that compute it are at 0.3 to 1, those that emulate it at 5 and more.
_SLOW = 2.0
_TIMED_ROUNDS = 5


def warn_of_slow_bfloat16(args: TrainingArguments, evaluation: EvaluationConfig) -> None:
    """Warns where a run asks for bfloat16 of a CPU that emulates it, which the host takes without a word.

    Once per process: a comparison trains many runs of one configuration.
    """
    asked = [key for key, wanted in (("train.bf16", args.bf16), ("evaluation.bf16", evaluation.bf16)) if wanted]
    if not asked or args.device.type != "cpu" or (cost := bfloat16_cost()) < _SLOW:
        return
    _warn(tuple(asked), cost)


@functools.cache
def _warn(asked: tuple[str, ...], cost: float) -> None:
    logger.warning(
        "%s: this CPU has no instructions for bfloat16, with which a product of matrices takes %.1f times as long as with "
        "float32. Faster, and as good: %s.",
        " and ".join(asked),
        cost,
        " ".join(f"--set {key}=false" for key in asked),
    )


@functools.cache
def bfloat16_cost() -> float:
    """Returns the seconds of a product of matrices in bfloat16 on this CPU, as multiples of those in float32."""
    sides = torch.ones(256, 768), torch.ones(768, 768)
    return _median_seconds(*(side.bfloat16() for side in sides)) / _median_seconds(*sides)


def _median_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    seconds = []
    for _ in range(_TIMED_ROUNDS + 1):  # the first one warms up
        began = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
