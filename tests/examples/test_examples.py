"""The examples run: each script with --smoke in a process of its own, that of DDP in two, and the notebook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from example_job import run_example
from forked_ranks import run_alone, run_ranks
from host_examples.bootstrap import make_hub_quietly
from paths import with_modules
from run_notebook import NOTEBOOK, execute
from sentence_transformers import SentenceTransformer

EXAMPLES = Path(__file__).parents[2] / "examples"
PLANNED = r"Planned \d+ rows of the training set with {}"
BY_AUTO = ["auto stands for 'bisect' with the view 'initial'", PLANNED.format("bisect")]


@dataclass(frozen=True)
class Expected:
    """What a script says: what it scores, how it plans, and what it warns of."""

    scores: tuple[str, ...]
    planning: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    scores_printed: int = 1
    default_arguments: tuple[str, ...] = ()  # beside those of a reader, where models are small stand-ins


SCRIPTS = {
    "nli_triplets/train_nli.py": Expected((r"STS-B test, Spearman: (\S+)",), tuple(BY_AUTO)),
    "retrieval/train_retrieval.py": Expected(
        (r"nDCG@10: (\S+) before training, (\S+) after",), (r"of \d+ rows have a mined negative", *BY_AUTO)
    ),
    "several_datasets/train_several.py": Expected(
        (r"STS-B test, Spearman: (\S+)",),
        (r"Planned \d+ rows of nli with bisect", r"Planned \d+ rows of questions with bisect"),
        (r"CoSENTLoss contrasts no rows of a batch .* the training set 'sts' is trained in the host's own batches",),
    ),
    "unsupervised_simcse/train_simcse.py": Expected(
        (r"STS-B test, Spearman: (\S+)",), ("auto leaves the batches of the training set random",)
    ),
    "code_search/train_code_search.py": Expected(
        (r"MRR@10: (\S+) before training, (\S+) after",),
        (PLANNED.format("best"),),
        # There is no stand-in for a static model under a name of the hub.
        default_arguments=("--model", "sentence-transformers/all-MiniLM-L6-v2"),
    ),
    "matryoshka_cached/train_matryoshka.py": Expected(
        (r"STS-B test, Spearman, \d+ dimensions: (\S+)",), tuple(BY_AUTO), scores_printed=4
    ),
    "streaming/train_stream.py": Expected((r"nDCG@10: (\S+)",), tuple(BY_AUTO), default_arguments=("--steps", "12")),
    "peft_lora/train_lora.py": Expected((r"nDCG@10: (\S+) before training, (\S+) after",), tuple(BY_AUTO)),
    "own_planner/train_own_planner.py": Expected(
        (r"(?:bisect|greedy_neighbours): closed (\S+), false",),
        (PLANNED.format("greedy_neighbours"),),
        scores_printed=2,
    ),
    "export_to_another_trainer/export_and_train.py": Expected((), (r"exported \d+ batches of \d+ rows",)),
}
DDP = "ddp/train_ddp.py"


def require_what_it_imports(script: str) -> None:
    """Skips, with a reason, where what an example is about is not installed."""
    if script.startswith("peft"):
        pytest.importorskip("peft", reason="the example of adapters needs peft")


def check(said: str, folder: Path, expected: Expected) -> None:
    """What a script said and saved is what its page promises, and nothing of ours is warned of beside."""
    assert "train_runtime" in said
    for pattern in expected.planning:
        assert re.search(pattern, said), f"{pattern} is not said: {said[-3000:]}"
    for pattern in expected.scores:
        found = [scores if isinstance(scores, tuple) else (scores,) for scores in re.findall(pattern, said)]
        assert expected.scores_printed == len(found), said[-3000:]
        # Spearman may be below 0 where a random model has learnt for a few steps.
        assert all(-1 <= float(score) <= 1 for scores in found for score in scores)
    warned = re.findall(r"(?:WARNING|ERROR) gcbs_st\S*: (.*)|(\S*gcbs_st\S*:\d+: \w*Warning.*)", said)
    # Made-up captions of few words are alike to a random model, which the first plan tells: that is advice on the data.
    told = [one for one in map("".join, warned) if "of a row's negatives score above its own positive" not in one]
    assert len(expected.warnings) == len(told), told
    for pattern, warning in zip(expected.warnings, told, strict=True):
        assert re.search(pattern, warning)
    assert f"saved to {folder}/final" in said
    if (folder / "final" / "adapter_model.safetensors").exists():
        return  # of an encoder that went with its process
    assert (1,) == SentenceTransformer(str(folder / "final"), device="cpu").encode(["a text"]).shape[:1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(script, tmp_path):
    """With --smoke a script trains, says what it is to say, and saves a model."""
    require_what_it_imports(script)
    arguments = ["--smoke", "--out", str(tmp_path / "out")]
    said = run_alone(run_example, str(EXAMPLES / script), arguments, str(tmp_path), folder=tmp_path)
    check(said, tmp_path / "out", SCRIPTS[script])


def test_that_of_ddp_runs_in_two_processes(tmp_path):
    """Two processes train one model on batches that are planned as one; the first one saves it."""
    arguments = ["--smoke", "--out", str(tmp_path / "out")]
    run_ranks(run_example, 2, str(EXAMPLES / DDP), arguments, str(tmp_path), folder=tmp_path)
    first, second = ((tmp_path / f"log_{rank}").read_text() for rank in range(2))
    check(first, tmp_path / "out", Expected((r"nDCG@10: (\S+)",), tuple(BY_AUTO)))
    assert "by one of 2 processes" in first and "saved to" not in second


def test_every_script_is_run():
    """No script of the examples is forgotten here."""
    found = {str(file.relative_to(EXAMPLES)) for file in EXAMPLES.glob("*/*.py")}
    assert found == {*SCRIPTS, DDP}


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells run from top to bottom, and end with the scores of three models; what is kept names no place."""
    for name in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name, reason=f"the notebook needs {name}")
    for name, value in with_modules(dict(os.environ)).items():
        monkeypatch.setenv(name, value)
    shown = [output for cell in execute().cells for output in cell.get("outputs", [])]
    texts = ["".join(output.get("data", {}).get("text/plain", "")) for output in shown]
    (scores,) = [text for text in texts if "planned batches" in text]
    before, *after = [float(number) for number in re.findall(r"\d+\.\d", scores)]
    assert 2 == len(after) and before < min(after) <= 100, scores
    assert 2 == sum("image/png" in output.get("data", {}) for output in shown)


