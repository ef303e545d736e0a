"""What several components share: where a Model artifact keeps its parts, reading examples, the transform graph."""

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
    # Keras finds only the classes that are imported, and where each component has a process of its own nothing
    # else has done so.
    importlib.import_module("mlet_tf.models")
    return keras.models.load_model(join(uri, KERAS_MODEL))


class TransformGraph(tf.Module):
    """The transform graph as a callable: raw sparse columns to the outputs of `preprocessing_fn`.

    It is traced once for each set of columns (with and without the label), however many signatures and
    datasets call it. AutoGraph would convert the Keras 2 inside of it at a cost of half a minute, so
    that is kept away.

    Args:
        transform_output: The Transform component's output.
    """

    def __init__(self, transform_output: tft.TFTransformOutput) -> None:
        """See the class."""
        super().__init__(name="transform")
        self._layer = transform_output.transform_features_layer()
        # Behind a cache rather than in a dict, which saving would take for a part of the model.
        self._function = functools.cache(self._trace)

    def __call__(self, columns: Mapping[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
        """Preprocesses sparse columns `[B, 1]`."""
        return self._function(
            tuple(
                sorted(((name, column.dtype) for name, column in columns.items()), key=lambda item: item[0])
            )
        )(dict(columns))

    def _trace(
        self, columns: tuple[tuple[str, tf.DType], ...]
    ) -> Callable[[dict[str, Any]], dict[str, tf.Tensor]]:
        spec = {name: tf.SparseTensorSpec([None, None], dtype) for name, dtype in columns}
        return tf.function(self._layer.call, input_signature=[spec], autograph=False)


def example_files(patterns: Sequence[str]) -> list[str]:
    """Files of tf.Example shards, sorted."""
    files = sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))
    if not files:
        raise InputError(f"no examples match {', '.join(patterns)}")
    return files


def split_files(examples: Sequence[types.Artifact], split: str) -> list[str]:
    """Files of one split of Examples artifacts."""
    return example_files([join(uri, "*") for uri in artifact_utils.get_split_uris(list(examples), split)])


@contextlib.contextmanager
def writing(
    folder: str | os.PathLike[str],
    errors: type[Exception] | tuple[type[Exception], ...] = (OSError, tf.errors.OpError),
) -> Iterator[None]:
    """Turns what goes wrong while files are written, such as a full disk, into one message.

    Args:
        folder: The folder that the message names.
        errors: What is taken for a failure to write.

    Raises:
        InputError: The files cannot be written.
    """
    try:
        yield
    except errors as error:
        raise InputError(f"{folder} cannot be written: {getattr(error, 'message', error)}") from error


def remove_folder(folder: str) -> None:
    """Removes a folder; on an object store it is gone already once the last file has been moved away."""
    if tf.io.gfile.isdir(folder):
        tf.io.gfile.rmtree(folder)


def join(*parts: str) -> str:
    """Joins the parts of a path or URI."""
    return os.path.join(*parts)  # noqa: PTH118 (pathlib would break URIs)
