"""Transform: raw click-log columns to the two tensors the model reads, all inside the graph.

Outputs of `preprocessing_fn`, for a batch of B rows, n integer columns and F sparse features:

*   `dense_features`, float32 `[B, 2n]`: signed log1p of each integer, then an indicator of each missing
    one. A log without integers gets one constant column, whose bottom MLP acts as a learned vector.
*   `sparse_features`, int64 `[B, F]`: per feature with a vocabulary of n values and b OOV buckets,
    `0..n-1` by falling frequency, `n..n+b-1` the OOV buckets, `n+b` missing.
*   `label`, float32 `[B]`, where the log has it.
*   `frequency`, int64 `[B, S]`: for the columns that evaluation slices by frequency, an index into
    `components.evaluator.executor.FREQUENCY_BUCKETS`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from mlet_tf.datasets import ClickLogSchema, TimeColumn
from pipeline.vocabulary import CountVocabularies

DENSE = "dense_features"
SPARSE = "sparse_features"
LABEL = "label"
FREQUENCY = "frequency"

# Days of the months before a month, shifted so that the leap day falls at the end (Sakamoto's method).
_MONTH_OFFSETS = (0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4)


def preprocessing_fn(
    inputs: Mapping[str, tf.SparseTensor], custom_config: Mapping[str, Any]
) -> dict[str, tf.Tensor]:
    """Builds the preprocessing graph; see the module for its outputs.

    Args:
        inputs: Sparse `[B, 1]` tensors of the raw columns: int64 integers and time, string categories.
        custom_config: `schema` (`ClickLogSchema.to_dict()`), `min_count`, `max_size`,
            `num_oov_buckets`, `rare_below` and `frequency_slices`, as in the configuration.

    Returns:
        The model's inputs by name.
    """
    schema = ClickLogSchema.from_dict(custom_config["schema"])
    outputs = {
        DENSE: dense_features([_column(inputs[name], 0) for name in schema.integers], _rows(inputs, schema))
    }
    columns = categorical_columns(inputs, schema)
    files, rare_ranks = count_vocabularies(columns, custom_config)
    buckets = custom_config["num_oov_buckets"]
    ids, sizes = {}, {}
    for (name, (values, missing)), file in zip(columns.items(), files, strict=True):
        ids[name], sizes[name] = _look_up(values, missing, file, buckets)
    outputs[SPARSE] = tf.stack(list(ids.values()), axis=1)
    if custom_config["frequency_slices"]:
        rare = tf.strings.to_number(tf.strings.split(tf.io.read_file(rare_ranks)), tf.int64)
        outputs[FREQUENCY] = tf.stack(
            [
                _frequency(ids[name], rare[list(columns).index(name)], sizes[name] - buckets, sizes[name])
                for name in custom_config["frequency_slices"]
            ],
            axis=1,
        )
    if schema.label in inputs:
        outputs[LABEL] = tf.cast(_column(inputs[schema.label], 0)[0], tf.float32)
    return outputs


def dense_features(columns: Sequence[tuple[tf.Tensor, tf.Tensor]], rows: tf.Tensor) -> tf.Tensor:
    """Signed log1p of integers and their missing indicators.

    Args:
        columns: n pairs of int64 values `[B]` and bool missing marks `[B]`.
        rows: B, a scalar.

    Returns:
        float32 `[B, 2n]`, or `[B, 1]` of ones where n is 0.
    """
    if not columns:
        return tf.ones([rows, 1], tf.float32)
    values = tf.cast(tf.stack([value for value, _ in columns], axis=1), tf.float32)
    missing = tf.cast(tf.stack([mark for _, mark in columns], axis=1), tf.float32)
    return tf.concat([tf.sign(values) * tf.math.log1p(tf.abs(values)), missing], axis=1)


def categorical_columns(
    inputs: Mapping[str, tf.SparseTensor], schema: ClickLogSchema
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """Values (string `[B]`) and missing marks (bool `[B]`) of all sparse features, in the model's order."""
    columns = {name: _column(inputs[name], "") for name in schema.categoricals}
    if schema.time is not None:
        values, missing = _column(inputs[schema.time.name], 0)
        for part in schema.time.derive:
            columns[part] = (tf.strings.as_string(time_part(values, schema.time, part)), missing)
    return columns


