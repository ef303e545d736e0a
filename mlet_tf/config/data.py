"""Rows: where they are, how they are split and validated, which values become ids."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mlet_tf.config.base import Group, GroupError, shown
from mlet_tf.config.types import Category, Distinct, Seed, Share, Text

_LAST_SECOND = 253_402_300_799  # Of the year 9999; milliseconds are larger.


def check_parts(
    method: str, column: str | None, parts: Mapping[Any, tuple[str, ...]], required: tuple[str, ...]
) -> None:
    """Checks the keys of a split by column.

    Args:
        method: How rows are split.
        column: The column that names the part of a row.
        parts: Values of the column by split.
        required: Splits that need a list.

    Raises:
        GroupError: The method is `column` and a key is missing, or it is not and a key is given; or two parts share
            a value.
    """
    if (method == "column") != (column is not None):
        raise GroupError(
            "column",
            f"and method 'column' go together; give both or neither. Received: {column!r} and {method!r}",
        )
    if method == "column" and not set(required) <= set(parts):
        raise GroupError(
            "parts", f"should have lists for {' and '.join(required)}. Received: {sorted(parts)}"
        )
    if method != "column" and parts:
        raise GroupError("parts", f"should be given for method 'column' only. Received: {shown(parts)}")
    part_of: dict[str, str] = {}
    for part, values in parts.items():
        for value in values:
            if other := part_of.get(value):
                raise GroupError(
                    f"parts.{part}", f"should share no value with '{other}'. Received: {value!r} in both"
                )
            part_of[value] = part


class SplitConfig(Group):
    """How rows are divided into `train` and `eval`."""

    method: Literal["hash", "time", "files", "column"] = Field(
        "hash",
        description="`hash` draws rows at random, `time` trains on earlier and evaluates on later rows, `files` takes "
        "those of `data.eval` for evaluation, `column` takes what a column of the log says.",
    )
    eval_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of rows for evaluation, for `hash` and for `time` without a `cut`.",
    )
    cut: int | None = Field(
        None,
        ge=0,
        le=_LAST_SECOND,
        description="For `time`: first value of the time column that belongs to `eval`.",
    )
    column: Text | None = Field(
        None,
        description="For `column`: the column that names the part of a row. It may be one that the schema drops.",
    )
    parts: dict[Literal["train", "eval"], Distinct[Category]] = Field(
        {}, description="For `column`: values of the column by split, all that it has."
    )
    seed: Seed = Field(0, description="Seed of the draw, for `hash`.")

    @model_validator(mode="after")
    def _cut_needs_time(self) -> Self:
        if self.cut is not None and self.method != "time":
            raise GroupError(
                "cut", f"should be given for method 'time' only. Received: {self.cut} for {self.method!r}"
            )
        return self

    @model_validator(mode="after")
    def _column_has_parts(self) -> Self:
        check_parts(self.method, self.column, self.parts, ("train", "eval"))
        return self


class DataConfig(Group):
    """The click logs and how they are read."""

    train: Text | None = Field(None, description="File, glob or folder with the raw log. Required by a run.")
    eval: Text | None = Field(None, description="Evaluation files, for `split.method: files`.")
    schema: Text = Field("criteo", description="`criteo`, `avazu` or the path of a YAML schema.")  # type: ignore[assignment]
    split: SplitConfig = SplitConfig()
    max_reject_share: Share = Field(
        0.001, description="A run fails when a larger share of the rows is malformed."
    )
    chunk_bytes: int = Field(
        16 << 20, ge=4096, le=1 << 36, description="Bytes of a file that a worker reads at a time."
    )

    @model_validator(mode="after")
    def _eval_needs_files(self) -> Self:
        if (self.split.method == "files") != (self.eval is not None):
            raise GroupError(
                "eval",
                "and 'split.method: files' go together; give both or neither. "
                f"Received: {self.eval!r} and {self.split.method!r}",
            )
        return self


class ValidationConfig(Group):
    """What the statistics of the data must satisfy."""

    fail_on_anomalies: bool = Field(
        True, description="Whether an anomaly ends the run; otherwise it is recorded only."
    )
    max_missing_share: dict[Text, Share] = Field(
        {},
        description="Largest share of missing values by column; a column not named may miss all but one value.",
    )
    max_drift: dict[Text, Share] = Field(
        {},
        description="Largest L-infinity distance between value shares of `train` and `eval`, by categorical column.",
    )
    sample_rate: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the rows that statistics and their validation look at; of each split at least about "
        "100,000 rows, or all that it has. Counts in `run.json` and vocabularies are of all rows.",
    )


class VocabularyConfig(Group):
    """Which values of `train` get an id of their own."""

    min_count: int = Field(
        2,
        ge=1,
        le=2**31 - 1,
        description="A value that occurs less often in `train` is out of vocabulary (OOV).",
    )
    max_size: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="Most values of a feature, the most frequent ones; null keeps all.",
    )
    num_oov_buckets: int = Field(1, ge=1, le=2**20, description="Ids for OOV values, by hash.")
    rare_below: int = Field(
        10,
        ge=0,
        le=2**31 - 1,
        description="Ids seen less often than this in `train` count as rare in slices.",
    )
    max_values_in_memory: int = Field(
        4_000_000,
        ge=1,
        le=2**40,
        description="About how many values of a feature are counted in memory at a time. Changes memory, not the "
        "vocabularies.",
    )
