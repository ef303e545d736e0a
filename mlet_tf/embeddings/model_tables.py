"""The tables of a model, whichever layers have them, and the layers that serve them in another form."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import keras

from mlet_tf.embeddings.fitting import TrainedTable
from mlet_tf.embeddings.plan import Plan
from mlet_tf.embeddings.served import ServedEmbedding, ServedTable, written_collection
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, MLETEmbedding
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization

TableLayer: TypeAlias = keras.layers.Embedding | MLETEmbedding | EmbeddingCollection


def embedding_layers(
    model: keras.Model, layers: Sequence[keras.layers.Layer], factorised: bool = False
) -> list[TableLayer]:
    """Returns the layers of a model that have trained tables.

    Args:
        model: A model, for messages.
        layers: All its layers, see `mlet_tf.replace.layers_of`.
        factorised: Whether tables may be products.

    Raises:
        InputError: There is no table, or one is factorised, in a served form already, or of a subclass of `Embedding`.
            The message names the layer.
    """
    for layer in layers:
        if isinstance(layer, ServedTable | ServedEmbedding):
            raise InputError(
                f"Layer '{layer.name}': expected trained tables. Received: {' and '.join(layer.plan.stores)} tables"
            )
        if not factorised and _is_product(layer):
            raise InputError(
                f"Layer '{layer.name}': expected a collapsed model, see `collapse_model`. "
                "Received: a table that is a product"
            )
        if is_embedding(layer):
            _require_known(layer)
    found = list(filter(is_embedding, layers))
    if not found:
        raise InputError(f"Model '{model.name}': expected an embedding table. Received: none")
    return found


def is_embedding(layer: keras.layers.Layer) -> bool:
    """Whether a layer has tables of rows, trained or served."""
    return isinstance(layer, TableLayer | ServedTable)


def tables_of(layer: TableLayer | ServedTable) -> dict[str, Factorization]:
    """Returns the tables of a layer by the names that they have in a plan, in its order."""
    if isinstance(layer, EmbeddingCollection):
        return {name: layer.factorization(name) for name in layer.table_rows()}
    if isinstance(layer, MLETEmbedding):
        return {layer.name: layer.factorization()}
    if isinstance(layer, ServedTable):
        return {layer.name: Factorization(layer.name, layer, 0, layer.input_dim, ())}
    # `embeddings` has LoRA factors multiplied in.
    return {layer.name: Factorization(layer.name, layer.embeddings, 0, layer.input_dim, ())}


def served_layer(
    layer: TableLayer,
    plan: Plan,
    tables: Mapping[str, TrainedTable],
    block_rows: int = BLOCK_ROWS,
) -> ServedTable | ServedEmbedding:
    """Returns a layer that serves tables in the form of a plan; the given one is not changed.

    Args:
        layer: The layer to serve.
        plan: The plan, with one entry for each table of the layer.
        tables: Its tables, by name.
        block_rows: Rows that are in memory at once.

    Raises:
        InputError: The plan is not for these tables, or a value is not finite or too large for float16.
    """
    if isinstance(layer, EmbeddingCollection):
        return written_collection(layer, plan, tables, block_rows=block_rows)
    oov = getattr(layer, "oov", "error")
    served = ServedTable(plan, layer.mask_zero, oov, name=layer.name, dtype=layer.dtype_policy)
    served.build()
    served.write(tables[layer.name], block_rows)
    return served


def _is_product(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, MLETEmbedding) or (
        isinstance(layer, EmbeddingCollection) and bool(layer.projections)
    )


def _require_known(layer: keras.layers.Layer) -> None:
    """Raises InputError for layers whose outputs may differ from their rows."""
    if type(layer) not in (EmbeddingCollection, MLETEmbedding, keras.layers.Embedding):
        raise InputError(
            f"Layer '{layer.name}': expected a keras.layers.Embedding or an EmbeddingCollection, as a subclass may "
            f"compute something else. Received: {type(layer).__name__}"
        )
    if mode := getattr(layer, "quantization_mode", None):
        raise InputError(
            f"Layer '{layer.name}': expected float tables. Received: {mode} tables, made by Keras"
        )
