"""The variables of a plan and their lookup."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.embeddings._layout import Layout, Place, Segment
from mlet_tf.embeddings._stores import Rows, form_text, make_store
from mlet_tf.embeddings.addresses import bucket_ranges, hashed, ranked
from mlet_tf.embeddings.plan import Plan
from mlet_tf.layers.backend import gather_rows, in_compiled_code, on_tensorflow
from mlet_tf.layers.factorization import write_rows
from mlet_tf.types import Shape, Tensor


class BandedTable(keras.layers.Layer):
    """Rows of all tables of a plan, one table after another, not trained.

    Bands of one form are in one variable. A request finds the segment of each id, parts the ids by lookup, reads each
    part at once, puts the rows together again and multiplies those of each projected feature with its matrix. On
    TensorFlow these are its stock operations.

    Args:
        plan: The plan.
        slots: For a matrix of ids with a row for each feature: the number of features that read each table, in order.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Ids of any shape, int32; those of the second table follow those of the first, and so on. In row-major order they
        are sorted by table (by id is not needed). A matrix `[sum(slots), B]` has a row for each feature; it is fastest.

    Output shape:
        Input shape with `output_dim` appended, float32.
    """

    built: bool  # Keras sets it.

    def __init__(self, plan: Plan, slots: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        addresses = {band.address for feature in plan.features for band in feature.bands}
        if addresses != {"identity"} and keras.backend.backend() == "jax":
            raise ValueError(
                "`plan` should have the address 'identity' alone on JAX, which has no 64-bit integers by default. "
                f"Received: {', '.join(sorted(addresses))}"
            )
        if "float8" in plan.stores and keras.backend.backend() == "torch":
            raise ValueError(
                "`plan` should have no rows in float8 on torch, which NumPy cannot read. Received: float8"
            )
        self.plan = plan
        self._tables = np.repeat(np.arange(len(slots)), slots)  # The table of each row of a matrix.
        self.autocast = False
        self._layout = Layout(self.plan)
        self._projected = self._layout.projected
        storages = self._layout.storages
        self.stores = [make_store(storage, form_text(storage.form)) for storage in storages]
        # The widest row: what rows are padded to before they are multiplied.
        self._columns = max(storage.width for storage in storages)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width, as a variable has them."""
        return self._layout.rows, self.plan.output_dim

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the variables, all zeros."""
        if self.built:
            return
        for store in self.stores:
            store.build()
        width = self.plan.output_dim
        if any(self._projected):
            self.projections = self._add("projections", (sum(self._projected_widths()), width), "float32")
            self.means = self._add("means", (self._layout.means, width), "float32")
        if self._layout.entries:
            self.bits = self._add("bits", (self._layout.entries,), "int64")
            self.ranks = self._add("ranks", (self._layout.entries,), "int32")
        self.built = True

    def call(self, ids: Tensor) -> Tensor:
        """Returns the embeddings of the ids."""
        ids = ops.convert_to_tensor(ids)
        flat = ops.cast(ops.reshape(ids, (-1,)), "int32")
        segments = self._segments_of(flat)
        vectors = self._coefficients(flat, segments)
        if any(self._projected):
            aligned = len(ids.shape) == 2 and 0 < len(self._tables) == ids.shape[0]
            vectors = self._embeddings(flat, segments, vectors, aligned)
        return ops.reshape(vectors, (*ops.shape(ids), self.plan.output_dim))

    def compute_output_spec(self, ids: Tensor) -> keras.KerasTensor:
        """Returns the symbolic output."""
        return keras.KerasTensor((*ids.shape, self.plan.output_dim), dtype="float32")

    def places(self, feature: int) -> list[Place]:
        """Where the bands of a feature are."""
        return [place for place in self._layout.places if place.feature == feature]

    def write_rows(self, place: Place, rows: Rows) -> None:
        """Overwrites the rows of a band; those of the tail come after its own.

        Raises:
            InputError: A value is too large for float16.
        """
        if place.band.width and rows.count:
            self.stores[place.storage].write(rows, place.slot, place.row)

    def write_bitmap(self, place: Place, bits: np.ndarray, ranks: np.ndarray) -> None:
        """Overwrites the bitmap of a band, see `make_bitmap`."""
        for variable, entries in ((self.bits, bits), (self.ranks, ranks)):
            values = np.array(ops.convert_to_numpy(variable))
            values[place.entry : place.entry + len(entries)] = entries
            variable.assign(values)

    def write_projection(self, feature: int, projection: np.ndarray, means: np.ndarray) -> None:
        """Overwrites the projection, `[width, d]`, and the mean rows, `[bands, d]`, of a projected feature."""
        low = sum(self._projected_widths()[: sum(self._projected[:feature])])
        if len(projection):
            write_rows(self.projections, [projection], low, len(projection))
        first = next(place.mean for place in self.places(feature) if place.mean is not None)
        write_rows(self.means, [means], first, len(means))

    def _projected_widths(self) -> list[int]:
        pairs = zip(self.plan.features, self._projected, strict=True)
        return [feature.width for feature, projected in pairs if projected]

    def _add(self, name: str, shape: Sequence[int], dtype: str) -> keras.Variable:
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
        )

    def _segments_of(self, ids: Tensor) -> Tensor:
        """The segment of each id, int32 `[n]`; None where there is only one."""
        segments = self._layout.segments
        if len(segments) == 1:
            return None
        starts = np.array([segment.start for segment in segments[1:]], "int32")
        return ops.cast(ops.searchsorted(ops.convert_to_tensor(starts), ids, side="right"), "int32")

    def _coefficients(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Returns the rows, padded to the widest, float32 `[n, columns]`."""
        lookups = list(self._layout.lookups.values())
        everything = list(range(len(self._layout.segments)))
        rows = ids + self._constants(everything, segments)(lambda segment: segment.shift)
        if len(lookups) == 1:
            return self._read(everything, ids, rows, segments)
        lookup_of = {member: number for number, members in enumerate(lookups) for member in members}
        numbers = np.array([lookup_of[segment] for segment in everything], "int32")
        which = gather_rows(ops.convert_to_tensor(numbers), segments)
        if on_tensorflow() and not in_compiled_code(ids):
            return self._read_parts(lookups, which, ids, rows, segments)
        result = ops.zeros((ids.shape[0], self._columns), "float32")
        for part, members in enumerate(lookups):
            first = self._layout.segments[members[0]]
            # Elsewhere any id of the lookup does.
            inside, others = which == part, (first.start, first.start + first.shift, members[0])
            values = (
                ops.where(inside, x, other) for x, other in zip((ids, rows, segments), others, strict=True)
            )
            result = ops.where(inside[:, None], self._read(members, *values), result)
        return result

    def _read_parts(self, lookups: list[list[int]], which: Tensor, *ids_rows_segments: Tensor) -> Tensor:
        """Reads each id with its own lookup alone (TensorFlow)."""
        import tensorflow as tf

        parts = tf.dynamic_partition(tf.range(tf.size(which)), which, len(lookups))
        rows = [
            self._read(members, *(tf.gather(x, part) for x in ids_rows_segments))
            for members, part in zip(lookups, parts, strict=True)
        ]
        return tf.ensure_shape(tf.dynamic_stitch(parts, rows), [None, self._columns])

    def _read(self, members: list[int], ids: Tensor, rows: Tensor, segments: Tensor) -> Tensor:
        """Reads the ids of one lookup, float32 `[n, columns]`.

        Args:
            members: The segments of the lookup.
            ids: Ids of these segments, int32 `[n]`.
            rows: The row of each, for the address `identity`.
            segments: The segment of each.
        """
        first = self._layout.segments[members[0]]
        width, address = self._layout.storages[first.place.storage].width, first.address
        if width == 0:
            return ops.zeros((ops.shape(ids)[0], self._columns), "float32")
        constant, store = self._constants(members, segments), self.stores[first.place.storage]
        slots = constant(lambda segment: segment.place.slot)
        if address == "identity":
            values = store(rows, slots)
        elif address == "hash":
            own = ops.cast(ids - constant(lambda segment: segment.place.first_id), "int64")
            probes = range(len(first.place.band.salts))
            values = sum(store(_hashed(probe, constant, own), slots) for probe in probes)
        else:
            positions = ids - constant(lambda segment: segment.place.start)
            numbers, kept = ranked(
                positions, self.bits, self.ranks, constant(lambda segment: segment.place.entry)
            )
            values = ops.where(kept[:, None], store(numbers, slots), 0.0)
        return ops.pad(values, ((0, 0), (0, self._columns - width))) if width < self._columns else values

    def _constants(self, members: list[int], segments: Tensor) -> "_Constants":
        return _Constants(self._layout.segments, members, segments)

    def _embeddings(self, ids: Tensor, segments: Tensor, coefficients: Tensor, aligned: bool) -> Tensor:
        """Multiplies the rows of each projected feature with its matrix and adds its mean rows."""
        # Rows of features that are not projected have none.
        table = ops.concatenate([self.means, ops.zeros((1, self.plan.output_dim), "float32")])
        last = self._layout.means
        constant = self._constants(list(range(len(self._layout.segments))), segments)
        numbers = constant(lambda segment: last if segment.place.mean is None else segment.place.mean)
        offsets = gather_rows(table, numbers)
        products = (
            self._aligned_products(coefficients) if aligned else self._products(ids, coefficients, segments)
        )
        return products + ops.reshape(offsets, (-1, self.plan.output_dim))

    def _aligned_products(self, coefficients: Tensor) -> Tensor:
        """Multiplies the rows of a matrix of ids, `[n, d]`: which are of which table is known."""
        projected = np.array(self._projected)[self._tables]
        rows = ops.shape(coefficients)[0] // len(projected)  # Not -1: there may be no column left.
        matrix = ops.reshape(coefficients, (len(projected), rows, self._columns))
        stack, numbers = self._stack(), np.cumsum(self._projected) - 1
        if len(self._tables) > len(self._projected):
            stack = ops.take(stack, numbers[self._tables[projected]], axis=0)
        if projected.all():
            return ops.reshape(ops.matmul(matrix, stack), (-1, self.plan.output_dim))
        chosen, others = np.flatnonzero(projected), np.flatnonzero(~projected)
        products = ops.matmul(ops.take(matrix, chosen, axis=0)[..., : stack.shape[1]], stack)
        plain = ops.take(matrix, others, axis=0)[..., : self.plan.output_dim]
        order = np.argsort(np.concatenate([chosen, others]))
        result = ops.take(ops.concatenate([products, plain]), order, axis=0)
        return ops.reshape(result, (-1, self.plan.output_dim))

    def _products(self, ids: Tensor, coefficients: Tensor, segments: Tensor) -> Tensor:
        """Multiplies the rows of each projected table with its matrix, `[n, d]`."""
        if len(self._projected) == 1:
            return ops.matmul(coefficients, self.projections)
        stack, numbers = self._stack(), list(itertools.accumulate(self._projected, initial=0))
        constant = self._constants(list(range(len(self._layout.segments))), segments)
        plain, coefficients = coefficients[:, : self.plan.output_dim], coefficients[:, : stack.shape[1]]
        which = constant(
            lambda segment: numbers[segment.place.feature] if self._projected[segment.place.feature] else -1
        )
        if on_tensorflow() and not in_compiled_code(ids):
            return self._batched_products(ids, coefficients, plain, which, stack)
        result = plain
        for number in range(stack.shape[0]):
            result = ops.where(
                ops.reshape(which == number, (-1, 1)), ops.matmul(coefficients, stack[number]), result
            )
        return result

    def _batched_products(
        self, ids: Tensor, coefficients: Tensor, plain: Tensor, which: Tensor, stack: Tensor
    ) -> Tensor:
        """All tables in one product: each gets as many rows as the longest (TensorFlow)."""
        import tensorflow as tf

        bounds = itertools.pairwise(self._layout.feature_starts)
        starts, stops = np.array(
            [b for b, chosen in zip(bounds, self._projected, strict=True) if chosen], "int32"
        ).T
        # The ids are sorted by table, which is enough for a search for the first of a table.
        low, high = tf.searchsorted(ids, starts), tf.searchsorted(ids, stops)
        longest, count = tf.reduce_max(high - low), tf.size(ids)
        rows = tf.minimum(low[:, None] + tf.range(longest), count - 1)
        products = tf.reshape(tf.matmul(tf.gather(coefficients, rows), stack), [-1, self.plan.output_dim])
        own = tf.range(count)
        if all(self._projected):
            return tf.gather(products, which * longest + own - tf.gather(low, which))
        at = tf.where(
            which < 0, own + tf.size(rows), which * longest + own - tf.gather(low, tf.maximum(which, 0))
        )
        return tf.gather(tf.concat([products, plain], 0), at)

    def _stack(self) -> Tensor:
        """The matrices of the projected tables, padded with zeros, `[tables, width, d]`."""
        widths = self._projected_widths()
        if len(set(widths)) == 1:
            return ops.reshape(self.projections, (len(widths), widths[0], self.plan.output_dim))
        rows = np.full((len(widths), max(widths)), sum(widths), "int32")
        for number, (low, width) in enumerate(zip(np.cumsum([0, *widths]), widths, strict=False)):
            rows[number, :width] = low + np.arange(width)
        padded = ops.concatenate([self.projections, ops.zeros((1, self.plan.output_dim), "float32")])
        return ops.take(padded, rows, axis=0)


