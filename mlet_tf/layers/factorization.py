"""A factorised table, read and written in blocks of rows."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import keras
import numpy as np
from keras import ops

from mlet_tf.errors import InputError
from mlet_tf.layers.backend import gather_rows, on_tensorflow
from mlet_tf.types import Tensor

BLOCK_ROWS = 65_536


@dataclasses.dataclass(frozen=True)
class Factorization:
    """One `E = W1 @ P1 @ P2 ...`, read from the weights of a layer in blocks of rows.

    Attributes:
        name: Name for messages and reports.
        table: Variable or tensor of the rows of `W1`, or of `E` where there are no projections; or a layer that
            looks them up.
        offset: First row in the variable.
        rows: `V`.
        projections: The small factors.
    """

    name: str
    table: keras.Variable | keras.layers.Layer | Tensor
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
        for low in range(0, self.rows, block_rows):
            yield self.effective_rows(low, min(low + block_rows, self.rows))

    def effective_rows(self, low: int, high: int) -> np.ndarray:
        """Returns rows `low ... high - 1` of `E`.

        Raises:
            InputError: A value is not finite.
        """
        rows, projection = read_rows(self.table, self.offset + low, self.offset + high), self.projection()
        with np.errstate(all="ignore"):
            rows = rows if projection is None else rows @ projection
        self._require_finite(rows)
        return rows

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
    """Returns the exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007)."""
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def read_rows(table: keras.Variable | keras.layers.Layer | Tensor, low: int, high: int) -> np.ndarray:
    """Returns rows `low ... high - 1` without touching the others."""
    return ops.convert_to_numpy(gather_rows(table, ops.arange(low, high, dtype="int32")))


def write_rows(
    table: keras.Variable, blocks: Iterable[np.ndarray], low: int = 0, rows: int | None = None
) -> None:
    """Overwrites rows of a variable, in place if the backend can.

    Args:
        table: The variable.
        blocks: The rows in blocks, top to bottom.
        low: First row.
        rows: Number of rows in all blocks; None for all of the variable from `low` on.
    """
    rows = table.shape[0] - low if rows is None else rows
    if writes_in_place():
        write = _write_tensorflow if on_tensorflow() else _write_torch
        write(table, blocks, low)
    elif rows == table.shape[0]:
        table.assign(_stack(blocks, rows))
    else:
        start, values = (low, *[0] * (len(table.shape) - 1)), ops.cast(_stack(blocks, rows), table.dtype)
        # JAX takes no variable here.
        table.assign(ops.slice_update(ops.convert_to_tensor(table), start, values))


def _write_tensorflow(table: keras.Variable, blocks: Iterable[np.ndarray], low: int) -> None:
    import tensorflow as tf

    for block in blocks:
        rows = tf.range(low, low + len(block))
        table.value.scatter_update(tf.IndexedSlices(tf.cast(block, table.dtype), rows))
        low += len(block)
    # Otherwise every later read of the whole table would copy it.
    tf.raw_ops.DisableCopyOnRead(resource=table.value.handle)


def _write_torch(table: keras.Variable, blocks: Iterable[np.ndarray], low: int) -> None:
    import torch

    with torch.no_grad():
        for block in blocks:
            table.value[low : low + len(block)] = ops.convert_to_tensor(block, table.dtype)
            low += len(block)


def _stack(blocks: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """Stacks blocks of rows one by one, so that they are never all in memory besides the result."""
    blocks = iter(blocks)
    first = next(blocks)
    result, low = np.empty((rows, *first.shape[1:]), first.dtype), 0
    for block in itertools.chain([first], blocks):
        result[low : low + len(block)] = block
        low += len(block)
    return result


def writes_in_place() -> bool:
    """Whether rows can be overwritten in place: on torch, and on TensorFlow eagerly and on a single device."""
    if not on_tensorflow():
        return keras.backend.backend() == "torch"
    import tensorflow as tf

    return tf.executing_eagerly() and not tf.distribute.has_strategy()
