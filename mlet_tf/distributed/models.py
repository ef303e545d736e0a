"""A DLRM whose tables are divided over processes."""

from collections.abc import Sequence
from typing import Any

import keras

from mlet_tf.distributed.sharded_embeddings import RowShardedEmbeddings
from mlet_tf.distributed.workers import Workers
from mlet_tf.layers import DotInteraction, EmbeddingFeature
from mlet_tf.models.dlrm import DLRM, mlp


def build_sharded_dlrm(
    num_dense: int,
    features: Sequence[EmbeddingFeature],
    workers: Workers,
    output_dim: int,
    hidden_dim: int | Sequence[int] | None = None,
    bottom_units: Sequence[int] = (512, 256),
    top_units: Sequence[int] = (512, 256),
    *,
    dtype: Any = None,
    **embedding_options: Any,
) -> DLRM:
    """Makes what `build_dlrm` makes, of the same initial values, with this process's share of the tables.

    Args:
        num_dense: See `build_dlrm`.
        features: See `build_dlrm`.
        workers: The processes. Their optimizer should be `averaged`.
        output_dim: See `build_dlrm`.
        hidden_dim: See `build_dlrm`.
        bottom_units: See `build_dlrm`.
        top_units: See `build_dlrm`.
        dtype: See `build_dlrm`.
        **embedding_options: Further arguments of `RowShardedEmbeddings`.

    Returns:
        The model, not compiled. It is not saved as it is: see `gather_model`.
    """
    dtype = keras.dtype_policies.get(dtype)
    model = DLRM(
        embedding_layer=RowShardedEmbeddings(
            features,
            output_dim,
            hidden_dim,
            workers=workers,
            dtype=dtype,
            name="embeddings",
            **embedding_options,
        ),
        bottom_stack=mlp([*bottom_units, output_dim], "relu", dtype, name="bottom"),
        feature_interaction=DotInteraction(dtype=dtype, name="interaction"),
        top_stack=mlp([*top_units, 1], "sigmoid", dtype, name="top"),
        dtype=dtype,
        name="dlrm",
    )
    model.build({"dense_features": (None, num_dense), "sparse_features": (None, len(features))})
    return model


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
