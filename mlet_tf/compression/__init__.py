"""From a trained model to the smallest one within a budget of bytes or of AUC.

`compress_model` does it for any Keras model, `mlet_tf.compression.packed` for those of the pipeline. The bytes go where
they buy most, see `mlet_tf.embeddings.allocator`.
"""

from mlet_tf.compression.compress import Compression, compress_model

COMPRESSION_FILE = "compression.json"  # Where a report is kept.

__all__ = ["COMPRESSION_FILE", "Compression", "compress_model"]
