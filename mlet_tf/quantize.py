"""Quantisation: a collapsed model with tables in a narrow dtype."""

from typing import TypedDict

import keras
import numpy as np

from mlet_tf.embeddings import Plan
from mlet_tf.embeddings.model_tables import embedding_layers, is_embedding, served_layer, tables_of
from mlet_tf.embeddings.served import trained_table
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
    embeddings = embedding_layers(model, layers_of(model))

    def narrow_layer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        if not any(layer is embedding for embedding in embeddings):
            return None
        tables = {name: trained_table(factorization) for name, factorization in tables_of(layer).items()}
        plan = Plan.direct({name: table.rows for name, table in tables.items()}, layer.output_dim, dtype)
        return served_layer(layer, plan, tables, block_rows)

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
    for plain, narrow in paired_layers(model, quantized, is_embedding):
        if not is_embedding(plain):
            continue
        parts = zip(tables_of(plain).values(), tables_of(narrow).values(), strict=True)
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
