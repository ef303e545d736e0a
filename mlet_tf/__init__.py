"""Multi-layer embedding training (MLET) for Keras 3.

Train embedding tables as products `W1 @ W2`, serve only the product (arXiv 2006.05623).
"""

import importlib
import os
from typing import TYPE_CHECKING

from mlet_tf._registration import register_with_keras
from mlet_tf._version import __version__

# TensorFlow reads this once, when it is imported: `tf.keras` has to be the same Keras 3 as `keras`.
os.environ["TF_USE_LEGACY_KERAS"] = "0"

if TYPE_CHECKING:
    from mlet_tf.collapse import collapse_model, collapse_report
    from mlet_tf.compression import compress_model
    from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding
    from mlet_tf.quantize import quantization_report, quantize_model
    from mlet_tf.replace import replace_layers

_MODULES = (
    "mlet_tf.layers",
    "mlet_tf.collapse",
    "mlet_tf.quantize",
    "mlet_tf.replace",
    "mlet_tf.compression",
)

__all__ = [
    "EmbeddingCollection",
    "EmbeddingFeature",
    "MLETEmbedding",
    "__version__",
    "collapse_model",
    "collapse_report",
    "compress_model",
    "quantization_report",
    "quantize_model",
    "replace_layers",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in map(importlib.import_module, _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_keras()
