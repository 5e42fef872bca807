"""Reports over runs: what the folders hold is what the report says, and what is damaged is named."""

from __future__ import annotations

import copy
import html.parser
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest
import yaml
from conftest import make_pairs, make_static_model
from scipy.stats import ttest_rel

from gcbs_st.commands import report, train
from gcbs_st.records.run_folder import read_run_record, read_runs
from gcbs_st.reports.runs.page import report_html, report_markdown
from gcbs_st.reports.runs.run_groups import flat_config, short_path
from gcbs_st.reports.runs.run_report import make_report

pytest.importorskip("matplotlib", reason="the report extra")

CONFIG = {
    "output": "runs/x",
    "corpus": {"source": "pairs.jsonl", "group": None},
    "train": {"seed": 1, "learning_rate": 0.001},
    "loss": {"name": "MultipleNegativesRankingLoss", "options": {"scale": 20.0}},
}
RECORD = {
    "STSBenchmark-dev": 70.5,
    "STSBenchmark": 65.0,
    "STS12": 50.0,
    "avg": 57.5,
    "steps": 120,
    "train_loss": 1.25,
    "gap_closed": 0.5,
    "plans": 2,
    "seconds_training": 30.0,
    "seconds_embedding": 5.0,
    "seconds_planning": 2.5,
    "seed": 1,
    "corpus_hash": "c0ffee",
    "training_rows": 640,
    "commit": "abc1234",
    "python": "3.11.7",
    "versions": {"gcbs_st": "0.1.0", "torch": "2.13.0"},
}
LOG = [{"step": step, "loss": 2.0 / step} for step in (40, 80, 120)]


def write_run(folder, name, *, config=None, log=LOG, **changes):
    """The folder of a finished run of an experiment; its record and configuration."""
    folder.mkdir(parents=True)
    record = {**copy.deepcopy(RECORD), "run": name, **changes}
    config = {**copy.deepcopy(CONFIG), "runs": {name: {"planner": name}}} if config is None else config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps(record))
    if log is not None:
        (folder / "log_history.json").write_text(json.dumps(log))
    return record


