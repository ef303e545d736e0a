"""Initial values of the factors.

With a table of `U(-1/sqrt(V), 1/sqrt(V))`, whose variance is `1 / (3 V)`, the product has entries of variance
`k * var(projection) / (3 V)`. A projection of fixed variance, `N(0, 0.25^2)` as in the MLET paper's code, makes that
`k / 16` times the variance of a direct table; the other two keep it.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers.factorization import BLOCK_ROWS, write_rows, writes_in_place
from mlet_tf.names import INITIALIZATIONS, RENAMED_INITIALIZATIONS
from mlet_tf.types import Tensor


def validate_initialization(initialization: str) -> str:
    """Returns the current name of an initialisation, or raises ValueError if it is unknown."""
    initialization = RENAMED_INITIALIZATIONS.get(initialization, initialization)
    if initialization not in INITIALIZATIONS:
        raise ValueError(
            f"`initialization` should be one of {', '.join(INITIALIZATIONS)}. Received: {initialization!r}"
        )
    return initialization


@keras.saving.register_keras_serializable(package="mlet_tf")
class RowScaledUniform(keras.initializers.Initializer):
    """Uniform values in `+-scale/sqrt(V)`, with another `V` for each block of rows.

    Args:
        row_counts: Rows of each block, top to bottom. A single block is the plain DLRM initialiser.
        seed: Integer; drawn where it is None, under `keras.utils.set_random_seed`.
        scale: Factor on all values.
    """

    def __init__(self, row_counts: Sequence[int], seed: int | None = None, scale: float = 1.0) -> None:
        self.row_counts = tuple(int(rows) for rows in row_counts)
        self.scale = float(scale)
        self._init_seed = seed
        self.seed = seed if seed is not None else _draw_seed()

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Tensor:
        """Returns a tensor of `shape`, whose first axis is the sum of `row_counts`."""
        if shape[0] != sum(self.row_counts):
            raise ValueError(f"`shape` should have {sum(self.row_counts)} rows. Received: shape={shape}")
        blocks = [ops.convert_to_tensor(block, dtype) for block in self.iter_blocks(shape[1])]
        return blocks[0] if len(blocks) == 1 else ops.concatenate(blocks, axis=0)

    def iter_blocks(self, width: int, block_rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Yields the values in blocks of rows, which are the same for every `block_rows`."""
        generator = np.random.default_rng(self.seed)
        for rows in self.row_counts:
            limit = np.float32(self.scale / math.sqrt(rows))
            for low in range(0, rows, block_rows):
                block = generator.random((min(block_rows, rows - low), width), dtype="float32")
                block -= np.float32(0.5)
                block *= 2 * limit
                yield block

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {"row_counts": list(self.row_counts), "seed": self._init_seed, "scale": self.scale}


@keras.saving.register_keras_serializable(package="mlet_tf")
class StackedOrthogonal(keras.initializers.Initializer):
    """Semi-orthogonal matrices for each `[..., rows, columns]` of a stack.

    Args:
        seed: Integer; drawn where it is None, under `keras.utils.set_random_seed`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._init_seed = seed
        self.seed = seed if seed is not None else _draw_seed()

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Tensor:
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

    def get_config(self) -> dict[str, object]:
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
    if initialization == "fixed_variance":
        return keras.initializers.RandomNormal(stddev=0.25)
    if initialization == "variance_preserving":
        return keras.initializers.RandomNormal(stddev=rows**-0.5)
    return StackedOrthogonal()


class DistinctInitializers:
    """Hands out an initialiser for each weight of a layer, so that no two weights start equal.

    A Keras initialiser gives the same values each time it is called. Unseeded ones are cloned. If an earlier weight
    already uses the seed, the next free one is taken, so that the layer still starts the same in every run.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def take(self, initializer: keras.initializers.Initializer) -> keras.initializers.Initializer:
        """Returns the initialiser of the next weight.

        Args:
            initializer: The user's initialiser. It is returned unchanged if its configuration has no `seed`
                (constants, plain functions) or a `keras.random.SeedGenerator`, which advances by itself.
        """
        if not isinstance(initializer, keras.initializers.Initializer):
            return initializer
        config = initializer.get_config()
        if "seed" not in config:
            return initializer
        if config["seed"] is None:
            return initializer.clone()
        if not isinstance(config["seed"], int):
            return initializer
        seed = next(seed for seed in itertools.count(config["seed"]) if seed not in self._taken)
        self._taken.add(seed)
        return type(initializer).from_config({**config, "seed": seed})


def _draw_seed() -> int:
    """Draws from Python's generator, as Keras does, so that `keras.utils.set_random_seed` applies."""
    return random.randint(1, 10**9)


def add_table(
    layer: keras.layers.Layer, initializer: keras.initializers.Initializer, **options: Any
) -> keras.Variable:
    """Adds a weight and writes its initial values in blocks, so that memory never holds a second table.

    Args:
        layer: The layer, in its `build()`.
        initializer: Initialiser of the weight. All but `RowScaledUniform` make their values in one piece.
        **options: Arguments of `layer.add_weight`.

    Returns:
        The variable.
    """
    if not (isinstance(initializer, RowScaledUniform) and writes_in_place()):
        return layer.add_weight(initializer=initializer, **options)
    initial = _ZerosAtFirst(initializer)
    table = layer.add_weight(initializer=initial, **options)
    if initial.gave_zeros:
        write_rows(table, initializer.iter_blocks(table.shape[1]))
    initial.closed = True
    return table


class _ZerosAtFirst(keras.initializers.Initializer):
    """Gives zeros while the weight is added, and the real values if it is initialised later."""

    def __init__(self, initializer: RowScaledUniform) -> None:
        self.initializer = initializer
        self.gave_zeros = self.closed = False

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Tensor:
        if self.closed:
            return self.initializer(shape, dtype)
        self.gave_zeros = True
        return ops.zeros(shape, dtype)
