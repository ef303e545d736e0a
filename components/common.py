"""What several components share: where a Model artifact keeps its parts, reading examples, the transform graph."""

import os
from collections.abc import Sequence

import keras
import tensorflow as tf
import tensorflow_transform as tft
from tfx import types
from tfx.types import artifact_utils

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.export import Transform, export_model

KERAS_MODEL = "Format-Keras/model.keras"
SERVING_MODEL = "Format-Serving"


def save_model(model: keras.Model, schema: ClickLogSchema, transform: Transform, uri: str) -> None:
    """Writes the Keras file and the SavedModel below the URI of a Model artifact."""
    path = join(uri, KERAS_MODEL)
    tf.io.gfile.makedirs(os.path.dirname(path))  # noqa: PTH120 (may be remote)
    model.save(path)
    export_model(model, schema, transform, join(uri, SERVING_MODEL))


def load_keras_model(uri: str) -> keras.Model:
    """The Keras model of a Model artifact."""
    return keras.models.load_model(join(uri, KERAS_MODEL))


def transform_layer(transform_output: tft.TFTransformOutput) -> Transform:
    """The transform graph as a trackable callable: raw sparse columns to the outputs of `preprocessing_fn`.

    AutoGraph would convert the Keras 2 inside of it at a cost of half a minute, so it is kept away.
    """
    layer = transform_output.transform_features_layer()
    layer.call = tf.autograph.experimental.do_not_convert(layer.call)
    return layer


def example_files(patterns: Sequence[str]) -> list[str]:
    """Files of tf.Example shards, sorted."""
    files = sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))
    if not files:
        raise InputError(f"no examples match {', '.join(patterns)}")
    return files


def split_files(examples: Sequence[types.Artifact], split: str) -> list[str]:
    """Files of one split of Examples artifacts."""
    return example_files([join(uri, "*") for uri in artifact_utils.get_split_uris(list(examples), split)])


def example_dataset(files: Sequence[str], batch_size: int) -> tf.data.Dataset:
    """Batches of serialised tf.Examples, in a fixed order; the last one is as short as it is."""
    compression = "GZIP" if files[0].endswith(".gz") else ""
    return tf.data.TFRecordDataset(list(files), compression_type=compression).batch(batch_size)


def join(*parts: str) -> str:
    """Joins the parts of a path or URI."""
    return os.path.join(*parts)  # noqa: PTH118 (pathlib would break URIs)
