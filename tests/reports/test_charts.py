"""Charts: which points of a log are drawn where, and that names and numbers of any kind do no harm."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from gcbs_st.commands import draw
from gcbs_st.reports.charts import charts, figures, pictures, planner_chart
from gcbs_st.reports.charts.charts import charts_of_runs, mean_curve, read_curves, run_charts
from gcbs_st.reports.charts.planner_chart import Measurement, read_measurements

matplotlib = pytest.importorskip("matplotlib", reason="the report extra")

PLANS = {0: 5.0, 40: 3.0, 80: 2.0}  # step -> gap
LOG = [
    *({"step": step, "epoch": 0.1, "gcbs/gap": gap, "gcbs/gap_bound": gap + 1, "gcbs/closed": 0.5, "gcbs/plan_seconds": 9.0,
       "gcbs/tail_coverage": gap / 100, "gcbs/false_negatives": gap * 2, "gcbs/embedding_age": step / 2,
       "gcbs/embedding_age_max": float(step)} for step, gap in PLANS.items()),
    *({"step": step, "loss": 1.0 / step, "grad_norm": 3.0, "learning_rate": 1e-3} for step in range(10, 121, 10)),
    *({"step": step, "eval_sts_STSBenchmark-dev_spearman": 70.0 + step, "eval_sts_avg_spearman": 70.0 + step,
       "eval_runtime": 1.0} for step in (60, 120)),
    {"step": 120, "train_runtime": 5.0, "train_loss": 0.5},
]  # fmt: skip
TITLES = [
    "Gap to the global loss",
    "Closed by each plan",
    "Tail coverage",
    "False negatives",
    "Age of the embeddings",
    "Training loss",
    "Scores during training",
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in order."""
    found = []
    original = figures.new_figure

    def remember(*size):
        found.append(original(*size))
        return found[-1]

    for module in (figures, pictures, planner_chart):
        monkeypatch.setattr(module, "new_figure", remember)
    return found


def lines_of(figure, panel=0):
    """Label -> points of the lines of a panel; marks of plans are apart."""
    return {
        line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
        for line in figure.axes[panel].lines
        if line.get_transform() == figure.axes[panel].transData
    }


def marks_of(figure):
    """Steps at which plans are marked, and how high the marks reach."""
    panel = figure.axes[0]
    return [
        (line.get_xdata()[0], line.get_ydata()[1]) for line in panel.lines if line.get_transform() != panel.transData
    ]


def size_of(png):
    """Width and height in pixels of a PNG that matplotlib reads back."""
    from matplotlib.image import imread

    height, width, _ = imread(io.BytesIO(png)).shape
    return width, height


def test_a_run_has_its_charts(drawn):
    """Everything that a plan logs, the loss and the scores; a picture each, plans marked over the whole height."""
    pngs = run_charts(LOG, steps=120)
    assert TITLES == list(pngs)
    assert {(880, 462)} == {size_of(png) for png in pngs.values()}
    assert TITLES == [figure.axes[0].get_title() for figure in drawn]
    by_title = dict(zip(pngs, drawn, strict=True))
    assert {"gap": [(s, g) for s, g in PLANS.items()], "bound that holds for it": [(s, g + 1) for s, g in PLANS.items()]} == lines_of(by_title["Gap to the global loss"])  # fmt: skip
    assert {"mean": [(0, 0), (40, 20), (80, 40)], "oldest": [(0, 0), (40, 40), (80, 80)]} == lines_of(
        by_title["Age of the embeddings"]
    )
    assert {" ": [(step, 1 / step) for step in range(10, 121, 10)]} == lines_of(by_title["Training loss"])
    # The mean of a single task is no second line.
    assert {"STSBenchmark-dev, Spearman": [(60, 130), (120, 190)]} == lines_of(by_title["Scores during training"])
    for figure in drawn:
        assert [(0, 1), (40, 1), (80, 1)] == marks_of(figure)
        assert "optimizer steps" == figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel()
        assert figure.axes[0].get_xlim()[1] > 120