class _Constants:
    """Numbers of segments as a tensor with one for each id, or a scalar where all are equal.

    Args:
        all_segments: The segments of the layout.
        members: Positions of the segments that ids may have.
        segments: Position of the segment of each id, int32 `[n]`, None where there is only one.
    """

    def __init__(self, all_segments: list[Segment], members: list[int], segments: Tensor) -> None:
        self._all, self._members, self._segments = all_segments, members, segments

    def __call__(self, number: Callable[[Segment], int], dtype: str = "int32") -> Tensor:
        values = [number(self._all[member]) for member in self._members]
        if len(set(values)) == 1:
            return np.dtype(dtype).type(values[0])
        table = np.zeros(len(self._all), dtype)
        table[self._members] = values
        return gather_rows(ops.convert_to_tensor(table), self._segments)


def _hashed(probe: int, constant: _Constants, ids: Tensor) -> Tensor:
    """The row that one of its hashes gives each id, int32 `[n]`."""

    def bucket_range(segment: Segment) -> tuple[int, int]:
        return bucket_ranges(segment.place.rows, len(segment.place.band.salts))[probe]

    multiplier = constant(lambda segment: segment.place.band.salts[probe][0], "int64")
    offset = constant(lambda segment: segment.place.band.salts[probe][1], "int64")
    bucket = hashed(ids, multiplier, offset, constant(lambda segment: bucket_range(segment)[1], "int64"))
    return ops.cast(bucket, "int32") + constant(lambda segment: segment.place.row + bucket_range(segment)[0])
