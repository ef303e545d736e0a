"""Preprocesses and packs the rows of a sweep once, as the pipeline does.

The rows of a configuration live in a folder named by its hash; every trial maps them into memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.config import ValidationConfig
from mlet_tf.config.sweep import GeneratedConfig, SweepConfig
from mlet_tf.datasets import ClickLogSchema, Teacher, load_schema, read_log, write_log
from mlet_tf.datasets.files import list_files
from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.splits import SPLITS, schema_to_read, split_log
from mlet_tf.features.counts import Run, ValueCounter
from mlet_tf.features.packed_rows import PackedRows, pack_words
from mlet_tf.features.preprocessing import preprocessing_fn
from mlet_tf.features.transform_graph import TransformGraph, table_rows, write_transform_graph
from mlet_tf.features.validation import schema_proto
from mlet_tf.features.vocabulary import make_vocabulary
from mlet_tf.metrics import ctr_metrics
from mlet_tf.storage import aside_path, file_stamp

_META = "meta.json"
# Not yet there when the first trials were stored.
_SCHEMA_SINCE = ("quoting", "positive", "negative")
_SPLIT_SINCE = ("column", "parts")
_VOCABULARY_SETTINGS = ("min_count", "max_size", "rare_below", "max_values_in_memory")


def prepare(config: SweepConfig, folder: Path, progress: Callable[[str], None] | None = None) -> PreparedData:
    """Preprocesses the rows, or reuses those of an earlier call.

    Args:
        config: The study.
        folder: The cache.
        progress: Called with a line about each step.

    Returns:
        The rows.

    Raises:
        InputError: If the log cannot be read or cannot be split as wanted.
    """
    digest = digest_of(config)
    target = folder / f"rows-{digest}"
    if not (target / _META).exists():
        _Preparation(config, progress or (lambda line: None)).write(target)
    meta = strict_json.read(target / _META)
    sparse = len(meta["table_rows"])
    splits = {
        name: PackedRows(str(target / f"{name}.bin"), rows, meta["dense"], sparse)
        for name, rows in meta["rows"].items()
    }
    return PreparedData(
        digest,
        splits,
        meta["table_rows"],
        config.vocabulary.num_oov_buckets,
        meta["rare_below"],
        meta["best"],
    )


def generated_schema(config: GeneratedConfig) -> ClickLogSchema:
    """The columns of a generated log."""
    integers = tuple(f"I{i + 1}" for i in range(config.integers))
    categoricals = tuple(f"C{i + 1}" for i in range(config.categoricals))
    return ClickLogSchema(
        name="generated",
        label="click",
        integers=integers,
        categoricals=categoricals,
        time=None,
        drop=(),
        columns=("click", *integers, *categoricals),
        separator=",",
        header=True,
        missing=("",),
    )


def digest_of(config: SweepConfig) -> str:
    """Hash of what the rows depend on: the configuration, and the files of a log by size and time of last change."""
    generated, schema = config.sweep.generated, _schema(config)
    columns = schema.to_dict()
    for name in _SCHEMA_SINCE:
        if getattr(schema, name) == getattr(ClickLogSchema, name):
            del columns[name]
    split = config.sweep.split.to_plain()
    for name in _SPLIT_SINCE:
        if not split[name]:
            del split[name]
    state: list[Any] = [split, config.vocabulary.to_plain(), columns]
    state.append(generated.to_plain() if generated else None)
    if config.data.train is not None:
        state += [(Path(file).name, *file_stamp(file)) for file in list_files(config.data.train)]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]


def _schema(config: SweepConfig) -> ClickLogSchema:
    generated = config.sweep.generated
    return generated_schema(generated) if generated else load_schema(config.data.schema)


class _Preparation:
    """Reads the log three times, a block at a time: to count, for the vocabularies, to write the rows."""

    def __init__(self, config: SweepConfig, progress: Callable[[str], None]) -> None:
        self._config, self._progress = config, progress
        self._generated, self._log, self._schema = config.sweep.generated, config.data.train, _schema(config)
        self._schema_to_read = schema_to_read(self._schema, config.sweep.split)

    def write(self, target: Path) -> None:
        aside = aside_path(target)
        (aside / "made").mkdir(parents=True)
        try:
            if self._generated is not None:
                self._generate(self._generated, aside / "made" / "log.parquet")
            self._progress("counting rows")
            # All columns: rows that are rejected in the later passes must not be counted.
            split = split_log(self._read(self._progress), self._schema, self._config.sweep.split)
            self._progress(f"vocabularies of {int((split == 0).sum()):,} rows")
            transform = self._write_transform(split, aside / "made")
            self._progress(f"preprocessing {len(split):,} rows")
            dense, best = self._write_rows(split, transform, aside)
            meta = {
                "rows": dict(zip(SPLITS, np.bincount(split, minlength=len(SPLITS)).tolist(), strict=True)),
                "dense": dense,
                "table_rows": table_rows(transform, self._schema, self._config.vocabulary.num_oov_buckets),
                "rare_below": self._config.vocabulary.rare_below,
                "best": best,
            }
            strict_json.write(aside / _META, meta)
            shutil.rmtree(aside / "made")
            if not target.exists():  # Another sweep may have been faster.
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _generate(self, generated: GeneratedConfig, path: Path) -> None:
        self._progress(f"drawing {generated.rows:,} rows")
        write_log(path, self._schema, generated.rows, **_teacher_arguments(generated))
        self._log = str(path)

    def _write_transform(self, split: np.ndarray, folder: Path) -> str:
        """Writes the transform graph, with the vocabularies of the training rows; returns its folder."""
        counter = ValueCounter(self._schema)
        runs: list[Run] = []
        for table, of_row in self._blocks(split):
            counter.add(table, of_row == SPLITS.index("train"))
            if counter.full:
                runs.append(counter.take_run(str(folder / f"run_{len(runs)}.arrow")))
        if counter.rows or not runs:
            runs.append(counter.take_run(str(folder / f"run_{len(runs)}.arrow")))
        settings = {name: getattr(self._config.vocabulary, name) for name in _VOCABULARY_SETTINGS}
        config = {
            "schema": self._schema.to_dict(),
            "num_oov_buckets": self._config.vocabulary.num_oov_buckets,
            "frequency_slices": [],
            "vocabularies": {
                feature: make_vocabulary((number, feature), runs, str(folder), **settings)
                for number, feature in enumerate(self._schema.sparse_features)
            },
        }
        preprocess = functools.partial(preprocessing_fn, custom_config=config)
        schema = schema_proto(self._schema, ValidationConfig())
        write_transform_graph(preprocess, schema, folder / "transform")
        return str(folder / "transform")

    def _write_rows(
        self, split: np.ndarray, transform_folder: str, folder: Path
    ) -> tuple[int, dict[str, float] | None]:
        """Writes the packed rows of each split; returns D and the metrics of the true probabilities."""
        transform, generated = TransformGraph(transform_folder), self._generated
        teacher = Teacher(self._schema, **_teacher_arguments(generated)) if generated else None
        labels, true = [], []
        for name in SPLITS:
            (folder / f"{name}.bin").touch()
        for table, of_row in self._blocks(split):
            words = pack_words(transform(_sparse_columns(table))).numpy()
            for number, name in enumerate(SPLITS):
                with (folder / f"{name}.bin").open("ab") as file:
                    file.write(words[of_row == number])
            if teacher is not None:
                test = of_row == SPLITS.index("test")
                labels.append(words[test, 0].view(np.float32))
                true.append(teacher.probabilities(table)[test])
        best = None if teacher is None else ctr_metrics(np.concatenate(labels), np.concatenate(true))
        return words.shape[1] - 1 - len(self._schema.sparse_features), best

    def _read(self, on_rejects: Callable[[str], None] | None = None) -> Iterator[pa.Table]:
        share = self._config.data.max_reject_share
        return read_log(self._log, self._schema_to_read, max_reject_share=share, on_rejects=on_rejects)

    def _blocks(self, split: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Tables of the log and which split each of their rows belongs to."""
        first, columns = 0, [self._schema.label, *self._schema.raw_features]
        for table in self._read():
            yield table.select(columns), split[first : first + len(table)]
            first += len(table)


def _teacher_arguments(generated: GeneratedConfig) -> dict[str, Any]:
    values = generated.to_plain()
    return {key: values[key] for key in values if key not in ("rows", "categoricals", "integers")}


def _sparse_columns(table: pa.Table) -> dict[str, tf.SparseTensor]:
    """Columns as sparse `[B, 1]` tensors."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.combine_chunks()
        rows = np.flatnonzero(np.asarray(values.is_valid()))
        indices = np.stack([rows, np.zeros_like(rows)], axis=1).astype(np.int64)
        data = values.drop_null().to_numpy(zero_copy_only=False)
        columns[name] = tf.SparseTensor(indices, tf.constant(data), [len(values), 1])
    return columns
