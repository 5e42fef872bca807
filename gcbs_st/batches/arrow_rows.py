"""Rows of a dataset by number, as Arrow tables and never as Python's objects: a dataset in, tables in any order out.

`Dataset.select` reads scattered rows one by one. Here those that lie in one piece of the file are read together, which is
some twenty times faster and holds no more than what is asked for.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
from datasets import Dataset

_DIGEST_ROWS = 10_000


class ArrowRows:
    """The n rows of a dataset as they are stored, memory-mapped where the dataset is.

    Raises a ValueError for a dataset with a transform, which is made of Python's objects.

        >>> rows = ArrowRows(Dataset.from_dict({"anchor": list("abc")}))
        >>> len(rows), rows.take(np.array([2, 0, 2])).to_pydict()
        (3, {'anchor': ['c', 'a', 'c']})
    """

    def __init__(self, dataset: Dataset) -> None:
        if dataset.format["type"] == "custom":
            raise ValueError(
                "got a dataset with a transform, expected rows as they are stored: apply the transform with map, "
                "or take it off with reset_format()"
            )
        self.schema: pa.Schema = dataset.features.arrow_schema
        self._batches = dataset.data.table.select(dataset.column_names).to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        # What select and shuffle leave is a list of row numbers beside the table.
        self._row_numbers = None if dataset._indices is None else np.asarray(dataset._indices.column(0))
        self._count = len(dataset)

    def __len__(self) -> int:
        return self._count

    @property
    def bytes_per_row(self) -> float:
        """The mean size of a row in memory, in bytes."""
        return sum(batch.nbytes for batch in self._batches) / max(1, int(self._starts[-1]))

    def take(self, rows: np.ndarray) -> pa.Table:
        """Returns the (m,) rows, each in [0, n), as a table of m rows in this order; a row may recur.

        Cost: O(m log m) and one look at each piece of the dataset that holds a row, usually a thousand rows.
        """
        numbers = rows if self._row_numbers is None else self._row_numbers[rows]
        by_place = np.argsort(numbers, kind="stable")
        wanted = numbers[by_place].astype(np.int64)
        cuts = np.searchsorted(wanted, self._starts)
        pieces = [
            batch.take(pa.array(wanted[first:end] - start))
            for batch, start, first, end in zip(self._batches, self._starts, cuts, cuts[1:], strict=False)
            if first < end
        ]
        back = np.empty_like(by_place)
        back[by_place] = np.arange(len(by_place))
        try:
            return pa.Table.from_batches(pieces, self._batches[0].schema).take(pa.array(back)).cast(self.schema)
        except pa.ArrowInvalid:
            # A column of strings holds 2 GB in one piece.
            if len(rows) < 2:
                raise
        half = len(rows) // 2
        return pa.concat_tables([self.take(rows[:half]), self.take(rows[half:])])

    def digest(self) -> str:
        """Returns 16 hexadecimal digits of a hash of the columns' names and types and of all values in row order.

        It does not depend on how the rows lie in memory or on disk.
        """
        # Readers of files differ in how long they let a column of texts be, and in nothing else.
        schema = pa.schema(
            (field.name, pa.large_string() if pa.types.is_string(field.type) else field.type) for field in self.schema
        )
        found = hashlib.sha256(json.dumps([(field.name, str(field.type)) for field in schema]).encode())
        for start in range(0, len(self), _DIGEST_ROWS):
            # Taken and not sliced, so that its buffers hold these rows alone.
            block = self.take(np.arange(start, min(start + _DIGEST_ROWS, len(self))))
            for batch in block.cast(schema).combine_chunks().to_batches():
                found.update(batch.serialize())
        return found.hexdigest()[:16]