def test_what_is_no_number_is_passed_over():
    """NaN, infinity, text, nothing, truth values and entries without a step; the rest of the run is drawn."""
    log = [
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": float("inf")},
        {"step": 3, "loss": "0.5"},
        {"step": 4, "loss": None},
        {"step": 5, "loss": True},
        {"loss": 0.5},
        {"step": float("nan"), "loss": 0.5},
        {"step": None, "loss": 0.5},
        {},
        {"step": 6, "loss": 0.25},
    ]
    assert {"Training loss": {"": {6: 0.25}}} == read_curves(log)
    assert ["Training loss"] == list(run_charts(log))


@pytest.mark.parametrize("log", [[], [{}], [{"step": 3}], [{"step": 1, "train_runtime": 3.0}]])
def test_a_log_without_points_has_no_charts(log):
    """No empty pictures."""
    assert {} == run_charts(log) == charts_of_runs({"a": [log]}) == charts_of_runs({"a": []})


def test_a_step_that_was_logged_twice_counts_once():
    """A resumed run logs some steps again: the last value stands."""
    assert {0: 2.0} == read_curves([{"step": 0, "loss": 1.0}, {"step": 0, "loss": 2.0}])["Training loss"][""]


def test_several_datasets_have_a_line_each():
    """Fields are logged under the dataset's name, which may hold anything."""
    log = [{"step": 0, "gcbs/a/b/gap": 1.0, "gcbs/a/b/gap_bound": 2.0, "gcbs/c/closed": 0.5, "gcbs/c/unknown": 1.0}]
    assert {
        "Gap to the global loss": {"a/b gap": {0: 1.0}, "a/b bound that holds for it": {0: 2.0}},
        "Closed by each plan": {"c": {0: 0.5}},
    } == read_curves(log)


@pytest.mark.parametrize(
    ("key", "label", "value"),
    [
        ("eval_sts_STS12_spearman", "STS12, Spearman", 0.5),
        ("eval_code_code-dev_mrr", "code-dev, MRR", 0.5),
        ("eval_spearman_cosine", "STS, Spearman", 50.0),
        ("eval_my_dev_spearman_cosine", "my_dev, Spearman", 50.0),
    ],
)
def test_scores_of_this_package_and_of_the_host(key, label, value):
    """Ours are x 100, the host's are correlations."""
    assert {"Scores during training": {label: {7: value}}} == read_curves([{"step": 7, key: 0.5}])


@pytest.mark.parametrize(
    "key", ["eval_loss", "eval_code_code-dev_recall@1", "xeval_spearman_cosine", "train_loss", "gcbs/"]
)
def test_other_entries_are_no_scores(key):
    """Nothing is drawn of them."""
    assert {} == read_curves([{"step": 7, key: 0.5}])


def test_several_runs_are_means_at_the_steps_that_all_seeds_have(drawn):
    """A line for each name; what only one seed logged is left out, as is the plan of those who make none."""
    random = [[{"step": s, "loss": v + seed} for s, v in ((10, 1.0), (20, 2.0))] for seed in (0, 2)]
    planned = [
        [{"step": 0, "gcbs/gap": 4.0, "gcbs/gap_bound": 9.0}, {"step": 10, "loss": 5.0}, {"step": 30, "loss": 6.0}],
        [{"step": 0, "gcbs/gap": 2.0}, {"step": 10, "loss": 7.0}],
    ]
    pngs = charts_of_runs({"random": random, "gcbs": planned}, steps=30)
    assert ["Gap to the global loss", "Training loss"] == list(pngs)
    assert {"gcbs": [(0, 3.0)]} == lines_of(drawn[0])
    assert {"random": [(10, 2.0), (20, 3.0)], "gcbs": [(10, 6.0)]} == lines_of(drawn[1])
    # The plans of gcbs alone, as ticks at the bottom in its colour; its colour is the same in all charts.
    ((step, height),) = marks_of(drawn[1])
    assert step == 0
    assert height < 0.1
    colours = {line.get_label(): line.get_color() for figure in drawn for line in figure.axes[0].lines[:2]}
    assert drawn[0].axes[0].lines[0].get_color() == drawn[1].axes[0].lines[1].get_color() == colours["gcbs"]
    assert figures.COLOURS[:2] == (colours["random"], colours["gcbs"])


