"""Embedding tables in narrow dtypes, for serving."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.errors import InputError
from mlet_tf.layers._backend import gather_rows
from mlet_tf.layers._plan import TableGroup
from mlet_tf.layers._single import SingleEmbedding
from mlet_tf.layers.embedding_collection import EmbeddingCollection, EmbeddingFeature
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization, write_rows
from mlet_tf.layers.ids import as_ids
from mlet_tf.types import Shape, Tensor

TABLE_DTYPES = ("float16", "bfloat16", "int8")

_LEVELS = 127
_FLOAT16_MAX = float(np.finfo("float16").max)
# Scales and offsets are float16 in a unit in which the largest value is close to 2^15: float16 ends below 2^16,
# and small rows keep as many digits as possible.
_UNIT_EXPONENT = 15
_SMALLEST_EXPONENT = -126  # Smaller floats are flushed to zero by TensorFlow.

# Yields blocks of rows of a table, from the top at each call.
Blocks = Callable[[], Iterator[np.ndarray]]


def validate_table_dtype(dtype: str) -> str:
    """Returns the dtype, or raises ValueError if tables cannot have it."""
    if dtype not in TABLE_DTYPES:
        raise ValueError(f"`table_dtype` should be one of {', '.join(TABLE_DTYPES)}. Received: {dtype!r}")
    return dtype


@keras.saving.register_keras_serializable(package="mlet_tf")
class QuantizedEmbedding(SingleEmbedding):
    """Embedding for serving, not trained, with a table in a narrow dtype.

    Only gathered rows are widened. `"float16"` and `"bfloat16"` tables are rounded. `"int8"` tables have a
    scale and an offset for each row, float16 in a unit of the whole table (a power of two):

        row = (integers * scale + offset) * unit

    with integers from -127 to 127, so that no value is off by more than half of `scale * unit` (and float32
    rounding). A row takes `2 d` bytes, or `d + 4` with int8.

    Args:
        input_dim: Vocabulary size `V`.
        output_dim: Embedding dimension `d`.
        table_dtype: `"float16"`, `"bfloat16"` or `"int8"`.
        mask_zero: Whether id 0 is padding that later layers should mask.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Integer ids of any rank (float ids are cast); ragged tensors on TensorFlow, sparse ones as in
        `keras.layers.Embedding`. Out-of-range ids are treated as there.

    Output shape:
        Input shape with `output_dim` appended.

    Example:
        >>> layer = QuantizedEmbedding(2, 3, "int8")
        >>> layer.build()
        >>> layer.write("items", lambda: iter([np.array([[0.0, 0.5, 1.0], [7.0, 7.0, 7.0]])]))
        >>> layer(np.array([1])).numpy()
        array([[7., 7., 7.]], dtype=float32)
    """

    built: bool  # Keras sets it.

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        table_dtype: str = "int8",
        mask_zero: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_dim, output_dim, mask_zero, **kwargs)
        self.table_dtype = validate_table_dtype(table_dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width, as a variable has them."""
        return self.input_dim, self.output_dim

    @property
    def embeddings(self) -> Tensor:
        """The whole table, widened, `[V, d]`: for models that read it, such as those with tied weights."""
        return self._embed(ops.arange(self.input_dim))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.output_dim + 4 if self.table_dtype == "int8" else 2 * self.output_dim

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the table, all zeros."""
        if self.built:
            return
        self.values = self._add("values", self.shape, self.table_dtype)
        if self.table_dtype == "int8":
            self.scales_offsets = self._add("scales_offsets", (self.input_dim, 2), "float16")
            self.unit = self._add("unit", (), "float32")
        self.built = True

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "table_dtype": self.table_dtype,
            "mask_zero": self.mask_zero,
        }

    def write(self, name: str, blocks: Blocks) -> None:
        """Overwrites the table.

        Args:
            name: Name of the table, for messages.
            blocks: Gives the rows in blocks, finite, top to bottom. It is called up to three times, so that only one
                block of wide rows is in memory.

        Raises:
            InputError: A value is too large for float16.
        """
        if self.table_dtype != "int8":
            write_rows(self.values, (self._rounded(name, block) for block in blocks()))
            return
        unit = _unit(max(float(np.abs(block).max(initial=0.0)) for block in blocks()))
        self.unit.assign(unit)
        write_rows(self.values, (_quantize(block, unit)[0] for block in blocks()))
        write_rows(self.scales_offsets, (_quantize(block, unit)[1] for block in blocks()))

    def _add(self, name: str, shape: Sequence[int], dtype: str) -> keras.Variable:
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
        )

    def _rounded(self, name: str, block: np.ndarray) -> np.ndarray:
        largest = float(np.abs(block).max(initial=0.0))
        if self.table_dtype == "float16" and largest > _FLOAT16_MAX:
            raise InputError(
                f"Table {name}: expected values of at most {_FLOAT16_MAX:g} for float16; bfloat16 and int8 have "
                f"no such limit. Received: {largest:g}"
            )
        return block  # Writing rounds to the nearest.

    def _embed(self, ids: Tensor, training: bool = False) -> Tensor:
        ids = as_ids(ids)
        rows = gather_rows(self.values, ids)
        if self.table_dtype == "int8":
            pairs = ops.cast(gather_rows(self.scales_offsets, ids), "float32") * self.unit
            rows = ops.cast(rows, "float32") * pairs[..., :1] + pairs[..., 1:]
        return ops.cast(rows, self.compute_dtype)


@keras.saving.register_keras_serializable(package="mlet_tf")
class QuantizedEmbeddingCollection(EmbeddingCollection):
    """A collapsed `EmbeddingCollection` with tables in a narrow dtype, not trained.

    Features, ids and outputs are those of `EmbeddingCollection`, the tables those of `QuantizedEmbedding`.

    Args:
        features: Features without a `hidden_dim`, see `EmbeddingCollection`.
        output_dim: Embedding dimension `d`.
        table_dtype: `"float16"`, `"bfloat16"` or `"int8"`.
        **kwargs: Further arguments of `EmbeddingCollection`.

    Raises:
        ValueError: A feature is factorised.
    """

    def __init__(
        self,
        features: Sequence[EmbeddingFeature | Mapping[str, Any]],
        output_dim: int,
        table_dtype: str = "int8",
        **kwargs: Any,
    ) -> None:
        super().__init__(features, output_dim, **kwargs)
        self.table_dtype = validate_table_dtype(table_dtype)
        if any(group.chain for group in self._plan.groups):
            raise ValueError(
                "`features` of a quantised collection should be direct, as the collapse makes them. "
                f"Received: {self.features}"
            )

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "table_dtype": self.table_dtype}

    def write_quantized(self, collapsed: EmbeddingCollection, block_rows: int = BLOCK_ROWS) -> None:
        """Quantises the tables of a collapsed collection into this one, in blocks of rows.

        Raises:
            InputError: A weight is not finite, or too large for float16.
        """
        for table, wide in zip(self.tables, collapsed.tables, strict=True):
            parts = [part for part in collapsed.factorizations() if part.table is wide]

            def blocks(parts: Sequence[Factorization] = parts) -> Iterator[np.ndarray]:
                for part in parts:
                    yield from part.iter_effective_table(block_rows)

            table.write(parts[0].name, blocks)

    def collapse(self, block_rows: int = BLOCK_ROWS) -> EmbeddingCollection:
        """Raises an error: the tables are collapsed already.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"Layer '{self.name}': expected factorised tables. Received: {self.table_dtype} tables"
        )

    def _add_table(self, index: int, group: TableGroup) -> QuantizedEmbedding:
        suffix = f"_{index}" if len(self._plan.groups) > 1 else ""
        name = f"direct_table{suffix}"
        table = QuantizedEmbedding(group.rows, self.output_dim, self.table_dtype, dtype="float32", name=name)
        table.build()
        return table


def _unit(largest: float) -> float:
    """The power of two in whose units the largest value is at most 2^15, and close to it."""
    if largest == 0.0:
        return 1.0
    exponent = int(np.ceil(np.log2(largest))) - _UNIT_EXPONENT
    return 2.0 ** max(exponent, _SMALLEST_EXPONENT)


def _quantize(block: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integers, int8 `[rows, d]`, and scale and offset, float16 `[rows, 2]`.

    The offset is the middle of the row, rounded to float16, and the scale is rounded up, so that the integers reach
    both ends of the row in spite of the rounding.
    """
    rows = block.astype("float64") / unit
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    offset = ((low + high) / 2).astype("float16")
    reach = np.maximum(high - offset, offset - low) / _LEVELS
    scale = reach.astype("float16")
    scale = np.where(scale < reach, np.nextafter(scale, np.float16(np.inf)), scale)
    steps = np.divide(rows - offset, scale, out=np.zeros_like(rows), where=scale > 0)
    return np.rint(steps).astype("int8"), np.concatenate([scale, offset], axis=1)
