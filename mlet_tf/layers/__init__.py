"""Layers: MLETEmbedding for one feature, EmbeddingCollection for all, the dot interaction."""

from mlet_tf.layers.dot_interaction import DotInteraction
from mlet_tf.layers.embedding_collection import EmbeddingCollection, EmbeddingFeature
from mlet_tf.layers.mlet_embedding import MLETEmbedding
from mlet_tf.layers.roles import variable_role

__all__ = [
    "DotInteraction",
    "EmbeddingCollection",
    "EmbeddingFeature",
    "MLETEmbedding",
    "variable_role",
]
