"""Multi-valued features of a collection: padded, ragged or sparse columns of ids, summed or averaged a row."""

from collections.abc import Mapping

import numpy as np
from keras import ops

from mlet_tf.layers._fused import FusedLookup
from mlet_tf.layers._plan import EmbeddingFeature, Plan
from mlet_tf.layers.backend import in_compiled_code, on_tensorflow, spread, wide_enough_to_sum
from mlet_tf.layers.ids import as_ids, is_sparse
from mlet_tf.types import Tensor

_PADDING = -1


def columns_of(plan: Plan, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Returns the columns of a dict in the order of the features.

    Raises:
        ValueError: A key is missing or unknown, or a feature without a combiner has several ids a row.
    """
    names = [feature.name for feature in plan.features]
    if inputs.keys() != set(names):
        raise ValueError(f"`inputs` should have the keys {names}. Received: {list(inputs)}")
    columns = [inputs[name] for name in names]
    for feature, column in zip(plan.features, columns, strict=True):
        if is_bag(feature, column) and feature.combiner is None:
            raise ValueError(
                f"Feature '{feature.name}' should have one id a row, or a `combiner`. "
                f"Received shape: {tuple(column.shape)}"
            )
    return columns


def is_bag(feature: EmbeddingFeature, column: Tensor) -> bool:
    """Whether the rows of a column are lists of ids; padded ones may have a single entry."""
    return len(column.shape) == 2 and (feature.combiner is not None or column.shape[1] != 1)


def embed_bags(lookup: FusedLookup, columns: list[Tensor]) -> Tensor:
    """Returns `[B, F, d]` for columns of which some have several ids a row."""
    if on_tensorflow() and not in_compiled_code(columns[0]):
        return _unique_bags(lookup, columns)
    return ops.stack([_padded_bag(lookup, slot, column) for slot, column in enumerate(columns)], axis=1)


def _padded_bag(lookup: FusedLookup, slot: int, column: Tensor) -> Tensor:
    """Embeds one `[B]` or `[B, L]` column, where negative ids are padding."""
    feature = lookup.plan.features[slot]
    bag = is_bag(feature, column)
    ids = as_ids(column, absent=_PADDING if bag else 0)
    ids = ids if bag else ops.reshape(ids, (-1, 1))
    present = ids >= 0 if bag else ops.ones_like(ids, dtype="bool")
    ids, invalid = lookup.guard(ops.where(present, ids, ops.zeros_like(ids)), [slot])
    number, block = lookup.plan.group_of(slot)
    # A matrix of rows would be taken for one with a row of ids for each feature.
    flat = ops.reshape(ops.cast(ids, "int32") + block.offset, (-1,))
    rows = lookup.gather(number, flat, unique=False)
    rows = ops.reshape(rows, (*ops.shape(ids), rows.shape[-1]))
    if block.projection is not None:
        rows = ops.matmul(rows, lookup.stack(lookup.plan.groups[number].chain, [block.projection])[0])
    rows = wide_enough_to_sum(rows) if bag else rows
    weights = ops.cast(present, rows.dtype)
    if invalid is not None:
        weights = ops.where(invalid, ops.cast(float("nan"), rows.dtype), weights)
    if feature.combiner == "mean":
        weights = weights / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1)
    return ops.cast(ops.sum(rows * weights[..., None], axis=1), lookup.compute_dtype)


def _unique_bags(lookup: FusedLookup, columns: list[Tensor]) -> Tensor:
    """Embeds columns, ragged and sparse ones included, after de-duplicating their ids (TensorFlow)."""
    import tensorflow as tf

    features = lookup.plan.features
    flat = [_flatten(*pair) for pair in zip(features, columns, strict=True)]
    batch = _batch_size(columns[0])
    results: list[Tensor | None] = [None] * len(columns)
    for number, group in enumerate(lookup.plan.groups):
        starts = group.starts.astype("int32")
        ids = [
            tf.cast(lookup.guard(flat[slot][0], [slot])[0], tf.int32) + start
            for start, block in zip(starts, group.blocks, strict=True)
            for slot in block.slots
        ]
        unique, where = tf.unique(tf.concat(ids, 0))
        # Numbered in the order of the blocks, so that the distinct ids are sorted by block.
        block_of = tf.searchsorted(starts, unique, side="right")
        ends = tf.searchsorted(block_of, np.arange(1, len(starts) + 1, dtype="int32"), side="right")
        rows = wide_enough_to_sum(spread(lookup.project_distinct(number, unique, ends), where))
        pieces = tf.split(rows, tf.stack([tf.size(x) for x in ids]), num=len(ids))
        for slot, piece in zip(group.slots, pieces, strict=True):
            results[slot] = _combine(piece, flat[slot][1], batch, features[slot].combiner)
    return tf.cast(tf.stack(results, axis=1), lookup.compute_dtype)


def _batch_size(column: Tensor) -> Tensor:
    import tensorflow as tf

    if isinstance(column, tf.RaggedTensor):
        return tf.cast(column.nrows(), tf.int32)
    shape = column.dense_shape if isinstance(column, tf.SparseTensor) else tf.shape(column)
    return tf.cast(shape[0], tf.int32)


def _flatten(feature: EmbeddingFeature, column: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the ids of a column as one vector, and the row of each if rows have several."""
    import tensorflow as tf

    if isinstance(column, tf.RaggedTensor):
        return as_ids(column.flat_values), tf.cast(column.value_rowids(), tf.int32)
    bag = is_bag(feature, column)
    if bag and is_sparse(column):
        return as_ids(column.values), tf.cast(column.indices[:, 0], tf.int32)
    ids = as_ids(column)
    if not bag:
        return tf.reshape(ids, [-1]), None
    positions = tf.where(ids >= 0)
    return tf.gather_nd(ids, positions), tf.cast(positions[:, 0], tf.int32)


def _combine(rows: Tensor, segments: Tensor | None, batch: Tensor, combiner: str | None) -> Tensor:
    """Sums or averages the rows of each bag."""
    import tensorflow as tf

    if segments is None:
        return rows
    totals = tf.math.unsorted_segment_sum(rows, segments, batch)
    if combiner == "sum":
        return totals
    counts = tf.math.unsorted_segment_sum(tf.ones_like(segments, totals.dtype), segments, batch)
    return totals / tf.maximum(counts, 1)[:, None]
