"""The batch inspector's content and page: what they say of batches, and what of files is refused."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from inspection import HOSTILE, make_subject, oracle, refused, unit_rows

from gcbs_st.commands.inspect import main
from gcbs_st.planners.quality import plan_quality
from gcbs_st.reports.html import batches_page, embed_json
from gcbs_st.reports.inspection.batch_scores import measure_batches, similarity_matrix
from gcbs_st.reports.inspection.inspector import ROWS_A_BATCH, SHOWN_BYTES, choose_batches, inspect_plan

# ---------------------------------------------------------------- figures of batches


@pytest.mark.parametrize("size", [1, 2, 8])
def test_batches_are_measured_as_by_hand(size):
    """Each figure of each batch equals plain loops over its rows; a batch of one row has no negative."""
    subject = make_subject(size=size)
    measures = measure_batches(subject.anchors, subject.positives, subject.batches, scale=7.0)
    expected = np.array([oracle(subject.anchors, subject.positives, batch, 7.0) for batch in subject.batches])
    found = np.stack([measures.loss, measures.hardest, measures.false_negatives, measures.tainted], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_means_are_those_of_plan_quality():
    """False negatives and in-batch loss are what `plan_quality` measures of all batches."""
    subject = make_subject(rows=64)
    measures = measure_batches(subject.anchors, subject.positives, subject.batches)
    quality = plan_quality(
        subject.anchors, subject.positives, subject.batches.ravel(), 8, sample_rows=None, compare=False
    )
    assert quality.false_negatives == pytest.approx(measures.false_negatives.mean())
    assert quality.train == pytest.approx(measures.loss.mean(), abs=1e-5)


def test_half_precision_maps_stay_on_disk(tmp_path, monkeypatch):
    """Memory maps in half precision, measured a batch at a time, give what the arrays give at once."""
    subject = make_subject()
    np.save(tmp_path / "A.npy", subject.anchors.astype(np.float16))
    mapped = np.load(tmp_path / "A.npy", mmap_mode="r")
    at_once = measure_batches(np.array(mapped), subject.positives, subject.batches)
    monkeypatch.setattr("gcbs_st.reports.inspection.batch_scores._CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(
        at_once.loss, measure_batches(mapped, subject.positives, subject.batches).loss, rtol=1e-6
    )


def test_rows_that_are_not_finite_are_refused():
    """NaN is named with a row of its batch, whichever side it is on."""
    for side in ("anchors", "positives"):
        broken = unit_rows(40, 3)
        broken[7] = np.nan
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            inspect_plan(make_subject(**{side: broken}))


@pytest.mark.parametrize("count", [0, 1, 5, 48, 49, 500])
def test_batches_are_chosen_hardest_first(count):
    """Few batches are all shown by falling loss; of many both ends and the middle, none twice."""
    loss = np.random.default_rng(0).normal(size=count)
    groups = dict(choose_batches(loss, 64))
    ranked = sorted(range(count), key=lambda batch: -loss[batch])
    if count <= 48:
        assert {"all": ranked} == {title: chosen.tolist() for title, chosen in groups.items()}
        return
    assert ["hardest", "middle", "easiest"] == list(groups)
    chosen = np.concatenate(list(groups.values())).tolist()
    assert (48, 48) == (len(chosen), len(set(chosen)))
    assert ranked[:16] == groups["hardest"].tolist()
    assert ranked[-16:] == groups["easiest"].tolist()
    assert abs(ranked.index(groups["middle"][8]) - count / 2) <= 1


def test_matrices_and_their_means():
    """Bytes are rounded cosines, and the means leave out each row's own positive."""
    scores = np.array([[0.9, 0.5, 0.1, -0.2], [0.3, 0.8, 0.2, 0.0], [0.1, 0.1, 1.0, 0.6], [0.2, 0.0, 0.4, 0.7]])
    matrix = similarity_matrix(scores, 2)
    raw = np.frombuffer(base64.b64decode(matrix["bytes"]), np.uint8).reshape(4, 4)
    assert [230, 128, 26, 0] == raw[0].tolist()
    assert (0.45, round(0.5 / 8, 3)) == (matrix["within"], matrix["between"])
    assert (None, None) == tuple(similarity_matrix(np.ones((1, 1)), 1)[key] for key in ("within", "between"))


# ---------------------------------------------------------------- content


