"""One feature's embedding, trained as a product."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers._arguments import hidden_chain
from mlet_tf.layers.backend import (
    SliceTracker,
    gather_rows,
    gather_trained_rows,
    in_compiled_code,
    on_tensorflow,
    spread,
)
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization, entropy_rank, write_rows
from mlet_tf.layers.ids import as_ids, guard_ids, validate_oov
from mlet_tf.layers.initializers import (
    DistinctInitializers,
    RowScaledUniform,
    add_table,
    projection_initializer,
    validate_initialization,
)
from mlet_tf.layers.roles import mark, validate_multiplier
from mlet_tf.layers.single import SingleEmbedding
from mlet_tf.types import Identifier, Shape, Tensor


@keras.saving.register_keras_serializable(package="mlet_tf")
class MLETEmbedding(SingleEmbedding):
    """Embedding whose table is trained as a product of matrices.

    The embedding of id `i` is `W1[i] @ W2`, with a table `W1: [V, k]` and a projection `W2: [k, d]`. Only
    the gathered rows are multiplied, never `W1 @ W2`. After training, `collapse()` returns an equivalent
    `keras.layers.Embedding` with the table `E = W1 @ W2: [V, d]`. A sequence of hidden dimensions makes a longer
    chain, `W1[i] @ P1 @ P2 ...`, without non-linearities, which collapses in the same way.

    Weights are kept in the variable dtype; rows are cast to the compute dtype after they are gathered. On TensorFlow
    the gradient of the table is IndexedSlices, without duplicate rows if ids are de-duplicated. Use an optimizer from
    `mlet_tf.optimizers`: Keras's own make the gradient dense.

    Args:
        input_dim: Vocabulary size `V`.
        output_dim: Embedding dimension `d`.
        hidden_dim: Hidden dimension `k`, or a sequence of them for a deeper chain.
        initialization: `"fixed_variance"` (table `U(+-1/sqrt(V))`, projection `N(0, 0.25^2)` whatever `k` is),
            `"variance_preserving"` (projection `N(0, 1/k)`: entries of the product vary like those of a
            direct table) or `"orthogonal"` (semi-orthogonal projections, same variance). The first is the default
            because of measurements with tuned learning rates: it was 0.003 AUC better than the others on the Avazu
            sample, 0.003 worse than the last on one generated log and equal on another (docs/results_generated.md). Its
            product moves faster, so tune each learning rate before you compare.
        table_initializer: Keras initialiser of `W1` to use instead of the named one.
        projection_initializer: Keras initialiser of the projections to use instead of the named one. No two weights
            start equal: if a seeded initialiser serves several, each gets another seed.
        table_regularizer: Regulariser of `W1`. It reads the whole table and makes its gradient dense, so the cost of
            a step grows with the table; that of `l2` and `weight_decay` of `mlet_tf.optimizers` does not.
        projection_regularizer: Regulariser of the projections.
        table_constraint: Constraint of `W1`, applied to the whole table in every step.
        projection_constraint: Constraint of the projections.
        table_trainable: Whether `W1` is trained.
        projection_trainable: Whether the projections are trained.
        table_learning_rate_multiplier: Factor on the learning rate of `W1`, applied by the optimizers of
            `mlet_tf.optimizers` (stored on the variable as `mlet_lr_multiplier`).
        projection_learning_rate_multiplier: The same for the projections.
        mask_zero: Whether id 0 is padding that later layers should mask.
        oov: What happens to an id outside `0 ... V - 1`, on CPU and GPU alike. `"error"` raises; in compiled code
            (XLA, `jax.jit`), which cannot raise, its embedding is NaN. `"last"` reads the last row.
        deduplicate: Whether each distinct id of a batch is gathered and multiplied only once (TensorFlow). None does
            so for more than 256 ids.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Integer ids of any rank (float ids are cast); ragged tensors on TensorFlow, the only backend for which Keras
        has them; elsewhere pad with 0 and set `mask_zero`. Sparse tensors are read as `keras.layers.Embedding` reads
        them: id 0 where there is no entry. On JAX ids have 32 bits: wider ones are out of range in a NumPy array
        passed to the layer itself; anywhere else JAX wraps them.

    Output shape:
        Input shape with `output_dim` appended.

    Raises:
        ValueError: An argument is invalid, or an id is out of range.
        tf.errors.InvalidArgumentError: An id is out of range, in a TensorFlow graph.

    Example:
        >>> layer = MLETEmbedding(1000, 16, hidden_dim=64)
        >>> layer(np.array([[4, 20]])).shape
        (1, 2, 16)
        >>> layer.collapse()(np.array([[4, 20]])).shape
        (1, 2, 16)

    References:
        Ghaemmaghami et al., "Training with Multi-Layer Embeddings for Model Reduction", arXiv 2006.05623.
    """

    built: bool  # Keras sets it.

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dim: int | Sequence[int],
        *,
        initialization: str = "fixed_variance",
        table_initializer: Identifier = None,
        projection_initializer: Identifier = None,
        table_regularizer: Identifier = None,
        projection_regularizer: Identifier = None,
        table_constraint: Identifier = None,
        projection_constraint: Identifier = None,
        table_trainable: bool = True,
        projection_trainable: bool = True,
        table_learning_rate_multiplier: float = 1.0,
        projection_learning_rate_multiplier: float = 1.0,
        mask_zero: bool = False,
        oov: str = "error",
        deduplicate: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_dim, output_dim, mask_zero, **kwargs)
        self.hidden_dims = hidden_chain(hidden_dim)
        self.initialization = validate_initialization(initialization)
        self.table_initializer = keras.initializers.get(table_initializer)
        self.projection_initializer = keras.initializers.get(projection_initializer)
        self.table_regularizer = keras.regularizers.get(table_regularizer)
        self.projection_regularizer = keras.regularizers.get(projection_regularizer)
        self.table_constraint = keras.constraints.get(table_constraint)
        self.projection_constraint = keras.constraints.get(projection_constraint)
        self.table_trainable = bool(table_trainable)
        self.projection_trainable = bool(projection_trainable)
        self.table_learning_rate_multiplier = validate_multiplier("table", table_learning_rate_multiplier)
        self.projection_learning_rate_multiplier = validate_multiplier(
            "projection", projection_learning_rate_multiplier
        )
        self.oov = validate_oov(oov)
        self.deduplicate = deduplicate
        self.supports_jit = not on_tensorflow()  # XLA scatters into the whole table.
        self._slices = SliceTracker()

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the table and the projections."""
        if self.built:
            return
        widths = (*self.hidden_dims, self.output_dim)
        distinct = DistinctInitializers()
        self.table = add_table(
            self,
            distinct.take(self.table_initializer or RowScaledUniform([self.input_dim])),
            shape=(self.input_dim, widths[0]),
            regularizer=self.table_regularizer,
            constraint=self.table_constraint,
            trainable=self.table_trainable,
            autocast=False,
            name="table",
        )
        mark(self.table, self.table_learning_rate_multiplier)
        self.projections = []
        for i, (rows, columns) in enumerate(itertools.pairwise(widths)):
            projection = self.add_weight(
                shape=(rows, columns),
                initializer=distinct.take(
                    self.projection_initializer or projection_initializer(self.initialization, rows)
                ),
                regularizer=self.projection_regularizer,
                constraint=self.projection_constraint,
                trainable=self.projection_trainable,
                autocast=False,
                name="projection" if i == 0 else f"projection_{i}",
            )
            mark(projection, self.projection_learning_rate_multiplier)
            self.projections.append(projection)
        self.built = True

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "hidden_dim": list(self.hidden_dims) if len(self.hidden_dims) > 1 else self.hidden_dims[0],
            "initialization": self.initialization,
            "table_initializer": keras.initializers.serialize(self.table_initializer),
            "projection_initializer": keras.initializers.serialize(self.projection_initializer),
            "table_regularizer": keras.regularizers.serialize(self.table_regularizer),
            "projection_regularizer": keras.regularizers.serialize(self.projection_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "table_constraint": keras.constraints.serialize(self.table_constraint),
            "projection_constraint": keras.constraints.serialize(self.projection_constraint),
            "table_trainable": self.table_trainable,
            "projection_trainable": self.projection_trainable,
            "table_learning_rate_multiplier": self.table_learning_rate_multiplier,
            "projection_learning_rate_multiplier": self.projection_learning_rate_multiplier,
            "mask_zero": self.mask_zero,
            "oov": self.oov,
            "deduplicate": self.deduplicate,
        }

    def factorization(self) -> Factorization:
        """Returns the factors, to be read in blocks."""
        if not self.built:
            raise ValueError(f"Layer '{self.name}' has no weights yet: call it, or its `build()`, first.")
        projections = tuple(ops.convert_to_numpy(projection) for projection in self.projections)
        return Factorization(self.name, self.table, 0, self.input_dim, projections)

    def effective_table(self, block_rows: int = BLOCK_ROWS) -> np.ndarray:
        """Returns `E = W1 @ W2`, computed in blocks of rows.

        Args:
            block_rows: Rows of a block; a few times `block_rows * (k + d)` numbers are needed besides the result.

        Returns:
            Array `[input_dim, output_dim]` of the variable dtype.

        Raises:
            InputError: A value is not finite.
        """
        return self.factorization().effective_table(block_rows)

    def collapse(self, block_rows: int = BLOCK_ROWS) -> keras.layers.Embedding:
        """Returns an equivalent `keras.layers.Embedding` of the same name; this layer is not changed.

        Args:
            block_rows: Rows of `E` that are computed at once.

        Raises:
            InputError: A weight is not finite.
        """
        embedding = keras.layers.Embedding(
            self.input_dim,
            self.output_dim,
            embeddings_initializer="zeros",
            mask_zero=self.mask_zero,
            activity_regularizer=self.activity_regularizer,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=self.name,
        )
        embedding.build()
        write_rows(embedding.embeddings, self.factorization().iter_effective_table(block_rows))
        return embedding

    def singular_values(self) -> np.ndarray:
        """Returns the singular values of `E`, largest first, without forming `E`."""
        return self.factorization().singular_values()

    def effective_rank(self) -> float:
        """Returns the exponential of the entropy of the normalised singular values of `E`."""
        return entropy_rank(self.singular_values())

    def _embed(self, ids: Tensor, training: bool) -> Tensor:
        ids, invalid = guard_ids(as_ids(ids), [self.input_dim], [self.name], self.oov)
        if on_tensorflow():
            unique = self._deduplicates(ids)
            self._slices.note(self.table, unique)
            result = self._unique_rows(ids, training) if unique else self._rows(ids, training)
        else:
            result = self._rows(ids, training)
        if invalid is None:
            return result
        return ops.where(invalid[..., None], ops.cast(float("nan"), result.dtype), result)

    def _deduplicates(self, ids: Tensor) -> bool:
        if in_compiled_code(ids):
            return False
        if self.deduplicate is not None:
            return self.deduplicate
        return ids.shape.num_elements() is None or ids.shape.num_elements() > 256

    def _rows(self, ids: Tensor, training: bool) -> Tensor:
        read = gather_trained_rows if training else gather_rows
        rows = ops.cast(read(self.table, ids), self.compute_dtype)
        for projection in self._projection_matrices():
            rows = ops.matmul(rows, projection)
        return rows

    def _unique_rows(self, ids: Tensor, training: bool) -> Tensor:
        import tensorflow as tf

        unique, positions = tf.unique(tf.reshape(ids, [-1]))
        result = spread(self._rows(unique, training), tf.reshape(positions, tf.shape(ids)))
        if ids.shape.rank is not None:
            result.set_shape([*ids.shape, self.output_dim])
        return result

    def _projection_matrices(self) -> list[Tensor]:
        """Projections in compute precision; a chain is multiplied out, as it is far smaller than a batch."""
        matrices = [ops.cast(projection, self.compute_dtype) for projection in self.projections]
        product = matrices[0]
        for matrix in matrices[1:]:
            product = ops.matmul(product, matrix)
        return [product]
