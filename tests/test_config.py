"""The configuration: what the file and the command line say, and how mistakes are explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcbs_st.config import ConfigError, ExperimentConfig, build, dump_config, load_config

ROOT = Path(__file__).parent.parent
MINIMAL = "output: out\ncorpus: {source: pairs.jsonl}\nmodel: {name: some/model}\n"


def write(tmp_path: Path, text: str) -> Path:
    """A configuration file with that text."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return file


def test_defaults_fill_what_is_not_named(tmp_path):
    """A file with the three required blocks is a whole configuration."""
    config = load_config(write(tmp_path, MINIMAL))
    assert ("out", "pairs.jsonl", "some/model") == (config.output, config.corpus.source, config.model.name)
    assert ["random", "gcbs"] == list(config.runs)
    assert "MultipleNegativesRankingLoss" == config.loss.name


def test_command_line_wins_over_the_file(tmp_path):
    """--set changes a key of any depth, makes blocks that are not there, and reads its value as YAML."""
    overrides = [
        "corpus.max_rows=10",
        "train.learning_rate=2e-5",
        "runs.gcbs.planner_options.quantile=0.9",
        "output=other",
    ]
    config = load_config(write(tmp_path, MINIMAL + "train: {learning_rate: 1}\n"), overrides)
    assert (10, "other") == (config.corpus.max_rows, config.output)
    assert {"learning_rate": 2e-5} == config.train
    assert {"gcbs": {"planner_options": {"quantile": 0.9}}} == config.runs


@pytest.mark.parametrize("text", ["1e-3", "2E-5", "1.5e3", "-3e+2"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text):
    """YAML 1.1 reads 1e-3 as a string, which no one who writes it means."""
    assert (
        float(text)
        == load_config(write(tmp_path, f"{MINIMAL}train: {{learning_rate: {text}}}")).train["learning_rate"]
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (MINIMAL + "bogus: 1\n", [], r"^bogus: unknown key; expected one of output, corpus"),
        (MINIMAL.replace("source", "sauce"), [], r"^corpus\.sauce: unknown key; expected one of source"),
        (MINIMAL, ["model.layer=2"], r"^model\.layer: unknown key; expected one of name, static, layers"),
        ("output: out\nmodel: {name: m}\n", [], r"^corpus: missing"),
        ("output: out\ncorpus: {}\nmodel: {name: m}\n", [], r"^corpus\.source: missing"),
        (MINIMAL, ["model.layers=two"], r"^model\.layers: got 'two', expected int or null"),
        (MINIMAL, ["model.layers=true"], r"^model\.layers: got True, expected int or null"),
        (MINIMAL, ["model.static=1"], r"^model\.static: got 1, expected bool"),
        (MINIMAL, ["corpus.columns=a"], r"^corpus\.columns: got 'a', expected list"),
        (MINIMAL, ["corpus.columns=[1]"], r"^corpus\.columns: got \[1\], expected list"),
        (MINIMAL, ["corpus=x"], r"^corpus: got 'x', expected a mapping with the keys source"),
        (MINIMAL, ["runs={}"], r"^runs: got none"),
        (MINIMAL, ["runs.gcbs=gcbs"], r"^runs: got \{'gcbs': 'gcbs'\}, expected dict"),
        (MINIMAL, ["output"], r"^--set output: expected KEY=VALUE"),
        (MINIMAL, ["output.a=1"], r"^--set output\.a=1: output holds no keys"),
        (MINIMAL, ["output=[1"], r"^--set output=\[1: the value is not YAML"),
        ("- a\n", [], r"holds list, expected a mapping"),
        ("a: [\n", [], r"is not YAML"),
    ],
)
def test_mistakes_are_named_with_their_path(tmp_path, text, overrides, message):
    """Every refusal says the path of the key, what it holds and what it may hold."""
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text), overrides)


def test_a_missing_file_is_named(tmp_path):
    """The path that was given is in the message."""
    with pytest.raises(ConfigError, match=r"no\.yaml does not exist"):
        load_config(tmp_path / "no.yaml")


def test_a_dumped_configuration_reads_back_to_the_same(tmp_path):
    """What a run's folder holds re-makes the run."""
    config = load_config(write(tmp_path, MINIMAL), ["train.learning_rate=1e-05", "corpus.columns=[q, a]"])
    assert config == load_config(write(tmp_path, dump_config(config)))


@given(
    st.dictionaries(
        st.sampled_from(["output", "corpus", "model", "train", "x"]), st.one_of(st.none(), st.integers(), st.text())
    )
)
def test_nothing_but_a_config_error_comes_out_of_nonsense(raw):
    """Whatever a mapping holds, it becomes a configuration or a ConfigError."""
    with pytest.raises(ConfigError):
        build(ExperimentConfig, raw)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_of_the_repository_loads(file):
    """The files in configs/ have no unknown key."""
    assert load_config(file).runs