def test_content_says_what_trains_together():
    """Rows, own scores, hardest negatives, false negatives and texts are those of plain loops, and JSON holds them."""
    subject = make_subject()
    content = json.loads(json.dumps(inspect_plan(subject), allow_nan=False))
    (group,) = content["groups"]
    losses = [batch["loss"] for batch in group["batches"]]
    assert (5, sorted(losses, reverse=True)) == (len(losses), losses)
    for batch in group["batches"]:
        members = subject.batches[batch["number"]].tolist()
        assert members == batch["ids"] == [row[0] for row in batch["rows"]]
        wrong = []
        for row, own, false_negatives, nearest in batch["rows"]:
            scores = {j: float(subject.anchors[row] @ subject.positives[j]) for j in members}
            others = sorted((j for j in members if j != row), key=lambda j: -scores[j])
            assert others[:3] == [members[place] for place, _ in nearest]
            np.testing.assert_allclose([scores[j] for j in others[:3]], [score for _, score in nearest], atol=6e-4)
            assert own == pytest.approx(scores[row], abs=6e-4)
            wrong.append(sum(scores[j] > scores[row] for j in others))
            assert wrong[-1] == false_negatives
        assert (sum(wrong), sum(count > 0 for count in wrong)) == (batch["false_negatives"], batch["tainted"])
        assert [[f"anchor {row}", f"positive {row}"] for row in members] == batch["texts"]


def test_the_summary_is_plan_quality():
    """Closed and tail coverage are those of all batches; the planner's facts come first."""
    subject = make_subject(facts={"Planner": "gcbs"})
    summary = dict(inspect_plan(subject)["summary"])
    quality = plan_quality(subject.anchors, subject.positives, subject.batches.ravel(), 8)
    assert "Planner" == next(iter(summary))
    assert summary["Closed"].startswith(f"{quality.closed:.3f} ")
    assert summary["Tail coverage"].startswith(f"{quality.tail_coverage:.1%} ")
    assert summary["Probable false negatives"].startswith(f"{quality.false_negatives:.2f} per row")


def test_a_sample_says_that_it_is_one():
    """Of a sample of batches nothing is claimed that needs the embeddings of all rows."""
    content = inspect_plan(make_subject(batches_in_plan=90, numbers=np.arange(5) * 3))
    assert any("5 of the plan's 90 batches" in note for note in content["notes"])
    assert "not measured" in dict(content["summary"])["Closed, tail coverage"]
    assert {0, 3, 6, 9, 12} == {batch["number"] for batch in content["groups"][0]["batches"]}


def test_one_batch_and_batches_of_one_row():
    """The smallest plans have a page too."""
    for rows, size in ((4, 4), (3, 1), (1, 1)):
        page = batches_page(inspect_plan(make_subject(rows=rows, size=size)))
        assert page.startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="at least a batch of 8"):
        inspect_plan(make_subject(rows=5, size=8))


def test_long_texts_are_cut_and_the_page_stays_small():
    """Texts of any length and script: the page keeps the hardest batch, stays small, and cuts visibly."""
    rows = 64 * 60
    subject = make_subject(rows=rows, size=64, texts=[("猫" * 5000, f"{i} " + "x" * 5000) for i in range(rows)])
    content = inspect_plan(subject)
    first = content["groups"][0]["batches"][0]
    measures = measure_batches(subject.anchors, subject.positives, subject.batches)
    assert int(measures.loss.argmax()) == first["number"]
    assert "猫" * 239 + "…" == first["texts"][0][0]
    assert SHOWN_BYTES / 2 < len(embed_json(content["groups"]).encode()) < 1.2 * SHOWN_BYTES
    assert ["hardest", "middle", "easiest"] == [group["title"] for group in content["groups"]]
    assert any("of 60 batches: the hardest" in note for note in content["notes"])


def test_of_large_batches_the_hardest_rows_are_shown():
    """The rows shown are those with the largest margin of a negative over the own positive; their negatives' texts come along."""
    subject = make_subject(rows=600, size=300)
    content = inspect_plan(subject)
    for batch in content["groups"][0]["batches"]:
        members = subject.batches[batch["number"]]
        scores = subject.anchors[members] @ subject.positives[members].T
        own = np.diagonal(scores).copy()
        np.fill_diagonal(scores, -np.inf)
        margins = scores.max(axis=1) - own
        expected = set(members[np.argsort(-margins)[:ROWS_A_BATCH]].tolist())
        assert expected == {row[0] for row in batch["rows"]}
        for row, _, _, nearest in batch["rows"]:
            hardest = int(members[scores[members.tolist().index(row)].argmax()])
            assert [f"anchor {hardest}", f"positive {hardest}"] == batch["texts"][nearest[0][0]]
            assert hardest == batch["ids"][nearest[0][0]]


