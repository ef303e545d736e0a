"""Pairwise dot products of embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers.backend import in_compiled_code, on_tensorflow
from mlet_tf.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="mlet_tf")
class DotInteraction(keras.layers.Layer):
    """Dot products of all pairs of feature vectors, as in DLRM.

    For vectors `x_1 ... x_N` of a row the output is `<x_i, x_j>` for all `j < i` (`j <= i` with
    `self_interaction`), in the order (2,1), (3,1), (3,2), ... The gradient is one batched product with the
    symmetric matrix of pair gradients, half of what differentiating `X X^T` and a gather costs.

    Args:
        self_interaction: Whether `<x_i, x_i>` is part of the output.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        A tensor `[B, N, d]`, or a list of tensors which are `[B, d]` or `[B, n, d]`.

    Output shape:
        `[B, N (N - 1) / 2]`, or `[B, N (N + 1) / 2]` with `self_interaction`.

    Example:
        >>> DotInteraction()(np.ones((4, 3, 8))).shape
        (4, 3)

    References:
        Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
        arXiv 1906.00091.
    """

    def __init__(self, self_interaction: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.self_interaction = bool(self_interaction)

    def build(self, input_shape: Shape | Sequence[Shape]) -> None:
        """Checks the shapes; there are no weights."""
        self._count(input_shape)
        self.built = True

    def call(self, inputs: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Returns the dot products of all pairs."""
        vectors = self._stack(inputs)
        return _pairwise_dots(vectors, vectors.shape[1], self.self_interaction)

    def compute_output_shape(self, input_shape: Shape | Sequence[Shape]) -> tuple[int | None, int]:
        """Returns `(batch, pairs)`."""
        count, batch = self._count(input_shape)
        return batch, len(_pairs(count, self.self_interaction)[0])

    def compute_output_spec(
        self, inputs: keras.KerasTensor | list[keras.KerasTensor] | tuple[keras.KerasTensor, ...]
    ) -> keras.KerasTensor:
        """Returns the symbolic output."""
        shape = [tuple(x.shape) for x in inputs] if isinstance(inputs, list | tuple) else tuple(inputs.shape)
        return keras.KerasTensor(self.compute_output_shape(shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "self_interaction": self.self_interaction}

    def _stack(self, inputs: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        if not isinstance(inputs, list | tuple):
            return inputs
        return ops.concatenate([x[:, None, :] if len(x.shape) == 2 else x for x in inputs], axis=1)

    def _count(self, input_shape: Shape | Sequence[Shape]) -> tuple[int, int | None]:
        """Returns the number of vectors and the batch size, after checking the shapes."""
        shapes: Sequence[Any] = input_shape if isinstance(input_shape[0], list | tuple) else [input_shape]
        alone = shapes is not input_shape
        sizes = [1 if len(shape) == 2 else shape[1] for shape in shapes]
        widths = {shape[-1] for shape in shapes}
        ranks = {len(shape) for shape in shapes}
        if not ranks <= {2, 3} or (alone and ranks != {3}) or len(widths) != 1 or None in sizes:
            raise ValueError(
                "`inputs` should be [B, N, d], or a list of [B, d] or [B, n, d] with one d. "
                f"Received shapes: {input_shape}"
            )
        return sum(sizes), shapes[0][0]


def _pairs(count: int, self_interaction: bool) -> tuple[np.ndarray, np.ndarray]:
    return np.tril_indices(count, 0 if self_interaction else -1)


def _pairwise_dots(vectors: Tensor, count: int, self_interaction: bool) -> Tensor:
    # Compilers turn gathers into one loop; TensorFlow's own are slower than copies of slices.
    sliced = on_tensorflow() and not in_compiled_code(vectors)
    pick, symmetric = (_pick_slices, _symmetric_slices) if sliced else (_pick_gather, _symmetric_gather)

    @ops.custom_gradient
    def dots(x: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        products = ops.matmul(x, ops.swapaxes(x, 1, 2))
        result = pick(ops.reshape(products, (-1, count * count)), count, self_interaction)

        def gradient(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
            upstream = args[0] if upstream is None else upstream
            return ops.matmul(symmetric(upstream, count, self_interaction), x)

        return result, gradient

    return dots(vectors)


def _pick_gather(products: Tensor, count: int, self_interaction: bool) -> Tensor:
    """Takes the pairs out of all products `[B, N * N]`."""
    rows, columns = _pairs(count, self_interaction)
    return ops.take(products, (rows * count + columns).astype("int32"), axis=1)


def _symmetric_gather(gradient: Tensor, count: int, self_interaction: bool) -> Tensor:
    """Puts the gradient of each pair at (i, j) and (j, i) of `[B, N, N]`, so twice at (i, i)."""
    rows, columns = _pairs(count, self_interaction)
    # Cells without a pair take a zero that is appended after the last pair.
    source = np.full((count, count), len(rows), dtype="int32")
    source[rows, columns] = source[columns, rows] = np.arange(len(rows), dtype="int32")
    padded = ops.pad(gradient, ((0, 0), (0, 1)))
    symmetric = ops.reshape(ops.take(padded, source.reshape(-1), axis=1), (-1, count, count))
    if self_interaction:
        symmetric = symmetric * (1 + ops.eye(count, dtype=symmetric.dtype))
    return symmetric


def _pick_slices(products: Tensor, count: int, self_interaction: bool) -> Tensor:
    lengths = _lengths(count, self_interaction)
    return ops.concatenate([products[:, i * count : i * count + n] for i, n in lengths], axis=1)


def _symmetric_slices(gradient: Tensor, count: int, self_interaction: bool) -> Tensor:
    zeros = ops.zeros((ops.shape(gradient)[0], count), gradient.dtype)
    parts, low = [], 0
    if not self_interaction:
        parts.append(zeros)  # The first row, which has no pair.
    for _, length in _lengths(count, self_interaction):
        parts += [gradient[:, low : low + length], zeros[:, : count - length]]
        low += length
    triangle = ops.reshape(ops.concatenate(parts, axis=1), (-1, count, count))
    return triangle + ops.swapaxes(triangle, 1, 2)


def _lengths(count: int, self_interaction: bool) -> list[tuple[int, int]]:
    """Number of pairs in each row of the triangle that has some."""
    return [(i, i + self_interaction) for i in range(count) if i + self_interaction]
