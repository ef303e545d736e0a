"""The embeddings of all categorical features, fused into few tables."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers import factors
from mlet_tf.layers.collapsing import collapsing, is_collapsing
from mlet_tf.layers.initializers import (
    RowScaledUniform,
    add_table,
    projection_initializer,
    validate_initialization,
)
from mlet_tf.layers.parts import Parts
from mlet_tf.layers.roles import mark, validate_multiplier

_COMBINERS = (None, "sum", "mean")
_SMALL_BATCH = 256
_INT32_ROWS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class EmbeddingFeature:
    """One categorical feature of a collection.

    Attributes:
        name: Name, unique in the collection; key of dict inputs.
        input_dim: Vocabulary size `V`.
        hidden_dim: Hidden dimension, or a tuple of them for a deeper chain; None takes the collection's and 0
            makes the feature direct.
        table: Features with the same name here share a table; they need equal `input_dim` and `hidden_dim`.
        projection: Features with the same name here share projections; they need the same `hidden_dim`.
        combiner: `"sum"` or `"mean"` for multi-valued features, None for single values.
    """

    name: str
    input_dim: int
    hidden_dim: int | tuple[int, ...] | None = None
    table: str | None = None
    projection: str | None = None
    combiner: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        factors.positive_int("input_dim", self.input_dim)
        if self.hidden_dim not in (None, 0):
            object.__setattr__(self, "hidden_dim", factors.hidden_chain(self.hidden_dim))
        if self.combiner not in _COMBINERS:
            raise ValueError(f"`combiner` should be one of {_COMBINERS}. Received: {self.combiner!r}")


@dataclasses.dataclass
class _Block:
    """Features which share a table and a projection; their ids share one range of distinct rows."""

    rows: int
    slots: list[int]
    offset: int
    projection: int | None


@dataclasses.dataclass
class _Lookup:
    """One variable of `[rows, width]` and the blocks that read it."""

    chain: tuple[int, ...]
    table_rows: list[int] = dataclasses.field(default_factory=list)
    blocks: list[_Block] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(self.table_rows)

    @property
    def slots(self) -> list[int]:
        return [slot for block in self.blocks for slot in block.slots]

    @property
    def shares_rows(self) -> bool:
        """Whether two blocks read one table through different projections."""
        return len({block.offset for block in self.blocks}) < len(self.blocks)


@keras.saving.register_keras_serializable(package="mlet_tf")
class EmbeddingCollection(keras.layers.Layer):
    """Embeddings of many categorical features with one gather and few variables.

    The tables of all features that have the same hidden dimension are rows of one variable; their projections
    are one stack. Ids are taken feature by feature, made distinct, gathered and projected once each, and the
    `d`-wide results are spread over the batch. Features with a vocabulary of at most `direct_threshold` rows,
    and all of them with `hidden_dim=None`, are direct: rows of a `[V, d]` table.

    Args:
        features: The features, as `EmbeddingFeature` or as dicts of its arguments.
        output_dim: Embedding dimension `d`.
        hidden_dim: Hidden dimension `k` of features which do not say their own, a sequence for a deeper
            chain, None for direct tables.
        direct_threshold: Largest vocabulary that stays direct; None means `V <= k` of the feature.
        initialization: As in `MLETEmbedding`. Direct tables start from `U(+-1/sqrt(V))`.
        table_regularizer: Regulariser of each table, direct ones included, by itself. It reads the tables whole and
            makes their gradients dense: every step then costs as much as the tables are large. `l2` and
            `weight_decay` of the optimizers of `mlet_tf.optimizers` cost only the rows of the batch.
        projection_regularizer: Regulariser of each projection.
        table_constraint: Constraint of each table, direct ones included, applied to all rows in every step.
        projection_constraint: Constraint of each projection.
        table_trainable: Whether tables, direct ones included, are trained.
        projection_trainable: Whether projections are trained.
        table_learning_rate_multiplier: Factor on the learning rate of the factorised tables (see
            `MLETEmbedding`).
        projection_learning_rate_multiplier: The same for the projections.
        oov: What an out-of-range id does: `"error"` names the feature (NaN in compiled code), `"last"` reads
            the feature's last row. No id can reach another feature's rows.
        deduplicate: Whether ids are made distinct first (TensorFlow); None does so unless the batch size is
            known to be at most 256.
        max_rows_per_table: Rows after which another variable is begun. One feature is never split.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Integer ids `[B, F]` in the order of `features`, or a dict from feature names to `[B]`, `[B, 1]` or,
        where the feature has a combiner, `[B, L]` (negative ids are padding) or, on TensorFlow, a ragged
        `[B, None]`. Padded ids train to the same weights as ragged ones; Keras has no ragged tensors on JAX and
        torch. For ids on JAX see `MLETEmbedding`.

    Output shape:
        `[B, F, output_dim]`; the embedding of an empty bag is zero.

    Raises:
        ValueError: An argument or input is not what it should be, or an id is out of range.
        tf.errors.InvalidArgumentError: An id is out of range, in a TensorFlow graph.

    Example:
        >>> features = [EmbeddingFeature("site", 5000), EmbeddingFeature("device", 4)]
        >>> layer = EmbeddingCollection(features, output_dim=8, hidden_dim=32)
        >>> layer(np.array([[17, 3]])).shape
        (1, 2, 8)

    References:
        Deng et al., arXiv 2006.05623; Naumov et al., arXiv 1906.00091.
    """

    def __init__(
        self,
        features: Sequence[EmbeddingFeature | Mapping[str, Any]],
        output_dim: int,
        hidden_dim: int | Sequence[int] | None = None,
        direct_threshold: int | None = None,
        *,
        initialization: str = "authors",
        table_regularizer: Any = None,
        projection_regularizer: Any = None,
        table_constraint: Any = None,
        projection_constraint: Any = None,
        table_trainable: bool = True,
        projection_trainable: bool = True,
        table_learning_rate_multiplier: float = 1.0,
        projection_learning_rate_multiplier: float = 1.0,
        oov: str = "error",
        deduplicate: bool | None = None,
        max_rows_per_table: int = _INT32_ROWS,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.features = tuple(
            f if isinstance(f, EmbeddingFeature) else EmbeddingFeature(**f) for f in features
        )
        self.output_dim = factors.positive_int("output_dim", output_dim)
        self.hidden_dims = None if hidden_dim is None else factors.hidden_chain(hidden_dim)
        self.direct_threshold = direct_threshold
        self.initialization = validate_initialization(initialization)
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
        self.oov = factors.validate_oov(oov)
        self.deduplicate = deduplicate
        self.max_rows_per_table = min(
            factors.positive_int("max_rows_per_table", max_rows_per_table), _INT32_ROWS
        )
        self.autocast = False  # Ids which arrive as floats would lose digits.
        self.supports_jit = not factors.on_tensorflow()  # XLA scatters into whole tables.
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`features` should have at least one entry and unique names. Received: {names}")
        self._index = {name: i for i, name in enumerate(names)}
        self._plan, self._stack_sizes = self._make_plan()
        self._collapsed = is_collapsing()
        if self._collapsed:
            self.features, self.hidden_dims = self._collapsed_features(), None
            # They were about the factors.
            self.table_regularizer = self.projection_regularizer = None
            self.table_constraint = self.projection_constraint = None
            self._plan, self._stack_sizes = self._make_plan()
        self._slices = tuple(factors.SliceTracker() for _ in self._plan)
        order = [slot for lookup in self._plan for slot in lookup.slots]
        self._order = None if order == list(range(len(order))) else np.asarray(order, "int32")
        self._inverse = None if self._order is None else np.argsort(self._order).astype("int32")

    def build(self, input_shape: Any = None) -> None:
        """Creates the tables and the stacks of projections."""
        if self.built:
            return
        self.tables = [self._add_table(i, lookup) for i, lookup in enumerate(self._plan)]
        # One flat list: TensorFlow neither saves nor restores variables in a list of lists.
        self.projections = [
            stack for chain, count in self._stack_sizes for stack in self._add_projections(chain, count)
        ]
        self.built = True

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, see `keras.layers.Layer`."""
        return super().__call__(factors.without_wrapping(inputs), *args, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Returns the embeddings of all features."""
        if isinstance(inputs, Mapping):
            inputs = self._from_dict(inputs)
            if isinstance(inputs, list):
                return self._embed_bags(inputs)
        ids = factors.as_ids(inputs)
        if len(ids.shape) != 2 or ids.shape[1] != len(self.features):
            raise ValueError(
                f"`inputs` should be [batch, {len(self.features)}], one column for each feature. "
                f"Received shape: {tuple(ids.shape)}"
            )
        return self._embed_matrix(ids)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int, int]:
        """Returns `(batch, features, output_dim)`."""
        shape = next(iter(input_shape.values())) if isinstance(input_shape, Mapping) else input_shape
        return shape[0], len(self.features), self.output_dim

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        """Returns the symbolic output."""
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        shape = (first.shape[0], len(self.features), self.output_dim)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "features": [dataclasses.asdict(feature) for feature in self.features],
            "output_dim": self.output_dim,
            "hidden_dim": None if self.hidden_dims is None else list(self.hidden_dims),
            "direct_threshold": self.direct_threshold,
            "initialization": self.initialization,
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

    def factorization(self, name: str) -> factors.Factorization:
        """Returns the factors of a feature, to be read in blocks."""
        if name not in self._index:
            raise ValueError(f"`name` should be one of {list(self._index)}. Received: {name!r}")
        slot = self._index[name]
        return next(factorization for slots, factorization in self._factorizations() if slot in slots)

    def factorizations(self) -> list[factors.Factorization]:
        """Returns the factors of all features; those that share everything are one."""
        return [factorization for _, factorization in self._factorizations()]

    def effective_table(self, name: str, block_rows: int = factors.BLOCK_ROWS) -> np.ndarray:
        """Returns a feature's `E`, `[input_dim, output_dim]`, computed in blocks of rows."""
        return self.factorization(name).effective_table(block_rows)

    def singular_values(self, name: str) -> np.ndarray:
        """Returns the singular values of a feature's `E`, largest first, without forming `E`."""
        return self.factorization(name).singular_values()

    def effective_rank(self, name: str) -> float:
        """Returns the exponential of the entropy of the normalised singular values of a feature's `E`."""
        return factors.entropy_rank(self.singular_values(name))

    def collapse(self) -> "EmbeddingCollection":
        """Returns a collection of direct tables, of the same name, that computes the same; this one stays.

        Raises:
            InputError: A weight is not finite.
        """
        with collapsing():
            collapsed = type(self).from_config(self.get_config())
        collapsed.build()
        self.write_collapsed(collapsed)
        return collapsed

    def write_collapsed(self, collapsed: "EmbeddingCollection", block_rows: int = factors.BLOCK_ROWS) -> None:
        """Writes all `E` into a collection of direct tables, in blocks of rows."""
        for lookup, table in zip(collapsed._plan, collapsed.tables, strict=True):
            names = [collapsed.features[block.slots[0]].name for block in lookup.blocks]
            blocks = (self.factorization(name).iter_effective_table(block_rows) for name in names)
            factors.write_rows(table, itertools.chain.from_iterable(blocks))

    def _factorizations(self) -> Iterator[tuple[list[int], factors.Factorization]]:
        if not self.built:
            raise ValueError(f"Layer '{self.name}' has no weights yet: call it, or its `build()`, first.")
        for lookup, table in zip(self._plan, self.tables, strict=True):
            stacks = [ops.convert_to_numpy(x) for x in self._stacks(lookup.chain)] if lookup.chain else []
            for block in lookup.blocks:
                name = f"{self.name}/{'+'.join(self.features[slot].name for slot in block.slots)}"
                projections = tuple(stack[block.projection] for stack in stacks)
                yield block.slots, factors.Factorization(name, table, block.offset, block.rows, projections)

    def _collapsed_features(self) -> tuple[EmbeddingFeature, ...]:
        shared = [block for lookup in self._plan for block in lookup.blocks if len(block.slots) > 1]
        tables = {slot: f"shared_{i}" for i, block in enumerate(shared) for slot in block.slots}
        return tuple(
            EmbeddingFeature(f.name, f.input_dim, table=tables.get(slot), combiner=f.combiner)
            for slot, f in enumerate(self.features)
        )

    def _chain_of(self, feature: EmbeddingFeature) -> tuple[int, ...]:
        chain = self.hidden_dims if feature.hidden_dim is None else feature.hidden_dim
        if not chain:
            return ()
        threshold = chain[0] if self.direct_threshold is None else self.direct_threshold
        return () if feature.input_dim <= threshold else chain

    def _make_plan(self) -> tuple[tuple[_Lookup, ...], tuple[tuple[tuple[int, ...], int], ...]]:
        """Lays the features out over variables: direct ones last, each chain of widths by itself.

        Returns:
            The look-ups, and for each chain the number of projections in its stack.
        """
        lookups: list[_Lookup] = []
        placed: dict[str, tuple[_Lookup, int]] = {}
        blocks: dict[tuple[str, str], _Block] = {}
        projections: dict[tuple[int, ...], dict[str, int]] = {}
        chain_of_projection: dict[str, tuple[int, ...]] = {}
        for slot, feature in sorted(enumerate(self.features), key=lambda item: not self._chain_of(item[1])):
            chain = self._chain_of(feature)
            # A tuple cannot be a name that the user gave.
            table = feature.table or ("feature", feature.name)
            projection = (feature.projection or ("feature", feature.name)) if chain else None
            if (table, projection) in blocks:
                block = blocks[table, projection]
                self._check_shared(
                    feature, "table", placed[table][0].chain == chain and block.rows == feature.input_dim
                )
                block.slots.append(slot)
                continue
            if table not in placed:
                placed[table] = self._place(lookups, chain, feature)
            lookup, position = placed[table]
            self._check_shared(
                feature, "table", lookup.chain == chain and lookup.table_rows[position] == feature.input_dim
            )
            index = None
            if projection is not None:
                self._check_shared(
                    feature, "projection", chain_of_projection.setdefault(projection, chain) == chain
                )
                stack = projections.setdefault(chain, {})
                index = stack.setdefault(projection, len(stack))
            block = _Block(feature.input_dim, [slot], sum(lookup.table_rows[:position]), index)
            blocks[table, projection] = block
            lookup.blocks.append(block)
        for lookup in lookups:
            rows = sum(block.rows for block in lookup.blocks)
            if rows > _INT32_ROWS:  # Blocks number their distinct rows side by side, in int32.
                raise ValueError(
                    f"Features that share a table through different projections should have at most "
                    f"{_INT32_ROWS} rows together; a smaller `max_rows_per_table` parts them from other "
                    f"tables. Received: {rows} rows, of {[self.features[slot].name for slot in lookup.slots]}"
                )
        return tuple(lookups), tuple((chain, len(stack)) for chain, stack in projections.items())

    def _place(
        self, lookups: list[_Lookup], chain: tuple[int, ...], feature: EmbeddingFeature
    ) -> tuple[_Lookup, int]:
        """Appends a table to the last variable of its width, or begins another one."""
        if feature.input_dim > _INT32_ROWS:
            raise ValueError(
                f"`input_dim` of feature '{feature.name}' should be at most {_INT32_ROWS}. "
                f"Received: {feature.input_dim}"
            )
        lookup = next((x for x in reversed(lookups) if x.chain == chain), None)
        if lookup is None or lookup.rows + feature.input_dim > self.max_rows_per_table:
            lookup = _Lookup(chain)
            lookups.append(lookup)
        lookup.table_rows.append(int(feature.input_dim))
        return lookup, len(lookup.table_rows) - 1

    def _check_shared(self, feature: EmbeddingFeature, what: str, fits: bool) -> None:
        if not fits:
            raise ValueError(
                f"Features that share a {what} should have the same `hidden_dim`"
                f"{' and `input_dim`' if what == 'table' else ''}. Received: {feature}, which differs from "
                f"another feature with {what}={getattr(feature, what)!r}"
            )

    def _add_table(self, index: int, lookup: _Lookup) -> keras.Variable:
        alike = [i for i, other in enumerate(self._plan) if bool(other.chain) == bool(lookup.chain)]
        suffix = f"_{alike.index(index)}" if len(alike) > 1 else ""
        # A collapsed collection waits for the effective tables.
        initializer = "zeros" if self._collapsed else RowScaledUniform(lookup.table_rows)
        parts = Parts(lookup.table_rows)
        table = add_table(
            self,
            initializer,
            shape=(lookup.rows, lookup.chain[0] if lookup.chain else self.output_dim),
            regularizer=parts.regularizer(self.table_regularizer),
            constraint=parts.constraint(self.table_constraint),
            trainable=self.table_trainable,
            autocast=False,
            name=("table" if lookup.chain else "direct_table") + suffix,
        )
        mark(table, self.table_learning_rate_multiplier if lookup.chain else 1.0)
        return table

    def _add_projections(self, chain: tuple[int, ...], count: int) -> list[keras.Variable]:
        stacks = []
        number = [other for other, _ in self._stack_sizes].index(chain)
        prefix = "projection" if len(self._stack_sizes) == 1 else f"projection_{number}"
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

    def _guard(self, ids: Any, slots: Sequence[int]) -> tuple[Any, Any | None]:
        features = [self.features[slot] for slot in slots]
        return factors.guard_ids(ids, [f.input_dim for f in features], [f.name for f in features], self.oov)

    def _embed_matrix(self, ids: Any) -> Any:
        ids, invalid = self._guard(ids, range(len(self.features)))
        # Feature by feature, so that the distinct rows of each are one slice.
        ids = ops.cast(ops.transpose(ids), "int32")
        if self._order is not None:
            ids = ops.take(ids, self._order, axis=0)
        if self._deduplicates(ids):
            result = self._unique_matrix(ids)
        else:
            result = ops.transpose(self._plain_matrix(ids), (1, 0, 2))
            if self._inverse is not None:
                result = ops.take(result, self._inverse, axis=1)
        if invalid is None:
            return result
        return ops.where(invalid[..., None], ops.cast(float("nan"), result.dtype), result)

    def _deduplicates(self, ids: Any) -> bool:
        if not factors.on_tensorflow() or factors.in_compiled_code(ids):
            return False
        if self.deduplicate is not None:
            return self.deduplicate
        return ids.shape[-1] is None or ids.shape[-1] > _SMALL_BATCH

    def _plain_matrix(self, ids: Any) -> Any:
        """Embeds `[F, B]` ids, in the order of the plan, without making them distinct."""
        results, low = [], 0
        for number, lookup in enumerate(self._plan):
            count = len(lookup.slots)
            offsets = np.asarray([block.offset for block in lookup.blocks for _ in block.slots], "int32")
            rows = self._gather(number, ids[low : low + count] + offsets[:, None], unique=False)
            if lookup.chain:
                which = [block.projection for block in lookup.blocks for _ in block.slots]
                rows = ops.matmul(rows, self._stack_of(lookup.chain, which))
            results.append(rows)
            low += count
        return results[0] if len(results) == 1 else ops.concatenate(results, axis=0)

    def _gather(self, number: int, rows: Any, unique: bool) -> Any:
        table = self.tables[number]
        if factors.on_tensorflow():
            self._slices[number].note(table, unique and not self._plan[number].shares_rows)
        return ops.cast(factors.gather_rows(table, rows), self.compute_dtype)

    def _stacks(self, chain: tuple[int, ...]) -> list[keras.Variable]:
        chains = [other for other, _ in self._stack_sizes]
        low = sum(len(other) for other in chains[: chains.index(chain)])
        return self.projections[low : low + len(chain)]

    def _stack_of(self, chain: tuple[int, ...], which: Sequence[int]) -> Any:
        """Returns the `[len(which), k, d]` projections, chains multiplied out, in compute precision."""
        stacks = [ops.cast(stack, self.compute_dtype) for stack in self._stacks(chain)]
        product = stacks[0]
        for stack in stacks[1:]:
            product = ops.matmul(product, stack)
        if list(which) == list(range(product.shape[0])):
            return product
        return ops.take(product, np.asarray(which, "int32"), axis=0)

    def _unique_matrix(self, ids: Any) -> Any:
        """Embeds `[F, B]` ids, in the order of the plan, after making them distinct (TensorFlow)."""
        import tensorflow as tf

        results, positions, low, seen = [], [], 0, 0
        batch = tf.shape(ids)[1]
        for number, lookup in enumerate(self._plan):
            count = len(lookup.slots)
            distinct = self._distinct_ids(lookup, ids[low : low + count])
            unique, where = tf.unique(tf.reshape(distinct, [-1]))
            where = tf.reshape(where, [count, batch])
            results.append(self._project_distinct(number, unique, self._block_ends(lookup, where)))
            positions.append(where + seen)
            low, seen = low + count, seen + tf.size(unique)
        rows = results[0] if len(results) == 1 else tf.concat(results, 0)
        where = positions[0] if len(positions) == 1 else tf.concat(positions, 0)
        if self._inverse is not None:
            where = tf.gather(where, self._inverse)
        return factors.spread(rows, tf.transpose(where))

    def _distinct_ids(self, lookup: _Lookup, ids: Any) -> Any:
        """Moves the ids of each block to a range of its own."""
        starts = np.repeat(_starts(lookup), [len(block.slots) for block in lookup.blocks])
        return ids + starts.astype("int32")[:, None]

    def _block_ends(self, lookup: _Lookup, positions: Any) -> Any:
        """Where the distinct rows of each block end.

        `tf.unique` numbers rows in the order in which it meets them, so the largest number in a block is
        one less than the count of distinct rows up to there.
        """
        import tensorflow as tf

        largest = tf.reduce_max(positions, axis=1)
        block_of_slot = np.repeat(
            np.arange(len(lookup.blocks)), [len(block.slots) for block in lookup.blocks]
        )
        if len(lookup.blocks) < len(block_of_slot):
            largest = tf.math.segment_max(largest, block_of_slot)
        return tf.maximum(largest, -1) + 1  # The maximum over an empty batch is the smallest integer.

    def _project_distinct(self, number: int, unique: Any, ends: Any) -> Any:
        """Gathers distinct rows and multiplies each block's slice with its projection."""
        import tensorflow as tf

        lookup = self._plan[number]
        counts = ends - tf.concat([[0], ends[:-1]], 0)
        rows = unique
        if lookup.shares_rows:
            shifts = np.asarray([block.offset for block in lookup.blocks]) - _starts(lookup)
            rows = unique + tf.repeat(tf.constant(shifts.astype("int32")), counts)
        rows = self._gather(number, rows, unique=True)
        if not lookup.chain:
            return rows
        projections = tf.unstack(self._stack_of(lookup.chain, [block.projection for block in lookup.blocks]))
        slices = tf.split(rows, counts, num=len(projections))
        return tf.concat([tf.matmul(x, w) for x, w in zip(slices, projections, strict=True)], 0)

    def _from_dict(self, inputs: Mapping[str, Any]) -> Any:
        """Turns a dict into one `[B, F]` tensor, or a list of `(ids, combiner)` where there are bags."""
        missing = [name for name in self._index if name not in inputs]
        if missing or len(inputs) != len(self._index):
            raise ValueError(f"`inputs` should have the keys {list(self._index)}. Received: {list(inputs)}")
        columns = [inputs[feature.name] for feature in self.features]
        if any(_is_bag(feature, x) for feature, x in zip(self.features, columns, strict=True)):
            return columns
        return ops.stack([ops.reshape(factors.as_ids(x), (-1,)) for x in columns], axis=1)

    def _embed_bags(self, columns: list[Any]) -> Any:
        """Embeds columns of which some have several ids a row."""
        for feature, column in zip(self.features, columns, strict=True):
            if _is_bag(feature, column) and feature.combiner is None:
                raise ValueError(
                    f"Feature '{feature.name}' should have one id a row, or a `combiner`. "
                    f"Received shape: {tuple(column.shape)}"
                )
        if factors.on_tensorflow() and not factors.in_compiled_code(columns[0]):
            return self._unique_bags(columns)
        return ops.stack([self._padded_bag(slot, column) for slot, column in enumerate(columns)], axis=1)

    def _padded_bag(self, slot: int, column: Any) -> Any:
        """Embeds one `[B]` or `[B, L]` column, where negative ids are padding."""
        ids = factors.as_ids(column)
        bag = _is_bag(self.features[slot], ids)
        ids = ids if bag else ops.reshape(ids, (-1, 1))
        present = ids >= 0 if bag else ops.ones_like(ids, dtype="bool")
        ids, invalid = self._guard(ops.where(present, ids, ops.zeros_like(ids)), [slot])
        number, block = next((n, b) for n, x in enumerate(self._plan) for b in x.blocks if slot in b.slots)
        rows = self._gather(number, ops.cast(ids, "int32") + block.offset, unique=False)
        chain = self._plan[number].chain
        if chain:
            rows = ops.matmul(rows, self._stack_of(chain, [block.projection])[0])
        rows = factors.wide_enough_to_sum(rows) if bag else rows
        weights = ops.cast(present, rows.dtype)
        if invalid is not None:
            weights = ops.where(invalid, ops.cast(float("nan"), rows.dtype), weights)
        if self.features[slot].combiner == "mean":
            weights = weights / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1)
        return ops.cast(ops.sum(rows * weights[..., None], axis=1), self.compute_dtype)

    def _unique_bags(self, columns: list[Any]) -> Any:
        """Embeds columns, ragged ones too, after making their ids distinct (TensorFlow)."""
        import tensorflow as tf

        flat = [_flatten_bag(*pair) for pair in zip(self.features, columns, strict=True)]
        batch = columns[0].nrows() if isinstance(columns[0], tf.RaggedTensor) else tf.shape(columns[0])[0]
        batch = tf.cast(batch, tf.int32)
        results: list[Any] = [None] * len(columns)
        for number, lookup in enumerate(self._plan):
            starts = _starts(lookup).astype("int32")
            ids = [
                tf.cast(self._guard(flat[slot][0], [slot])[0], tf.int32) + start
                for start, block in zip(starts, lookup.blocks, strict=True)
                for slot in block.slots
            ]
            unique, where = tf.unique(tf.concat(ids, 0))
            # Numbered in the order of the blocks, so the blocks of the distinct ids come sorted.
            block_of = tf.searchsorted(starts, unique, side="right")
            ends = tf.searchsorted(block_of, np.arange(1, len(starts) + 1, dtype="int32"), side="right")
            rows = factors.spread(self._project_distinct(number, unique, ends), where)
            rows = factors.wide_enough_to_sum(rows)
            pieces = tf.split(rows, tf.stack([tf.size(x) for x in ids]), num=len(ids))
            for slot, piece in zip(lookup.slots, pieces, strict=True):
                results[slot] = _combine(piece, flat[slot][1], batch, self.features[slot].combiner)
        return tf.cast(tf.stack(results, axis=1), self.compute_dtype)


