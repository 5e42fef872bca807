"""What cases watch while they train: hooks that note what passes a model or a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from matrix.case import Run


def passes(trainer: Any) -> list[dict[str, Any]]:
    """A note of each pass of the model: in training or not, by autocast or not, how many texts, and which words."""
    noted: list[dict[str, Any]] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if trainer.verifying:
            return
        features = args[0] if args else kwargs["input"]
        ids = features["input_ids"]
        noted.append(
            {
                "training": module.training,
                "autocast": torch.is_autocast_enabled("cpu"),
                "texts": len(features["offsets"]) if "offsets" in features else len(ids),
                "words": set(ids.flatten().tolist()),
                "gradients": torch.is_grad_enabled(),
            }
        )

    # Not on the model itself, whose forward is what switches autocast on.
    trainer.model[0].register_forward_pre_hook(note, with_kwargs=True)
    return noted


def columns_of_loss(trainer: Any) -> list[tuple[int, bool]]:
    """A note of each call of the loss: how many columns of texts it was given, and whether labels."""
    noted: list[tuple[int, bool]] = []
    trainer.loss.register_forward_hook(lambda loss, args, output: noted.append((len(args[0]), args[1] is not None)))
    return noted


def given_columns(texts: int, labels: bool = False) -> dict[str, Any]:
    """Watches and checks that the loss is given so many columns of texts, and labels or not."""

    def check(run: Run) -> None:
        assert {(texts, labels)} == set(run.watched), run.watched

    return {"watch": columns_of_loss, "check": check}


def routes(trainer: Any) -> dict[str, set[bool]]:
    """Of each route of a Router, whether it was used in training (True) and for plans (False)."""
    used: dict[str, set[bool]] = {}
    for name, modules in trainer.model[0].sub_modules.items():

        def note(module: Any, args: Any, output: Any, name: str = name) -> None:
            if not trainer.verifying:
                used.setdefault(name, set()).add(module.training)

        modules[0].register_forward_hook(note)
    return used


def calls(find: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """Watches a module, given the trainer: a note of the output of each call."""

    def watch(trainer: Any) -> list[Any]:
        noted: list[Any] = []

        def note(module: Any, args: Any, output: Any) -> None:
            noted.append(float(output.detach()) if isinstance(output, torch.Tensor) else True)

        find(trainer).register_forward_hook(note)
        return noted

    return watch


def widths(find: Callable[[Any], Any]) -> Callable[[Any], list[int]]:
    """Watches a loss's `similarity_fct`, given the trainer: the width of what it is given in each call."""

    def watch(trainer: Any) -> list[int]:
        noted: list[int] = []
        loss = find(trainer)
        measure = loss.similarity_fct

        def similarity(first: Any, second: Any) -> Any:
            noted.append(first.shape[-1])
            return measure(first, second)

        loss.similarity_fct = similarity
        return noted

    return watch


def inputs_of_loss(trainer: Any) -> list[tuple[Any, Any, float]]:
    """Features, labels, value and weights of the first call of the loss, to be computed again otherwise."""
    noted: list[Any] = []

    def note(loss: Any, args: Any, output: Any) -> None:
        if not noted:
            features = [{key: value for key, value in one.items() if key != "gcbs_codes"} for one in args[0]]
            state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            noted.append((features, args[1], float(output.detach()), state))

    trainer.loss.register_forward_hook(note)
    return noted