@pytest.fixture
def experiment(tmp_path):
    """An experiment of two runs, as `train-sts` leaves it."""
    folder = tmp_path / "quick"
    records = {
        "before": {"STSBenchmark": 40.0, "avg": 40.0},
        "random": write_run(folder / "random", "random", plans=0, gap_closed=0.0, seconds_embedding=0, seconds_planning=0),
        "gcbs": write_run(folder / "gcbs", "gcbs", seconds_training=45.0, **{"STSBenchmark": 66.5, "avg": 58.5}),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def comparison(tmp_path):
    """A comparison of two arms with three seeds, one of which an arm has not finished."""
    folder = tmp_path / "compared"
    for arm, scores in (("random", [60.0, 61.0, 65.0]), ("bisect", [61.0, 61.5, 67.5])):
        for seed, score in enumerate(scores, start=1):
            config = {**copy.deepcopy(CONFIG), "runs": {f"seed-{seed}": {}}}
            config["train"] |= {"seed": seed, "planner": arm}
            config["arms"] = {arm: {"train": {"planner": arm}, "loss": None, "mine": None, "host": False}}
            write_run(
                folder / arm / f"seed-{seed}", arm, config=config, log=None, seed=seed, avg=score,
                seconds_total=10.0 * seed if arm == "random" else 15.0 * seed,
                dev_curve=[[60, 5.0, score], [120, 9.0, score + 1]],
                plan_log=[{"step": 0, "gap": 3.0, "closed": 0.5, "tail_coverage": 0.1, "false_negatives": 1.0}]
                * (arm == "bisect"),
            )  # fmt: skip
    (folder / "bisect" / "seed-4").mkdir()
    (folder / "comparison.json").write_text(json.dumps({"before": {"avg": 50.0}}))
    return folder


def table(content, title):
    """Row -> column -> cell of one table of a report."""
    (found,) = [t for t in [*content.results, *content.origins] if t.title == title]
    return {row[0]: dict(zip(found.header[1:], row[1:], strict=True)) for row in found.rows}


class Page(html.parser.HTMLParser):
    """The elements, attributes and texts of a page, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.stack = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


# ------------------------------------------------------------------ what a report says


def test_an_experiment_is_reported(experiment):
    """Scores before and after, the difference to random batches, seconds and their ratio, and what differs."""
    content = make_report(read_runs([experiment]))
    assert "2 ways of training, 2 runs" == content.title
    scores = table(content, "Scores")
    assert ["before training", "random", "gcbs"] == list(scores)
    assert ("40.00", "65.00", "66.50") == tuple(row["STS-B test"] for row in scores.values())
    assert ("", "120", "1.250") == (scores["before training"]["steps"], scores["gcbs"]["steps"], scores["gcbs"]["training loss"])  # fmt: skip
    assert {"random": "50.00", "gcbs": "50.00", "before training": ""} == {
        name: row["STS12"] for name, row in table(content, "Scores of single tasks").items()
    }
    # One seed has no interval, and an equal score is no win.
    differences = table(content, "Differences to random batches")
    assert {"gcbs": "+1.50 1/1"} == differences["STS-B test"]
    assert {"gcbs": "+0.00 0/1"} == differences["STS12"]
    seconds = table(content, "Seconds")
    assert ("45.0", "5.0", "x 1.50") == tuple(
        seconds["gcbs"][column] for column in ("training", "of it embedding", "of random batches'")
    )
    assert "" == seconds["random"]["of random batches'"]
    assert {"train.planner": {"random": "random", "gcbs": "gcbs"}} == table(content, "What the runs differ in")
    assert {"value": "abc1234"} == table(content, "Where the figures come from")["commit"]
    assert [] == content.notes
    assert ["Paired differences", "Training loss"] == list(content.charts)


def test_the_mean_of_one_task_is_not_shown(experiment):
    """It would stand beside the task and say the same."""
    for name in ("random", "gcbs"):
        change(STS12=None)(experiment / name / "results.json")
    content = make_report(read_runs([experiment]))
    assert ["STS-B dev", "STS-B test"] == list(table(content, "Differences to random batches"))
    assert "STS mean" not in table(content, "Scores")["gcbs"]


def test_means_over_unlike_seeds_are_told(comparison):
    """Means of other seeds differ by the seeds too; the paired differences do not."""
    shutil.rmtree(comparison / "bisect" / "seed-3")
    content = make_report(read_runs([comparison]))
    assert "Not all have the same seeds: compare them by their differences, not by their means." in content.notes
    assert table(content, "Differences to random batches")["STS mean"]["bisect"].endswith(" 2/2")


def test_a_comparison_is_reported_with_paired_statistics(comparison):
    """Means over seeds, and intervals that SciPy's paired t test gives as well."""
    content = make_report(read_runs([comparison]))
    assert "2 ways of training, 6 runs" == content.title
    base, arm = [60.0, 61.0, 65.0], [61.0, 61.5, 67.5]
    scores = table(content, "Scores")
    assert [f"{statistics.mean(values):.2f}" for values in (base, arm)] == [
        scores[name]["STS mean"] for name in ("random", "bisect")
    ]
    assert ("3", "50.00") == (scores["bisect"]["seeds"], scores["before training"]["STS mean"])
    low, high = ttest_rel(arm, base).confidence_interval(0.95)
    mean = statistics.mean(a - b for a, b in zip(arm, base, strict=True))
    assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] 3/3" == table(content, "Differences to random batches")["STS mean"]["bisect"]  # fmt: skip
    assert ("30.0", "x 1.50") == tuple(table(content, "Seconds")["bisect"].values())[::4]
    assert [f"Left out, as there is no run in them yet: {comparison / 'bisect' / 'seed-4'}."] == [
        note for note in content.notes if note.startswith("Left out")
    ]
    assert {"Scores during training", "Gap to the global loss"} < set(content.charts)


def test_one_run_has_charts_of_its_own(experiment):
    """With a run alone the marks of its plans and both lines of the gap are drawn; nothing is compared."""
    log = [*LOG, {"step": 0, "gcbs/gap": 1.0, "gcbs/gap_bound": 2.0}]
    (experiment / "gcbs" / "log_history.json").write_text(json.dumps(log))
    content = make_report(read_runs([experiment / "gcbs"]))
    assert ["Gap to the global loss", "Training loss"] == list(content.charts)
    assert ["Scores", "Scores of single tasks", "Seconds"] == [t.title for t in content.results]
    assert "1 way of training, 1 run" == content.title


def test_runs_that_are_named_together_are_pairs_and_count_once(experiment):
    """Two run folders, one of them twice, are the same as their experiment, but for its untrained model."""
    folders = [experiment / "random", experiment / "gcbs", experiment / "gcbs" / ".." / "gcbs"]
    content = make_report(read_runs(folders))
    assert "2 ways of training, 2 runs" == content.title
    assert ["random", "gcbs"] == list(table(content, "Scores"))
    assert {"gcbs": "+1.50 1/1"} == table(content, "Differences to random batches")["STS-B test"]


