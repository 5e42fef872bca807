"""Tests of ``gcbs_st.training.arguments``: every field of ours comes from the command line, YAML and a dict as it was meant."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from typing import Any

import pytest
import torch
import yaml
from transformers import HfArgumentParser

import gcbs_st
from gcbs_st import GCBSSparseEncoderTrainingArguments, GCBSTrainingArguments
from gcbs_st.training.arguments import PlanningArguments

try:
    CLASSES = [
        GCBSTrainingArguments,
        GCBSSparseEncoderTrainingArguments,
        gcbs_st.GCBSMultiVectorEncoderTrainingArguments,
    ]
except ImportError:  # a host without late interaction
    CLASSES = [GCBSTrainingArguments, GCBSSparseEncoderTrainingArguments]

# A value of each field that is not its default. A new field has to be given one.
OTHER: dict[str, Any] = {
    "planner": "partition", "planner_options": {"clusters_per_batch": 4}, "planner_columns": {"one": ["b", "a"]},
    "replan_steps": 0.25, "planner_warmup_steps": 7, "planner_cooldown_steps": 0.25, "embedding_batch_size": 33, "embedding_source": "harvest",
    "first_plan": "encode", "embedding_max_age": 100, "embedding_budget": 50, "embedding_dtype": "float16",
    "embedding_storage": "disk", "group_column": "image", "positives_column": "answers", "cluster_schedule": "curriculum",
    "shuffle_planned_batches": False, "projection_dimensions": 128, "planner_view": ["model", "some/model"],
    "planner_margin": 0.9, "planner_reference": "other/model", "dataset_weights": {"one": 1, "two": 0.5}, "sub_batches": 2,
}  # fmt: skip
# Those that do not go with one of the above.
ALONE: dict[str, Any] = {"planner_hardness": [[0.0, 0.5], [1.0, 1.0]], "planning_window": 4096}


def own_fields(kind: Any) -> list[str]:
    """The names of those that the host's class has not."""
    return sorted({field.name for field in fields(kind)} - {field.name for field in fields(kind.plain_class)})


def line_of(values: dict[str, Any]) -> list[str]:
    """The values as a user would type them."""
    typed = {
        name: json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
        for name, value in values.items()
    }
    return [word for name, text in typed.items() for word in (f"--{name}", text)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("alone", [False, True])
def test_every_field_comes_through(kind, alone, tmp_path):
    """From the command line, from YAML, from a dict of the parser's, and from what the arguments write themselves."""
    names = own_fields(kind)
    assert set(names) >= {field.name for field in fields(PlanningArguments)}
    names = [name for name in names if (name in ALONE) == alone]
    values = {name: (OTHER | ALONE)[name] for name in names}
    plain = {"output_dir": str(tmp_path), "report_to": "none"}
    default = kind(**plain)
    assert [] == [name for name in names if getattr(default, name) == values[name]], "not another value"
    parser = HfArgumentParser(kind)
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({**plain, **values}))
    (tmp_path / "args.json").write_text(json.dumps({**plain, **values}))
    found = {
        "command line": parser.parse_args_into_dataclasses([*line_of(plain), *line_of(values)])[0],
        "YAML": parser.parse_yaml_file(str(tmp_path / "args.yaml"))[0],
        "JSON": parser.parse_json_file(str(tmp_path / "args.json"))[0],
        "dict": parser.parse_dict({**plain, **values})[0],
        "keywords": kind(**plain, **values),
    }
    for args in found.values():
        assert values == {name: getattr(args, name) for name in names}
    written = json.loads(found["keywords"].to_json_string())
    assert values == {name: written[name] for name in names}
    torch.save(found["keywords"], tmp_path / "args.bin")
    loaded = torch.load(tmp_path / "args.bin", weights_only=False)
    assert (kind, values) == (type(loaded), {name: getattr(loaded, name) for name in names})


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_defaults_are_the_same_everywhere(kind, tmp_path):
    """A command line that says nothing, no arguments, and the host's own arguments."""
    plain = {"output_dir": str(tmp_path), "report_to": "none"}
    (parsed,) = HfArgumentParser(kind).parse_args_into_dataclasses(line_of(plain))
    converted = kind.from_plain(kind.plain_class(**plain))
    for name in own_fields(kind):
        assert getattr(kind(**plain), name) == getattr(parsed, name) == getattr(converted, name)
    assert type(converted) is kind


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_field_has_help_and_documentation(kind, capsys):
    """On the command line, and in a docstring of the class or of `PlanningArguments`."""
    with pytest.raises(SystemExit):
        HfArgumentParser(kind).parse_args_into_dataclasses(["--help"])
    shown = capsys.readouterr().out
    documented = f"{inspect.getdoc(kind)}\n{inspect.getdoc(PlanningArguments)}"
    for name in own_fields(kind):
        (field,) = (field for field in fields(kind) if field.name == name)
        assert field.metadata["help"].split()[0] in shown
        assert f"\n    {name}: " in documented


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_arguments_of_a_class_derived_from_ours_are_taken(kind, tmp_path):
    """As they are; those of a class derived from the host's are refused, since their methods would be lost."""

    class Own(kind):
        pass

    class Foreign(kind.plain_class):
        pass

    own = Own(str(tmp_path), report_to="none")
    assert own is kind.from_plain(own)
    with pytest.raises(
        TypeError, match=f"^args: got Foreign, expected {kind.__name__} or {kind.plain_class.__name__}"
    ):
        kind.from_plain(Foreign(str(tmp_path), report_to="none"))
