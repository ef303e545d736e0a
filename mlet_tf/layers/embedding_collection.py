"""The embeddings of all categorical features, fused into few tables."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers._arguments import hidden_chain, positive_float, positive_int
from mlet_tf.layers._bags import columns_of, embed_bags, is_bag
from mlet_tf.layers._fused import FusedLookup
from mlet_tf.layers._parts import Parts
from mlet_tf.layers._plan import INT32_ROWS, Chain, EmbeddingFeature, TableGroup, chain_of, make_plan
from mlet_tf.layers.backend import SliceTracker, on_tensorflow
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization, entropy_rank, write_rows
from mlet_tf.layers.ids import as_ids, validate_oov, without_wrapping
from mlet_tf.layers.initializers import (
    RowScaledUniform,
    add_table,
    projection_initializer,
    validate_initialization,
)
from mlet_tf.layers.roles import mark, mark_tables, validate_multiplier
from mlet_tf.types import Identifier, Inputs, Shape, Tensor

__all__ = ["EmbeddingCollection", "EmbeddingFeature"]


@keras.saving.register_keras_serializable(package="mlet_tf")
class EmbeddingCollection(keras.layers.Layer):
    """Embeddings of many categorical features with one gather and few variables.

    The tables of all features that have the same hidden dimension are rows of one variable; their projections
    are one stack. Ids are de-duplicated feature by feature, each is gathered and projected once, and the `d`-wide
    results are spread over the batch. Features with a vocabulary of at most `direct_threshold` rows are direct, that
    is rows of a `[V, d]` table; with `hidden_dim=None` all are.

    Args:
        features: The features, as `EmbeddingFeature` or as dicts of its arguments.
        output_dim: Embedding dimension `d`.
        hidden_dim: Hidden dimension `k` of features without their own, a sequence for a deeper chain, None for direct
            tables.
        direct_threshold: Largest vocabulary that stays direct; None means `V <= k` of the feature.
        initialization: As in `MLETEmbedding`. Direct tables start from `U(+-1/sqrt(V))`.
        initial_scale: Factor on the initial embeddings: on the rows of direct tables and of `W1`.
        table_regularizer: Regulariser of each single table, direct ones included. It reads whole tables and makes
            their gradients dense, so the cost of a step grows with the tables; that of `l2` and `weight_decay` of
            `mlet_tf.optimizers` does not.
        projection_regularizer: Regulariser of each projection.
        table_constraint: Constraint of each table, direct ones included, applied to all rows in every step.
        projection_constraint: Constraint of each projection.
        table_trainable: Whether tables, direct ones included, are trained.
        projection_trainable: Whether projections are trained.
        table_learning_rate_multiplier: Factor on the learning rate of the factorised tables (see
            `MLETEmbedding`).
        projection_learning_rate_multiplier: The same for the projections.
        oov: What happens to an out-of-range id: `"error"` names the feature (NaN in compiled code), `"last"` reads
            the feature's last row. No id can reach another feature's rows.
        deduplicate: Whether ids are de-duplicated first (TensorFlow); None does so unless the batch size is known to
            be at most 256.
        max_rows_per_table: Most rows of one variable; further features go into another. A feature is never split.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Integer ids `[B, F]` in the order of `features`, or a dict from feature names to `[B]`, `[B, 1]` or,
        where the feature has a combiner, `[B, L]` (negative ids are padding) or, on TensorFlow, a ragged
        `[B, None]`. Padded ids train to the same weights as ragged ones; Keras has no ragged tensors on JAX and
        torch. Sparse tensors work too: the entries of a row are its bag; without a combiner an absent entry is id 0,
        as in `keras.layers.Embedding`. For ids on JAX see `MLETEmbedding`.

    Output shape:
        `[B, F, output_dim]`; the embedding of an empty bag is zero.

    Raises:
        ValueError: An argument or input is invalid, or an id is out of range.
        tf.errors.InvalidArgumentError: An id is out of range, in a TensorFlow graph.

    Example:
        >>> features = [EmbeddingFeature("site", 5000), EmbeddingFeature("device", 4)]
        >>> layer = EmbeddingCollection(features, output_dim=8, hidden_dim=32)
        >>> layer(np.array([[17, 3]])).shape
        (1, 2, 8)

    References:
        Ghaemmaghami et al., "Training with Multi-Layer Embeddings for Model Reduction", arXiv 2006.05623; Naumov
        et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", arXiv 1906.00091.
    """

    built: bool  # Keras sets it.

    def __init__(
        self,
        features: Sequence[EmbeddingFeature | Mapping[str, Any]],
        output_dim: int,
        hidden_dim: int | Sequence[int] | None = None,
        direct_threshold: int | None = None,
        *,
        initialization: str = "fixed_variance",
        initial_scale: float = 1.0,
        table_regularizer: Identifier = None,
        projection_regularizer: Identifier = None,
        table_constraint: Identifier = None,
        projection_constraint: Identifier = None,
        table_trainable: bool = True,
        projection_trainable: bool = True,
        table_learning_rate_multiplier: float = 1.0,
        projection_learning_rate_multiplier: float = 1.0,
        oov: str = "error",
        deduplicate: bool | None = None,
        max_rows_per_table: int = INT32_ROWS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.features = tuple(
            f if isinstance(f, EmbeddingFeature) else EmbeddingFeature(**f) for f in features
        )
        self.output_dim = positive_int("output_dim", output_dim)
        self.hidden_dims = None if hidden_dim is None else hidden_chain(hidden_dim)
        self.direct_threshold = direct_threshold
        self.initialization = validate_initialization(initialization)
        self.initial_scale = positive_float("initial_scale", initial_scale)
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
        self.max_rows_per_table = min(positive_int("max_rows_per_table", max_rows_per_table), INT32_ROWS)
        self.autocast = False  # Ids that arrive as floats would lose digits.
        self.supports_jit = not on_tensorflow()  # XLA scatters into whole tables.
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`features` should have at least one entry and unique names. Received: {names}")
        self._plan = make_plan(
            self.features, self.hidden_dims, self.direct_threshold, self.max_rows_per_table
        )
        self._slices = tuple(SliceTracker() for _ in self._plan.groups)
        self._starts_at_zero = False

    def build(self, input_shape: Shape | Mapping[str, Shape] | None = None) -> None:
        """Creates the tables and the stacks of projections."""
        if self.built:
            return
        self.tables = [self._add_table(i, group) for i, group in enumerate(self._plan.groups)]
        # One flat list: TensorFlow neither saves nor restores variables in a list of lists.
        self.projections = [
            stack for chain, count in self._plan.stacks for stack in self._add_projections(chain, count)
        ]
        self.built = True

    def __call__(self, inputs: Inputs, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer, see `keras.layers.Layer`."""
        return super().__call__(without_wrapping(inputs), *args, **kwargs)

    def call(self, inputs: Tensor | Mapping[str, Tensor], training: bool | None = None) -> Tensor:
        """Returns the embeddings of all features."""
        lookup = self._lookup(bool(training))
        if isinstance(inputs, Mapping):
            columns = columns_of(self._plan, inputs)
            if any(map(is_bag, self.features, columns)):
                return embed_bags(lookup, columns)
            inputs = ops.stack([ops.reshape(as_ids(x), (-1,)) for x in columns], axis=1)
        ids = as_ids(inputs)
        if len(ids.shape) != 2 or ids.shape[1] != len(self.features):
            raise ValueError(
                f"`inputs` of layer '{self.name}' should be [batch, {len(self.features)}], one column for each "
                f"feature. Received shape: {tuple(ids.shape)}"
            )
        return lookup.embed(ids)

    def compute_output_shape(self, input_shape: Shape | Mapping[str, Shape]) -> tuple[int | None, int, int]:
        """Returns `(batch, features, output_dim)`."""
        shape = next(iter(input_shape.values())) if isinstance(input_shape, Mapping) else input_shape
        return shape[0], len(self.features), self.output_dim

    def compute_output_spec(
        self, inputs: keras.KerasTensor | Mapping[str, keras.KerasTensor]
    ) -> keras.KerasTensor:
        """Returns the symbolic output."""
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        shape = (first.shape[0], len(self.features), self.output_dim)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "features": [dataclasses.asdict(feature) for feature in self.features],
            "output_dim": self.output_dim,
            "hidden_dim": None if self.hidden_dims is None else list(self.hidden_dims),
            "direct_threshold": self.direct_threshold,
            "initialization": self.initialization,
            "initial_scale": self.initial_scale,
            "table_regularizer": keras.regularizers.serialize(self.table_regularizer),
            "projection_regularizer": keras.regularizers.serialize(self.projection_regularizer),
            "table_constraint": keras.constraints.serialize(self.table_constraint),
            "projection_constraint": keras.constraints.serialize(self.projection_constraint),
            "table_trainable": self.table_trainable,
            "projection_trainable": self.projection_trainable,
            "table_learning_rate_multiplier": self.table_learning_rate_multiplier,
            "projection_learning_rate_multiplier": self.projection_learning_rate_multiplier,
            "oov": self.oov,
            "deduplicate": self.deduplicate,
            "max_rows_per_table": self.max_rows_per_table,
        }

    def factorization(self, name: str) -> Factorization:
        """Returns the factors of a feature, to be read in blocks."""
        slot = self._slot(name)
        return next(factorization for slots, factorization in self._factorizations() if slot in slots)

    def factorizations(self) -> list[Factorization]:
        """Returns the factors of all features; features that share everything have one entry."""
        return [factorization for _, factorization in self._factorizations()]

    def effective_table(self, name: str, block_rows: int = BLOCK_ROWS) -> np.ndarray:
        """Returns a feature's `E`, `[input_dim, output_dim]`, computed in blocks of rows."""
        return self.factorization(name).effective_table(block_rows)

    def singular_values(self, name: str) -> np.ndarray:
        """Returns the singular values of a feature's `E`, largest first, without forming `E`."""
        return self.factorization(name).singular_values()

    def effective_rank(self, name: str) -> float:
        """Returns the exponential of the entropy of the normalised singular values of a feature's `E`."""
        return entropy_rank(self.singular_values(name))

    def hidden_dims_of(self, name: str) -> tuple[int, ...]:
        """Returns the hidden dimensions of a feature, empty where it is direct."""
        return chain_of(self.features[self._slot(name)], self.hidden_dims, self.direct_threshold)

    def assign_factors(self, name: str, table: np.ndarray, projections: Sequence[np.ndarray] = ()) -> None:
        """Overwrites the factors of a feature, and so of all features that share them.

        Args:
            name: Name of the feature.
            table: `W1`, `[V, k]`, or `E`, `[V, d]`, of a direct feature.
            projections: The small factors, none for a direct feature.
        """
        number, block = self._plan.group_of(self._slot(name))
        write_rows(self.tables[number], [table], block.offset, block.rows)
        for stack, projection in zip(self._stacks_of(number), projections, strict=True):
            values = np.array(ops.convert_to_numpy(stack))
            values[block.projection] = projection
            stack.assign(values)

    def collapse(self, block_rows: int = BLOCK_ROWS) -> "EmbeddingCollection":
        """Returns an equivalent collection of direct tables with the same name; this one is not changed.

        Args:
            block_rows: Rows of `E` that are computed at once.

        Raises:
            InputError: A weight is not finite.
        """
        collapsed = type(self).from_config(self.collapsed_config())
        collapsed._starts_at_zero = True
        collapsed.build()
        for group, table in zip(collapsed._plan.groups, collapsed.tables, strict=True):
            names = [self.features[block.slots[0]].name for block in group.blocks]
            blocks = (self.factorization(name).iter_effective_table(block_rows) for name in names)
            write_rows(table, itertools.chain.from_iterable(blocks))
        return collapsed

    def table_features(self) -> list[list[list[str]]]:
        """Names of the features that share a table, table by table, for each variable of the collection."""
        return [
            [[self.features[slot].name for slot in block.slots] for block in group.blocks]
            for group in self._plan.groups
        ]

    def table_rows(self) -> dict[str, int]:
        """Rows of each table by the name of its first feature, in the order of the features."""
        blocks = [block for group in self._plan.groups for block in group.blocks]
        blocks.sort(key=lambda block: block.slots[0])
        return {self.features[block.slots[0]].name: block.rows for block in blocks}

    def collapsed_config(self) -> dict[str, Any]:
        """Returns the configuration of the collection of direct tables that this one collapses to."""
        tables = self._plan.shared_tables()
        features = [
            EmbeddingFeature(f.name, f.input_dim, table=tables.get(slot), combiner=f.combiner)
            for slot, f in enumerate(self.features)
        ]
        return {
            **self.get_config(),
            "features": [dataclasses.asdict(feature) for feature in features],
            "hidden_dim": None,
            # These concern the factors.
            "table_regularizer": None,
            "projection_regularizer": None,
            "table_constraint": None,
            "projection_constraint": None,
        }

    def _slot(self, name: str) -> int:
        names = [feature.name for feature in self.features]
        if name not in names:
            raise ValueError(f"`name` should be one of {names}. Received: {name!r}")
        return names.index(name)

    def _stacks_of(self, number: int) -> Sequence[keras.Variable]:
        """Returns the stacks of projections that the tables of a group are multiplied with."""
        chain = self._plan.groups[number].chain
        return self.projections[self._plan.stack_slice(chain)] if chain else []

    def _factorizations(self) -> Iterator[tuple[list[int], Factorization]]:
        if not self.built:
            raise ValueError(f"Layer '{self.name}' has no weights yet: call it, or its `build()`, first.")
        for number, (group, table) in enumerate(zip(self._plan.groups, self.tables, strict=True)):
            stacks = [ops.convert_to_numpy(stack) for stack in self._stacks_of(number)]
            for block in group.blocks:
                name = f"{self.name}/{'+'.join(self.features[slot].name for slot in block.slots)}"
                projections = tuple(stack[block.projection] for stack in stacks)
                yield block.slots, Factorization(name, table, block.offset, block.rows, projections)

    def _lookup(self, training: bool) -> FusedLookup:
        return FusedLookup(
            self._plan,
            self.tables,
            self.projections,
            self._slices,
            self.compute_dtype,
            self.oov,
            self.deduplicate,
            training,
        )

    def _add_table(self, index: int, group: TableGroup) -> keras.Variable:
        alike = [i for i, other in enumerate(self._plan.groups) if bool(other.chain) == bool(group.chain)]
        suffix = f"_{alike.index(index)}" if len(alike) > 1 else ""
        parts = Parts(group.table_rows)
        table = add_table(
            self,
            "zeros" if self._starts_at_zero else RowScaledUniform(group.table_rows, scale=self.initial_scale),
            shape=(group.rows, group.chain[0] if group.chain else self.output_dim),
            regularizer=parts.regularizer(self.table_regularizer),
            constraint=parts.constraint(self.table_constraint),
            trainable=self.table_trainable,
            autocast=False,
            name=("table" if group.chain else "direct_table") + suffix,
        )
        mark(table, self.table_learning_rate_multiplier if group.chain else 1.0)
        mark_tables(table, group.table_rows)
        return table

    def _add_projections(self, chain: Chain, count: int) -> list[keras.Variable]:
        stacks = []
        number = [other for other, _ in self._plan.stacks].index(chain)
        prefix = "projection" if len(self._plan.stacks) == 1 else f"projection_{number}"
        for i, (rows, columns) in enumerate(zip(chain, (*chain[1:], self.output_dim), strict=True)):
            stack = self.add_weight(
                shape=(count, rows, columns),
                initializer=projection_initializer(self.initialization, rows),
                regularizer=Parts().regularizer(self.projection_regularizer),
                constraint=Parts().constraint(self.projection_constraint),
                trainable=self.projection_trainable,
                autocast=False,
                name=prefix if i == 0 else f"{prefix}_link_{i}",
            )
            mark(stack, self.projection_learning_rate_multiplier)
            stacks.append(stack)
        return stacks
