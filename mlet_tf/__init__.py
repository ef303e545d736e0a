"""Multi-layer embedding training (MLET) for Keras 3.

Train embedding tables as products `W1 @ W2`, serve only the product (arXiv 2006.05623).
"""

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlet_tf._version import __version__

# TensorFlow reads this once, when it is imported: `tf.keras` has to be the same Keras 3 as `keras`.
os.environ["TF_USE_LEGACY_KERAS"] = "0"

if TYPE_CHECKING:
    from mlet_tf.collapse import collapse_model, collapse_report
    from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding
    from mlet_tf.quantize import quantization_report, quantize_model

_MODULES = ("mlet_tf.layers", "mlet_tf.collapse", "mlet_tf.quantize", "mlet_tf.optimizers")

__all__ = [
    "EmbeddingCollection",
    "EmbeddingFeature",
    "MLETEmbedding",
    "__version__",
    "collapse_model",
    "collapse_report",
    "quantization_report",
    "quantize_model",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(importlib.import_module, _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _require_keras_3() -> None:
    """Raises where `tf.keras` is not Keras 3: layers of two Keras versions mix without an error, untrained."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    version = getattr(tf.keras, "__version__", "2")  # tf_keras tells none.
    if not version.startswith("3"):
        raise ImportError(
            f"mlet_tf needs tf.keras to be Keras 3. Received: Keras {version}. Import mlet_tf before "
            "tensorflow, or set the environment variable TF_USE_LEGACY_KERAS=0."
        )


# The `mlet-tf` command answers --help and REST queries without paying seconds for TensorFlow. Everywhere
# else the layers and optimizers are registered with Keras right away, so that `keras.models.load_model` knows them.
if Path(getattr(sys, "argv", [""])[0]).name != "mlet-tf":
    _require_keras_3()
    for _module in _MODULES:
        importlib.import_module(_module)
