"""Kinds of embeddings: how they are planned, trained and served.

Plans and kinds are numpy alone; layers bring Keras when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlet_tf.embeddings.fitting import Basis, TrainedTable
    from mlet_tf.embeddings.kinds import KINDS, EmbeddingKind
    from mlet_tf.embeddings.plan import Band, Budget, Bytes, FeaturePlan, Plan, RowStatistics
    from mlet_tf.embeddings.served import ServedEmbedding, ServedTable, served_embedding

_PLAIN, _LAYERS = ("plan", "kinds"), ("fitting", "served")

__all__ = [
    "KINDS",
    "Band",
    "Basis",
    "Budget",
    "Bytes",
    "EmbeddingKind",
    "FeaturePlan",
    "Plan",
    "RowStatistics",
    "ServedEmbedding",
    "ServedTable",
    "TrainedTable",
    "served_embedding",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in (*_PLAIN, *_LAYERS):
            if module in _LAYERS:
                # Registers the layers, before one of these modules is half imported.
                importlib.import_module("keras")
            found = importlib.import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
