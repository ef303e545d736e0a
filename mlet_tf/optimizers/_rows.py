"""Reading and writing rows of TensorFlow variables in place. Imported on the TensorFlow backend only."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices

# A gradient whose indices come out of one of these may repeat a row even if its layer de-duplicates: the tape
# concatenates the slices of a table that is used twice, and a captured tensor hides where it came from.
_MAY_HIDE_DUPLICATES = {
    "ConcatV2",
    "If",
    "PartitionedCall",
    "Placeholder",
    "StatefulPartitionedCall",
    "StatelessIf",
}


def is_slices(gradient: object) -> bool:
    """Whether a gradient names the rows it belongs to."""
    return isinstance(gradient, tf.IndexedSlices)


def in_xla() -> bool:
    """Whether the graph being traced is compiled by XLA, which has no kernels for the fused sparse ops."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def has_unique_rows(slices: tf.IndexedSlices, promised: bool) -> bool:
    """Whether no row occurs twice, judged by the op that made the indices.

    Args:
        slices: The gradient.
        promised: Whether the layer that owns the variable says that it de-duplicates its ids. The promise holds
            for one use of the layer, so it is not trusted where slices of several uses may have been joined.
    """
    if isinstance(slices.indices, tf.__internal__.EagerTensor):
        return False
    op = slices.indices.op
    while op.type == "Identity":
        op = op.inputs[0].op
    if op.type in ("Unique", "UniqueV2"):
        return True
    return promised and op.type not in _MAY_HIDE_DUPLICATES


def sum_duplicates(slices: tf.IndexedSlices, promised: bool = False) -> tf.IndexedSlices:
    """Returns the same gradient with each row once, the values of repeated rows summed."""
    if has_unique_rows(slices, promised):
        return slices
    rows, positions = tf.unique(slices.indices)
    values = tf.math.unsorted_segment_sum(slices.values, positions, tf.shape(rows)[0])
    return tf.IndexedSlices(values, rows, slices.dense_shape)


def divide(gradient: Gradient, divisor: float) -> Gradient:
    """Divides a gradient of either kind."""
    if not is_slices(gradient):
        return gradient / divisor
    return tf.IndexedSlices(gradient.values / divisor, gradient.indices, gradient.dense_shape)


def clip_by_value(gradients: Sequence[Gradient], limit: float) -> list[Gradient]:
    """Clips each element to +-limit; rows that a batch did not touch stay out of the gradient."""
    return [_map_values(lambda v: tf.clip_by_value(v, -limit, limit), g) for g in gradients]


def clip_by_norm(gradients: Sequence[Gradient], limit: float) -> list[Gradient]:
    """Clips the norm of each gradient."""
    return [_map_values(lambda v: tf.clip_by_norm(v, limit), g) for g in gradients]


def clip_by_global_norm(gradients: Sequence[Gradient], limit: float) -> list[Gradient]:
    """Clips the norm over all gradients."""
    summed = [sum_duplicates(g) if is_slices(g) else g for g in gradients]
    return tf.clip_by_global_norm(summed, limit)[0]


def _map_values(function: Callable[[tf.Tensor], tf.Tensor], gradient: Gradient) -> Gradient:
    if not is_slices(gradient):
        return None if gradient is None else function(gradient)
    gradient = sum_duplicates(gradient)
    return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)


def resource(variable: keras.Variable) -> tf.Tensor:
    """Returns the handle of a Keras or TensorFlow variable."""
    return variable.value.handle if isinstance(variable, keras.Variable) else variable.handle


def gather(variable: keras.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Reads rows; never the whole variable, which would be copied at every later sparse write."""
    return tf.raw_ops.ResourceGather(resource=resource(variable), indices=rows, dtype=variable.dtype)


def subtract(variable: keras.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Subtracts from rows; repeated rows accumulate."""
    tf.raw_ops.ResourceScatterSub(resource=resource(variable), indices=rows, updates=values)


def add(variable: keras.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Adds to rows; repeated rows accumulate."""
    tf.raw_ops.ResourceScatterAdd(resource=resource(variable), indices=rows, updates=values)


def overwrite(variable: keras.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Replaces rows."""
    tf.raw_ops.ResourceScatterUpdate(resource=resource(variable), indices=rows, updates=values)


def tables_of(rows: tf.Tensor, row_counts: Sequence[int]) -> tf.Tensor:
    """Returns the number of the table that each row is in, int32.

    Args:
        rows: Row numbers of any shape.
        row_counts: Rows of each table of the variable, top to bottom.
    """
    if len(row_counts) == 1:
        return tf.zeros_like(rows, tf.int32)
    ends = tf.constant(np.cumsum(row_counts), rows.dtype)
    return tf.reshape(tf.searchsorted(ends, tf.reshape(rows, [-1]), side="right"), tf.shape(rows))


def sparse_adagrad(
    variable: keras.Variable,
    accumulator: keras.Variable,
    rows: tf.Tensor,
    values: tf.Tensor,
    rate: tf.Tensor,
    epsilon: float,
) -> None:
    """Adagrad on rows in one pass over them."""
    tf.raw_ops.ResourceSparseApplyAdagradV2(
        var=resource(variable),
        accum=resource(accumulator),
        lr=rate,
        epsilon=tf.cast(epsilon, values.dtype),
        grad=values,
        indices=rows,
    )


def dense_adagrad(
    variable: keras.Variable,
    accumulator: keras.Variable,
    gradient: tf.Tensor,
    rate: tf.Tensor,
    epsilon: float,
) -> None:
    """Adagrad on a whole variable in one pass over it."""
    tf.raw_ops.ResourceApplyAdagradV2(
        var=resource(variable),
        accum=resource(accumulator),
        lr=rate,
        epsilon=tf.cast(epsilon, gradient.dtype),
        grad=gradient,
    )
