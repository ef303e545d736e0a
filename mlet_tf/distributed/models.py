"""A DLRM whose tables are divided over processes."""

import functools
from collections.abc import Sequence
from typing import Any

from mlet_tf.distributed.sharded_embeddings import RowShardedEmbeddings
from mlet_tf.distributed.workers import Workers
from mlet_tf.layers import EmbeddingFeature
from mlet_tf.models.dlrm import DLRM, build_dlrm
from mlet_tf.replace import layers_of, replace_layers


def build_sharded_dlrm(
    num_dense: int, features: Sequence[EmbeddingFeature], workers: Workers, *args: Any, **kwargs: Any
) -> DLRM:
    """Builds the model of `build_dlrm`, with the same initial values, but only this process's share of the tables.

    Args:
        num_dense: Width of `dense_features`.
        features: The categorical features, without combiners.
        workers: The processes. Their optimizer should be `averaged`.
        *args: Further arguments of `build_dlrm`.
        **kwargs: Further arguments of `build_dlrm`; embedding options are those of `RowShardedEmbeddings`.

    Returns:
        The model, not compiled. To save it, gather it first: see `gather_model`.
    """
    embeddings = functools.partial(RowShardedEmbeddings, workers=workers)
    return build_dlrm(num_dense, features, *args, embedding_class=embeddings, **kwargs)


def gather_model(sharded: DLRM) -> DLRM | None:
    """Gathers divided tables into a model of whole tables; every process must call it.

    Args:
        sharded: A model that `build_sharded_dlrm` made.

    Returns:
        In the chief, the model that `build_dlrm` makes of the same arguments, with the trained weights, not compiled;
        None in the other processes.
    """
    divided = [layer for layer in layers_of(sharded) if isinstance(layer, RowShardedEmbeddings)]
    whole = {id(layer): layer.gather() for layer in divided}
    if None in whole.values():
        return None
    return replace_layers(sharded, lambda layer: whole.get(id(layer)))
