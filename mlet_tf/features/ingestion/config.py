"""How a raw log becomes examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.schema import reading_schema
from mlet_tf.errors import InputError

TRAIN, EVAL = "train", "eval"
METHODS = ("hash", "time", "files", "column")


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """How a raw log becomes examples.

    Args:
        schema: Columns of the log.
        method: `"hash"` draws rows for `eval` at random by their place in the log, `"time"` takes the later
            rows, `"files"` takes the rows of given files, `"column"` what a column says.
        eval_share: Share of `eval`, for `hash` and for `time` without a `cut`.
        cut: For `time`: first value of the time column that belongs to `eval`.
        seed: Seed of the hash.
        max_reject_share: The run fails when a larger share of the rows is malformed.
        chunk_bytes: About how much of a file is read by one worker at a time.
        column: For `column`: the column that names the part of a row; the schema may drop it.
        parts: For `column`: its values, all that it has, of `train` and of `eval`.
    """

    schema: ClickLogSchema
    method: Literal["hash", "time", "files", "column"] = "hash"
    eval_share: float = 0.2
    cut: int | None = None
    seed: int = 0
    max_reject_share: float = 0.001
    chunk_bytes: int = 16 << 20
    column: str | None = None
    parts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"`method` should be one of {', '.join(METHODS)}. Received: {self.method!r}")
        if self.method == "time" and self.schema.time is None:
            raise InputError(
                f"A split by time should have a time column. Schema {self.schema.name!r} has none"
            )
        if not 0 < self.eval_share < 1:
            raise InputError(f"`eval_share` should be between 0 and 1. Received: {self.eval_share}")
        if self.cut is not None and self.method != "time":
            raise InputError(
                f"`cut` should be given for method 'time' only. Received: method {self.method!r}"
            )
        wanted = {TRAIN, EVAL} if self.method == "column" else set()
        if (self.column is not None) != bool(wanted) or set(self.parts) != wanted:
            raise InputError(
                "`column`, `parts` of train and eval, and method 'column' go together. "
                f"Received: {self.column!r}, parts of {sorted(self.parts)}, method {self.method!r}"
            )
        _ = self.schema_to_read  # Checks the column.
        if not 0 <= self.max_reject_share <= 1:
            raise InputError(f"`max_reject_share` should be from 0 to 1. Received: {self.max_reject_share}")
        if self.chunk_bytes < 1:
            raise InputError(f"`chunk_bytes` should be at least 1. Received: {self.chunk_bytes}")

    @property
    def schema_to_read(self) -> ClickLogSchema:
        """The schema with which the log is read: the tables have the column that splits it.

        Raises:
            InputError: The schema has no such column.
        """
        return self.schema if self.column is None else reading_schema(self.schema, self.column, "column")