def test_the_pictures_show_random_batches_and_the_plan_by_each_model():
    """Two pictures a model; the other model is asked for the rows shown alone."""
    asked = []

    def embed(rows):
        asked.append(rows)
        return unit_rows(len(rows), 8), unit_rows(len(rows), 9)

    subject = make_subject(earlier={"an earlier model": embed})
    matrices = inspect_plan(subject)["matrices"]
    assert ["an earlier model"] * 2 + ["a model"] * 2 == [matrix["model"] for matrix in matrices]
    assert subject.batches.ravel().tolist() == asked[1].tolist()
    rows = subject.batches.ravel()
    scores = subject.anchors[rows] @ subject.positives[rows].T
    assert similarity_matrix(scores, 8)["bytes"] == matrices[3]["bytes"]


# ---------------------------------------------------------------- the page as text


def test_json_in_a_script_cannot_leave_it():
    """Hostile texts come back as they were, and no markup stands in the page."""
    embedded = embed_json([HOSTILE, None, 1.5])
    assert [HOSTILE, None, 1.5] == json.loads(embedded)
    assert not set("<>&\u2028") & set(embedded)
    embedded.encode("utf-8")
    with pytest.raises(ValueError, match="JSON"):
        embed_json(float("nan"))


def test_the_page_holds_texts_as_data_alone():
    """Title, notes and texts with markup leave two scripts and no picture in the page, which UTF-8 can write."""
    subject = make_subject(
        title=HOSTILE, texts=[(HOSTILE, "{{SCRIPT}}")] * 40, notes=[HOSTILE], facts={HOSTILE: HOSTILE}
    )
    page = batches_page(inspect_plan(subject), {HOSTILE: b"\x89PNG"})
    page.encode("utf-8")
    assert (2, 2, 0) == (page.count("<script"), page.count("</script"), page.count("<img"))
    assert 1 == page.count('"use strict"')
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


# ---------------------------------------------------------------- files


@pytest.fixture
def files(tmp_path):
    """Embeddings, order and texts of 40 rows, as options of the command."""
    subject = make_subject()
    np.save(tmp_path / "A.npy", subject.anchors.astype(np.float16))
    np.save(tmp_path / "P.npy", subject.positives)
    np.save(tmp_path / "O.npy", np.random.default_rng(2).permutation(40))
    lines = "".join(json.dumps({"anchor": f"a {i} {HOSTILE}", "positive": f"p {i}"}) + "\n" for i in range(40))
    (tmp_path / "T.jsonl").write_text(lines)
    options = {"anchors": "A.npy", "positives": "P.npy", "order": "O.npy", "texts": "T.jsonl"}
    return {name: str(tmp_path / file) for name, file in options.items()} | {"batch-size": "16"}


def call(options, out):
    """The exit code of the command."""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main([*words, "--out", str(out)])


def test_files_become_a_page(files, tmp_path, capsys):
    """One page, in a folder that is made, and one line that says so; 40 rows at 16 a batch are two batches."""
    (tmp_path / "R.json").write_text('{"planner": "bisect", "seconds": 0.25}')
    out = tmp_path / "new" / "page.html"
    assert 0 == call({**files, "record": str(tmp_path / "R.json"), "scale": "10"}, out)
    content = json.loads(out.read_text().split('id="content">')[1].split("</script>")[0])
    order = np.load(files["order"])
    shown = {batch["number"]: batch for batch in content["groups"][0]["batches"]}
    assert {0: order[:16].tolist(), 1: order[16:32].tolist()} == {key: batch["ids"] for key, batch in shown.items()}
    assert [f"a {order[0]} {HOSTILE}", f"p {order[0]}"] == shown[0]["texts"][0]
    assert ["Planner", "bisect"] in content["summary"]
    assert "scale 10" in dict(content["summary"])["In-batch loss"]
    assert f"{out}: 2 batches" in capsys.readouterr().out
    assert [out] == list(out.parent.iterdir())


def test_compressed_texts_are_read(files, tmp_path):
    """The same texts with .gz give the same page."""
    (tmp_path / "T.jsonl.gz").write_bytes(gzip.compress((tmp_path / "T.jsonl").read_bytes()))
    assert 0 == call(files, tmp_path / "plain.html")
    assert 0 == call({**files, "texts": str(tmp_path / "T.jsonl.gz")}, tmp_path / "packed.html")
    plain, packed = ((tmp_path / name).read_text() for name in ("plain.html", "packed.html"))
    assert plain == packed.replace("T.jsonl.gz", "T.jsonl")


def break_file(folder, name, content):
    """Writes a file of bytes, text or an array over another."""
    if isinstance(content, np.ndarray):
        np.save(folder / name, content)
    else:
        (folder / name).write_bytes(content)


