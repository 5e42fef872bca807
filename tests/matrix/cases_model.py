"""Models: precision, what is saved of the passes, and which of the weights are trained."""

from __future__ import annotations

from typing import Any

import torch
from conftest import make_static_model

from gcbs_st.models.load import use_sparse_gradients
from matrix.case import Case, Place, Run, one_process_only
from matrix.materials import bert
from matrix.watching import passes


def half_precision(run: Run) -> None:
    """Training and plans ran under autocast."""
    for training in (True, False):
        assert all(note["autocast"] for note in run.watched if note["training"] is training)
    assert {True, False} == {note["training"] for note in run.watched}


def layer_passes(trainer: Any) -> list[bool]:
    """A note of each pass of the first layer, whether it was in training."""
    noted: list[bool] = []
    layer = trainer.model[0].auto_model.encoder.layer[0]
    layer.register_forward_pre_hook(lambda module, args: noted.append(module.training))
    layer.intermediate.register_forward_pre_hook(lambda module, args: noted.append(module.training))
    return noted


def computed_twice(run: Run) -> None:
    """What is inside a layer passes again on the way back."""
    batches = len(run.by_rank[0])
    training = sum(run.watched)
    assert run.trainer.model[0].auto_model.is_gradient_checkpointing
    # Two notes a pass of the layer; the layer itself or its inside alone is computed again.
    assert training >= 3 * batches, f"{training} notes of {batches} batches"


def adapted(place: Place) -> Any:
    """A BERT with LoRA adapters."""
    from peft import LoraConfig, TaskType

    model = bert(place)
    model.add_adapter(
        LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=4, lora_alpha=8, target_modules=["query", "value"])
    )
    return model


def frozen(place: Place) -> Any:
    """A BERT whose words and first layer are not trained."""
    model = bert(place)
    for module in (model[0].auto_model.embeddings, model[0].auto_model.encoder.layer[0]):
        module.requires_grad_(False)
    return model


def only_changed(which: Any) -> Any:
    """Checks that weights changed if their names say so, and no others."""

    def check(run: Run) -> None:
        after = run.model.state_dict()
        changed = {name for name, value in run.before.items() if not torch.equal(value, after[name])}
        assert changed, "nothing changed"
        assert not {name for name in changed if not which(name)}, "what is frozen changed"

    return check


def graphs(trainer: Any) -> Any:
    """How many graphs were compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters


def compiled(run: Run) -> None:
    """Something was compiled."""
    assert run.watched["stats"]["unique_graphs"] > 0


def sparse_model(place: Place) -> Any:
    """Word vectors with sparse gradients."""
    model = make_static_model()
    assert use_sparse_gradients(model)
    return model


def sparse_optimizer(place: Place, model: Any) -> dict[str, Any]:
    """The optimizer that takes them."""
    return {"optimizers": (torch.optim.SparseAdam(list(model.parameters()), lr=0.01), None)}


CASES = [
    Case("`bf16`", model=bert, arguments={"bf16": True}, watch=passes, check=half_precision),
    Case(
        "gradient checkpointing",
        model=bert, arguments={"gradient_checkpointing": True}, watch=layer_passes, check=computed_twice,
    ),
    Case(
        "`torch_compile`",
        arguments={"torch_compile": True}, watch=graphs, check=compiled, needs="c++",
        cells=one_process_only("tried in one process only"),
    ),
    Case(
        "PEFT adapters (LoRA)",
        model=adapted, check=only_changed(lambda name: "lora" in name), needs="peft", quick=True,
    ),
    Case(
        "frozen modules",
        model=frozen, check=only_changed(lambda name: "embeddings" not in name and "layer.0." not in name),
    ),
    Case(
        "sparse gradients of a static model",
        model=sparse_model, given=sparse_optimizer, arguments={"max_grad_norm": 0.0},
    ),
]  # fmt: skip
