"""Preprocessing: raw click-log columns to the two tensors a model reads, all inside the graph.

Outputs of `preprocessing_fn`, for a batch of B rows, n integer columns and F sparse features:

*   `dense_features`, float32 `[B, 2n]`: signed log1p of each integer, then an indicator of each missing
    one. A log without integers gets one constant column, whose bottom MLP acts as a learned vector.
*   `sparse_features`, int64 `[B, F]`: per feature with a vocabulary of n values and b OOV buckets,
    `0..n-1` by falling frequency, `n..n+b-1` the OOV buckets, `n+b` missing.
*   `label`, float32 `[B]`, where the log has it.
*   `frequency`, int64 `[B, S]`: for the columns that evaluation slices by frequency, an index into
    `mlet_tf.features.names.FREQUENCY_BUCKETS`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from mlet_tf.datasets import ClickLogSchema, TimeColumn
from mlet_tf.features.names import DENSE, FREQUENCY, LABEL, SPARSE

# Days of the months before a month, shifted so that the leap day falls at the end (Sakamoto's method).
_MONTH_OFFSETS = (0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4)


def preprocessing_fn(
    inputs: Mapping[str, tf.SparseTensor], custom_config: Mapping[str, Any]
) -> dict[str, tf.Tensor]:
    """Builds the preprocessing graph; see the module for its outputs.

    Args:
        inputs: Sparse `[B, 1]` tensors of the raw columns: int64 integers and time, string categories.
        custom_config: `schema` (`ClickLogSchema.to_dict()`), `num_oov_buckets` and `frequency_slices`, as
            in the configuration, and `vocabularies`: of each feature `file`, `size` and `rare_start`, as
            `mlet_tf.features.vocabulary.make_vocabulary` gives them.

    Returns:
        The model's inputs by name.
    """
    schema = ClickLogSchema.from_dict(custom_config["schema"])
    outputs = {DENSE: dense_features(inputs, schema)}
    values, missing = categorical_columns(inputs, schema)
    vocabularies = [custom_config["vocabularies"][name] for name in schema.sparse_features]
    buckets = custom_config["num_oov_buckets"]
    ids = [
        _look_up(column, vocabulary["file"], buckets)
        for column, vocabulary in zip(
            tf.unstack(values, num=len(vocabularies), axis=1), vocabularies, strict=True
        )
    ]
    sizes = np.array([vocabulary["size"] for vocabulary in vocabularies], np.int64)
    outputs[SPARSE] = tf.where(missing, sizes + buckets, tf.stack(ids, axis=1))
    sliced = [schema.sparse_features.index(name) for name in custom_config["frequency_slices"]]
    if sliced:
        rare = np.array([vocabulary["rare_start"] for vocabulary in vocabularies], np.int64)
        columns = tf.gather(outputs[SPARSE], sliced, axis=1)
        bounds = [bound[sliced] for bound in (rare, sizes, sizes + buckets)]
        outputs[FREQUENCY] = tf.add_n([tf.cast(columns >= bound, tf.int64) for bound in bounds])
    if schema.label in inputs:
        label, _ = _to_dense([inputs[schema.label]], 0)
        outputs[LABEL] = tf.cast(label[:, 0], tf.float32)
    return outputs


def dense_features(inputs: Mapping[str, tf.SparseTensor], schema: ClickLogSchema) -> tf.Tensor:
    """Signed log1p of the n integers and their missing indicators.

    Returns:
        float32 `[B, 2n]`, or `[B, 1]` of ones where n is 0.
    """
    if not schema.integers:
        return tf.ones([inputs[schema.raw_features[0]].dense_shape[0], 1], tf.float32)
    values, missing = _to_dense([inputs[name] for name in schema.integers], 0)
    values = tf.cast(values, tf.float32)
    return tf.concat([tf.sign(values) * tf.math.log1p(tf.abs(values)), tf.cast(missing, tf.float32)], axis=1)


def categorical_columns(
    inputs: Mapping[str, tf.SparseTensor], schema: ClickLogSchema
) -> tuple[tf.Tensor, tf.Tensor]:
    """Values (string `[B, F]`) and missing marks (bool `[B, F]`) of all sparse features, in the model's order."""
    values, missing = [], []
    if schema.categoricals:
        texts = _to_dense([inputs[name] for name in schema.categoricals], "")
        values, missing = [texts[0]], [texts[1]]
    if schema.time is not None and schema.time.derive:
        times, absent = _to_dense([inputs[schema.time.name]], 0)
        for part in schema.time.derive:
            values.append(tf.strings.as_string(time_part(times, schema.time, part)))
            missing.append(absent)
    return tf.concat(values, axis=1), tf.concat(missing, axis=1)


def time_part(values: tf.Tensor, time: TimeColumn, part: str) -> tf.Tensor:
    """Hour of the day (0..23) or weekday (0 is Monday) of int64 times, in UTC."""
    if time.format != "yymmddhh":
        days, hour = values // 86400, values // 3600 % 24
        return hour if part == "hour_of_day" else (days + 3) % 7
    if part == "hour_of_day":
        return values % 100
    year, month, day = 2000 + values // 1_000_000, values // 10_000 % 100, values // 100 % 100
    year -= tf.cast(month < 3, tf.int64)
    offset = tf.gather(tf.constant(_MONTH_OFFSETS, tf.int64), tf.clip_by_value(month - 1, 0, 11))
    return (year + year // 4 - year // 100 + year // 400 + offset + day + 6) % 7


def _to_dense(columns: Sequence[tf.SparseTensor], default: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Puts n columns with at most one value per row side by side.

    Few operations for all columns together keep the graph small, which is built and loaded many times.

    Returns:
        Values and where they are missing, both `[B, n]`.
    """
    indices = tf.concat([column.indices for column in columns], axis=0)
    counts = tf.stack([tf.size(column.values, tf.int64) for column in columns])
    single = tf.debugging.Assert(
        tf.reduce_all(tf.equal(indices[:, 1], 0)), ["A column has more than one value in a row"]
    )
    with tf.control_dependencies([single]):
        places = indices + tf.stack(
            [tf.zeros_like(indices[:, 0]), tf.repeat(np.arange(len(columns)), counts)], 1
        )
    shape = tf.stack([columns[0].dense_shape[0], len(columns)])
    values = tf.concat([column.values for column in columns], axis=0)

    def scatter(values: tf.Tensor, default: Any) -> tf.Tensor:
        dense = tf.raw_ops.SparseToDense(
            sparse_indices=places,
            output_shape=shape,
            sparse_values=values,
            default_value=tf.constant(default, values.dtype),
            validate_indices=False,  # They are not sorted.
        )
        return tf.ensure_shape(dense, [None, len(columns)])

    return scatter(values, default), scatter(tf.zeros_like(values, tf.bool), True)


def _look_up(values: tf.Tensor, file: str, num_oov_buckets: int) -> tf.Tensor:
    """Ids of string values `[B]`."""

    def make_table() -> tf.lookup.StaticVocabularyTable:
        initializer = tf.lookup.TextFileInitializer(
            file, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        return tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets)

    # Made outside the graph, so that the served model fills each table once.
    return tft.make_and_track_object(make_table, name=os.path.basename(file)).lookup(values)  # noqa: PTH119
