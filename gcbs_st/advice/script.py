"""A recommendation in, a training script out, as a user would have written it."""

from __future__ import annotations

import json
from pathlib import Path

from gcbs_st.advice.advise import Advice

# How the host's users read each kind of file. Only an empty cell is missing: the captions "None" and "NA" are texts.
_CELLS = ', keep_default_na=False, na_values=[""]'
_READERS = {
    ".jsonl": ("json", ""),
    ".json": ("json", ""),
    ".csv": ("csv", _CELLS),
    ".tsv": ("csv", ', sep="\\t"' + _CELLS),
    ".parquet": ("parquet", ""),
    ".txt": ("text", ""),
}

_SCRIPT = '''"""Trains a model as `gcbs-st advise` recommended. Yours to change."""

from datasets import {reader}
{imports}


def main() -> None:
    # 1. What is trained: a model, and rows of texts.
    model = SentenceTransformer({model})
    dataset = {dataset}
{filter}
    # 2. How: batches composed by the model. Rate and epochs are where to start; choose them on a dev score.
    args = GCBSTrainingArguments(
        {args},
        learning_rate=2e-5,
        num_train_epochs=1,
        save_strategy="epoch",
    )
    {loss}

    # 3. Training.
    {trainer}
    trainer.train()
    model.save_pretrained("out/final")


if __name__ == "__main__":
    main()
'''
_FILTER = '    dataset = dataset.filter(lambda row: all((row[name] or "").strip() for name in {columns}))\n'


def training_script(advice: Advice, source: str, *, split: str, name: str | None, model: str) -> str:
    """Returns a Python script that trains as recommended.

    `source` is a file, a folder saved by `datasets` or a hub name, with `split` and configuration `name`; `model` is what
    SentenceTransformer takes. Raises a ValueError if composing batches was not recommended, or for another source.
    """
    if not advice.recommendation.use:
        raise ValueError("--script: there is nothing to write, since the advice is to keep random batches")
    reader, dataset = _reading(source, split, name)
    args, loss, trainer = advice.recommendation.lines
    options = args.removeprefix("args = GCBSTrainingArguments(").removesuffix(")")
    blank = _FILTER.format(columns=json.dumps(advice.facts.columns)) if advice.facts.blank_rows else ""
    ours, of_loss = advice.recommendation.imports
    first = "from sentence_transformers import SentenceTransformer"
    imports = sorted([ours, first, of_loss], key=lambda line: ("gcbs_st" in line, line))
    return _SCRIPT.format(
        reader=reader,
        imports="\n".join(imports),
        model=_quoted(model),
        dataset=dataset,
        filter=blank,
        args=options.replace(", ", ",\n        "),
        loss=loss,
        trainer=trainer,
    )


def _reading(source: str, split: str, name: str | None) -> tuple[str, str]:
    """The function of `datasets` that reads a source, and its call."""
    path = Path(source).expanduser()
    if path.is_dir():
        read = f"load_from_disk({_quoted(source)})"
        is_dict = (path / "dataset_dict.json").is_file()
        return "load_from_disk", f"{read}[{_quoted(split)}]" if is_dict else read
    if path.is_file():
        ending = path.name.lower().removesuffix(".gz")
        kind, options = _READERS.get(ending[ending.rfind(".") :], (None, ""))
        if kind is None:
            raise ValueError(f"--script: got the file {source}, expected one of {', '.join(_READERS)}, also with .gz")
        return "load_dataset", f'load_dataset("{kind}", data_files={_quoted(source)}, split="train"{options})'
    if source in ("docstrings", "code") or source.count("/") > 1 or source.startswith((".", "~", "$")):
        raise ValueError(
            f"--script: got the source {source!r}, expected a file, a folder saved by datasets, or a hub name"
        )
    configuration = "" if name is None else f"{_quoted(name)}, "
    return "load_dataset", f"load_dataset({_quoted(source)}, {configuration}split={_quoted(split)})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
