"""Planned batches for other trainers: a dataset and an order of its rows in, a folder of Parquet files out.

The files hold whole batches in the order of the plan, so that whoever reads them front to back, B rows at a time, trains
on the planned batches. `manifest.json` says what is in them; the folder takes its name when all of it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from tqdm import tqdm

from gcbs_st import __version__
from gcbs_st.batches.arrow_rows import ArrowRows
from gcbs_st.files import read_json, whole_folder, write_json

MANIFEST = "manifest.json"
ROW_ID, BATCH_ID = "row_id", "batch_id"
FORMAT = 1  # of the manifest
SHARD_ROWS = 100_000
_GROUP_ROWS = 10_000  # of a row group, which readers read at once
_GATHERED_BYTES = 256e6  # of rows that are in memory at a time
_NEEDED = {"shards": list, "batch_size": int, "batches": int, "rows": int, "dataset": str, "plan": str}


def export_batches(  # noqa: PLR0913 - a keyword for each choice
    dataset: Dataset,
    order: np.ndarray,
    batch_size: int,
    folder: Path,
    *,
    rows_per_shard: int = SHARD_ROWS,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: str | None = None,
) -> dict[str, Any]:
    """Writes the batches of a plan into a folder of Parquet files, and returns its manifest.

    Args:
        dataset: n rows; all their columns are written, and `row_id` (a row's number in the dataset) and `batch_id` (the
            batch's number, from 0), both int64.
        order: (m,) integers in [0, n), whose blocks of `batch_size` are batches. Rows at its end that fill no batch are
            left out. A row may recur in other batches, but not in one.
        batch_size: rows per batch.
        folder: where to; one that is not there or empty, or an older export if `overwrite` allows it.
        rows_per_shard: rows per file at most, rounded down to whole batches, at least one.
        overwrite: replace the export that the folder holds.
        facts: what else the manifest says, such as the planner.
        progress: what the progress bar says, None for no bar.

    Returns:
        The manifest: `shards` (name, rows, bytes, sha256), `batch_size`, `batches`, `rows`, `left_out` (rows of the dataset
        that are in no batch), `columns` by type, `dataset` and `plan` (hashes), `versions`, and the facts. Raises a
        ValueError for an order that does not fit, and for a folder that is in use.

    Memory is that of some 256 MB of rows and of the order, however many rows there are; the dataset stays on disk.
    """
    rows = ArrowRows(dataset)
    order = _checked_order(order, len(rows), batch_size)
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard: got {rows_per_shard}, expected at least 1")
    if taken := {ROW_ID, BATCH_ID} & set(dataset.column_names):
        raise ValueError(
            f"the dataset has a column {sorted(taken)[0]!r}, which the export adds: rename it with rename_column"
        )
    drawn = np.zeros(len(rows), dtype=bool)
    drawn[order] = True
    batches, plan, fingerprint = len(order) // batch_size, plan_digest(order, batch_size), rows.digest()
    _check_folder(folder, plan, fingerprint, overwrite=overwrite)
    schema = Features({**dataset.features, ROW_ID: Value("int64"), BATCH_ID: Value("int64")}).arrow_schema
    shard_rows = max(1, rows_per_shard // batch_size) * batch_size
    count = -(-len(order) // shard_rows)
    shards = []
    with (
        whole_folder(folder, replace=overwrite) as staged,
        tqdm(total=len(order), desc=progress, unit=" rows", disable=progress is None) as bar,
    ):
        for number in range(count):
            name = f"batches-{number:05d}-of-{count:05d}.parquet"
            span = range(number * shard_rows, min((number + 1) * shard_rows, len(order)))
            _write_shard(staged / name, schema, _tables(rows, order, batch_size, span), batch_size, bar)
            shards.append({"name": name, "rows": len(span), **_facts_of(staged / name)})
        manifest = {
            **(facts or {}),
            "format": FORMAT,
            "batch_size": batch_size,
            "batches": batches,
            "rows": len(order),
            "left_out": int((~drawn).sum()),
            "columns": {field.name: str(field.type) for field in schema},
            "dataset": fingerprint,
            "plan": plan,
            "versions": {
                "gcbs_st": __version__, "datasets": datasets.__version__, "pyarrow": pa.__version__
            },
            "shards": shards,
        }  # fmt: skip
        write_json(staged / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path | str, *, check_contents: bool = False) -> dict[str, Any]:
    """Returns the manifest of an export, see `export_batches`, after making sure that its files are there.

    `check_contents` reads the files and compares their sha256. Raises a ValueError that says what is wrong: no manifest,
    a damaged one, a file that is missing, of another size or other content, or a Parquet file that is not of the export.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}, expected a folder written by gcbs-st export")
    manifest: dict[str, Any] = _read_described(folder)
    for shard in manifest["shards"]:
        file = folder / shard["name"]
        if not file.is_file():
            raise ValueError(f"{file} is missing: {MANIFEST} names it; export again")
        size = file.stat().st_size
        if size != shard["bytes"]:
            raise ValueError(f"{file} is damaged: it has {size} bytes, expected {shard['bytes']}; export again")
        if check_contents and _facts_of(file)["sha256"] != shard["sha256"]:
            raise ValueError(f"{file} is damaged: its sha256 is not that of {MANIFEST}; export again")
    # A reader of *.parquet would read it too.
    named = {shard["name"] for shard in manifest["shards"]}
    if others := sorted(file.name for file in folder.glob("*.parquet") if file.name not in named):
        raise ValueError(f"{folder / others[0]} is not of this export: {MANIFEST} does not name it; move it away")
    return manifest


