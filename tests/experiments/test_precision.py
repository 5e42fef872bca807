"""A CPU without instructions for bfloat16 trains several times as long with it: said once, with what to do."""

import logging

import pytest
import torch
from transformers import TrainingArguments

from gcbs_st.config import EvaluationConfig
from gcbs_st.experiments import precision

IN_BF16 = EvaluationConfig(sts="somewhere", bf16=True)
IN_FLOAT = EvaluationConfig(sts="somewhere")


@pytest.fixture(autouse=True)
def nothing_was_said():
    """Of an earlier test's run."""
    precision._warn.cache_clear()


@pytest.fixture
def arguments(tmp_path):
    """Those of a run on the CPU."""
    return lambda **options: TrainingArguments(str(tmp_path), use_cpu=True, **options)


def warnings_of(caplog, args, evaluation):
    """What is said of a run."""
    with caplog.at_level(logging.WARNING, logger=precision.__name__):
        precision.warn_of_slow_bfloat16(args, evaluation)
    return [record.getMessage() for record in caplog.records if record.name == precision.__name__]


@pytest.mark.parametrize(
    ("bf16", "evaluation", "advice"),
    [
        (True, IN_BF16, "--set train.bf16=false --set evaluation.bf16=false"),
        (True, IN_FLOAT, "--set train.bf16=false"),
        (False, IN_BF16, "--set evaluation.bf16=false"),
    ],
)
def test_a_slow_cpu_is_named_with_what_to_set(caplog, monkeypatch, arguments, bf16, evaluation, advice):
    """By how much it is slower, and which keys asked for it."""
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: 7.4)
    (message,) = warnings_of(caplog, arguments(bf16=bf16), evaluation)
    assert "7.4 times" in message
    assert message.endswith(f": {advice}.")


def test_a_comparison_is_told_once(caplog, monkeypatch, arguments):
    """And not for each of its runs."""
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: 7.4)
    for _ in range(3):
        said = warnings_of(caplog, arguments(bf16=True), IN_BF16)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("bf16", "evaluation", "cost"), [(False, IN_FLOAT, 7.4), (True, IN_BF16, 0.4), (True, IN_BF16, 1.9)]
)
def test_nothing_is_said_where_it_pays_or_is_not_asked_for(caplog, monkeypatch, arguments, bf16, evaluation, cost):
    """A CPU that computes it, or a run in float32."""
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: cost)
    assert warnings_of(caplog, arguments(bf16=bf16), evaluation) == []


def test_the_cost_is_bfloat16_over_float32(monkeypatch):
    """And not the other way round."""
    monkeypatch.setattr(precision, "_median_seconds", lambda *sides: 3.0 if sides[0].dtype == torch.bfloat16 else 2.0)
    assert precision.bfloat16_cost.__wrapped__() == pytest.approx(1.5)


def test_seconds_are_those_of_the_product():
    """Larger products take longer."""
    small, large = (precision._median_seconds(torch.ones(8, k), torch.ones(k, k)) for k in (8, 1024))
    assert 0 < small < large
