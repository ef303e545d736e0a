"""What the embedding layers share: gathering, guarding ids, and reading a factorised table in blocks."""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.errors import InputError

OOV_POLICIES = ("error", "last")
BLOCK_ROWS = 65_536


def on_tensorflow() -> bool:
    """Whether Keras runs on TensorFlow, the only backend where tables take sparse updates."""
    return keras.backend.backend() == "tensorflow"


def validate_oov(oov: str) -> str:
    """Returns the policy, or raises ValueError for one that is not known."""
    if oov not in OOV_POLICIES:
        raise ValueError(f"`oov` should be one of {', '.join(OOV_POLICIES)}. Received: {oov!r}")
    return oov


def hidden_chain(hidden_dim: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the hidden dimensions as a tuple of positive integers."""
    chain = tuple(hidden_dim) if isinstance(hidden_dim, Iterable) else (hidden_dim,)
    if not chain or not all(is_positive_int(k) for k in chain):
        raise ValueError(
            f"`hidden_dim` should be a positive integer or a sequence of them. Received: {hidden_dim!r}"
        )
    return tuple(int(k) for k in chain)


def is_positive_int(value: Any) -> bool:
    """Whether the value is an integer above zero, bool excluded."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0


def positive_int(name: str, value: Any) -> int:
    """Returns the value, or raises ValueError where it is not an integer above zero."""
    if not is_positive_int(value):
        raise ValueError(f"`{name}` should be a positive integer. Received: {value!r}")
    return int(value)


def without_wrapping(inputs: Any) -> Any:
    """Clips NumPy ids to int32 on JAX, which would wrap wider ones into the table; what is clipped is out of range.

    Layers call this before Keras makes tensors of their inputs. Ids that were JAX arrays before that, as those of
    a whole model are, have already been wrapped.
    """
    if keras.backend.backend() != "jax":
        return inputs
    return keras.tree.map_structure(_clip_to_int32, inputs)


def _clip_to_int32(ids: Any) -> Any:
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        return ids
    own, narrow = np.iinfo(ids.dtype), np.iinfo("int32")
    return ids.clip(max(own.min, narrow.min), min(own.max, narrow.max))


def as_ids(inputs: Any) -> Any:
    """Casts ids to integers; saving traces a model with float inputs."""
    inputs = ops.convert_to_tensor(inputs)
    if keras.backend.standardize_dtype(inputs.dtype) in ("int32", "int64"):
        return inputs
    return ops.cast(inputs, "int64" if on_tensorflow() else "int32")


def gather_rows(table: keras.Variable | keras.layers.Layer, ids: Any) -> Any:
    """Reads the rows of a table, which may also be a layer that widens what it has.

    On TensorFlow this is a ResourceGather on the variable. `keras.ops.take` would read the variable whole,
    and copy it in every step once sparse updates have begun.
    """
    if isinstance(table, keras.layers.Layer):
        return table(ids)
    if not on_tensorflow():
        return ops.take(table, ids, axis=0)
    import tensorflow as tf

    return tf.gather(table.value, ids)


def in_compiled_code(tensor: Any) -> bool:
    """Whether the caller is traced for a compiler (XLA, `jax.jit`), where nothing can be raised."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return isinstance(tensor, jax.core.Tracer)
    if backend != "tensorflow":
        return False
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util  # No public name tells an XLA scope.

    if tf.executing_eagerly():
        return False
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def guard_ids(ids: Any, row_counts: Sequence[int], names: Sequence[str], oov: str) -> tuple[Any, Any | None]:
    """Keeps ids inside of their tables.

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


def _range_message(name: Any, rows: Any, value: Any) -> str:
    return f"Id out of range for feature {name}: expected 0 <= id < {rows}. Received: {value}"


def _assert_inside(ids: Any, outside: Any, row_counts: Sequence[int], names: Sequence[str]) -> Any:
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
    # The gather has to wait, or its own message, without a name, may come first.
    with tf.control_dependencies([inside]):
        return tf.identity(ids)


def wide_enough_to_sum(rows: Any) -> Any:
    """Casts half precision to float32: bfloat16 cannot count beyond 256, nor float16 beyond 2048."""
    return ops.cast(rows, keras.backend.result_type(rows.dtype, "float32"))


def spread(rows: Any, positions: Any) -> Any:
    """Gathers rows of a tensor back to where they occur in the batch (TensorFlow).

    The gradient sums the occurrences of each row before anything else is done with them; the stock one
    hands on IndexedSlices, which the product before it would have to make dense.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def gathered(rows: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            upstream = wide_enough_to_sum(tf.reshape(upstream, [-1, rows.shape[-1]]))
            summed = tf.math.unsorted_segment_sum(upstream, tf.reshape(positions, [-1]), tf.shape(rows)[0])
            return tf.cast(summed, rows.dtype)

        return tf.gather(rows, positions), gradient

    return gathered(rows)


class SliceTracker:
    """Tells the optimizer whether the row gradients of a table have no row twice (TensorFlow).

    The note is `variable.mlet_unique_slices`. It is only true for a graph that looks the table up once, with
    de-duplicated ids, on one replica: gradients of several look-ups are concatenated, not summed.
    """

    def __init__(self) -> None:
        """See the class."""
        self._graph: weakref.ref | None = None

    def note(self, variable: keras.Variable, unique: bool) -> None:
        """Sets the note for the graph that is being traced."""
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


@dataclasses.dataclass(frozen=True)
class Factorization:
    """One `E = W1 @ P1 @ P2 ...`, read from the weights of a layer in blocks of rows.

    Attributes:
        name: Name for messages and reports.
        table: Variable which holds the rows of `W1`, or of `E` where there are no projections.
        offset: First row in the variable.
        rows: `V`.
        projections: The small factors.
    """

    name: str
    table: keras.Variable
    offset: int
    rows: int
    projections: tuple[np.ndarray, ...]

    @property
    def hidden_dim(self) -> int | None:
        """`k`, None for a direct table."""
        return self.projections[0].shape[0] if self.projections else None

    @property
    def output_dim(self) -> int:
        """`d`."""
        return self.projections[-1].shape[1] if self.projections else self.table.shape[1]

    def projection(self) -> np.ndarray | None:
        """Returns the product of the projections, `[k, d]`, or None for a direct table."""
        return functools.reduce(np.matmul, self.projections) if self.projections else None

    def iter_table(self, block_rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Yields the rows of `W1` in blocks."""
        end = self.offset + self.rows
        for low in range(self.offset, end, block_rows):
            yield read_rows(self.table, low, min(low + block_rows, end))

    def iter_effective_table(self, block_rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Yields the rows of `E` in blocks.

        Raises:
            InputError: A value is not finite.
        """
        projection = self.projection()
        for block in self.iter_table(block_rows):
            with np.errstate(all="ignore"):
                rows = block if projection is None else block @ projection
            self._require_finite(rows)
            yield rows

    def effective_table(self, block_rows: int = BLOCK_ROWS) -> np.ndarray:
        """Returns `E`, `[V, d]`."""
        return _stack(self.iter_effective_table(block_rows), self.rows)

    def singular_values(self) -> np.ndarray:
        """Returns the singular values of `E`, largest first, from the Gram matrix of `W1`.

        The Gram matrix is summed in float64 and its square root is multiplied with the projection before
        the last decomposition, so that only the table's own conditioning is squared: values below about
        1e-8 of the largest are noise, which is less than float32 weights carry.

        Raises:
            InputError: A weight is not finite.
        """
        gram = np.zeros((self.table.shape[1],) * 2)
        for block in self.iter_table():
            precise = block.astype("float64")
            self._require_finite(precise)
            gram += precise.T @ precise
        eigenvalues, eigenvectors = np.linalg.eigh(gram)
        root = np.sqrt(np.clip(eigenvalues, 0.0, None))[:, None] * eigenvectors.T
        for projection in self.projections:
            root = root @ projection.astype("float64")
        self._require_finite(root)
        return np.linalg.svd(root, compute_uv=False)[: min(self.rows, self.output_dim)]

    def _require_finite(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise InputError(f"Table {self.name}: expected finite weights. Received: NaN or infinity")


def entropy_rank(singular_values: np.ndarray) -> float:
    """Returns the exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007)."""
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def read_rows(table: keras.Variable, low: int, high: int) -> np.ndarray:
    """Returns rows `low ... high - 1` without touching the others."""
    return ops.convert_to_numpy(gather_rows(table, ops.arange(low, high, dtype="int32")))


def write_rows(table: keras.Variable, blocks: Iterator[np.ndarray]) -> None:
    """Overwrites a variable with blocks of rows, top to bottom; in place wherever that can be done."""
    if not writes_in_place():
        table.assign(_stack(blocks, table.shape[0]))
        return
    write = _write_tensorflow if on_tensorflow() else _write_torch
    write(table, blocks)


def _write_tensorflow(table: keras.Variable, blocks: Iterator[np.ndarray]) -> None:
    import tensorflow as tf

    low = 0
    for block in blocks:
        rows = tf.range(low, low + len(block))
        table.value.scatter_update(tf.IndexedSlices(tf.cast(block, table.dtype), rows))
        low += len(block)
    # Else every later read of the whole would copy it.
    tf.raw_ops.DisableCopyOnRead(resource=table.value.handle)


def _write_torch(table: keras.Variable, blocks: Iterator[np.ndarray]) -> None:
    import torch

    low = 0
    with torch.no_grad():
        for block in blocks:
            table.value[low : low + len(block)] = ops.convert_to_tensor(block, table.dtype)
            low += len(block)


def _stack(blocks: Iterator[np.ndarray], rows: int) -> np.ndarray:
    """Stacks blocks of rows as they come, so that they are never all there beside the result."""
    result, low = None, 0
    for block in blocks:
        if result is None:
            result = np.empty((rows, *block.shape[1:]), block.dtype)
        result[low : low + len(block)] = block
        low += len(block)
    return result


def writes_in_place() -> bool:
    """Whether rows of a variable can be overwritten: on torch, and on TensorFlow eagerly and on a single device."""
    if not on_tensorflow():
        return keras.backend.backend() == "torch"
    import tensorflow as tf

    return tf.executing_eagerly() and not tf.distribute.has_strategy()