def time_part(values: tf.Tensor, time: TimeColumn, part: str) -> tf.Tensor:
    """Hour of the day (0..23) or weekday (0 is Monday) of an int64 time `[B]`, in UTC."""
    if time.format == "unix_seconds":
        days, hour = values // 86400, values // 3600 % 24
        return hour if part == "hour_of_day" else (days + 3) % 7
    if part == "hour_of_day":
        return values % 100
    year, month, day = 2000 + values // 1_000_000, values // 10_000 % 100, values // 100 % 100
    year -= tf.cast(month < 3, tf.int64)
    offset = tf.gather(tf.constant(_MONTH_OFFSETS, tf.int64), tf.clip_by_value(month - 1, 0, 11))
    return (year + year // 4 - year // 100 + year // 400 + offset + day + 6) % 7


def count_vocabularies(
    columns: Mapping[str, tuple[tf.Tensor, tf.Tensor]], custom_config: Mapping[str, Any]
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """One analyzer for all vocabularies: 26 stock ones cost minutes of graph building.

    Returns:
        The vocabulary files, one a feature, and a file with a line a feature: the first rank that is rare.
    """
    analyzer = CountVocabularies(
        tuple(columns),
        min_count=custom_config["min_count"],
        max_size=custom_config["max_size"],
        rare_below=custom_config["rare_below"],
    )
    count = len(columns)
    # Missing values are empty strings here, which the analyzer leaves out.
    values = [tf.where(missing, "", value) for value, missing in columns.values()]
    *files, rare_ranks = tft.experimental.ptransform_analyzer(
        inputs=values,
        ptransform=analyzer,
        output_dtypes=[tf.string] * (count + 1),
        output_shapes=[[]] * (count + 1),
        output_asset_default_values=[b"placeholder\n"] * count + [b"0\n" * count],
        name="vocabularies",
    )
    return files, rare_ranks


def _rows(inputs: Mapping[str, tf.SparseTensor], schema: ClickLogSchema) -> tf.Tensor:
    return tf.shape(inputs[schema.raw_features[0]], out_type=tf.int64)[0]


def _column(sparse: tf.SparseTensor, default: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Dense values `[B]` and where they are missing, of a column with at most one value a row."""
    shape = tf.stack([sparse.dense_shape[0], 1])
    values = tf.sparse.to_dense(tf.SparseTensor(sparse.indices, sparse.values, shape), default)
    present = tf.sparse.to_dense(
        tf.SparseTensor(sparse.indices, tf.ones_like(sparse.values, tf.bool), shape), False
    )
    return tf.squeeze(values, 1), ~tf.squeeze(present, 1)


def _look_up(
    values: tf.Tensor, missing: tf.Tensor, file: tf.Tensor, num_oov_buckets: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Ids of the values, and the id that stands for missing."""
    sizes = []

    def look_up(values: tf.Tensor, file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        initializer = tf.lookup.TextFileInitializer(
            file, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        table = tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets)
        sizes.append(table.size())
        return table.lookup(values), sizes[-1]

    ids = tft.apply_vocabulary(values, file, lookup_fn=look_up)
    return tf.where(missing, sizes[-1], ids), sizes[-1]


def _frequency(ids: tf.Tensor, rare_start: tf.Tensor, oov_start: tf.Tensor, missing: tf.Tensor) -> tf.Tensor:
    bounds = (rare_start, oov_start, missing)
    return functools.reduce(tf.add, [tf.cast(ids >= bound, tf.int64) for bound in bounds])
