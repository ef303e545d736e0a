"""Initial values of the factors.

With a table of `U(-1/sqrt(V), 1/sqrt(V))`, whose variance is `1 / (3 V)`, the product has entries of variance
`k * var(projection) / (3 V)`. The authors' `N(0, 0.25^2)` makes that `k / 16` times the variance of a direct
table; the other two leave it as it is.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

INITIALIZATIONS = ("authors", "variance_preserving", "orthogonal")


def validate_initialization(initialization: str) -> str:
    """Returns the name, or raises ValueError for one that is not known."""
    if initialization not in INITIALIZATIONS:
        raise ValueError(
            f"`initialization` should be one of {', '.join(INITIALIZATIONS)}. Received: {initialization!r}"
        )
    return initialization


@keras.saving.register_keras_serializable(package="mlet_tf")
class RowScaledUniform(keras.initializers.Initializer):
    """Uniform values of `+-1/sqrt(V)`, where each block of rows has a `V` of its own.

    Args:
        row_counts: Rows of each block, top to bottom. A single block is the plain DLRM initialiser.
        seed: Integer; drawn where it is None, under `keras.utils.set_random_seed`.
    """

    def __init__(self, row_counts: Sequence[int], seed: int | None = None) -> None:
        """See the class."""
        self.row_counts = tuple(int(rows) for rows in row_counts)
        self._init_seed = seed
        self.seed = seed if seed is not None else _draw_seed()

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Returns a tensor of `shape`, whose first axis is the sum of `row_counts`."""
        if shape[0] != sum(self.row_counts):
            raise ValueError(f"`shape` should have {sum(self.row_counts)} rows. Received: shape={shape}")
        return _in_graph(lambda: self._draw(tuple(shape), keras.backend.standardize_dtype(dtype)))

    def _draw(self, shape: tuple[int, ...], dtype: str) -> Any:
        limits = [1.0 / math.sqrt(rows) for rows in self.row_counts]
        values = keras.random.uniform(shape, 0.0, 1.0, dtype=dtype, seed=self.seed)
        if len(limits) == 1:
            return (values - 0.5) * ops.cast(2.0 * limits[0], dtype)
        scale = ops.repeat(ops.convert_to_tensor(limits, dtype), np.asarray(self.row_counts))
        return (values - 0.5) * (2.0 * scale)[:, None]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"row_counts": list(self.row_counts), "seed": self._init_seed}


@keras.saving.register_keras_serializable(package="mlet_tf")
class StackedOrthogonal(keras.initializers.Initializer):
    """Semi-orthogonal matrices for each `[..., rows, columns]` of a stack.

    Args:
        seed: Integer; drawn where it is None, under `keras.utils.set_random_seed`.
    """

    def __init__(self, seed: int | None = None) -> None:
        """See the class."""
        self._init_seed = seed
        self.seed = seed if seed is not None else _draw_seed()

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Returns a tensor of `shape` whose last two axes hold the matrices."""
        *stack, rows, columns = shape
        tall = (max(rows, columns), min(rows, columns))
        normal = keras.random.normal((*stack, *tall), dtype="float32", seed=self.seed)
        q, r = ops.qr(normal)
        # Without the signs the distribution depends on the QR routine.
        signs = ops.sign(ops.diagonal(r, axis1=-2, axis2=-1))
        q = q * ops.expand_dims(signs, -2)
        if rows < columns:
            q = ops.swapaxes(q, -1, -2)
        return ops.cast(q, keras.backend.standardize_dtype(dtype))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"seed": self._init_seed}


def projection_initializer(initialization: str, rows: int) -> keras.initializers.Initializer:
    """Makes the initialiser of projections by name.

    Args:
        initialization: One of `INITIALIZATIONS`.
        rows: Rows of the projection, `k` of the first one.

    Returns:
        An initialiser for `[k, d]`, or a stack of them.
    """
    if initialization == "authors":
        return keras.initializers.RandomNormal(stddev=0.25)
    if initialization == "variance_preserving":
        return keras.initializers.RandomNormal(stddev=rows**-0.5)
    return StackedOrthogonal()


def _draw_seed() -> int:
    """Draws from Python's generator, as Keras does, so that `keras.utils.set_random_seed` rules."""
    return random.randint(1, 10**9)


def _in_graph(function: Callable[[], Any]) -> Any:
    """Runs a function such that, on TensorFlow, each step overwrites the result of the one before it.

    That happens in graphs only. It keeps the peak at one table, which matters at 10 GB.
    """
    if keras.backend.backend() != "tensorflow":
        return function()
    import tensorflow as tf

    return tf.function(function, autograph=False).get_concrete_function()()