def test_one_task_names_the_chart_and_several_name_the_lines(drawn):
    """Nothing is drawn without saying what it is."""
    one = [[{"step": 1, "eval_sts_STS12_spearman": 50.0}]]
    two = [
        [{"step": 1, "eval_sts_STS12_spearman": 50.0, "eval_sts_STS13_spearman": 60.0, "eval_sts_avg_spearman": 55.0}]
    ]
    charts_of_runs({"a": one, "b": one})
    assert ("Scores during training: STS12, Spearman", {"a", "b"}) == (
        drawn[0].axes[0].get_title(), set(lines_of(drawn[0])),
    )  # fmt: skip
    charts_of_runs({"a": two})
    assert {"a, STS12, Spearman", "a, STS13, Spearman", "a, avg, Spearman"} == set(lines_of(drawn[1]))


def test_many_plans_do_not_hide_the_lines(drawn):
    """A re-plan every few steps is marked at the bottom."""
    log = [{"step": step, "gcbs/gap": 1.0, "loss": 1.0} for step in range(0, 500, 5)]
    run_charts(log)
    marks = marks_of(drawn[0])
    assert (100, True) == (len(marks), all(height < 0.1 for _, height in marks))


HOSTILE = ["$\\bad{$", "_hidden", "a\nb\x00", "x" * 300, "$", "", "名前 😀", "</script>", "50 % {x}"]


def test_names_are_shown_as_they_are(drawn):
    """No name is a formula, hides its line, or breaks the layout."""
    histories = {name: [[{"step": 1, "loss": 1.0}]] for name in HOSTILE}
    pngs = charts_of_runs(histories)
    assert (880, 462) == size_of(pngs["Training loss"])
    shown = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert len(HOSTILE) - 1 == len(shown)  # the empty one has no entry, but its line
    assert len(HOSTILE) == len(drawn[0].axes[0].lines)
    assert max(map(len, shown)) <= 62
    planner_chart.planner_chart([Measurement(name, 1.0, 0.5) for name in HOSTILE])
    difference = {"avg": {"mean": 1.0, "interval": None, "wins": 1, "pairs": 1}}
    pictures.difference_chart(dict.fromkeys(HOSTILE, difference), "$x$")


def test_lines_can_be_told_apart():
    """Twenty-one lines differ in colour or in dashes and mark; the colours are Okabe and Ito's, without yellow."""
    styles = [figures.style_of(number) for number in range(21)]
    assert (
        21 == len({(s["color"], s["linestyle"]) for s in styles}) == len({(s["color"], s["marker"]) for s in styles})
    )
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert okabe_ito - {"#F0E442"} == {s["color"] for s in styles}


@pytest.mark.parametrize(
    ("curves", "expected"),
    [([], {}), ([{}], {}), ([{1: 2.0}], {1: 2.0}), ([{1: 2.0}, {}], {}), ([{2: 1.0, 1: 1.0}, {1: 3.0, 2: 5.0}], {1: 2.0, 2: 3.0})],
)  # fmt: skip
def test_means_of_curves(curves, expected):
    """Of none, of one, of unlike ones; sorted by step."""
    assert list(expected.items()) == list(mean_curve(curves).items())


