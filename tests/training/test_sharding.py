"""Tests of ``gcbs_st.training.sharding`` and of what is refused of sharded models; see ``test_sharded.py`` for real shards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_static_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.row_encoder import RowEncoder
from gcbs_st.losses import EMC2Loss, SogCLRLoss
from gcbs_st.planners import make_planner
from gcbs_st.training.refusals import refuse_unsupported
from gcbs_st.training.sharding import complete_state, is_sharded, whole_weights, wrapped_as_a_whole

HARVEST = "Use embedding_source='harvest', first_plan='random', or DDP"
ZERO_3 = {"fsdp": None, "zero": 3}
REPEATING = make_planner("random_walk", {"exact_cover": False})  # rows may stand in several batches


def trainer(
    fsdp: int | None = 2, zero: int = 2, *, views: Any = ("model",), planner: Any = "bisect", loss: Any = None,
    model: Any = None, ram_efficient: bool = False, **given: Any,
) -> Any:  # fmt: skip
    """What is asked of a trainer; by default of one under FSDP2 that harvests."""
    plugin = SimpleNamespace(fsdp_version=fsdp, cpu_ram_efficient_loading=ram_efficient)
    usual = {
        "embedding_source": "harvest",
        "first_plan": "random",
        "embedding_max_age": None,
        "planner_reference": None,
    }
    return SimpleNamespace(
        accelerator=SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=SimpleNamespace(zero_stage=zero)),
            dispatch_batches=None,
            split_batches=False,
        ),
        is_fsdp_enabled=fsdp is not None,
        args=SimpleNamespace(**{**usual, "world_size": 2, **given}),
        auto=SimpleNamespace(views=list(views)),
        planner=make_planner(planner) if isinstance(planner, str) else planner,
        loss=loss or nn.Identity(),
        model=model or nn.Identity(),
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        ZERO_3,
        {"planner": "random"},
        {"views": [make_static_model()], "embedding_source": "encode", "first_plan": "encode", "planner": REPEATING},
        {"views": ["model", "some-model"], "planner_reference": make_static_model(seed=1)},
        {"loss": SogCLRLoss(nn.Identity())},
        {"fsdp": None, "embedding_source": "encode"},
    ],
    ids=["fsdp 2", "zero 3", "random", "a reference", "two views and a judge", "sogclr", "zero 2"],
)
def test_what_needs_no_whole_weights_is_taken(given):
    """Harvested embeddings and those of other models; without shards everything."""
    one = trainer(**given)
    assert is_sharded(one) is (given.get("fsdp", 2) is not None or given.get("zero") == 3)
    refuse_unsupported(one)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"fsdp": 1}, "FSDP: got version 1, .* fsdp_version: 2 .* embedding_source='harvest', first_plan='random'"),
        ({"embedding_source": "encode"}, f"FSDP: got embedding_source='encode', .* {HARVEST}"),
        ({**ZERO_3, "embedding_source": "encode"}, f"DeepSpeed ZeRO-3: .* {HARVEST}, or ZeRO 1 or 2"),
        ({"first_plan": "encode"}, f"got first_plan='encode', .* {HARVEST}"),
        ({"embedding_max_age": 9}, f"got embedding_max_age=9, .* {HARVEST}, and leave it at None"),
        ({"planner": REPEATING}, "got the planner 'random_walk', .* covers each row once"),
        ({"views": ["initial"], "embedding_source": "encode"}, f"got the view 'initial', .* {HARVEST}"),
        ({"views": ["model", "initial"]}, f"got the view 'initial', .* {HARVEST}"),
        ({"planner_reference": "initial"}, f"got the view 'initial', .* {HARVEST}"),
        ({"planner_reference": "some-model", "ram_efficient": True}, "Leave cpu_ram_efficient_loading at False"),
        ({**ZERO_3, "views": ["some-model"], "embedding_source": "encode"}, "got a reference model, which DeepSpeed"),
        ({"loss": EMC2Loss(nn.Identity())}, "got EMC2Loss, which embeds rows beside those of the batch"),
        ({**ZERO_3, "loss": {"one": EMC2Loss(nn.Identity())}}, "got EMC2Loss, .* or ZeRO 1 or 2"),
    ],
)
def test_what_needs_whole_weights_is_refused(given, match):
    """No process could embed the rows; the message names the setting, and what to do instead."""
    assert is_sharded(trainer(**given))
    with pytest.raises(ValueError, match=match):
        refuse_unsupported(trainer(**given))


def test_a_reference_of_the_trained_models_modules_is_refused():
    """Its weights are shards too, although it is another object."""
    model = make_static_model()
    with pytest.raises(ValueError, match="shares modules with the model that is trained"):
        refuse_unsupported(trainer(model=model, views=[nn.Sequential(model[0])], embedding_source="encode"))


def test_whole_weights_are_put_in_place_and_taken_out_again():
    """Tied weights stay tied, names of wrappers do not count, and no example is embedded for the card meanwhile."""
    model = nn.Module()
    model.front = nn.Module()
    model.front._orig_mod = nn.Linear(2, 2, bias=False)
    model.back = nn.Linear(2, 2)
    model.back.weight = model.front._orig_mod.weight
    model.model_card_data = SimpleNamespace(generate_widget_examples=True)
    before = dict(model.named_parameters(remove_duplicate=False))
    state = {"front.weight": torch.full((4, 2), 7.0), "back.bias": torch.ones(4)}
    with whole_weights(model, state):
        assert not model.model_card_data.generate_widget_examples
        assert model.back.weight is model.front._orig_mod.weight
        assert [(4, 2), (4,)] == [tuple(one.shape) for one in model.back.state_dict().values()]
        assert 7.0 == model.state_dict()["back.weight"].unique().item()
    assert model.model_card_data.generate_widget_examples
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_one_process_saves_a_sharded_model(tmp_path, pairs, monkeypatch):
    """The host comes to it on all, on those that save nothing with an empty state or, under DeepSpeed, none."""
    model = make_static_model()
    args = GCBSTrainingArguments(str(tmp_path), planner="random", use_cpu=True, report_to="none", save_strategy="no")
    one = GCBSTrainer(model, args, pairs, loss=MultipleNegativesRankingLoss(model))
    one.accelerator = trainer(**ZERO_3).accelerator
    whole = {name: torch.full_like(value, 7.0) for name, value in model.state_dict().items()}
    monkeypatch.setattr(type(args), "should_save", False)
    for state in (None, {}):
        one._save(str(tmp_path / "other"), state)
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(type(args), "should_save", True)
    one._save(str(tmp_path / "main"), whole)
    saved = SentenceTransformer(str(tmp_path / "main"), device="cpu").state_dict()
    assert all(torch.equal(whole[name], value) for name, value in saved.items())
    assert not any(torch.equal(whole[name], value) for name, value in model.state_dict().items())


def test_the_first_module_stands_for_the_transformer_meanwhile():
    """Accelerate looks there for a final norm, and not among the modules of sentence-transformers."""
    model = make_static_model()
    with wrapped_as_a_whole(model):
        assert getattr(model, model.base_model_prefix) is model[0]
    assert not hasattr(model, "base_model_prefix")


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_state_is_completed_without_a_step(kind):
    """A parameter that was never reached gets the state of a fresh one; weights, gradients and rates stay."""
    layers = [nn.Linear(2, 1) for _ in range(2)]
    parameters = [one for layer in layers for one in layer.parameters()]
    optimizer = kind([{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "lr": 0.2}], weight_decay=0.5)
    layers[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    weights, gradients = [one.detach().clone() for one in parameters], [one.grad for one in parameters]
    known = {key: value.clone() for key, value in optimizer.state[parameters[0]].items() if value is not None}
    complete_state(optimizer)
    assert all(map(torch.equal, weights, parameters))
    assert all(before is one.grad for before, one in zip(gradients, parameters, strict=True))
    assert [0.1, 0.2] == [group["lr"] for group in optimizer.param_groups]
    assert all(torch.equal(value, optimizer.state[parameters[0]][key]) for key, value in known.items())
    if kind is torch.optim.AdamW:
        fresh = optimizer.state[parameters[2]]
        assert not any(value.any() for value in (fresh["step"], fresh["exp_avg"], fresh["exp_avg_sq"]))


def test_rows_are_never_encoded_with_a_shard():
    """Should anything ask for it after all, it is an error and no pass that waits for other processes."""
    encoder = RowEncoder(None, {"": None}, SimpleNamespace(encodes=False))
    with pytest.raises(ValueError, match="no process holds whole"):
        encoder.encode_own("", torch.arange(3).numpy())


def test_the_losses_say_whether_they_embed_rows():
    """A loss that says nothing is taken to."""
    assert EMC2Loss.embeds_rows and not SogCLRLoss.embeds_rows
    assert not hasattr(MultipleNegativesRankingLoss, "embeds_rows")