def test_what_the_notebook_keeps():
    """The file has been run in order, is small, and holds no remark of a library and no path of a machine."""
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [*range(1, len(cells) + 1)] == [cell["execution_count"] for cell in cells]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]
    assert not re.search(r'"[^"]*(?:/home/|/root/|/tmp/|site-packages)', json.dumps(outputs))
    assert NOTEBOOK.stat().st_size < 300_000


# ------------------------------------------------------------------ as a reader starts them


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder of small models under the names of the hub, made by another process, which says much."""
    home = tmp_path_factory.mktemp("hub")
    run_alone(make_hub_quietly, str(home), folder=home)
    return home / "hub"


@pytest.mark.slow
@pytest.mark.parametrize("script", [*SCRIPTS, DDP])
def test_its_defaults_run(script, tmp_path, hub):
    """Without --smoke, where models and data of the hub are small stand-ins of the same columns and architectures."""
    require_what_it_imports(script)
    expected = SCRIPTS.get(script, Expected((r"nDCG@10: (\S+)",), tuple(BY_AUTO)))
    arguments = ["--out", str(tmp_path / "out"), *expected.default_arguments]
    code = f"from example_job import *; run_with_stand_ins({str(EXAMPLES / script)!r}, {arguments}, {str(tmp_path)!r})"
    environment = with_modules({**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert 0 == done.returncode, done.stderr[-3000:]
    said = done.stdout + done.stderr
    for pattern in expected.planning:
        assert re.search(pattern, said), f"{pattern} is not said: {said[-3000:]}"
    assert f"saved to {tmp_path}/out/final" in said
    # Checkpoints are written, of which some things cannot be that are only defined in a script.
    assert list((tmp_path / "out").glob("checkpoint-*/training_args.bin"))


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node=2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_start_that_of_ddp(launcher, tmp_path):
    """As its page says; --smoke keeps to CPUs."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(EXAMPLES / DDP), "--smoke"]
    command += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert 0 == done.returncode, done.stderr[-3000:]
    assert f"saved to {tmp_path}/out/final by one of 2 processes" in done.stdout
