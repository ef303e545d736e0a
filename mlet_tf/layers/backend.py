"""What differs between the backends of Keras: gathering rows and their gradients."""

import contextlib
import weakref
from collections.abc import Callable

import keras
from keras import ops

from mlet_tf.types import Tensor


def on_tensorflow() -> bool:
    """Whether Keras runs on TensorFlow, the only backend where tables take sparse updates."""
    return keras.backend.backend() == "tensorflow"


def in_compiled_code(tensor: Tensor) -> bool:
    """Whether the caller is traced for a compiler (XLA, `jax.jit`), where nothing can be raised."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return isinstance(tensor, jax.core.Tracer)
    if backend != "tensorflow":
        return False
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util  # There is no public way to detect an XLA scope.

    if tf.executing_eagerly():
        return False
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def gather_rows(table: keras.Variable | keras.layers.Layer | Tensor, ids: Tensor) -> Tensor:
    """Reads rows of a table: a variable, a tensor, or a layer that dequantises its rows.

    On TensorFlow this is a ResourceGather on the variable. `keras.ops.take` would read the whole variable, and copy
    it in every step once there are sparse updates.
    """
    if isinstance(table, keras.layers.Layer):
        return table(ids)
    if not on_tensorflow():
        return ops.take(table, ids, axis=0)
    import tensorflow as tf

    return tf.gather(table.value if isinstance(table, keras.Variable) else table, ids)


def gather_trained_rows(table: keras.Variable | keras.layers.Layer | Tensor, ids: Tensor) -> Tensor:
    """Reads rows of a table in training: with the weight decay that its optimizer still owes them.

    The optimizer applies it when it next updates the rows (see `mlet_tf.optimizers`). The gradient is that of the
    decayed rows, so that what the model learns is what it would learn if all rows decayed in every step.
    """
    rows = gather_rows(table, ids)
    owed = getattr(table, "mlet_owed_decay", None)
    if owed is None:
        return rows
    return rows + ops.stop_gradient(rows * (ops.cast(owed(ids), rows.dtype)[..., None] - 1))


def wide_enough_to_sum(rows: Tensor) -> Tensor:
    """Casts half precision to float32: bfloat16 cannot count beyond 256, nor float16 beyond 2048."""
    return ops.cast(rows, keras.backend.result_type(rows.dtype, "float32"))


def spread(rows: Tensor, positions: Tensor) -> Tensor:
    """Gathers rows of a tensor back to where they occur in the batch (TensorFlow).

    The gradient first sums the occurrences of each row. TensorFlow's own gradient is IndexedSlices, which the matrix
    product before it would make dense.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def gathered(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            upstream = wide_enough_to_sum(tf.reshape(upstream, [-1, rows.shape[-1]]))
            summed = tf.math.unsorted_segment_sum(upstream, tf.reshape(positions, [-1]), tf.shape(rows)[0])
            return tf.cast(summed, rows.dtype)

        return tf.gather(rows, positions), gradient

    return gathered(rows)


class SliceTracker:
    """Tells the optimizer whether the rows in a table's gradient are unique (TensorFlow).

    It sets `variable.mlet_unique_slices`, which is true only for a graph that looks the table up once, with
    de-duplicated ids, on one replica: gradients of several lookups are concatenated, not summed.
    """

    def __init__(self) -> None:
        self._graph: weakref.ref | None = None

    def note(self, variable: keras.Variable, unique: bool) -> None:
        """Sets the attribute for the graph being traced."""
        import tensorflow as tf

        unique = unique and not tf.executing_eagerly()
        unique = unique and tf.distribute.get_strategy().num_replicas_in_sync == 1
        if not tf.executing_eagerly():
            graph = tf.compat.v1.get_default_graph()
            unique = unique and (self._graph is None or self._graph() is not graph)
            self._graph = weakref.ref(graph)
        for target in (variable, variable.value):
            with contextlib.suppress(AttributeError):  # A placeholder, while shapes are inferred.
                target.mlet_unique_slices = unique
