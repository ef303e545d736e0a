"""Rows of a sweep: preprocessed once, by the pipeline's own `preprocessing_fn`, and kept as arrays.

The arrays of a configuration live in a folder named by its hash; every trial maps them into memory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlet_tf import strict_json
from mlet_tf._mapping import from_mapping
from mlet_tf.datasets import ClickLogSchema, load_schema, read_log, write_log
from mlet_tf.errors import InputError
from mlet_tf.experiments.config import DataConfig, GeneratedConfig, SplitConfig

SPLITS = ("train", "validation", "test")
_ARRAYS = ("dense_features", "sparse_features", "label")  # Also outputs of `preprocessing_fn`.


@dataclasses.dataclass(frozen=True)
class Rows:
    """Preprocessed rows of one split.

    Attributes:
        dense_features: float32 `[N, D]`.
        sparse_features: int32 `[N, F]`.
        label: float32 `[N]`.
    """

    dense_features: np.ndarray
    sparse_features: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """All that trials need to know of the rows.

    Attributes:
        folder: Where the arrays are.
        digest: Hash of the configuration that made them.
        table_rows: Rows V of each feature's table, by name.
        rare_below: Ids seen less often than this in `train` are rare.
        best: AUC, logloss and normalised entropy of the true probabilities over the test rows; None for a
            real log.
    """

    folder: Path
    digest: str
    table_rows: dict[str, int]
    rare_below: int
    best: dict[str, float] | None

    def rows(self, split: str) -> Rows:
        """The rows of a split, mapped into memory."""
        return Rows(*(np.load(self.folder / f"{split}_{name}.npy", mmap_mode="r") for name in _ARRAYS))

    def counts(self) -> tuple[np.ndarray, ...]:
        """How often each id of each feature occurs in `train`."""
        return _counts(self.folder, tuple(self.table_rows.values()))

    def rare_rows(self, split: str) -> np.ndarray:
        """Marks the rows with at least one id that `train` has seen less than `rare_below` times, bool `[N]`."""
        return _rare_rows(self.folder, tuple(self.table_rows.values()), split, self.rare_below)


# Trials of one process ask for these again and again.
@functools.lru_cache(maxsize=4)
def _counts(folder: Path, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    ids = np.load(folder / "train_sparse_features.npy", mmap_mode="r")
    return tuple(np.bincount(ids[:, i], minlength=size).astype(np.int64) for i, size in enumerate(sizes))


@functools.lru_cache(maxsize=8)
def _rare_rows(folder: Path, sizes: tuple[int, ...], split: str, rare_below: int) -> np.ndarray:
    ids = np.load(folder / f"{split}_sparse_features.npy", mmap_mode="r")
    rare = np.zeros(len(ids), bool)
    for i, counts in enumerate(_counts(folder, sizes)):
        rare |= counts[ids[:, i]] < rare_below
    return rare


def prepare(config: DataConfig, folder: Path, progress: Callable[[str], None] | None = None) -> PreparedData:
    """Preprocesses the rows, or finds them from an earlier call.

    Args:
        config: Where the rows come from.
        folder: The cache.
        progress: Called with a line about what is being done.

    Returns:
        The rows.

    Raises:
        InputError: If the log cannot be read or a split would be empty.
    """
    from mlet_tf.config import VocabularyConfig

    vocabulary = from_mapping(VocabularyConfig, config.vocabulary, "data.vocabulary")
    log = None if config.log is None else os.path.expandvars(config.log)
    digest = _digest(config, dataclasses.asdict(vocabulary), log)
    target = folder / digest
    if not (target / "meta.json").exists():
        _Preparation(config, vocabulary, log, progress or (lambda line: None)).write(target)
    meta = json.loads((target / "meta.json").read_text())
    return PreparedData(target, digest, meta["table_rows"], meta["rare_below"], meta["best"])


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


def split_of_rows(rows: int, config: SplitConfig) -> np.ndarray:
    """Which of `SPLITS` each row belongs to, uint8 `[rows]`."""
    validation, test = round(rows * config.validation_share), round(rows * config.test_share)
    train = rows - validation - test
    if min(validation, test, train) < 1:
        raise InputError(f"{rows} rows are too few for three splits")
    split = np.repeat(np.arange(3, dtype=np.uint8), [train, validation, test])
    generator = np.random.default_rng(config.seed)
    generator.shuffle(split[train:] if config.method == "sequential" else split)
    return split


def _digest(config: DataConfig, vocabulary: dict[str, Any], log: str | None) -> str:
    from mlet_tf.datasets.files import list_files

    schema = generated_schema(config.generated) if config.generated else load_schema(config.schema)
    state: list[Any] = [dataclasses.asdict(config.split), vocabulary, schema.to_dict()]
    state.append(dataclasses.asdict(config.generated) if config.generated else None)
    if log is not None:
        state += [(Path(file).name, Path(file).stat().st_size) for file in list_files(log)]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]


class _Preparation:
    """Reads the log three times, a block at a time: to count, for the vocabularies, to write the arrays."""

    def __init__(
        self, config: DataConfig, vocabulary: Any, log: str | None, progress: Callable[[str], None]
    ) -> None:
        self._config, self._vocabulary, self._log, self._progress = config, vocabulary, log, progress
        generated = config.generated
        self._schema = generated_schema(generated) if generated else load_schema(config.schema)

    def write(self, target: Path) -> None:
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        aside.mkdir(parents=True)
        try:
            if self._log is None:
                self._generate(aside / "log.parquet")
            self._progress("counting rows")
            rows = sum(len(table) for table in read_log(self._log, self._schema, [self._schema.label]))
            split = split_of_rows(rows, self._config.split)
            self._progress(f"vocabularies of {int((split == 0).sum()):,} rows")
            vocabularies = self._write_vocabularies(split, aside / "vocabularies")
            extra = self._vocabulary.num_oov_buckets + 1
            self._progress(f"preprocessing {rows:,} rows")
            best = self._write_arrays(split, vocabularies, aside)
            meta = {
                "table_rows": {name: known["size"] + extra for name, known in vocabularies.items()},
                "rare_below": self._vocabulary.rare_below,
                "best": best,
            }
            (aside / "meta.json").write_text(strict_json.dumps(meta))
            for leftover in ("log.parquet", "log.parquet.teacher.json"):
                (aside / leftover).unlink(missing_ok=True)
            for leftover in ("vocabularies", "transform"):
                shutil.rmtree(aside / leftover)
            if not target.exists():  # Another sweep may have been faster.
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _generate(self, path: Path) -> None:
        arguments = self._teacher_arguments()
        self._progress(f"drawing {self._config.generated.rows:,} rows")
        write_log(path, self._schema, self._config.generated.rows, **arguments)
        self._log = str(path)

    def _teacher_arguments(self) -> dict[str, Any]:
        values = dataclasses.asdict(self._config.generated)
        return {key: values[key] for key in values if key not in ("rows", "categoricals", "integers")}

    def _write_vocabularies(self, split: np.ndarray, folder: Path) -> dict[str, dict[str, Any]]:
        """Writes the vocabularies of the training rows; returns what `preprocessing_fn` has to know of them."""
        from mlet_tf.components.transform.executor import write_feature
        from mlet_tf.features.counts import ValueCounter

        folder.mkdir()
        counter, runs = ValueCounter(self._schema), []

        def write_run() -> None:
            runs.append(counter.take_run(str(folder / f"run_{len(runs)}.arrow")))

        for table, of_row in _blocks(self._log, self._schema, split):
            counter.add(table, of_row == SPLITS.index("train"))
            if counter.full:
                write_run()
        if counter.rows or not runs:
            write_run()
        config = dataclasses.asdict(self._vocabulary)
        return {
            feature: write_feature((number, feature), runs, config, str(folder))
            for number, feature in enumerate(self._schema.sparse_features)
        }

    def _write_arrays(
        self, split: np.ndarray, vocabularies: dict[str, dict[str, Any]], folder: Path
    ) -> dict[str, float] | None:
        transform = _preprocessing(self._schema, self._vocabulary, vocabularies, folder / "transform")
        arrays: dict[str, list[np.ndarray]] = {}
        filled = [0, 0, 0]
        sizes = np.bincount(split, minlength=3)
        teacher, true = self._teacher(), ([], [])
        for table, of_row in _blocks(self._log, self._schema, split):
            values = transform(_sparse_columns(table))
            block = [np.asarray(values[name]) for name in _ARRAYS]
            block[1] = block[1].astype(np.int32)
            for number, name in enumerate(SPLITS):
                if name not in arrays:
                    arrays[name] = [
                        np.lib.format.open_memmap(
                            folder / f"{name}_{array}.npy",
                            "w+",
                            part.dtype,
                            (int(sizes[number]), *part.shape[1:]),
                        )
                        for array, part in zip(_ARRAYS, block, strict=True)
                    ]
                mine = of_row == number
                start, filled[number] = filled[number], filled[number] + int(mine.sum())
                for target, part in zip(arrays[name], block, strict=True):
                    target[start : filled[number]] = part[mine]
            if teacher is not None:
                mine = of_row == SPLITS.index("test")
                true[0].append(block[2][mine])
                true[1].append(teacher.probabilities(table)[mine])
        for parts in arrays.values():
            for part in parts:
                part.flush()
        if teacher is None:
            return None
        from mlet_tf.metrics import ctr_metrics

        return ctr_metrics(np.concatenate(true[0]), np.concatenate(true[1]))

    def _teacher(self) -> Any:
        if self._config.generated is None:
            return None
        from mlet_tf.datasets import Teacher

        return Teacher(self._schema, **self._teacher_arguments())


def _blocks(log: str, schema: ClickLogSchema, split: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Tables of the log and which split each of their rows belongs to."""
    first = 0
    for table in read_log(log, schema):
        yield table, split[first : first + len(table)]
        first += len(table)