LINE = b'{"anchor": "a", "positive": "p"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("O.npy", np.zeros(40, np.int64), "each of the rows 0..39 once"),
        ("O.npy", np.arange(39), "each of the rows 0..39 once"),
        ("O.npy", np.arange(41), "each of the rows 0..39 once"),
        ("O.npy", np.arange(1, 41), "each of the rows 0..39 once"),
        ("O.npy", np.arange(40.0), "each of the rows 0..39 once"),
        ("O.npy", b"", "O.npy is not a whole .npy file"),
        ("O.npy", np.array([{}], dtype=object), "O.npy is not a whole .npy file"),
        ("A.npy", b"nothing of the kind", "A.npy is not a whole .npy file"),
        ("P.npy", unit_rows(40, 1, dim=5), "expected both (rows, dimensions)"),
        ("A.npy", np.full((40, 6), np.nan, np.float32), "NaN"),
        ("T.jsonl", LINE * 39, "holds 39 rows of text"),
        ("T.jsonl", LINE * 41, "holds 41 rows of text"),
        ("T.jsonl", b"", "holds 0 rows of text"),
        ("T.jsonl", LINE * 6 + b'{"anchor": "a"}\n' + LINE * 33, "line 7: expected an object"),
        ("T.jsonl", LINE * 6 + b'{"anchor": "a", "positive": null}\n', "line 7: expected an object"),
        ("T.jsonl", LINE * 6 + b"[1, 2]\n", "line 7: expected an object"),
        ("T.jsonl", LINE * 6 + b"\n" + LINE * 33, "line 7: expected an object"),
        ("T.jsonl", LINE * 6 + b'{"anchor": "a', "line 7: expected an object"),
        ("T.jsonl", b"\xff\xfe", "expected an object"),
        ("T.jsonl.gz", gzip.compress(LINE * 40, mtime=0)[:30], "expected an object"),
        ("R.json", b"[]", "R.json is damaged"),
        ("R.json", b"{", "R.json is damaged"),
    ],
)
def test_bad_files_get_one_line_and_no_page(files, tmp_path, capsys, name, content, words):
    """Whatever is wrong: exit code 2, one line that says what was given and expected, nothing written."""
    break_file(tmp_path, name, content)
    options = {
        **files,
        **{"T.jsonl.gz": {"texts": str(tmp_path / name)}, "R.json": {"record": str(tmp_path / name)}}.get(name, {}),
    }
    assert 2 == call(options, tmp_path / "page.html")
    refused(capsys, words)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": None}, "--texts is missing"),
        ({"batch-size": None}, "--batch-size is missing"),
        ({"batch-size": "0"}, "--batch-size: got 0"),
        ({"batch-size": "41"}, "--batch-size: got 41"),
        ({"scale": "0"}, "--scale: got 0"),
        ({"scale": "nan"}, "--scale: got nan"),
        ({"step": "3"}, "--step does not go with --anchors"),
        ({"texts": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
        ({"order": "nowhere.npy"}, "nowhere.npy cannot be read"),
    ],
)
def test_bad_options_get_one_line(files, tmp_path, capsys, changes, words):
    """Options that are missing, out of range or do not go together are named."""
    options = {key: value for key, value in {**files, **changes}.items() if value is not None}
    assert 2 == call(options, tmp_path / "page.html")
    refused(capsys, words)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    """1,000,000 rows: a page of a sample that says so, under 2 MB, with the arrays left on disk."""
    code = f"""
import json, resource, sys
import numpy as np
folder = {str(tmp_path)!r}
n, d = 1_000_000, 64
rng = np.random.default_rng(0)
for name in "AP":
    rows = rng.standard_normal((n, d), dtype=np.float32)
    np.save(f"{{folder}}/{{name}}.npy", (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
np.save(f"{{folder}}/O.npy", rng.permutation(n))
with open(f"{{folder}}/T.jsonl", "w") as file:
    file.writelines(json.dumps({{"anchor": f"anchor {{i}}", "positive": f"positive {{i}}"}}) + "\\n" for i in range(n))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = f"""
import resource, time
from gcbs_st.commands.inspect import main
folder = {str(tmp_path)!r}
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
assert 0 == main(["--anchors", f"{{folder}}/A.npy", "--positives", f"{{folder}}/P.npy", "--order", f"{{folder}}/O.npy",
    "--batch-size", "64", "--texts", f"{{folder}}/T.jsonl", "--out", f"{{folder}}/page.html"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter() - began)
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    print(result.stdout)
    page = (tmp_path / "page.html").read_text()
    assert len(page.encode()) < 2e6
    assert "of 15,625 batches: the hardest" in page
    assert float(result.stdout.splitlines()[-1].split()[0]) < 6