def test_experiments_of_the_same_names_are_told_apart(experiment, tmp_path):
    """Labels hold as much of the path as it takes, and runs are compared inside their experiment alone."""
    write_run(tmp_path / "other" / "quick" / "gcbs", "gcbs")
    content = make_report(read_runs([experiment, tmp_path / "other" / "quick"]))
    labels = list(table(content, "Scores"))
    assert 4 == len(set(labels))
    assert labels[-1] == "other/quick/gcbs"
    assert 1 == len(next(iter(table(content, "Differences to random batches").values())))


def test_random_batches_of_another_name_are_found(tmp_path):
    """The one run whose planner is random is the reference."""
    write_run(tmp_path / "x" / "base", "base", config={**CONFIG, "runs": {"base": {"planner": "random"}}})
    write_run(tmp_path / "x" / "mine", "mine", config={**CONFIG, "runs": {"mine": {"planner": "best"}}})
    assert {"mine"} == set(
        table(make_report(read_runs([tmp_path / "x"])), "Differences to random batches")["STS mean"]
    )


def test_what_is_not_paired_is_not_compared(experiment):
    """Other rows: no difference, and a note of it; another number of steps: a note."""
    record = json.loads((experiment / "gcbs" / "results.json").read_text())
    (experiment / "gcbs" / "results.json").write_text(json.dumps({**record, "steps": 60}))
    assert ["gcbs: other numbers of steps than random with the seeds 1."] == make_report(read_runs([experiment])).notes
    changed = {**record, "corpus_hash": "beef", "commit": "abc+"}
    (experiment / "gcbs" / "results.json").write_text(json.dumps(changed))
    content = make_report(read_runs([experiment]))
    assert "Differences to random batches" not in [t.title for t in content.results]
    assert [
        "gcbs: 1 of 1 runs have no run of random with the same seed and rows.",
        "The runs were not all trained on the same rows; see where the figures come from.",
        "A + after a commit: files of the checkout differed from it.",
    ] == content.notes
    commits = table(content, "Where the figures come from")["commit"]["value"]
    assert "abc1234 (random); abc+ (gcbs)" == commits


def test_scores_that_are_not_finite(experiment):
    """A run that diverged is shown with nan, has no difference, and its finite losses are drawn."""
    record = json.loads((experiment / "gcbs" / "results.json").read_text())
    lost = {**record, "STSBenchmark": math.nan, "avg": math.nan, "train_loss": math.inf}
    (experiment / "gcbs" / "results.json").write_text(json.dumps(lost))
    (experiment / "gcbs" / "log_history.json").write_text('[{"step": 1, "loss": NaN}, {"step": 2, "loss": 1.0}, 7]')
    content = make_report(read_runs([experiment]))
    assert ("nan", "inf") == tuple(table(content, "Scores")["gcbs"][c] for c in ("STS-B test", "training loss"))
    assert "STS-B test" not in table(content, "Differences to random batches")
    assert "nan" in report_markdown(content, {})


def test_configurations_are_those_in_force(tmp_path):
    """A run's entry goes over train, an arm's over the blocks; folder, seed and what was not given are no difference."""
    config = {
        "output": "x",
        "train": {"seed": 3, "planner": "random", "lr": 1},
        "loss": {"name": "A"},
        "model": {"head": None},
    }
    write_run(tmp_path / "r" / "a", "a", config={**config, "runs": {"a": {"planner": "gcbs", "options": {"q": 0.5}}}})
    assert {
        "train.planner": "gcbs", "train.lr": "1", "train.options.q": "0.5", "loss.name": "A",
    } == flat_config(read_run_record(tmp_path / "r" / "a"))  # fmt: skip
    arms = {"b": {"train": {"lr": 2}, "loss": {"name": "B"}, "mine": None, "host": True}}
    write_run(tmp_path / "c" / "b" / "seed-3", "b", config={**config, "runs": {"seed-3": {}}, "arms": arms})
    assert {
        "train.planner": "random", "train.lr": "2", "loss.name": "B", "host": "True",
    } == flat_config(read_run_record(tmp_path / "c" / "b" / "seed-3"))  # fmt: skip


def test_short_paths():
    """As many of the last parts as no other path has."""
    paths = [Path("/a/b/x"), Path("/a/c/x"), Path("/a/y")]
    assert ["b/x", "c/x", "y"] == [short_path(path, paths) for path in paths]


# ------------------------------------------------------------------ what is written