def _preprocessing(
    schema: ClickLogSchema, vocabulary: Any, vocabularies: dict[str, dict[str, Any]], folder: Path
) -> Callable[..., Any]:
    """The pipeline's preprocessing as a function of sparse columns, by way of a transform graph in `folder`."""
    import tensorflow as tf
    import tensorflow_transform as tft
    from tensorflow_transform.impl_helper import analyze_in_place  # What TFX's Transform calls.

    from mlet_tf.components.common import TransformGraph
    from mlet_tf.export import raw_feature_spec
    from mlet_tf.features.preprocessing import preprocessing_fn

    config = {
        "schema": schema.to_dict(),
        **dataclasses.asdict(vocabulary),
        "vocabularies": vocabularies,
        "frequency_slices": [],
    }
    columns = raw_feature_spec(schema, with_label=True)
    types = {name: tf.SparseTensorSpec([None, None], column.dtype) for name, column in columns.items()}
    analyze_in_place(lambda inputs: preprocessing_fn(inputs, config), False, columns, types, str(folder))
    return TransformGraph(tft.TFTransformOutput(str(folder)))


def _sparse_columns(table: Any) -> dict[str, Any]:
    """Columns as sparse `[B, 1]` tensors."""
    import tensorflow as tf

    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.combine_chunks()
        rows = np.flatnonzero(np.asarray(values.is_valid()))
        indices = np.stack([rows, np.zeros_like(rows)], axis=1).astype(np.int64)
        present = values.drop_null()
        data = present.to_numpy(zero_copy_only=False)
        columns[name] = tf.SparseTensor(indices, tf.constant(data), [len(values), 1])
    return columns
