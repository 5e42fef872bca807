"""The configuration: what the file and the command line say, and how mistakes are explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcbs_st.config import ConfigError, ExperimentConfig, build, dump_config, load_config, packaged_configs

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


# ------------------------------------------------------------------ by name


def test_every_config_of_the_repository_loads_by_its_name():
    """The files in configs/ have no unknown key; those that others extend are not offered."""
    files = {file.relative_to(ROOT / "configs").as_posix() for file in (ROOT / "configs").rglob("*.yaml")}
    names = packaged_configs()
    assert files == {f"{name}.yaml" for name in names} | {"papers/_code_search.yaml", "papers/_simcse.yaml"}
    assert ["code_search_minilm2", "studies/nli_distilbert3"] == [list(names)[0], list(names)[-1]]
    assert all(load_config(name).output == f"runs/{name.removeprefix('papers/')}" for name in names)


@pytest.mark.parametrize("name", ["papers/cosqa_unixcoder", "papers/cosqa_unixcoder.yaml"])
def test_a_configuration_of_the_package_is_found_from_anywhere(name, tmp_path, monkeypatch):
    """With the file's ending or without, unless there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    assert "runs/cosqa_unixcoder" == load_config(name).output
    (tmp_path / "papers").mkdir()
    (tmp_path / name).write_text(MINIMAL)
    assert "out" == load_config(name).output


@pytest.mark.parametrize(
    "name", ["quick", "papers", "papers/_simcse", "../configs/quickstart", "configs/quickstart.yml"]
)
def test_neither_a_file_nor_a_name(name, tmp_path, monkeypatch):
    """The refusal lists the names."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"config: {name} does not exist.*code_search_static, .*quickstart, .*papers/"
    ):
        load_config(name)


# ------------------------------------------------------------------ extends

BASE = """output: out
corpus: {source: pairs.jsonl, columns: [a, b]}
model: {name: some/model, layers: 2}
train: {seed: 1, learning_rate: 1e-3}
runs: {random: {planner: random}, gcbs: {planner: gcbs, planner_options: {quantile: 0.9}}, late: {planner: bisect}}
arms: {mined: {train: {planner: random}, mine: {num_negatives: 2}}, plain: {}}
"""


def test_mappings_are_merged_and_the_rest_replaces(tmp_path):
    """Key by key at every depth; a list or a scalar replaces; null is a value, but drops an entry of runs or arms."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "middle.yaml").write_text("extends: ../base.yaml\ntrain: {seed: 2}\nmodel: {layers: null}\n")
    changes = """extends: sub/middle.yaml
corpus: {columns: [q]}
train: {max_steps: 5}
runs: {gcbs: {planner_options: {swaps: 1}}, late: null, new: {planner: best}}
arms: {mined: {mine: {range_max: 9}}, plain: null}
"""
    config = load_config(write(tmp_path, changes), ["train.seed=3"])
    assert ("out", "pairs.jsonl", ["q"]) == (config.output, config.corpus.source, config.corpus.columns)
    assert ("some/model", None) == (config.model.name, config.model.layers)
    assert {"seed": 3, "learning_rate": 1e-3, "max_steps": 5} == config.train
    gcbs = {"planner": "gcbs", "planner_options": {"quantile": 0.9, "swaps": 1}}
    assert {"random": {"planner": "random"}, "gcbs": gcbs, "new": {"planner": "best"}} == config.runs
    assert ["random", "gcbs", "new"] == list(config.runs)
    assert ["mined"] == list(config.arms)
    assert (2, 9) == (config.arms["mined"].mine.num_negatives, config.arms["mined"].mine.range_max)
    assert config == load_config(write(tmp_path, dump_config(config)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: no.yaml\n", r"^extends: .*config\.yaml extends .*no\.yaml, which does not exist"),
        ("extends: quickstart\n", r"^extends: .* which does not exist"),
        ("extends: [base.yaml]\n", r"^extends: got \['base\.yaml'\] in .*config\.yaml, expected the path of a file"),
        ("extends: config.yaml\n", r"^extends: .* circle: \S+config\.yaml -> \S+config\.yaml\.$"),
        ("extends: round.yaml\n", r"^extends: .* circle: \S+config\.yaml -> \S+round\.yaml -> \S+config\.yaml\.$"),
        ("extends: to_itself.yaml\n", r"^extends: .* circle: \S+to_itself\.yaml -> \S+to_itself\.yaml\.$"),
        ("extends: list.yaml\n", r"list\.yaml holds list, expected a mapping"),
        (
            "extends: base.yaml\nruns: {none: null}\n",
            r"^runs\.none: null drops an entry of the extended file, which has",
        ),
        ("extends: base.yaml\nruns: {random: null, gcbs: null, late: null}\n", r"^runs: got none"),
        ("extends: base.yaml\nruns: {gcbs: gcbs}\n", r"^runs: got .*expected dict"),
        ("extends: base.yaml\nmodel: {layer: 3}\n", r"^model\.layer: unknown key"),
    ],
)
def test_what_cannot_be_extended_is_explained(tmp_path, text, message):
    """Missing files, circles, and values that are wrong once they are merged."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "round.yaml").write_text("extends: ./config.yaml\n")
    (tmp_path / "to_itself.yaml").write_text("extends: to_itself.yaml\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))
