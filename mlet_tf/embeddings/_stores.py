"""Row stores: how rows of floats are kept, and how they are read again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import ml_dtypes
import numpy as np
from keras import ops

from mlet_tf.embeddings._kmeans import assign_codes, fit_codebooks
from mlet_tf.embeddings._layout import Form, Storage
from mlet_tf.embeddings.column_codes import NARROW_BITS, WIDE_BITS, encoded, fit_scales, sampled
from mlet_tf.embeddings.plan import CENTROIDS
from mlet_tf.errors import InputError
from mlet_tf.layers.backend import gather_rows, on_tensorflow
from mlet_tf.layers.factorization import write_rows
from mlet_tf.types import Shape, Tensor

_FLOAT16_MAX = float(np.finfo("float16").max)
_FLOAT8_MAX = 448.0  # Of e4m3; a cast beyond is NaN.
_SMALLEST_EXPONENT = -126  # Smaller floats are flushed to zero by TensorFlow.


@dataclass(frozen=True)
class Rows:
    """The rows of a band that are written.

    Attributes:
        name: Name of the table, for messages.
        count: Number of rows.
        blocks: Gives the rows in blocks, float `[n, width]`, top to bottom at each call.
        weights: How much each row matters, `[count]`.
    """

    name: str
    count: int
    blocks: Callable[[], Iterator[np.ndarray]]
    weights: np.ndarray

    def largest(self) -> float:
        """The largest absolute value."""
        return max((float(np.abs(block).max(initial=0.0)) for block in self.blocks()), default=0.0)


class RowStore(keras.layers.Layer):
    """Rows of several bands in one variable; floats that are rounded where they are narrower than float32.

    Args:
        storage: Form, rows and bands.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    built: bool  # Keras sets it.

    def __init__(self, storage: Storage, **kwargs: Any) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.form, self.width = storage.form, storage.width
        self.rows, self.bands = storage.rows, len(storage.bands)
        self.autocast = False

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the variables, all zeros."""
        if self.built:
            return
        self._create()
        self.built = True

    def call(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Reads rows, widened.

        Args:
            rows: Rows, int `[n]`.
            slots: Band of each row, int `[n]` or a scalar.

        Returns:
            float32 `[n, width]`.
        """
        return ops.cast(gather_rows(self.values, rows), "float32")

    def write(self, rows: Rows, slot: int, low: int) -> None:
        """Overwrites the rows of a band.

        Args:
            rows: The rows.
            slot: Its number among the bands.
            low: Its first row.

        Raises:
            InputError: A value is too large for float16.
        """
        if self.form.store == "float16" and rows.largest() > _FLOAT16_MAX:
            raise InputError(
                f"Table {rows.name}: expected values of at most {_FLOAT16_MAX:g} for float16; bfloat16 and int8 have "
                f"no such limit. Received: {rows.largest():g}"
            )
        write_rows(self.values, rows.blocks(), low, rows.count)  # Rounds to the nearest.

    def _create(self) -> None:
        self.values = self._add("values", (self.rows, self.width), self.form.store)

    def _add(self, name: str, shape: Sequence[int], dtype: str) -> keras.Variable:
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer=_zeros, trainable=False, autocast=False
        )


