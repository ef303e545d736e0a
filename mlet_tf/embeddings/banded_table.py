"""The variables of a plan and their lookup."""

import itertools
from collections.abc import Mapping, Sequence
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


class BandedTable(keras.layers.Layer):
    """Rows of all tables of a plan, one table after another, not trained.

    Bands of one form are in one variable. A request finds the segment of each id, parts the ids by lookup, reads each
    part at once, puts the rows together again and multiplies those of each projected feature with its matrix. On
    TensorFlow these are its stock operations.

    Args:
        plan: The plan.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Ids of any shape, int32; those of the second table follow those of the first, and so on. In row-major order they
        are sorted by table (by id is not needed).

    Output shape:
        Input shape with `output_dim` appended, float32.
    """

    built: bool  # Keras sets it.

    def __init__(self, plan: Plan | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.plan = plan if isinstance(plan, Plan) else Plan.from_plain(plan)
        self.autocast = False
        self._layout = Layout(self.plan)
        self._projected = self._layout.projected
        storages = self._layout.storages
        self.stores = [make_store(storage, form_text(storage.form)) for storage in storages]
        # The widest row: what rows are padded to before they are multiplied.
        self._columns = max(storage.form.width for storage in storages)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width, as a variable has them."""
        return self._layout.rows, self.plan.output_dim

    @property
    def row_bytes(self) -> float:
        """Bytes of rows and addresses for each row."""
        return self.plan.bytes.embedding / self._layout.rows

    def build(self, input_shape: Any = None) -> None:
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
            self.bits = self._add("bits", (self._layout.entries, 8), "uint8")
            self.ranks = self._add("ranks", (self._layout.entries,), "int32")
        self.built = True

    def call(self, ids: Any) -> Any:
        """Returns the embeddings of the ids."""
        ids = ops.convert_to_tensor(ids)
        flat = ops.cast(ops.reshape(ids, (-1,)), "int32")
        segments = self._segments_of(flat)
        vectors = self._coefficients(flat, segments)
        if any(self._projected):
            vectors = self._embeddings(flat, segments, vectors)
        return ops.reshape(vectors, (*ops.shape(ids), self.plan.output_dim))

    def compute_output_spec(self, ids: Any) -> keras.KerasTensor:
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
        write_rows(self.bits, [bits], place.entry, len(bits))
        values = np.array(ops.convert_to_numpy(self.ranks))
        values[place.entry : place.entry + len(ranks)] = ranks
        self.ranks.assign(values)

    def write_projection(self, feature: int, projection: np.ndarray, means: np.ndarray) -> None:
        """Overwrites the projection, `[width, d]`, and the mean rows, `[bands, d]`, of a projected feature."""
        low = sum(self._projected_widths()[: sum(self._projected[:feature])])
        if len(projection):
            write_rows(self.projections, [projection], low, len(projection))
        write_rows(self.means, [means], self.places(feature)[0].mean, len(means))

    def _projected_widths(self) -> list[int]:
        pairs = zip(self.plan.features, self._projected, strict=True)
        return [feature.width for feature, projected in pairs if projected]

    def _add(self, name: str, shape: Sequence[int], dtype: str) -> keras.Variable:
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
        )

    def _segments_of(self, ids: Any) -> Any:
        """The segment of each id, int32 `[n]`; None where there is only one."""
        segments = self._layout.segments
        if len(segments) == 1:
            return None
        starts = np.array([segment.start for segment in segments[1:]], "int32")
        return ops.cast(ops.searchsorted(ops.convert_to_tensor(starts), ids, side="right"), "int32")

    def _coefficients(self, ids: Any, segments: Any) -> Any:
        """Returns the rows, padded to the widest, float32 `[n, columns]`."""
        lookups = list(self._layout.lookups.values())
        if len(lookups) == 1:
            return self._read(lookups[0], ids, segments)
        which = np.empty(len(self._layout.segments), "int32")
        for number, members in enumerate(lookups):
            which[members] = number
        which = gather_rows(ops.convert_to_tensor(which), segments)
        if on_tensorflow() and not in_compiled_code(ids):
            return self._read_parts(lookups, which, ids, segments)
        result = ops.zeros((ids.shape[0], self._columns), "float32")
        for number, members in enumerate(lookups):
            inside = which == number
            # Elsewhere any id of the lookup does.
            start = self._layout.segments[members[0]].start
            rows = self._read(members, ops.where(inside, ids, start), ops.where(inside, segments, members[0]))
            result = ops.where(inside[:, None], rows, result)
        return result

    def _read_parts(self, lookups: list[list[int]], which: Any, ids: Any, segments: Any) -> Any:
        """Reads each id with its own lookup alone (TensorFlow)."""
        import tensorflow as tf

        together = tf.stack([tf.range(tf.size(ids)), ids, segments], axis=1)
        parts = [tf.unstack(part, axis=1) for part in tf.dynamic_partition(together, which, len(lookups))]
        rows = [self._read(members, part[1], part[2]) for members, part in zip(lookups, parts, strict=True)]
        result = tf.dynamic_stitch([part[0] for part in parts], rows)
        return tf.ensure_shape(result, [None, self._columns])

    def _read(self, members: list[int], ids: Any, segments: Any) -> Any:
        """Reads ids of the segments of one lookup, float32 `[n, columns]`."""
        chosen = [self._layout.segments[number] for number in members]
        place, address = chosen[0].place, chosen[0].address
        width = place.band.width
        if width == 0:
            return ops.zeros((ops.shape(ids)[0], self._columns), "float32")
        constant = _Constants(len(self._layout.segments), members, segments)
        slots = constant([segment.place.slot for segment in chosen])
        store = self.stores[place.storage]
        if address == "identity":
            rows = store(ids + constant([segment.shift for segment in chosen]), slots)
        elif address == "hash":
            own = ops.cast(ids - constant([segment.place.first_id for segment in chosen]), "int64")
            probes = range(len(place.band.salts))
            rows = sum(store(self._hashed(probe, chosen, constant, own), slots) for probe in probes)
        else:
            positions = ids - constant([segment.place.start for segment in chosen])
            entries = constant([segment.place.entry for segment in chosen])
            numbers, kept = ranked(positions, self.bits, self.ranks, entries)
            rows = ops.where(kept[:, None], store(numbers, slots), 0.0)
        return ops.pad(rows, ((0, 0), (0, self._columns - width))) if width < self._columns else rows

    def _hashed(self, probe: int, chosen: list[Segment], constant: "_Constants", ids: Any) -> Any:
        places = [segment.place for segment in chosen]
        ranges = [bucket_ranges(place.rows, len(place.band.salts))[probe] for place in places]
        salts = [place.band.salts[probe] for place in places]
        buckets = constant([count for _, count in ranges], "int64")
        bucket = hashed(
            ids, constant([a for a, _ in salts], "int64"), constant([b for _, b in salts], "int64"), buckets
        )
        first = [place.row + low for place, (low, _) in zip(places, ranges, strict=True)]
        return ops.cast(bucket, "int32") + constant(first)

    def _embeddings(self, ids: Any, segments: Any, coefficients: Any) -> Any:
        """Multiplies the rows of each projected feature with its matrix and adds its mean rows."""
        means = [segment.place.mean for segment in self._layout.segments]
        # Rows of features that are not projected have none.
        table = ops.concatenate([self.means, ops.zeros((1, self.plan.output_dim), "float32")])
        numbers = [self._layout.means if mean is None else mean for mean in means]
        constant = _Constants(len(means), list(range(len(means))), segments)
        offsets = gather_rows(table, constant(numbers))
        return self._products(ids, coefficients) + ops.reshape(offsets, (-1, self.plan.output_dim))

    def _products(self, ids: Any, coefficients: Any) -> Any:
        width, runs = self.plan.output_dim, self._runs()
        ends = np.cumsum(self._projected_widths()).tolist()
        matrices = iter(self.projections[low:high] for low, high in itertools.pairwise([0, *ends]))
        chosen = [next(matrices) if projected else None for _, projected in runs]

        def product(x: Any, matrix: Any | None) -> Any:
            return x[:, :width] if matrix is None else ops.matmul(x[:, : matrix.shape[0]], matrix)

        if len(runs) == 1:
            return product(coefficients, chosen[0])
        starts = np.array([start for start, _ in runs[1:]], "int32")
        if on_tensorflow() and not in_compiled_code(ids):
            import tensorflow as tf

            # The ids are sorted by table, which is enough for a search for the first of a table.
            ends = tf.concat([tf.searchsorted(ids, starts), tf.shape(ids)], 0)
            pieces = tf.split(coefficients, ends - tf.concat([[0], ends[:-1]], 0), num=len(runs))
            return tf.concat([product(x, matrix) for x, matrix in zip(pieces, chosen, strict=True)], 0)
        run = ops.searchsorted(ops.convert_to_tensor(starts), ids, side="right")
        result = ops.zeros((ids.shape[0], width), "float32")
        for number, matrix in enumerate(chosen):
            result = ops.where((run == number)[:, None], product(coefficients, matrix), result)
        return result

    def _runs(self) -> list[tuple[int, bool]]:
        """First id of each projected feature, and of each run of those that are not."""
        pairs = list(zip(self._layout.feature_starts, self._projected, strict=False))
        return [
            (start, projected)
            for number, (start, projected) in enumerate(pairs)
            if projected or number == 0 or pairs[number - 1][1]
        ]


class _Constants:
    """Numbers of segments as a tensor with one for each id, or a scalar where all are equal.

    Args:
        count: Number of all segments.
        members: Segments for which there are numbers.
        segments: Segment of each id, int32 `[n]`, None where there is only one.
    """

    def __init__(self, count: int, members: list[int], segments: Any) -> None:
        self._count, self._members, self._segments = count, members, segments

    def __call__(self, values: list[int], dtype: str = "int32") -> Any:
        if len(set(values)) == 1:
            return np.dtype(dtype).type(values[0])
        table = np.zeros(self._count, dtype)
        table[self._members] = values
        return gather_rows(ops.convert_to_tensor(table), self._segments)
