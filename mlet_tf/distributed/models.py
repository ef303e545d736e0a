"""A DLRM whose tables are divided over processes."""

import functools
from collections.abc import Sequence
from typing import Any

from mlet_tf.distributed.sharded_embeddings import RowShardedEmbeddings
from mlet_tf.distributed.workers import Workers
from mlet_tf.layers import EmbeddingFeature
from mlet_tf.models.dlrm import DLRM, build_dlrm


def build_sharded_dlrm(
    num_dense: int, features: Sequence[EmbeddingFeature], workers: Workers, *args: Any, **kwargs: Any
) -> DLRM:
    """Makes what `build_dlrm` makes, of the same initial values, with this process's share of the tables.

    Args:
        num_dense: See `build_dlrm`.
        features: See `build_dlrm`.
        workers: The processes. Their optimizer should be `averaged`.
        *args: See `build_dlrm`.
        **kwargs: See `build_dlrm`; embedding options are those of `RowShardedEmbeddings`.

    Returns:
        The model, not compiled. It is not saved as it is: see `gather_model`.
    """
    embeddings = functools.partial(RowShardedEmbeddings, workers=workers)
    return build_dlrm(num_dense, features, *args, embedding_class=embeddings, **kwargs)


def gather_model(sharded: DLRM, whole: DLRM | None) -> DLRM | None:
    """Fills a model of whole tables from one whose tables are divided; every process has to call it.

    Args:
        sharded: The model as `build_sharded_dlrm` made it.
        whole: In the process that wants it, a model that `build_dlrm` made of the same arguments, or with
            `hidden_dim=None`: into direct tables go the effective rows. None in the other processes.

    Returns:
        `whole`.
    """
    sharded.get_layer("embeddings").write_whole(None if whole is None else whole.get_layer("embeddings"))
    if whole is not None:
        for name in ("bottom", "top"):
            whole.get_layer(name).set_weights(sharded.get_layer(name).get_weights())
    return whole
