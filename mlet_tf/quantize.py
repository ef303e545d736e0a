"""Quantisation: a collapsed model with tables in a narrow dtype."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mlet_tf._remake import copy_state, flatten, remake, require_built, require_weights
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, MLETEmbedding
from mlet_tf.layers.factors import BLOCK_ROWS, Factorization
from mlet_tf.layers.quantized import (
    QuantizedEmbedding,
    QuantizedEmbeddingCollection,
    validate_table_dtype,
)

# What a QuantizedEmbedding takes over from the configuration of a Keras Embedding.
_EMBEDDING_KEYS = ("name", "trainable", "dtype", "input_dim", "output_dim", "mask_zero")


def quantize_model(model: keras.Model, dtype: str = "int8", *, block_rows: int = BLOCK_ROWS) -> keras.Model:
    """Returns a model whose embedding tables take a half or a quarter of the bytes, and which is only served.

    Each `keras.layers.Embedding` becomes a `QuantizedEmbedding` and each `EmbeddingCollection` a
    `QuantizedEmbeddingCollection`, in functional, Sequential and nested models, DLRMs, and whatever other models
    hold their layers in their configuration. All other layers are made anew and take over their weights. The
    given model is not touched. Tables are read and written in blocks of rows. A SavedModel of the result has
    stock TensorFlow operations only.

    Args:
        model: A model without factors, such as `collapse_model` gives.
        dtype: `"float16"`, `"bfloat16"`, or `"int8"` with a scale and an offset for each row.
        block_rows: Rows that are quantised at once.

    Returns:
        The quantised model, not compiled.

    Raises:
        InputError: A table is still factorised, has values which are not finite or too large for float16, or
            there is none; the message names it.
        ValueError: The model cannot be made again from its configuration.

    Example:
        >>> served = quantize_model(collapse_model(model), "int8")
        >>> served.save("served.keras")
    """
    require_built(model)
    validate_table_dtype(dtype)
    _require_plain(model)
    quantized = remake(model, lambda config: _with_narrow_tables(config, dtype))
    pairs = list(_pairs(model, quantized))
    require_weights(pairs)
    for plain, narrow in pairs:
        if isinstance(plain, EmbeddingCollection):
            narrow.write_quantized(plain, block_rows)
        elif isinstance(plain, keras.layers.Embedding):
            rows = _rows_of(plain)
            narrow.write(plain.name, lambda rows=rows: rows.iter_effective_table(block_rows))
        else:
            copy_state(plain, narrow)
    return quantized


def quantization_report(
    model: keras.Model, quantized: keras.Model, *, block_rows: int = BLOCK_ROWS
) -> list[dict[str, Any]]:
    """Tells what the quantisation of each table saves and costs.

    Args:
        model: The collapsed model.
        quantized: What `quantize_model` made of it.
        block_rows: Rows that are read at once.

    Returns:
        A record for each table, named as in `collapse_report`: `name`, `rows`, `output_dim`,
        `table_dtype`, `bytes_before`, `bytes_after`, and `max_abs_difference` over all values.
    """
    records = []
    for plain, narrow in _pairs(model, quantized):
        if isinstance(plain, EmbeddingCollection):
            parts = zip(plain.factorizations(), narrow.factorizations(), strict=True)
            records += [_record(*part, narrow.table_dtype, block_rows) for part in parts]
        elif isinstance(plain, keras.layers.Embedding):
            narrow_rows = Factorization(narrow.name, narrow, 0, narrow.input_dim, ())
            records.append(_record(_rows_of(plain), narrow_rows, narrow.table_dtype, block_rows))
    return records


def _record(plain: Factorization, narrow: Factorization, table_dtype: str, block_rows: int) -> dict[str, Any]:
    pairs = zip(plain.iter_table(block_rows), narrow.iter_table(block_rows), strict=True)
    difference = max(float(np.abs(x.astype("float64") - y.astype("float64")).max()) for x, y in pairs)
    itemsize = 2 if plain.table.dtype == "bfloat16" else np.dtype(plain.table.dtype).itemsize
    return {
        "name": plain.name,
        "rows": plain.rows,
        "output_dim": plain.output_dim,
        "table_dtype": table_dtype,
        "bytes_before": plain.rows * plain.output_dim * itemsize,
        "bytes_after": plain.rows * narrow.table.row_bytes,
        "max_abs_difference": difference,
    }


def _rows_of(layer: keras.layers.Embedding) -> Factorization:
    return Factorization(layer.name, layer.embeddings, 0, layer.input_dim, ())


def _require_plain(model: keras.Model) -> None:
    layers = flatten(model)
    for layer in layers:
        if isinstance(layer, QuantizedEmbedding | QuantizedEmbeddingCollection):
            raise InputError(
                f"Layer '{layer.name}': expected float tables. Received: {layer.table_dtype} tables"
            )
        if isinstance(layer, MLETEmbedding) or (isinstance(layer, EmbeddingCollection) and layer.projections):
            raise InputError(
                f"Layer '{layer.name}': expected a collapsed model, see `collapse_model`. "
                "Received: a table that is a product"
            )
    if not any(isinstance(layer, EmbeddingCollection | keras.layers.Embedding) for layer in layers):
        raise InputError(f"Model '{model.name}': expected an embedding table. Received: none")


def _with_narrow_tables(config: Any, table_dtype: str) -> Any:
    """The configuration of a model with the quantised layers in the place of the others."""
    if isinstance(config, list | tuple):
        return type(config)(_with_narrow_tables(item, table_dtype) for item in config)
    if not isinstance(config, Mapping):
        return config
    config = {key: _with_narrow_tables(value, table_dtype) for key, value in config.items()}
    if config.get("registered_name") == "mlet_tf>EmbeddingCollection":
        return {
            **config,
            **_named(QuantizedEmbeddingCollection, {**config["config"], "table_dtype": table_dtype}),
        }
    if config.get("class_name") == "Embedding" and str(config.get("module")).startswith("keras"):
        kept = {key: config["config"][key] for key in _EMBEDDING_KEYS}
        return {**config, **_named(QuantizedEmbedding, {**kept, "table_dtype": table_dtype})}
    return config


def _named(kind: type[keras.layers.Layer], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "module": kind.__module__,
        "class_name": kind.__name__,
        "registered_name": f"mlet_tf>{kind.__name__}",
        "config": config,
    }


def _pairs(
    model: keras.Model, quantized: keras.Model
) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Yields the layers of both models side by side; the parts of a quantised collection have no match."""
    parts = {
        id(table)
        for layer in flatten(quantized)
        if isinstance(layer, QuantizedEmbeddingCollection)
        for table in layer.tables
    }
    plain, narrow = flatten(model), [layer for layer in flatten(quantized) if id(layer) not in parts]
    if len(plain) != len(narrow) or not all(map(_corresponds, plain, narrow)):
        raise ValueError(
            "`model` should hold its embedding layers in its `get_config()`, so that others can take their place. "
            f"Received: '{model.name}' with {[x.name for x in plain]}, from which came {[x.name for x in narrow]}"
        )
    yield from zip(plain, narrow, strict=True)


def _corresponds(plain: keras.layers.Layer, narrow: keras.layers.Layer) -> bool:
    if isinstance(plain, EmbeddingCollection):
        return isinstance(narrow, QuantizedEmbeddingCollection) and plain.features == narrow.features
    if isinstance(plain, keras.layers.Embedding):
        return isinstance(narrow, QuantizedEmbedding) and narrow.shape == (plain.input_dim, plain.output_dim)
    return type(plain) is type(narrow)
