"""Kinds of embeddings: how they are planned, trained and served."""

from mlet_tf.embeddings.fitting import Basis, TrainedTable
from mlet_tf.embeddings.plan import Band, Budget, Bytes, FeaturePlan, Plan, RowStatistics
from mlet_tf.embeddings.served import ServedEmbedding, ServedTable, served_embedding

__all__ = [
    "Band",
    "Basis",
    "Budget",
    "Bytes",
    "FeaturePlan",
    "Plan",
    "RowStatistics",
    "ServedEmbedding",
    "ServedTable",
    "TrainedTable",
    "served_embedding",
]