class Float8Store(RowStore):
    """float8 (e4m3) rows in a unit of the band, a power of two."""

    def call(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Reads rows, widened."""
        # TensorFlow gathers float8 from tensors, not from variables; reading does not copy.
        table = self.values.value.read_value() if on_tensorflow() else self.values
        widened = ops.cast(gather_rows(table, rows), "float32")
        return widened * ops.reshape(gather_rows(self.units, slots), (-1, 1))

    def write(self, rows: Rows, slot: int, low: int) -> None:
        """Overwrites the rows of a band."""
        unit = 2.0 ** max(_exponent(rows.largest() / _FLOAT8_MAX), _SMALLEST_EXPONENT)
        _write_entry(self.units, slot, unit)
        values = np.array(ops.convert_to_numpy(self.values))
        for block in rows.blocks():
            clipped = np.clip(block / unit, -_FLOAT8_MAX, _FLOAT8_MAX)
            values[low : low + len(block)] = clipped.astype(ml_dtypes.float8_e4m3fn)
            low += len(block)
        self.values.assign(values)

    def save_own_variables(self, store: Any) -> None:
        """Saves for `.keras` files; HDF5 has no float8."""
        store["0"] = ops.convert_to_numpy(self.values).view("uint8")
        store["1"] = ops.convert_to_numpy(self.units)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` wrote."""
        self.values.assign(np.array(store["0"], "uint8").view(ml_dtypes.float8_e4m3fn))
        self.units.assign(np.array(store["1"]))

    def _create(self) -> None:
        self.values = self._add("values", (self.rows, self.width), "float8_e4m3fn")
        self.units = self._add("units", (self.bands,), "float32")


class IntegerStore(RowStore):
    """int8 or int4 rows with scale and offset of each, bfloat16, which has the range of float32.

        row = steps * scale + offset

    with 255 steps from -127 to 127, or 16 from -7.5 to 7.5, so that no value is off by more than half of the scale (and
    float32 rounding). Two int4 are in a byte: the first half of a row in the low nibbles, the second one in the high
    ones.
    """

    def __init__(self, storage: Storage, **kwargs: Any) -> None:
        super().__init__(storage, **kwargs)
        self.packed = self.form.store == "int4"
        self.reach = 7.5 if self.packed else 127.0  # The largest step.

    def call(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Reads rows, widened."""
        pairs = ops.cast(gather_rows(self.scales_offsets, rows), "float32")
        scale, offset = ops.split(pairs, 2, axis=1)
        return self._steps(gather_rows(self.values, rows)) * scale + offset

    def write(self, rows: Rows, slot: int, low: int) -> None:
        """Overwrites the rows of a band."""
        for variable, part in ((self.values, 0), (self.scales_offsets, 1)):
            write_rows(variable, (self._quantized(block)[part] for block in rows.blocks()), low, rows.count)

    def _create(self) -> None:
        columns = -(-self.width // 2) if self.packed else self.width
        self.values = self._add("values", (self.rows, columns), "uint8" if self.packed else "int8")
        self.scales_offsets = self._add("scales_offsets", (self.rows, 2), "bfloat16")

    def _steps(self, values: Tensor) -> Tensor:
        if not self.packed:
            return ops.cast(values, "float32")
        return ops.concatenate(_nibbles(values), axis=1)[:, : self.width] - self.reach

    def _quantized(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values, `[rows, columns]`, and scale and offset, bfloat16 `[rows, 2]`.

        The offset is the middle of the row, rounded, and the scale is rounded up, so that the steps reach both ends of
        the row in spite of the rounding.
        """
        rows = block.astype("float64")
        low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        offset = ((low + high) / 2).astype(ml_dtypes.bfloat16)
        centre = offset.astype("float64")
        reach = np.maximum(high - centre, centre - low) / self.reach
        scale = reach.astype(ml_dtypes.bfloat16)
        scale = np.where(
            scale.astype("float64") < reach, np.nextafter(scale, ml_dtypes.bfloat16(np.inf)), scale
        )
        steps = np.divide(rows - centre, scale.astype("float64"), out=np.zeros_like(rows), where=scale > 0)
        pairs = np.concatenate([scale, offset], axis=1)
        if not self.packed:
            return np.rint(steps).astype("int8"), pairs
        nibbles = np.rint(steps + self.reach).astype("uint8")
        padded = np.pad(nibbles, ((0, 0), (0, self.width % 2)))
        first, second = np.split(padded, 2, axis=1)
        return first | second << 4, pairs


class ColumnStore(RowStore):
    """Rows of whole bytes with a step for each column of a band: columns of eight bits, then columns of four.

    At the front of a row is half a byte of each column, the high nibble of one of eight bits and all of one of four; at
    its end, the first one last, are the low nibbles of the columns of eight bits. Both are at fixed distances from
    either end, so that rows of as many bytes are read together, and what is not a column's is multiplied with zero.
    """

    def __init__(self, storage: Storage, **kwargs: Any) -> None:
        super().__init__(storage, **kwargs)
        self._wide = np.array([band.wide for band in storage.bands])
        self._ends = np.cumsum([0, *(band.width for band in storage.bands)])  # Of the steps of each band.

    def call(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Reads rows, widened."""
        halves = ops.stack(_nibbles(gather_rows(self.values, rows)), axis=2)
        halves = ops.reshape(halves, (-1, 2 * self.form.width)) - 7.5
        steps = ops.concatenate([self.scales, ops.zeros((1,), "float32")])
        # The high nibble of eight bits counts sixteen times.
        factors = np.where(np.arange(self.width) < self._wide[:, None], 16.0, 1.0)
        values = halves[:, : self.width] * self._steps(steps, np.diff(self._ends), factors, slots)
        if not (most := int(self._wide.max())):
            return values
        low = ops.flip(halves[:, -most:], axis=1) * self._steps(
            steps, self._wide, np.ones((self.bands, most)), slots
        )
        return values + ops.pad(low, ((0, 0), (0, self.width - most)))

    def write(self, rows: Rows, slot: int, low: int) -> None:
        """Overwrites the rows of a band."""
        wide, first, last = int(self._wide[slot]), *self._ends[slot : slot + 2]
        sample, weights = sampled(rows.blocks(), rows.weights)
        parts = ((sample[:, :wide], WIDE_BITS), (sample[:, wide:], NARROW_BITS))
        steps = np.concatenate([fit_scales(part, weights, bits)[0] for part, bits in parts])
        scales = np.array(ops.convert_to_numpy(self.scales))
        scales[first:last] = steps
        self.scales.assign(scales)
        blocks = (self._packed(block, steps, wide) for block in rows.blocks())
        write_rows(self.values, blocks, low, rows.count)

    def _create(self) -> None:
        self.values = self._add("values", (self.rows, self.form.width), "uint8")
        self.scales = self._add("scales", (int(self._ends[-1]),), "float32")

    def _steps(self, steps: Tensor, counts: np.ndarray, factors: np.ndarray, slots: Tensor) -> Tensor:
        """What nibbles of columns are multiplied with, `[n, columns]`, or `[columns]` for a scalar slot.

        Args:
            steps: The steps of all bands, and a zero.
            counts: For each band how many of its columns have such a nibble.
            factors: What these count, `[bands, columns]`.
            slots: Band of each row.
        """
        column = np.arange(factors.shape[1])
        at = np.where(column < counts[:, None], self._ends[:-1, None] + column, self._ends[-1])
        return gather_rows(ops.take(steps, at.astype("int32"), axis=0) * factors.astype("float32"), slots)

    def _packed(self, block: np.ndarray, steps: np.ndarray, wide: int) -> np.ndarray:
        """Returns the bytes of rows, uint8 `[rows, size]`."""
        first = encoded(block[:, :wide], steps[:wide], WIDE_BITS)
        rest = encoded(block[:, wide:], steps[wide:], NARROW_BITS)
        halves = np.zeros((len(block), 2 * self.form.width), "uint8")
        halves[:, : len(steps)] = np.concatenate([first >> 4, rest], axis=1)
        halves[:, 2 * self.form.width - wide :] = (first & 15)[:, ::-1]
        return halves[:, ::2] | halves[:, 1::2] << 4


class CodeStore(RowStore):
    """Product-quantised rows: of each part of a row the number of the nearest of 256 centroids of the band.

    Reference:
        Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", IEEE TPAMI 2011.
    """

    def call(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Reads rows, widened."""
        codes = ops.cast(gather_rows(self.values, rows), "int32")
        parts = self.form.parts
        first = np.arange(parts, dtype="int32") * CENTROIDS
        if self.bands > 1:
            first = first + ops.reshape(ops.cast(slots, "int32"), (-1, 1)) * (parts * CENTROIDS)
        pieces = gather_rows(self.codebooks, codes + first)
        return ops.reshape(pieces, (-1, self.width))

    def write(self, rows: Rows, slot: int, low: int) -> None:
        """Overwrites the rows of a band: makes its centroids, then the codes of all rows."""
        codebooks = fit_codebooks(rows.blocks, rows.weights, self.form.parts)
        size = self.form.parts * CENTROIDS
        flat = codebooks.reshape(size, self.width // self.form.parts)
        write_rows(self.codebooks, [flat], slot * size, size)
        blocks: Iterable[np.ndarray] = (assign_codes(block, codebooks) for block in rows.blocks())
        write_rows(self.values, blocks, low, rows.count)

    def _create(self) -> None:
        self.values = self._add("values", (self.rows, self.form.parts), "uint8")
        shape = (self.bands * self.form.parts * CENTROIDS, self.width // self.form.parts)
        self.codebooks = self._add("codebooks", shape, "float32")


def make_store(storage: Storage, name: str) -> RowStore:
    """Makes the store of a form."""
    special: dict[str, type[RowStore]] = {
        "float8": Float8Store,
        "int8": IntegerStore,
        "int4": IntegerStore,
        "columns": ColumnStore,
        "pq": CodeStore,
    }
    return special.get(storage.form.store, RowStore)(storage, name=name)


def form_text(form: Form) -> str:
    """A form as part of a variable's name."""
    return (
        form.store
        + (f"_{form.width}" if form.width is not None else "")
        + (f"_{form.parts}" if form.parts else "")
    )


def _nibbles(values: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high nibbles of bytes, float32: a shift of bytes is ten times slower on TensorFlow."""
    low = ops.cast(ops.bitwise_and(values, np.uint8(15)), "float32")
    return low, (ops.cast(values, "float32") - low) / 16


def _zeros(shape: Sequence[int], dtype: str) -> Tensor:
    """Zeros of any dtype; TensorFlow has none of float8."""
    return (
        ops.cast(ops.zeros(shape, "float32"), dtype)
        if dtype.startswith("float8")
        else ops.zeros(shape, dtype)
    )


def _exponent(largest: float) -> int:
    """The power of two that a value reaches at most."""
    return int(np.ceil(np.log2(largest))) if largest > 0 else 0


def _write_entry(variable: keras.Variable, position: int, value: float) -> None:
    values = np.array(ops.convert_to_numpy(variable))
    values[position] = value
    variable.assign(values)
