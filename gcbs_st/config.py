"""A YAML file and `--set a.b=value` in, a frozen configuration out; what is unknown or of a wrong type is refused."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

ConfigClass = TypeVar("ConfigClass")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message holds the path of the key."""


@dataclass(frozen=True)
class CorpusConfig:
    """What is trained on; the arguments of `gcbs_st.corpora.corpus.load_corpus`.

    Attributes:
        source: a file, a folder saved by datasets, a hub name, `docstrings`, or `code`.
        name: the hub data set's configuration.
        data_files: the file of a hub data set that is read, where it holds several.
        split: of a hub data set, a saved DatasetDict, or `code`.
        columns: the columns that hold anchor, positive and negatives, in this order; None for the obvious ones.
        group: a column whose equal values mark rows that are positives of each other.
        distributions: the Python distributions that `docstrings` and `code` read; None for all installed.
        max_rows: keep the first so many rows; None for all.
        held_out: pairs that are kept back to measure retrieval; 0 for none.
    """

    source: str
    name: str | None = None
    data_files: str | None = None
    split: str = "train"
    columns: list[str] | None = None
    group: str | None = None
    distributions: list[str] | None = None
    max_rows: int | None = None
    held_out: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """What is trained; the arguments of `gcbs_st.models.load.load_model`.

    Attributes:
        name: a hub name, a folder, or `package:DISTRIBUTION`.
        static: keep only the word vectors.
        layers: keep the first so many layers; None for all.
        pooling: in place of the model's own; None to keep it.
        max_seq_length: tokens; None to keep the model's own.
        head: "training" or "kept" for SimCSE's dense layer after the pooling; None for none.
        sparse_gradients: of a static model's word table, trained with SparseAdam.
        split_identifiers: the tokenizer takes `parseHTTPHeader` and `parse_http_header` apart into words.
    """

    name: str
    static: bool = False
    layers: int | None = None
    pooling: str | None = None
    max_seq_length: int | None = None
    head: str | None = None
    sparse_gradients: bool = False
    split_identifiers: bool = False


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
        name: a loss class of `gcbs_st.losses` or of sentence-transformers.
        options: its keyword arguments besides the model.
    """

    name: str = "MultipleNegativesRankingLoss"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MineConfig:
    """Hard negatives that the host's `mine_hard_negatives` finds once, before training, with the untrained model.

    Attributes:
        num_negatives: of each row.
        relative_margin: a negative scores at most the positive's score less this share of it; None for no bound.
        range_max: how many of the nearest texts are candidates; None for the host's choice.
    """

    num_negatives: int = 1
    relative_margin: float | None = None
    range_max: int | None = None


@dataclass(frozen=True)
class ArmConfig:
    """One way of training that a comparison compares.

    Attributes:
        train: fields over those of `train`.
        loss: in place of the experiment's; None for the experiment's.
        mine: hard negatives that are mined before training; None for none.
        host: trained by the host's own trainer and batch sampler; `train` then holds no field of ours.
    """

    train: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig | None = None
    mine: MineConfig | None = None
    host: bool = False


@dataclass(frozen=True)
class CodeSearchConfig:
    """Code search as what is measured: pairs of query and function, each query ranking all functions of its split.

    Attributes:
        dev: pairs that settings and checkpoints are chosen by.
        test: pairs that are scored at the end; None for none.
        functions: whose first column of texts joins the functions of both; None for none.
        cosqa: a folder with CoSQA's functions and dev queries, scored beside the test; None for none.
    """

    dev: CorpusConfig
    test: CorpusConfig | None = None
    functions: CorpusConfig | None = None
    cosqa: str | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured: STS (see `gcbs_st.evaluation.sts_tasks.load_sts_tasks`), or code search in its place.

    Attributes:
        sts: a folder of STS files, `hub`, or `package` for the packaged STS-B.
        code_search: in place of STS; None for STS.
        splits: which splits are scored.
        batch_size: texts a forward pass.
    """

    sts: str = "package"
    code_search: CodeSearchConfig | None = None
    splits: list[str] = field(default_factory=lambda: ["dev", "test"])
    batch_size: int = 128


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: the same training, once for each entry of `runs`.

    Attributes:
        output: folder of the experiment; each run has a folder in it.
        corpus: what is trained on.
        model: what is trained.
        loss: what is minimised.
        evaluation: what is measured.
        train: fields of `GCBSTrainingArguments`, the same for all runs.
        runs: name of a run -> the fields of `train` in which it differs.
        arms: further ways of training, for `scripts/compare.py` alone, which may differ in more than that.
    """

    output: str
    corpus: CorpusConfig
    model: ModelConfig
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"random": {"planner": "random"}, "gcbs": {"planner": "gcbs"}}
    )
    arms: dict[str, ArmConfig] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 2e-5 for a string. Nobody who writes a learning rate does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Returns the configuration that a file and the command line describe.

    Args:
        file: YAML with the keys of `ExperimentConfig`.
        overrides: `a.b=value` each, the value in YAML; they win over the file.

    Returns:
        The configuration; what neither names has its default.

    Raises:
        ConfigError: a file that is not there or not YAML, an unknown key, a missing one, a wrong type.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"config: the file {path} does not exist.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"config: {path} holds {type(raw).__name__}, expected a mapping with the keys {_keys(ExperimentConfig)}."
        )
    for override in overrides:
        _apply(raw, override)
    config = build(ExperimentConfig, raw)
    if not config.runs:
        raise ConfigError("runs: got none, expected at least one name of a run with the fields of train it changes.")
    return config


def override(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """Returns a configuration with some keys changed.

    Args:
        config: is not changed.
        overrides: `a.b=value` each, as in `load_config`.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: an unknown key or a value of a wrong type.
    """
    raw = asdict(config)
    for entry in overrides:
        _apply(raw, entry)
    return build(ExperimentConfig, raw)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, for example --set train.learning_rate=0.001")
    *parents, last = key.split(".")
    place = raw
    for depth, parent in enumerate(parents):
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} holds no keys.")
    try:
        place[last] = yaml.load(value, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from None


def build(config_class: type[ConfigClass], raw: Mapping[str, Any], path: str = "") -> ConfigClass:
    """Returns a configuration object made from a mapping.

    Args:
        config_class: one of the dataclasses of this module.
        raw: its keys and values.
        path: of this mapping within the whole, for the messages.

    Returns:
        The object.

    Raises:
        ConfigError: an unknown key, a missing one, or a value of a wrong type.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: got {raw!r}, expected a mapping with the keys {_keys(config_class)}.")
    hints = get_type_hints(config_class)
    for key in raw:
        if key not in hints:
            raise ConfigError(f"{_join(path, key)}: unknown key; expected one of {_keys(config_class)}.")
    values = {}
    for entry in fields(config_class):  # type: ignore[arg-type]
        where = _join(path, entry.name)
        if entry.name in raw:
            values[entry.name] = _convert(hints[entry.name], raw[entry.name], where)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{where}: missing, but it has no default.")
    return config_class(**values)


