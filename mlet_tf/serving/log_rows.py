"""Reading the first rows of a log for prediction, malformed ones marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.reading import Reject, arrow_schema, lines_before, list_files, plan_chunks, read_chunk


@dataclasses.dataclass(frozen=True)
class LogRows:
    """Rows of a log in its order.

    Args:
        good: The well-formed rows, as the client takes them.
        is_good: Mask of the well-formed rows, bool `[rows]`.
        rejects: The malformed rows, with the numbers of their lines.
    """

    good: pa.Table | Sequence[Mapping[str, object]]
    is_good: np.ndarray
    rejects: list[Reject]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, object]]) -> LogRows:
        """Rows without malformed ones."""
        return cls(rows, np.ones(len(rows), bool), [])

    def align(self, answers: np.ndarray) -> np.ndarray:
        """The answers of `good` at the positions of their rows: float32 `[rows]`, NaN for malformed ones."""
        aligned = np.full(len(self.is_good), np.nan, np.float32)
        aligned[self.is_good] = answers
        return aligned


def read_rows(source: str, schema: ClickLogSchema, limit: int) -> LogRows:
    """Reads the first rows of a log, which need not have the label.

    Args:
        source: A file, a pattern or a folder.
        schema: The log's columns.
        limit: How many rows to read, malformed ones included.

    Raises:
        InputError: There is no file, or one is damaged or does not follow the schema.
    """
    wanted = schema.raw_features
    tables, places, rejects = [arrow_schema(schema, wanted).empty_table()], [np.zeros(0, bool)], []
    left = limit
    for chunk in plan_chunks(list_files(source), schema, chunk_bytes=1 << 62, label=False):
        before = lines_before([chunk], [], schema)[0]
        for block in read_chunk(chunk, schema, wanted):
            is_good = np.ones(block.rows_read, bool)
            is_good[block.rejected] = False
            is_good = is_good[:left]
            bad = int((~is_good).sum())
            rejects += [dataclasses.replace(r, line=r.line + before) for r in block.rejects[:bad]]
            tables.append(block.table.slice(0, int(is_good.sum())))
            places.append(is_good)
            left -= len(is_good)
            if left == 0:
                break
        if left == 0:
            break
    return LogRows(pa.concat_tables(tables), np.concatenate(places), rejects)