def test_the_command_writes_a_page_a_text_and_pictures(experiment, tmp_path, capsys):
    """One page that needs nothing else, one Markdown text whose pictures are there; nothing in the runs changes."""
    before = sorted((path, path.stat().st_mtime_ns) for path in experiment.rglob("*"))
    out = tmp_path / "new" / "report"
    assert 0 == report.main([str(experiment), "--out", str(out)])
    assert f"2 ways of training, 2 runs: {out}/report.html and {out}/report.md\n" == capsys.readouterr().out
    text = (out / "report.md").read_text()
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.MULTILINE)
    assert ["report_charts/paired_differences.png", "report_charts/training_loss.png"] == pictures
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert 2 + len(pictures) == len([path for path in out.rglob("*") if path.is_file()])
    page = Page((out / "report.html").read_text())
    sources = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert len(pictures) == len(sources)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(attrs["alt"] for tag, attrs in page.elements if tag == "img")
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"https?://|url\(|@import", (out / "report.html").read_text())
    assert before == sorted((path, path.stat().st_mtime_ns) for path in experiment.rglob("*"))


def test_page_and_text_say_the_same(comparison):
    """Every cell of every table is in both."""
    content = make_report(read_runs([comparison]), with_charts=False)
    page, text = Page(report_html(content)), report_markdown(content, {})
    plain = re.sub(r"\\(.)", r"\1", text)
    for shown in [*content.results, *content.origins]:
        for cell in (cell for row in [shown.header, *shown.rows] for cell in row if cell):
            assert cell in page.texts
            assert re.search(rf"\| +{re.escape(cell)} +\|", plain), cell


HOSTILE = "</title></style><script>window.pwned=1</script><img src=x onerror='pwned=1'>|`*a*`[x](http://x) & $x$"


def test_hostile_names_are_text(tmp_path):
    """A name that is markup is shown as it is, in the page and in Markdown."""
    name = HOSTILE.replace("/", "∕")  # a folder has no slash
    write_run(tmp_path / "x" / "run", name, corpus_hash=HOSTILE, versions={HOSTILE: HOSTILE}, commit=HOSTILE)
    write_run(tmp_path / "x" / "other", "random", config={"train": {HOSTILE: HOSTILE, "planner": "random"}})
    content = make_report(read_runs([tmp_path / "x"]))
    page = Page(report_html(content))
    assert {"html", "head", "meta", "title", "style", "body", "header", "h1", "main", "section", "h2", "div", "table",
            "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "figure", "img"} >= {tag for tag, _ in page.elements}  # fmt: skip
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert {name, HOSTILE} <= set(page.texts)
    text = report_markdown(content, {})
    assert not re.search(r"(?<!\\)<(?!\\)|(?<!\\)`", text)
    assert name in re.sub(r"\\(.)", r"\1", text)
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert all(1 == len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) for block in blocks)


def test_without_matplotlib_there_is_a_report(experiment, tmp_path, monkeypatch, capsys):
    """The tables are written, and what is missing is said."""
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 0 == report.main([str(experiment), "--out", str(tmp_path / "out")])
    assert "No charts: charts need matplotlib" in capsys.readouterr().err
    assert ["report.html", "report.md"] == sorted(path.name for path in (tmp_path / "out").iterdir())


# ------------------------------------------------------------------ what is damaged


def cut(file):
    """A file that was written halfway."""
    file.write_bytes(file.read_bytes()[:20])


def change(**keys):
    """A record with other entries; None takes one away."""

    def damage(file):
        record = {**json.loads(file.read_text()), **keys}
        file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))

    return damage


DAMAGE = {
    "no results": ("gcbs/results.json", lambda file: file.unlink(), "is not there: the run has not finished"),
    "results cut off": ("gcbs/results.json", cut, "is damaged ("),
    "results empty": ("gcbs/results.json", lambda file: file.write_text(""), "is damaged ("),
    "results a list": ("gcbs/results.json", lambda file: file.write_text("[]"), "it holds list, expected dict"),
    "results binary": ("gcbs/results.json", lambda file: file.write_bytes(b"\xff\xfe\x00"), "is damaged ("),
    "results nested": ("gcbs/results.json", lambda file: file.write_text("[" * 100_000), "is damaged ("),
    "results a folder": ("gcbs/results.json", lambda file: (file.unlink(), file.mkdir()), "is not there"),
    "no steps": ("gcbs/results.json", change(steps=None), "steps is nothing, expected what a finished run writes"),
    "steps a text": ("gcbs/results.json", change(steps="many"), "steps is many"),
    "steps true": ("gcbs/results.json", change(steps=True), "steps is True"),
    "no hash": ("gcbs/results.json", change(corpus_hash=None), "corpus_hash is nothing"),
    "curve": ("gcbs/results.json", change(dev_curve=[[1, 2]]), "dev_curve is not a list of step, seconds and score"),
    "plans a number": ("gcbs/results.json", change(plan_log=7), "plan_log is not a list"),
    "curve a number": ("gcbs/results.json", change(dev_curve=7), "dev_curve is not a list"),
    "plans": ("gcbs/results.json", change(plan_log=["x"]), "plan_log is not a list of plans"),
    "config cut off": ("gcbs/config.yaml", lambda file: file.write_text("corpus: {source: [a"), "is damaged ("),
    "config a text": ("gcbs/config.yaml", lambda file: file.write_text("hello"), "it holds str, expected the keys"),
    "config empty": ("gcbs/config.yaml", lambda file: file.write_text(""), "it holds NoneType"),
    "config binary": ("gcbs/config.yaml", lambda file: file.write_bytes(b"\xff\x00"), "is damaged ("),
    "log cut off": ("gcbs/log_history.json", cut, "is damaged ("),
    "log a dict": ("gcbs/log_history.json", lambda file: file.write_text("{}"), "it holds dict, expected list"),
    "no config": ("gcbs/config.yaml", lambda file: file.unlink(), "is not there"),
    "all cut off": ("results.json", cut, "is damaged ("),
    "before a text": ("results.json", lambda file: file.write_text('{"before": {"avg": "x"}}'), "before is {'avg': 'x'}"),
}  # fmt: skip


