"""Which split each row of a sweep's log belongs to: a byte a row, from one pass over the log."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from mlet_tf.config.sweep import Part, SweepSplitConfig
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.parts import Parts, check_listed
from mlet_tf.datasets.schema import reading_schema
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion.times import TimeCounts, choose_cut

SPLITS: tuple[Part, ...] = ("train", "validation", "test")
_TRAIN, _VALIDATION, _ = range(len(SPLITS))


def schema_to_read(schema: ClickLogSchema, config: SweepSplitConfig) -> ClickLogSchema:
    """The schema with which the log is read so that its tables have the column that a split needs.

    Raises:
        InputError: The schema has no such column.
    """
    if config.method == "time" and schema.time is None:
        raise InputError(f"'sweep.split.method' is 'time', but schema {schema.name!r} has no time column")
    if config.column is None:
        return schema
    return reading_schema(schema, config.column, "sweep.split.column")


def split_log(tables: Iterable[pa.Table], schema: ClickLogSchema, config: SweepSplitConfig) -> np.ndarray:
    """Which of `SPLITS` each row belongs to.

    Args:
        tables: All rows, in the order of the log, as read with `schema_to_read`.
        schema: Schema of the log.
        config: How they are split.

    Returns:
        uint8 `[rows]`.

    Raises:
        InputError: A split would be empty, or the column that names the parts has a value that is not listed.
    """
    if config.method == "time" and schema.time is not None:
        split = _by_time(tables, schema.time.name, config)
    elif config.column is not None:
        split = _by_column(tables, config.column, config)
    else:
        split = split_of_rows(sum(len(table) for table in tables), config)
    rows = np.bincount(split, minlength=len(SPLITS)).tolist()
    if not all(rows):
        received = ", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, rows, strict=True))
        raise InputError(
            f"'sweep.split' (method {config.method!r}) should give each split rows. Received: {received}"
        )
    return split


def split_of_rows(rows: int, config: SweepSplitConfig) -> np.ndarray:
    """Which of `SPLITS` each row belongs to by its place alone (`random`, `sequential`), uint8 `[rows]`."""
    validation, test = round(rows * config.validation_share), round(rows * config.test_share)
    train = rows - validation - test
    if min(validation, test, train) < 1:
        raise InputError(f"{rows} rows are too few for three splits")
    split = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), [train, validation, test])
    generator = np.random.default_rng(config.seed)
    generator.shuffle(split[train:] if config.method == "sequential" else split)
    return split


def _by_time(tables: Iterable[pa.Table], column: str, config: SweepSplitConfig) -> np.ndarray:
    counts, blocks = TimeCounts(), [np.empty(0, np.int64)]
    for table in tables:
        blocks.append(table[column].to_numpy())
        counts.add(blocks[-1])
    test = choose_cut([counts], config.test_share)
    validation = choose_cut([counts], config.test_share + config.validation_share)
    times = np.concatenate(blocks)
    return (times >= validation).astype(np.uint8) + (times >= test)


def _by_column(tables: Iterable[pa.Table], column: str, config: SweepSplitConfig) -> np.ndarray:
    parts = Parts({name: config.parts.get(name, ()) for name in SPLITS})
    blocks = [np.empty(0, np.uint8), *(parts.of_rows(table[column]) for table in tables)]
    check_listed(parts.unlisted, column, "sweep.split.parts")
    split = np.concatenate(blocks)
    if "validation" not in config.parts:
        train = split == _TRAIN
        drawn = np.zeros(int(train.sum()), np.uint8)
        drawn[: round(len(drawn) * config.validation_share)] = _VALIDATION
        np.random.default_rng(config.seed).shuffle(drawn)
        split[train] = drawn
    return split