def _convert(expected: Any, value: Any, path: str) -> Any:
    options = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    block = next((option for option in options if is_dataclass(option)), None)
    if block is not None and not (value is None and type(None) in options):
        return build(block, value, path)  # type: ignore[arg-type]
    for option in options:
        kind = get_origin(option) or option
        if kind is dict and isinstance(value, dict) and is_dataclass(item := get_args(option)[1]):
            return {name: build(item, content, _join(path, name)) for name, content in value.items()}  # type: ignore
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        # True is an int to Python, but not to somebody who wrote `layers: true`.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            continue
        if kind is list and not all(isinstance(item, get_args(option)[0]) for item in value):
            continue
        if (
            kind is dict
            and get_args(get_args(option)[1])[:1] == (str,)
            and not all(isinstance(v, dict) for v in value.values())
        ):
            continue
        return value
    names = " or ".join(getattr(option, "__name__", str(option)).replace("NoneType", "null") for option in options)
    raise ConfigError(f"{path}: got {value!r}, expected {names}.")


def dump_config(config: ExperimentConfig) -> str:
    """Returns the resolved configuration as YAML, which `load_config` reads back to the same."""
    content = asdict(config)
    if not content["arms"]:
        del content["arms"]  # an experiment's own runs know nothing of them
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _keys(config_class: type) -> str:
    return ", ".join(entry.name for entry in fields(config_class))
