"""Multi-layer embedding training (MLET) for Keras 3.

Train embedding tables as products `W1 @ W2`, serve only the product (arXiv 2006.05623).
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from mlet_tf._version import __version__

# TensorFlow reads this once, when it is imported: `tf.keras` has to be the same Keras 3 as `keras`.
os.environ["TF_USE_LEGACY_KERAS"] = "0"

_EXPORTS = {
    "MLETEmbedding": "mlet_tf.layers",
    "EmbeddingCollection": "mlet_tf.layers",
    "EmbeddingFeature": "mlet_tf.layers",
    "collapse_model": "mlet_tf.collapse",
    "collapse_report": "mlet_tf.collapse",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _require_keras_3() -> None:
    """Raises where `tf.keras` is another Keras than `keras`: layers of the two mix without an error, untrained."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if not tf.keras.__version__.startswith("3"):
        raise ImportError(
            f"mlet_tf needs tf.keras to be Keras 3. Received: Keras {tf.keras.__version__}. Import mlet_tf before "
            "tensorflow, or set the environment variable TF_USE_LEGACY_KERAS=0."
        )


# The `mlet-tf` command answers --help and REST queries without paying seconds for TensorFlow. Everywhere
# else the layers are registered with Keras right away, so that `keras.models.load_model` knows them.
if Path(getattr(sys, "argv", [""])[0]).name != "mlet-tf":
    _require_keras_3()
    importlib.import_module("mlet_tf.layers")
