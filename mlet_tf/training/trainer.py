"""The Trainer's `run_fn`: DLRM with MLET embeddings, resumable, deterministic on a CPU.

The trained model is written twice below the Trainer's artifact: `Format-Serving` (SavedModel with
the signatures of `mlet_tf.export`) and `Format-Keras/model.keras`, which the collapse reads.
"""

import functools
import hashlib
import os
import shutil
from typing import Any

import keras
import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.config import ModelConfig, TrainConfig, VocabularyConfig, from_mapping
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.distributed import Cluster, RowShardedEmbeddings, Workers, gather_model
from mlet_tf.export import save_model
from mlet_tf.features.packing import pack_examples, packed_folder
from mlet_tf.features.transform_graph import TransformGraph, table_rows
from mlet_tf.layers import EmbeddingCollection
from mlet_tf.storage import is_remote, join
from mlet_tf.training.build import build_model, compile_model
from mlet_tf.training.loop import total_steps, train
from mlet_tf.training.processes import TrainingArguments, train_as_chief

HISTORY = "history.json"


def run_fn(fn_args: Any) -> None:
    """TFX Trainer entry point.

    If `TF_CONFIG` names several processes, a fresh process trains together with those that `mlet-tf worker` starts;
    see `docs/distributed_training.md`.

    Args:
        fn_args: TFX's `FnArgs`; `custom_config` holds `schema`, `model`, `train` and `vocabulary`, as
            in the configuration.
    """
    arguments = TrainingArguments.from_fn_args(fn_args)
    if Cluster.from_environment().size > 1:
        train_as_chief(arguments)
    else:
        fit_and_export(arguments, Workers(Cluster()))


def fit_and_export(arguments: TrainingArguments, workers: Workers, must_learn: bool = True) -> None:
    """Trains and, in the chief, exports.

    Args:
        arguments: What to train on, and how.
        workers: The processes that train together.
        must_learn: See `mlet_tf.training.loop.train`.
    """
    config = arguments.custom_config
    schema = ClickLogSchema.from_dict(config["schema"])
    train_config = from_mapping(TrainConfig, config["train"], "train")
    model_config = from_mapping(ModelConfig, config["model"], "model")
    vocabulary = from_mapping(VocabularyConfig, config["vocabulary"], "vocabulary")
    transform = TransformGraph(arguments.transform_output)
    work = work_folder(arguments, workers)
    packed = packed_folder(_own_folder(config["work"], workers), arguments.transform_output)
    train_rows = pack_examples(arguments.train_files, schema, transform, packed / "train")
    eval_rows = pack_examples(arguments.eval_files, schema, transform, packed / "eval")
    rows = table_rows(arguments.transform_output, schema, vocabulary.num_oov_buckets)
    train_config = train_config.for_rows(train_rows.rows, workers.size)
    keras.utils.set_random_seed(train_config.seed)
    sharded = train_config.shard_tables and workers.size > 1
    embeddings = functools.partial(RowShardedEmbeddings, workers=workers) if sharded else EmbeddingCollection
    with distribution_strategy(workers, sharded).scope():
        model = build_model(model_config, rows, train_rows.dense, embeddings)
        compile_model(model, train_config, total_steps(train_config, train_rows.rows), workers)
        board = join(arguments.model_run_dir, "tensorboard")
        progress = train(model, train_rows, eval_rows, train_config, work, board, workers, must_learn)
    whole = gather_model(model) if sharded else model
    if workers.is_chief:
        uri = os.path.dirname(arguments.serving_model_dir)  # noqa: PTH120 (may be remote)
        save_model(whole, schema, transform, uri)
        strict_json.write(join(uri, HISTORY), progress.history)
    workers.wait()  # A process that ended earlier would count as lost.
    if is_remote(work):  # Otherwise they are removed with the work folder.
        shutil.rmtree(packed, ignore_errors=True)


def work_folder(arguments: TrainingArguments, workers: Workers) -> str:
    """A folder that the same training finds again after an interruption, and no other training does."""
    digest = hashlib.sha256(arguments.inputs().encode()).hexdigest()
    return _own_folder(join(arguments.custom_config["work"], digest[:16]), workers)


def _own_folder(folder: str, workers: Workers) -> str:
    """This process's part of a folder: all of it where it trains alone."""
    return join(folder, f"worker-{workers.rank}-of-{workers.size}") if workers.size > 1 else folder


def distribution_strategy(workers: Workers, sharded: bool) -> tf.distribute.Strategy:
    """The strategy for one device, all GPUs of this machine, or several processes with a copy of the model each."""
    if workers.size > 1 and not sharded:
        return workers.strategy
    if workers.size == 1 and len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