def shard_files(folder: Path | str) -> list[str]:
    """Returns the paths of an export's Parquet files in the order of the plan; raises as `read_manifest` does."""
    return [str(Path(folder) / shard["name"]) for shard in read_manifest(folder)["shards"]]


def plan_digest(order: np.ndarray, batch_size: int) -> str:
    """Returns 16 hexadecimal digits of a hash of a plan, an (m,) order and its batch size."""
    found = hashlib.sha256(f"{batch_size} ".encode())
    found.update(np.ascontiguousarray(order, dtype="<i8").data)
    return found.hexdigest()[:16]


def shuffled_batches(order: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Returns the whole batches of an (m,) order in random order, each as it is; rows that fill no batch are dropped."""
    whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    return np.random.default_rng(seed).permutation(whole).ravel()


def _checked_order(order: np.ndarray, row_count: int, batch_size: int) -> np.ndarray:
    """The whole batches of an order as (m,) int64; raises a ValueError for what is no plan of `rows` rows."""
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    if order.ndim != 1 or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(f"order: got {order.dtype} of shape {order.shape}, expected (m,) integers, the row numbers")
    if len(order) < batch_size:
        raise ValueError(f"order: got {len(order)} rows, expected at least one batch of {batch_size}")
    if order.min() < 0 or order.max() >= row_count:
        raise ValueError(
            f"order: got rows {order.min()}..{order.max()}, expected 0..{row_count - 1}, since the dataset has "
            f"{row_count} rows: name the dataset that was planned"
        )
    whole = order[: len(order) // batch_size * batch_size].astype(np.int64)
    within = np.sort(whole.reshape(-1, batch_size), axis=1)
    if len(twice := np.flatnonzero((within[:, 1:] == within[:, :-1]).any(axis=1))):
        raise ValueError(
            f"order: a row stands twice in batch {twice[0]}, expected {batch_size} different rows in each: check that "
            f"it was planned for batches of {batch_size}"
        )
    return whole


def _check_folder(folder: Path, plan: str, dataset: str, *, overwrite: bool) -> None:
    """Raises a ValueError unless the export may be written there; what is no export is never overwritten."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is there and is no export (no {MANIFEST}): name a folder that is new or empty")
    found = _read_described(folder)
    named = {MANIFEST, *(shard["name"] for shard in found["shards"])}
    if others := sorted(file.name for file in folder.iterdir() if file.name not in named):
        raise ValueError(f"{folder} also holds {others[0]}, which is not of the export: name another folder")
    if overwrite:
        return
    for what, now in (("dataset", dataset), ("plan", plan)):
        if found[what] != now:
            raise ValueError(
                f"{folder} holds the export of another {what} ({found[what]}, now {now}): name another folder, or "
                "replace it with overwrite (--overwrite)"
            )
    raise ValueError(f"{folder} holds this very export already; overwrite (--overwrite) writes it anew")


def _read_described(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; raises a ValueError if it is damaged, or of a later version."""
    file = folder / MANIFEST
    manifest: dict[str, Any] = read_json(file, dict)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{file} has format {manifest.get('format')!r}, expected {FORMAT}: it is of another program")
    try:
        whole = all(isinstance(manifest[key], kind) for key, kind in _NEEDED.items())
        rows = sum(shard["rows"] for shard in manifest["shards"])
        # Names alone: a path would lead out of the folder.
        plain = all(Path(shard["name"]).name == shard["name"] and shard["bytes"] >= 0 for shard in manifest["shards"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    if not (whole and plain and rows == manifest["rows"] == manifest["batches"] * manifest["batch_size"]):
        raise ValueError(f"{file} is damaged: its numbers of rows and batches do not agree")
    return manifest


def _tables(rows: ArrowRows, order: np.ndarray, batch_size: int, span: range) -> Iterator[pa.Table]:
    """Tables of whole batches, together the places `span` of the order, each of a bounded size."""
    step = max(1, int(_GATHERED_BYTES / max(1.0, rows.bytes_per_row)) // batch_size) * batch_size
    for start in range(span.start, span.stop, step):
        end = min(start + step, span.stop)
        table = rows.take(order[start:end])
        table = table.append_column(ROW_ID, pa.array(order[start:end]))
        yield table.append_column(BATCH_ID, pa.array(np.arange(start, end) // batch_size))


def _write_shard(file: Path, schema: pa.Schema, tables: Iterator[pa.Table], batch_size: int, bar: Any) -> None:
    group = max(1, _GROUP_ROWS // batch_size) * batch_size
    # Texts seldom recur within a file, and a dictionary that grows too large costs more than it saves.
    repeated = [BATCH_ID, *(field.name for field in schema if pa.types.is_boolean(field.type))]
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=group)
            bar.update(len(table))


def _facts_of(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
