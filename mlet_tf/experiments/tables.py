"""The tables of a trained model."""

import keras

from mlet_tf.layers import EmbeddingCollection
from mlet_tf.replace import layers_of


def embedding_collection(model: keras.Model) -> EmbeddingCollection:
    """Returns the one `EmbeddingCollection` of a model.

    Raises:
        ValueError: There is none, or several.
    """
    found = [layer for layer in layers_of(model) if isinstance(layer, EmbeddingCollection)]
    if len(found) != 1:
        raise ValueError(f"`model` should have one EmbeddingCollection. Received: {len(found)}")
    return found[0]
