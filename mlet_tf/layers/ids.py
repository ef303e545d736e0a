"""Integer ids: their dtype, and what happens to out-of-range ones."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from mlet_tf.layers.backend import in_compiled_code, on_tensorflow
from mlet_tf.types import Inputs, Tensor

OOV_POLICIES = ("error", "last")


def validate_oov(oov: str) -> str:
    """Returns the policy, or raises ValueError if it is unknown."""
    if oov not in OOV_POLICIES:
        raise ValueError(f"`oov` should be one of {', '.join(OOV_POLICIES)}. Received: {oov!r}")
    return oov


def without_wrapping(inputs: Inputs) -> Inputs:
    """Clips NumPy ids to int32 on JAX, which would wrap wider ones into the table; clipped ones are out of range.

    Layers call this before Keras converts their inputs to tensors. Ids that are JAX arrays by then, such as those of
    a whole model, have already been wrapped.
    """
    if keras.backend.backend() != "jax":
        return inputs
    return keras.tree.map_structure(_clip_to_int32, inputs)


def _clip_to_int32(ids: Tensor | np.ndarray) -> Tensor | np.ndarray:
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        return ids
    own, narrow = np.iinfo(ids.dtype), np.iinfo("int32")
    return ids.clip(max(own.min, narrow.min), min(own.max, narrow.max))


def is_sparse(inputs: Tensor | np.ndarray) -> bool:
    """Whether ids come as a sparse tensor, which Keras has on TensorFlow and JAX."""
    if on_tensorflow():
        import tensorflow as tf

        return isinstance(inputs, tf.SparseTensor)
    if keras.backend.backend() == "jax":
        from jax.experimental.sparse import JAXSparse

        return isinstance(inputs, JAXSparse)
    return False


def as_ids(inputs: Tensor | np.ndarray, absent: int = 0) -> Tensor:
    """Casts ids to integers, as saving traces a model with float inputs, and makes them dense.

    Args:
        inputs: Ids of any dtype; dense or sparse.
        absent: Id of absent entries of a sparse tensor; `keras.layers.Embedding` reads 0.

    Returns:
        A dense tensor, int32 or int64.
    """
    if is_sparse(inputs):
        inputs = _dense(inputs, absent)
    inputs = ops.convert_to_tensor(inputs)
    if keras.backend.standardize_dtype(inputs.dtype) in ("int32", "int64"):
        return inputs
    return ops.cast(inputs, "int64" if on_tensorflow() else "int32")


def _dense(inputs: Tensor, absent: int) -> Tensor:
    if on_tensorflow():
        import tensorflow as tf

        return tf.sparse.to_dense(tf.sparse.reorder(tf.sparse.map_values(as_ids, inputs)), absent)
    shifted = type(inputs)((as_ids(inputs.data) - absent, inputs.indices), shape=inputs.shape)
    return shifted.todense() + absent


def guard_ids(
    ids: Tensor, row_counts: Sequence[int], names: Sequence[str], oov: str
) -> tuple[Tensor, Tensor | None]:
    """Keeps ids inside their tables.

    Args:
        ids: Integer ids; the last axis runs over the features, unless there is only one of them.
        row_counts: `V` of each feature.
        names: Names of the features, for the message.
        oov: `"error"` or `"last"`.

    Returns:
        The ids to look up, and a mask of those whose result has to become NaN, or None.

    Raises:
        ValueError: An id is out of range.
        tf.errors.InvalidArgumentError: The same in a TensorFlow graph.
    """
    limits = row_counts[0] if len(row_counts) == 1 else np.asarray(row_counts, "int64")
    limits = ops.cast(ops.convert_to_tensor(limits), ids.dtype)
    outside = ops.logical_or(ids < 0, ids >= limits)
    if oov == "last":
        return ops.where(outside, limits - 1, ids), None
    if in_compiled_code(ids):
        return ops.where(outside, ops.zeros_like(ids), ids), outside
    if _in_tensorflow_graph():
        return _assert_inside(ids, outside, row_counts, names), None
    if keras.backend.backend() == "torch" and ids.device.type == "meta":
        return ids, None  # Keras infers shapes on the meta device, which holds no values.
    if bool(ops.any(outside)):
        position = tuple(np.argwhere(ops.convert_to_numpy(outside))[0])
        feature = 0 if len(names) == 1 else position[-1]
        raise ValueError(_range_message(f'"{names[feature]}"', row_counts[feature], int(ids[position])))
    return ids, None


def _in_tensorflow_graph() -> bool:
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def _range_message(name: str, rows: int | str, value: int | str) -> str:
    return f"Id out of range for feature {name}: expected 0 <= id < {rows}. Received: {value}"


def _assert_inside(ids: Tensor, outside: Tensor, row_counts: Sequence[int], names: Sequence[str]) -> Tensor:
    import tensorflow as tf

    def fail() -> tf.Tensor:
        position = tf.where(outside)[0]
        feature = position[-1] if len(names) > 1 else tf.constant(0, tf.int64)
        text = tf.strings.format(
            _range_message("{}", "{}", "{}"),
            (
                tf.gather(tf.constant(list(names)), feature),
                tf.gather(tf.constant(list(row_counts), tf.int64), feature),
                tf.gather_nd(ids, position),
            ),
        )
        with tf.control_dependencies([tf.debugging.Assert(False, [text])]):
            return tf.constant(False)

    inside = tf.cond(tf.reduce_any(outside), fail, lambda: tf.constant(True))
    # The gather must wait, or its own error, which names no feature, may come first.
    with tf.control_dependencies([inside]):
        return tf.identity(ids)
