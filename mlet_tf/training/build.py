"""From a configuration to a compiled model."""

from collections.abc import Callable, Mapping

import keras
import tensorflow as tf
import tensorflow_recommenders as tfrs

from mlet_tf.config import ModelConfig, TrainConfig
from mlet_tf.distributed import Workers, averaged
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.models import DLRM, build_dlrm
from mlet_tf.training.optimizers import make_optimizer


def build_model(
    config: ModelConfig,
    rows: Mapping[str, int],
    num_dense: int,
    embeddings: Callable[..., keras.layers.Layer] = EmbeddingCollection,
    streaming_metrics: bool = True,
) -> DLRM:
    """Builds the DLRM of a configuration.

    Args:
        config: The model's part of the configuration.
        rows: Table rows V by feature, in the order of the columns of `sparse_features`.
        num_dense: D, width of `dense_features`.
        embeddings: Makes the embedding layer; it takes the arguments of `EmbeddingCollection`.
        streaming_metrics: Whether `fit` computes AUC and logloss of the training rows, which costs time in every
            step.

    Returns:
        The model, not compiled.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    mixed = config.mixed_precision == "on" or (config.mixed_precision == "auto" and on_gpu)
    task = None
    if not streaming_metrics:
        task = tfrs.tasks.Ranking(loss=keras.losses.BinaryCrossentropy(), metrics=[])
    return build_dlrm(
        num_dense,
        [EmbeddingFeature(name, size) for name, size in rows.items()],
        config.output_dim,
        config.hidden_dim,
        bottom_units=config.bottom_units,
        top_units=config.top_units,
        dot_skip=config.dot_skip,
        task=task,
        dtype="mixed_bfloat16" if mixed else "float32",
        embedding_class=embeddings,
        direct_threshold=config.direct_threshold,
        initialization=config.initialization,
        initial_scale=config.initial_scale,
    )


def compile_model(
    model: keras.Model,
    config: TrainConfig,
    steps: int,
    workers: Workers | None = None,
) -> None:
    """Compiles a model with an optimizer each for tables, projections and dense weights.

    Args:
        model: The model.
        config: The training's part of the configuration.
        steps: Steps of the whole training.
        workers: The processes that train together, if the tables are divided over them.
    """
    optimizer = make_optimizer(config, steps)
    if workers is not None and config.shard_tables:
        optimizer = averaged(optimizer, workers)
    model.compile(optimizer=optimizer, steps_per_execution=config.steps_per_execution)
