"""Layers: MLETEmbedding for one feature, EmbeddingCollection for all, the dot interaction."""
