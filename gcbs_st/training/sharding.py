"""A model whose weights are spread over the processes (FSDP, DeepSpeed ZeRO-3): which is one, and how it is saved.

No process can embed rows on its own then, so plans are made of what the training passes show (`embeddings.harvest`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# What the host's wrappers for recomputing and compiling put into the names of parameters, and leave out of a state.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def fsdp_version(trainer: Any) -> int:
    """Returns the version of FSDP that a run uses: 2 (`fully_shard`), 1, or 0 for none."""
    if not trainer.is_fsdp_enabled:
        return 0
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return int(getattr(plugin, "fsdp_version", 1))


def is_zero_3(trainer: Any) -> bool:
    """Returns whether DeepSpeed spreads the weights, which its stages 1 and 2 do not."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def is_sharded(trainer: Any) -> bool:
    """Returns whether no process holds all weights of the model."""
    return fsdp_version(trainer) > 0 or is_zero_3(trainer)


@contextmanager
def wrapped_as_a_whole(model: Any) -> Iterator[None]:
    """Keeps accelerate from sharding a `Normalize` at a model's end on its own while it prepares the model.

    It looks for the final norm of a transformer by name, and finds a module without weights whose class cannot be
    derived from, as `fully_shard` does. Where `base_model_prefix` says where the transformer is it looks there.
    """
    model.base_model_prefix = next(iter(model._modules), "")
    try:
        yield
    finally:
        del model.base_model_prefix


@contextmanager
def whole_weights(model: Any, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Gives a sharded model, on one process alone, the whole weights of a state to be saved, and back its shards.

    The host's modules write what they hold. Meanwhile the model must not be run: that is for all processes to do
    together. So the model card does not show what it makes of an example.
    """
    held = [
        (module, name, value, f"{path}.{name}" if path else name)
        for path, module in model.named_modules(remove_duplicate=False)
        for name, value in module._parameters.items()
        if value is not None
    ]
    whole: dict[int, nn.Parameter] = {}  # by the shard, so that tied weights stay tied, and are found by either name
    for _, _, value, name in held:
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if name in state:
            whole.setdefault(id(value), nn.Parameter(state[name], requires_grad=False))
    card: Any = getattr(model, "model_card_data", None)
    shows_examples = getattr(card, "generate_widget_examples", None)
    try:
        for module, name, value, _ in held:
            module._parameters[name] = whole.get(id(value), value)
        if shows_examples is not None:
            card.generate_widget_examples = False
        yield
    finally:
        for module, name, value, _ in held:
            module._parameters[name] = value
        if shows_examples is not None:
            card.generate_widget_examples = shows_examples


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives the parameters that no training pass has reached the state of before a first step.

    An example is the pooler of BERT under a mean of tokens. Such parameters have no state, and torch resumes sharded
    models from no checkpoint in which one is missing. Made as torch makes states where it needs some: by a step without
    gradient at the rate 0. To be called by all processes, between two steps.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fresh = [one for one in parameters if one.requires_grad and one not in optimizer.state]
    if not fresh or not optimizer.state:  # an optimizer without states has none to complete
        return
    gradients, rates = [one.grad for one in parameters], [group["lr"] for group in optimizer.param_groups]
    for one in parameters:
        one.grad = None
    for one in fresh:
        one.grad = torch.zeros_like(one)
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
    try:
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for one, gradient in zip(parameters, gradients, strict=True):
            one.grad = gradient
    for state in (optimizer.state[one] for one in fresh):
        if "step" in state:  # of which there was none
            state["step"] = state["step"] * 0