def test_charts_are_imported_without_matplotlib_and_say_what_is_missing():
    """The extra is optional: nothing is imported before something is drawn."""
    code = (
        "import sys; import gcbs_st.reports.charts.charts, gcbs_st.reports.charts.pictures, gcbs_st.reports.charts.planner_chart, gcbs_st.reports.runs.run_report\n"
        "assert 'matplotlib' not in sys.modules\nsys.modules['matplotlib.figure'] = None\n"
        "try: gcbs_st.reports.charts.charts.run_charts([{'step': 1, 'loss': 1.0}])\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "run: pip install 'gcbs_st[report]'" in done.stdout, done.stderr


# ------------------------------------------------------------------ planners compared


RESULTS = [
    {"method": "reference", "n": 100, "batch_size": 8, "seconds": 4.0, "closed": 0.25, "peak_bytes": 1},
    {"method": "mine_hard_negatives", "n": 100, "batch_size": 8, "seconds": 9.0},
    {"method": "bisect", "n": 100, "batch_size": 8, "seconds": 0.5, "closed": 0.5},
    {"method": "bisect", "n": 200, "batch_size": 8, "seconds": 0.0, "closed": -0.01},
]


def test_planners_are_drawn_where_they_were_measured(tmp_path, drawn):
    """Closed against seconds, a panel a setting; what makes no plan is left out, no time is a millisecond."""
    file = tmp_path / "planners.json"
    file.write_text(json.dumps({"machine": "m", "results": RESULTS}, indent=2))
    out = tmp_path / "new" / "planners.png"
    assert 0 == draw.main(["--measured", str(file), "--out", str(out)])
    assert size_of(out.read_bytes())[0] <= 1280
    (figure,) = drawn
    assert {"reference": [(4.0, 0.25)], "bisect": [(0.5, 0.5)]} == lines_of(figure, 0)
    assert {"bisect": [(0.001, -0.01)]} == lines_of(figure, 1)
    assert ["100 rows, 8 per batch", "200 rows, 8 per batch"] == [panel.get_title() for panel in figure.axes]
    assert ["log", "log"] == [panel.get_xscale() for panel in figure.axes]


def test_json_lines_of_plans(tmp_path):
    """What several calls of `gcbs-st plan` print, one after the other; a batch that was not measured is left out."""
    file = tmp_path / "plans.jsonl"
    lines = [
        {"planner": "gcbs", "seconds": 1, "closed": 0.5, "rows": 90},
        {"planner": "tbs", "seconds": 2.0, "closed": None},
    ]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    assert [Measurement("gcbs", 1, 0.5, 90, None)] == read_measurements(file)
    file.write_text(json.dumps(lines[0]))  # one line alone is JSON by itself
    assert [Measurement("gcbs", 1, 0.5, 90, None)] == read_measurements(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no planner with seconds and closed"),
        ('{"results": []}', "got no planner with seconds and closed"),
        ('{"planner": "a", "seconds": 1, "closed": 0.5}\n{"plan', "plans.json, line 2: got no JSON"),
        ("[1, 2]", "line 1: got [1, 2], expected an object with the name of a planner"),
        ('{"results": [{"seconds": 1}]}', "result 1: got {'seconds': 1}, expected an object with the name"),
        ('{"planner": "a", "seconds": "1", "closed": 0.5}', "line 1: got seconds '1', expected a finite number from 0 on"),
        ('{"planner": "a", "seconds": -1, "closed": 0.5}', "line 1: got seconds -1"),
        ('{"planner": "a", "seconds": 1, "closed": NaN}', "line 1: got closed nan"),
        ("\x00\xff", "line 1: got no JSON"),
        ('{"results": [' + ",".join(f'{{"method": "a", "seconds": 1, "closed": 0, "n": {n}}}' for n in range(7)) + "]}",
         "got 7 settings of rows and batch size, expected 1 to 6"),
    ],
)  # fmt: skip
def test_measurements_that_cannot_be_drawn(tmp_path, capsys, text, message):
    """Exit code 2, one line with the place, nothing written."""
    (tmp_path / "plans.json").write_text(text)
    assert 2 == draw.main(["--measured", str(tmp_path / "plans.json"), "--out", str(tmp_path / "p.png")])
    err = capsys.readouterr().err
    assert message in err
    assert (1, ["plans.json"]) == (len(err.splitlines()), [file.name for file in tmp_path.iterdir()])


def test_differences_are_drawn_with_their_intervals(drawn):
    """Three panels at most, known means first; a way of training without a score leaves its line empty."""
    one = {"mean": 1.0, "interval": [0.5, 1.5], "wins": 2, "pairs": 2}
    lone = {"mean": -1.0, "interval": None, "wins": 0, "pairs": 1}
    pictures.difference_chart({"a": {"STS12": one, "x": one, "y": one, "avg": lone}, "b": {"STS12": lone}}, "random")
    (figure,) = drawn
    assert ["mean of the STS tests", "STS12", "x"] == [panel.get_title() for panel in figure.axes]
    spans = [list(map(float, line.get_xdata())) for line in figure.axes[1].lines]
    assert [[0.5, 1.5], [1.0], [-1.0, -1.0], [-1.0]] == spans[:4]
    assert "Paired differences, 1-2 seeds, 95 % t interval" == figure.get_suptitle()


def test_charts_have_no_global_state():
    """Drawing leaves no figure open, which would pile up over a comparison."""
    run_charts(LOG)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    assert charts.LOSS_TITLE in run_charts(LOG)
