"""Reads YAML files and `--set a.b=value` into frozen dataclasses; refuses unknown keys and wrong types."""

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
    """The arguments of `gcbs_st.corpora.corpus.load_corpus`; `held_out` pairs are kept back to measure retrieval.

    The rows of `also` come after those of the source; of these, `held_out` counts at the top alone.
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
    also: list[CorpusConfig] = field(default_factory=list)


@dataclass(frozen=True)
class ModelConfig:
    """The arguments of `gcbs_st.models.load.load_model`, and whether static models train with sparse gradients."""

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
    """A loss class of `gcbs_st.losses` or of sentence-transformers, and its keyword arguments besides the model."""

    name: str = "MultipleNegativesRankingLoss"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MineConfig:
    """Arguments of the host's `mine_hard_negatives`, run once before training with the untrained model.

    A negative scores at most the positive's score less a share `relative_margin` of it, None for no bound; the nearest
    `range_max` texts are candidates.
    """

    num_negatives: int = 1
    relative_margin: float | None = None
    range_max: int | None = None


@dataclass(frozen=True)
class ArmConfig:
    """One way of training in a comparison; `train` and `loss` override those of the experiment.

    With `host` the host's own trainer and batch sampler train, and `train` holds no field of ours.
    """

    train: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig | None = None
    mine: MineConfig | None = None
    host: bool = False


@dataclass(frozen=True)
class CodeSearchConfig:
    """Pairs of query and function; each query ranks all functions of its split. `dev` chooses settings.

    The first text column of `functions` joins the functions of both splits. `cosqa` is a folder with CoSQA's functions
    and dev queries, scored beside the test.
    """

    dev: CorpusConfig
    test: CorpusConfig | None = None
    functions: CorpusConfig | None = None
    cosqa: str | None = None


@dataclass(frozen=True)
class RetrievalConfig:
    """A folder of retrieval sets, and which of them are scored; None for all that have a test."""

    folder: str
    tasks: list[str] | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured: STS, from a source of `gcbs_st.evaluation.sts_tasks`, or code search in its place.

    `retrieval` is scored beside STS. `dev` says what settings, checkpoints and times to a score go by: `sts`, its dev
    part, or `heldout`, the MRR of the pairs that `corpus.held_out` keeps back; code search has a dev part of its own.
    `bf16` encodes under bfloat16 autocast, two to three times as fast: for corpora that take minutes.
    """

    sts: str = "package"
    retrieval: RetrievalConfig | None = None
    code_search: CodeSearchConfig | None = None
    dev: str = "sts"
    splits: list[str] = field(default_factory=lambda: ["dev", "test"])
    batch_size: int = 128
    bf16: bool = False


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: the same training, once for each entry of `runs`."""

    output: str  # folder of the experiment; each run has a folder in it
    corpus: CorpusConfig
    model: ModelConfig
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: dict[str, Any] = field(default_factory=dict)  # fields of `GCBSTrainingArguments`, the same for all runs
    # Name of a run -> the fields of `train` in which it differs.
    runs: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"random": {"planner": "random"}, "gcbs": {"planner": "gcbs"}}
    )
    # Further ways of training, which may differ in more; only `gcbs-st compare` reads them.
    arms: dict[str, ArmConfig] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 2e-5 for a string. Nobody who writes a learning rate does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Returns the configuration that a file and the command line describe; what neither names has its default.

    `file` has the keys of `ExperimentConfig`, and perhaps `extends: FILE`; or it is the name of a configuration that
    comes with the package, such as `quickstart` or `papers/cosqa_unixcoder`. A file of that name wins. `overrides` are
    `a.b=value` each, the value in YAML; they win over the file. Whatever is wrong raises a ConfigError.
    """
    raw = _read(_find(file))
    for entry in overrides:
        _apply(raw, entry)
    config = build(ExperimentConfig, raw)
    if not config.runs:
        raise ConfigError("runs: got none, expected at least one name of a run with the fields of train it changes.")
    return config


def packaged_configs() -> dict[str, Path]:
    """Returns the configurations that come with the package: name -> file."""
    folder = Path(__file__).with_name("configs")  # where the wheel has them
    if not folder.is_dir():
        folder = Path(__file__).parents[1] / "configs"  # the repository
    files = sorted(folder.rglob("*.yaml"), key=lambda file: (file.parent != folder, file))
    # Those with an underscore are what others extend, and no experiments.
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files if file.name[0] != "_"}


def override(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """Returns a copy of a configuration with some keys changed, each by `a.b=value` as in `load_config`."""
    raw = asdict(config)
    for entry in overrides:
        _apply(raw, entry)
    return build(ExperimentConfig, raw)


def _find(file: str | Path) -> Path:
    if Path(file).is_file():
        return Path(file)
    packaged = packaged_configs()
    name = Path(file).as_posix().removesuffix(".yaml")
    if name not in packaged:
        names = ", ".join(packaged)
        raise ConfigError(f"config: {file} does not exist, and is none of the package's configurations: {names}.")
    return packaged[name]


def _read(file: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a file, merged over that of the file that it extends."""
    if (own := file.resolve()) in extending:
        chain = " -> ".join(map(str, (*extending[extending.index(own) :], own)))
        raise ConfigError(f"extends: these extend each other in a circle: {chain}.")
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {file} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        keys = _keys(ExperimentConfig)
        raise ConfigError(f"config: {file} holds {type(raw).__name__}, expected a mapping with the keys {keys}.")
    if "extends" not in raw:
        return raw
    name = raw.pop("extends")
    if not isinstance(name, str):
        raise ConfigError(f"extends: got {name!r} in {file}, expected the path of a file.")
    base = file.parent / name
    if not base.is_file():
        raise ConfigError(f"extends: {file} extends {base}, which does not exist.")
    return _merge(_read(base, (*extending, own)), raw)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The base with mappings merged key by key and other values replaced; null drops an entry of runs or arms."""
    merged = dict(base)
    for key, value in changes.items():
        where = _join(path, key)
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value, where)
        elif value is None and path in ("runs", "arms"):
            if key not in merged:
                raise ConfigError(f"{where}: null drops an entry of the extended file, which has none of that name.")
            del merged[key]
        else:
            merged[key] = value
    return merged


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
    """Returns one of the dataclasses of this module, made from a mapping that stands at `path` of the whole.

    Raises a ConfigError that names the path of a key that is unknown, missing, or of a wrong type.
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
        if kind is list and isinstance(value, list) and is_dataclass(item := get_args(option)[0]):
            return [build(item, content, f"{path}[{number}]") for number, content in enumerate(value)]  # type: ignore
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        # True is an int to Python, but not to somebody who wrote `layers: true`.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            continue
        if kind is list and not all(isinstance(item, get_args(option)[0]) for item in value):
            continue
        of_dicts = kind is dict and get_args(get_args(option)[1])[:1] == (str,)
        if of_dicts and not all(isinstance(entry, dict) for entry in value.values()):
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
