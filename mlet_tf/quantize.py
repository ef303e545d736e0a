"""Quantisation: a collapsed model with tables in a narrow dtype."""

from typing import TypedDict

import keras
import numpy as np

from mlet_tf.embeddings import Plan, ServedEmbedding, ServedTable, served_embedding
from mlet_tf.embeddings.served import trained_table
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, MLETEmbedding
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization
from mlet_tf.replace import layers_of, paired_layers, replace_layers

TABLE_DTYPES = ("float16", "bfloat16", "float8", "int8", "int4")


class QuantizationReport(TypedDict):
    """What the quantisation of a table saves and costs.

    Attributes:
        name: Name of the table, as in `collapse_report`.
        rows: `V`.
        output_dim: `d`.
        table_dtype: Dtype of the quantised table.
        bytes_before: Bytes of the collapsed table.
        bytes_after: Bytes of the quantised table.
        max_abs_difference: Between the two, over all values.
    """

    name: str
    rows: int
    output_dim: int
    table_dtype: str
    bytes_before: int
    bytes_after: int
    max_abs_difference: float


def quantize_model(model: keras.Model, dtype: str = "int8", *, block_rows: int = BLOCK_ROWS) -> keras.Model:
    """Returns a model for serving whose embedding tables take a half to an eighth of the bytes.

    Each `keras.layers.Embedding` becomes a `ServedTable` and each `EmbeddingCollection` a `ServedEmbedding`, wherever
    they are in the model (see `replace_layers`). LoRA factors that Keras has added to an embedding are multiplied in.
    The given model is not changed. Tables are read and written in blocks of rows. A SavedModel of the result has stock
    TensorFlow operations only.

    Args:
        model: A model without factors, such as `collapse_model` returns.
        dtype: `"float16"`, `"bfloat16"`, `"float8"` (e4m3) with a scale for each table, or `"int8"` or `"int4"` with a
            scale and an offset for each row.
        block_rows: Rows that are quantised at once.

    Returns:
        The quantised model, not compiled.

    Raises:
        InputError: There is no table, or one is still factorised, is already quantised, has values that are not
            finite or too large for float16, or belongs to a subclass of `Embedding`. The message names the layer.
        ValueError: The model cannot be rebuilt from its configuration.

    Example:
        >>> served = quantize_model(collapse_model(model), "int8")
        >>> served.save("served.keras")
    """
    if dtype not in TABLE_DTYPES:
        raise ValueError(f"`dtype` should be one of {', '.join(TABLE_DTYPES)}. Received: {dtype!r}")
    _require_plain(model)

    def narrow_layer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        if isinstance(layer, EmbeddingCollection):
            return _narrow_collection(layer, dtype, block_rows)
        if isinstance(layer, keras.layers.Embedding):
            return _narrow_embedding(layer, dtype, block_rows)
        return None

    return replace_layers(model, narrow_layer)


def quantization_report(
    model: keras.Model, quantized: keras.Model, *, block_rows: int = BLOCK_ROWS
) -> list[QuantizationReport]:
    """Reports what the quantisation of each table saves and costs.

    Args:
        model: The collapsed model.
        quantized: The result of `quantize_model`.
        block_rows: Rows that are read at once.

    Returns:
        A report for each table.
    """
    records = []
    for plain, narrow in paired_layers(model, quantized, _is_embedding):
        if isinstance(plain, EmbeddingCollection):
            parts = [*zip(plain.factorizations(), narrow.factorizations(), strict=True)]
        elif isinstance(plain, keras.layers.Embedding):
            parts = [(_rows_of(plain), Factorization(narrow.name, narrow, 0, narrow.input_dim, ()))]
        else:
            continue
        for (wide, rows), feature in zip(parts, narrow.plan.features, strict=True):
            size = feature.bytes(narrow.output_dim).embedding
            records.append(_record(wide, rows, feature.bands[0].store, size, block_rows))
    return records


def _record(
    plain: Factorization, narrow: Factorization, table_dtype: str, bytes_after: int, block_rows: int
) -> QuantizationReport:
    pairs = zip(plain.iter_table(block_rows), narrow.iter_table(block_rows), strict=True)
    difference = max(float(np.abs(x.astype("float64") - y.astype("float64")).max()) for x, y in pairs)
    dtype = keras.backend.standardize_dtype(plain.table.dtype)
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return {
        "name": plain.name,
        "rows": plain.rows,
        "output_dim": plain.output_dim,
        "table_dtype": table_dtype,
        "bytes_before": plain.rows * plain.output_dim * itemsize,
        "bytes_after": bytes_after,
        "max_abs_difference": difference,
    }


def _narrow_collection(layer: EmbeddingCollection, table_dtype: str, block_rows: int) -> ServedEmbedding:
    plan = Plan.direct(layer.table_rows(), layer.output_dim, table_dtype)
    return served_embedding(layer, plan, block_rows=block_rows)


def _narrow_embedding(layer: keras.layers.Embedding, table_dtype: str, block_rows: int) -> ServedTable:
    plan = Plan.direct({layer.name: layer.input_dim}, layer.output_dim, table_dtype)
    narrow = ServedTable(plan, layer.mask_zero, name=layer.name, dtype=layer.dtype_policy)
    narrow.build()
    narrow.write(trained_table(_rows_of(layer)), block_rows)
    return narrow


def _rows_of(layer: keras.layers.Embedding) -> Factorization:
    """The rows that a Keras layer looks up, with LoRA factors multiplied in."""
    return Factorization(layer.name, layer.embeddings, 0, layer.input_dim, ())


def _is_embedding(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, EmbeddingCollection | keras.layers.Embedding)


def _require_plain(model: keras.Model) -> None:
    layers = layers_of(model)
    for layer in layers:
        if isinstance(layer, ServedTable | ServedEmbedding):
            raise InputError(
                f"Layer '{layer.name}': expected trained tables. Received: {' and '.join(layer.plan.stores)} tables"
            )
        if isinstance(layer, MLETEmbedding) or (isinstance(layer, EmbeddingCollection) and layer.projections):
            raise InputError(
                f"Layer '{layer.name}': expected a collapsed model, see `collapse_model`. "
                "Received: a table that is a product"
            )
        if _is_embedding(layer):
            _require_known(layer)
    if not any(map(_is_embedding, layers)):
        raise InputError(f"Model '{model.name}': expected an embedding table. Received: none")


def _require_known(layer: keras.layers.Layer) -> None:
    """Raises InputError for layers whose outputs may differ from their rows."""
    if type(layer) not in (EmbeddingCollection, keras.layers.Embedding):
        raise InputError(
            f"Layer '{layer.name}': expected a keras.layers.Embedding or an EmbeddingCollection, as a subclass may "
            f"compute something else. Received: {type(layer).__name__}"
        )
    if mode := getattr(layer, "quantization_mode", None):
        raise InputError(
            f"Layer '{layer.name}': expected float tables. Received: {mode} tables, made by Keras"
        )