@pytest.mark.parametrize(("place", "damage", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_files_are_named(experiment, tmp_path, capsys, place, damage, message):
    """Exit code 2, one line with the file, nothing written."""
    damage(experiment / place)
    assert 2 == report.main([str(experiment), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert ("", 1) == (shown.out, len(shown.err.splitlines()))
    assert f"{experiment / place}" in shown.err
    assert message in shown.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "is not there, expected the folder of a run"),
        ("file.txt", "is not there, expected the folder of a run"),
        ("empty", "holds no run: expected config.yaml"),
    ],
)
def test_folders_without_runs(tmp_path, capsys, folder, message):
    """A mistyped path, a file, and an empty folder."""
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    assert 2 == report.main([str(tmp_path / folder), "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_is_not_written_over_a_file(experiment, tmp_path, capsys):
    """--out names a folder."""
    (tmp_path / "out").write_text("mine")
    assert 2 == report.main([str(experiment), "--out", str(tmp_path / "out")])
    assert "is a file, expected a folder" in capsys.readouterr().err
    assert "mine" == (tmp_path / "out").read_text()


# ------------------------------------------------------------------ from training to the report


def test_from_training_to_the_report(tmp_path, capsys):
    """A run keeps its log, and the lines that training ends with name folders that can be reported."""
    make_static_model().save(str(tmp_path / "start"))
    make_pairs().to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "sts").mkdir()
    rows = [{"sentence1": f"w{i} w{i + 1}", "sentence2": f"w{i + 1} w{2 * i}", "score": i % 6} for i in range(12)]
    for split in ("dev", "test"):
        (tmp_path / "sts" / f"STSBenchmark.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "output": str(tmp_path / "runs"),
        "corpus": {"source": str(tmp_path / "pairs.jsonl")},
        "model": {"name": str(tmp_path / "start"), "static": True},
        "evaluation": {"sts": str(tmp_path / "sts"), "splits": ["dev", "test"]},
        "train": {"max_steps": 12, "per_device_train_batch_size": 16, "use_cpu": True, "logging_steps": 3,
                  "eval_strategy": "steps", "eval_steps": 6, "save_strategy": "no", "report_to": "none"},
        "runs": {"random": {"planner": "random"}, "bisect": {"planner": "bisect", "replan_steps": 6}},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert 0 == train.train_sts(["--config", str(tmp_path / "config.yaml")])
    out = capsys.readouterr().out
    assert f"--run {tmp_path}/runs/bisect --out" in out
    assert f"report {tmp_path}/runs --out" in out
    log = json.loads((tmp_path / "runs" / "bisect" / "log_history.json").read_text())
    assert [3, 6, 9, 12] == [entry["step"] for entry in log if "loss" in entry]
    assert {0, 6} <= {entry["step"] for entry in log if "gcbs/gap" in entry}
    content = make_report(read_runs([tmp_path / "runs"]))
    assert {"Paired differences", "Gap to the global loss", "Training loss", "Scores during training"} < set(
        content.charts
    )
    record = json.loads((tmp_path / "runs" / "results.json").read_text())
    shown = table(content, "Scores")
    assert f"{record['bisect']['STSBenchmark']:.2f}" == shown["bisect"]["STS-B test"]
    assert f"{record['before']['STSBenchmark']:.2f}" == shown["before training"]["STS-B test"]
