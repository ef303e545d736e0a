"""Kinds of embeddings: how they are planned, trained and served."""

from mlet_tf.embeddings.plan import Band, Budget, Bytes, FeaturePlan, Plan, RowStatistics

__all__ = ["Band", "Budget", "Bytes", "FeaturePlan", "Plan", "RowStatistics"]
