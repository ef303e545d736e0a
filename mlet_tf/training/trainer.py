"""The Trainer's `run_fn`: DLRM with MLET embeddings, resumable, deterministic on a CPU.

The trained model is written twice below the Trainer's artifact: `Format-Serving` (SavedModel with
the signatures of `mlet_tf.export`) and `Format-Keras/model.keras`, which the collapse reads.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import tensorflow_transform as tft

from mlet_tf import strict_json
from mlet_tf._mapping import from_mapping
from mlet_tf.components.common import TransformGraph, join, save_model
from mlet_tf.config import (
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    VocabularyConfig,
)
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.distributed import Cluster, Workers, averaged, build_sharded_dlrm, gather_model
from mlet_tf.features.packing import pack_examples, vocabulary_sizes
from mlet_tf.layers import EmbeddingFeature
from mlet_tf.models import DLRM, build_dlrm
from mlet_tf.optimizers import WarmupDecay, split_optimizer
from mlet_tf.optimizers.names import OPTIMIZERS
from mlet_tf.storage import is_remote
from mlet_tf.training.loop import total_steps, train
from mlet_tf.training.processes import train_as_chief

HISTORY = "history.json"


def run_fn(fn_args: Any) -> None:
    """TFX Trainer entry point.

    Where `TF_CONFIG` names several processes, this one trains in a fresh process, together with the others, which
    `mlet-tf worker` starts; see `docs/distributed_training.md`.

    Args:
        fn_args: TFX's `FnArgs`; `custom_config` holds `schema`, `model`, `train` and `vocabulary`, as
            in the configuration.
    """
    if Cluster.from_environment().size > 1:
        train_as_chief(fn_args)
    else:
        fit_and_export(fn_args, Workers(Cluster()))


def fit_and_export(fn_args: Any, workers: Workers) -> None:
    """Trains and, in the chief, exports.

    Args:
        fn_args: See `run_fn`.
        workers: The processes that train together.
    """
    config = fn_args.custom_config
    schema = ClickLogSchema.from_dict(config["schema"])
    train_config = from_mapping(TrainConfig, config["train"], "train")
    model_config = from_mapping(ModelConfig, config["model"], "model")
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    transform = TransformGraph(transform_output)
    work = work_folder(fn_args, workers)
    packed = local_folder(work) / "packed"
    train_rows = pack_examples(fn_args.train_files, schema, transform, packed / "train")
    eval_rows = pack_examples(fn_args.eval_files, schema, transform, packed / "eval")
    vocabulary = from_mapping(VocabularyConfig, config["vocabulary"], "vocabulary")
    rows = feature_rows(transform_output, schema, vocabulary)
    keras.utils.set_random_seed(train_config.seed)
    sharded = train_config.shard_tables and workers.size > 1
    with distribution_strategy(workers, sharded).scope():
        model = build_model(model_config, rows, train_rows.dense, workers if sharded else None)
        compile_model(model, train_config, total_steps(train_config, train_rows.rows), workers)
        board = join(fn_args.model_run_dir, "tensorboard")
        progress = train(model, train_rows, eval_rows, train_config, work, board, workers)
    if sharded:
        whole = build_model(model_config, rows, train_rows.dense) if workers.is_chief else None
        model = gather_model(model, whole)
    if workers.is_chief:
        uri = os.path.dirname(fn_args.serving_model_dir)  # noqa: PTH120 (may be remote)
        save_model(model, schema, transform, uri)
        with tf.io.gfile.GFile(join(uri, HISTORY), "w") as file:
            file.write(strict_json.dumps(progress.history))
    workers.wait()  # A process that ends earlier would look lost.
    if is_remote(work):  # Else they are removed with the work folder.
        shutil.rmtree(packed.parent, ignore_errors=True)


def work_folder(fn_args: Any, workers: Workers) -> str:
    """A folder that the same training finds again after a kill, and no other one does."""
    inputs = [fn_args.custom_config, fn_args.transform_output, fn_args.train_files, fn_args.eval_files]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = join(fn_args.custom_config["work"], digest[:16])
    return join(folder, f"worker-{workers.rank}-of-{workers.size}") if workers.size > 1 else folder


def local_folder(folder: str) -> Path:
    """The folder itself, or one on a local disk where it is remote: rows are read from a local disk."""
    if not is_remote(folder):
        return Path(folder)
    return Path(tempfile.gettempdir()) / f"mlet-tf-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"


def distribution_strategy(workers: Workers, sharded: bool) -> tf.distribute.Strategy:
    """One device, all GPUs of this machine, or those of several with the same model everywhere."""
    if workers.size > 1 and not sharded:
        return workers.strategy
    if workers.size == 1 and len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def feature_rows(
    transform_output: tft.TFTransformOutput, schema: ClickLogSchema, vocabulary: VocabularyConfig
) -> dict[str, int]:
    """Rows V of each feature's table: its vocabulary, the OOV buckets and one for missing."""
    sizes = vocabulary_sizes(transform_output, schema)
    return {name: size + vocabulary.num_oov_buckets + 1 for name, size in sizes.items()}


def build_model(
    config: ModelConfig, rows: Mapping[str, int], num_dense: int, shard_over: Workers | None = None
) -> DLRM:
    """The DLRM of a configuration.

    Args:
        config: The model's part of the configuration.
        rows: Table rows V by feature, in the order of `sparse_features`.
        num_dense: D, width of `dense_features`.
        shard_over: Processes that the tables are divided over.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    mixed = config.mixed_precision == "on" or (config.mixed_precision == "auto" and on_gpu)
    features = [EmbeddingFeature(name, size) for name, size in rows.items()]
    options = {
        "output_dim": config.output_dim,
        "hidden_dim": config.hidden_dim,
        "direct_threshold": config.direct_threshold,
        "initialization": config.initialization,
        "dtype": "mixed_bfloat16" if mixed else "float32",
    }
    mlps = {"bottom_units": config.bottom_units, "top_units": config.top_units}
    if shard_over is None:
        return build_dlrm(num_dense, features, **options, **mlps)
    return build_sharded_dlrm(num_dense, features, shard_over, **options, **mlps)


def compile_model(
    model: keras.Model, config: TrainConfig, steps: int, workers: Workers | None = None
) -> None:
    """Compiles with an optimizer of their own for tables, projections and dense weights.

    Args:
        model: The model.
        config: The training's part of the configuration.
        steps: Steps of the whole training.
        workers: The processes that train together, where their tables are divided over them.
    """
    groups = {
        name: _optimizer(getattr(config, name), config.schedule, steps)
        for name in ("tables", "projections", "dense")
    }
    optimizer = split_optimizer(**groups)
    if workers is not None and config.shard_tables:
        optimizer = averaged(optimizer, workers)
    model.compile(optimizer=optimizer, steps_per_execution=config.steps_per_execution)


def _optimizer(config: OptimizerConfig, schedule: ScheduleConfig, steps: int) -> keras.optimizers.Optimizer:
    rate: Any = config.learning_rate
    if schedule.decay != "none" or schedule.warmup_steps:
        rate = WarmupDecay(rate, schedule.warmup_steps, schedule.decay, steps)
    start = config.initial_accumulator
    more = {} if start is None else {"initial_accumulator_value": start}
    return OPTIMIZERS[config.name](learning_rate=rate, **more)