def _flatten_bag(feature: EmbeddingFeature, column: Any) -> tuple[Any, Any | None]:
    """Returns the ids of a column in one line, and the row of each where rows have several."""
    import tensorflow as tf

    if isinstance(column, tf.RaggedTensor):
        return factors.as_ids(column.flat_values), tf.cast(column.value_rowids(), tf.int32)
    ids = factors.as_ids(column)
    if not _is_bag(feature, ids):
        return tf.reshape(ids, [-1]), None
    positions = tf.where(ids >= 0)
    return tf.gather_nd(ids, positions), tf.cast(positions[:, 0], tf.int32)


def _combine(rows: Any, segments: Any | None, batch: Any, combiner: str | None) -> Any:
    """Sums or averages the rows of each bag."""
    import tensorflow as tf

    if segments is None:
        return rows
    totals = tf.math.unsorted_segment_sum(rows, segments, batch)
    if combiner == "sum":
        return totals
    counts = tf.math.unsorted_segment_sum(tf.ones_like(segments, totals.dtype), segments, batch)
    return totals / tf.maximum(counts, 1)[:, None]


def _starts(lookup: _Lookup) -> np.ndarray:
    """First id of each block's own range: its offset in the table, unless blocks share rows."""
    if not lookup.shares_rows:
        return np.asarray([block.offset for block in lookup.blocks])
    return np.cumsum([0] + [block.rows for block in lookup.blocks[:-1]])


def _is_bag(feature: EmbeddingFeature, column: Any) -> bool:
    """Whether the rows of a column are lists of ids, which may be padded even where they have one entry."""
    return len(column.shape) == 2 and (feature.combiner is not None or column.shape[1] != 1)
