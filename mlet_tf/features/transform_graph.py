"""The transform graph: `preprocessing_fn` as a SavedModel, written once and called wherever rows are needed."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform import impl_helper
from tensorflow_transform.tf_metadata import metadata_io, schema_utils

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.features.vocabulary import vocabulary_file
from mlet_tf.storage import join


def write_transform_graph(
    preprocess: Callable[[Mapping[str, tf.SparseTensor]], dict[str, tf.Tensor]],
    schema: schema_pb2.Schema,
    folder: str | Path,
) -> None:
    """Writes what `TransformGraph` and `tft.TFTransformOutput` read.

    TFX's own executor does the same, but mistakes lookups for analyzers and builds the graph nine times.

    Args:
        preprocess: From raw sparse columns to outputs; it may not use analyzers of tensorflow-transform.
        schema: Schema of the raw columns.
        folder: Folder to write.
    """
    metadata = join(str(folder), tft.TFTransformOutput.RAW_METADATA_DIR)
    metadata_io.write_metadata(tft.DatasetMetadata(schema), metadata)
    spec = schema_utils.schema_as_feature_spec(schema).feature_spec
    types = {name: tf.SparseTensorSpec([None, None], feature.dtype) for name, feature in spec.items()}
    impl_helper.analyze_in_place(preprocess, False, spec, types, str(folder))


class TransformGraph(tf.Module):
    """A transform graph as a callable: raw sparse columns to the outputs of `preprocessing_fn`.

    It is traced once for each set of columns (with and without the label), for any number of signatures and datasets.
    AutoGraph is off, because it would spend half a minute on converting the Keras 2 inside.

    Args:
        folder: Folder of the graph, the URI of a TransformGraph artifact.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(name="transform")
        self._layer = tft.TFTransformOutput(str(folder)).transform_features_layer()
        # A cache, because saving would track a dict as part of the model.
        self._function = functools.cache(self._trace)

    def __call__(self, columns: Mapping[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
        """Preprocesses sparse columns `[B, 1]`."""
        names_and_types = sorted(
            ((name, column.dtype) for name, column in columns.items()), key=lambda x: x[0]
        )
        return self._function(tuple(names_and_types))(dict(columns))

    def _trace(
        self, columns: tuple[tuple[str, tf.DType], ...]
    ) -> Callable[[dict[str, Any]], dict[str, tf.Tensor]]:
        spec = {name: tf.SparseTensorSpec([None, None], dtype) for name, dtype in columns}
        return tf.function(self._layer.call, input_signature=[spec], autograph=False)


def table_rows(folder: str | Path, schema: ClickLogSchema, num_oov_buckets: int) -> dict[str, int]:
    """Rows V of each feature's table: its vocabulary, the OOV buckets and one for missing.

    Args:
        folder: Folder of the transform graph.
        schema: Schema of the log.
        num_oov_buckets: OOV buckets of each feature.

    Returns:
        V by feature, in the order of `ClickLogSchema.sparse_features`.
    """
    rows = {}
    for name, path in _vocabularies(folder, schema).items():
        with tf.io.gfile.GFile(path, "rb") as file:
            rows[name] = sum(1 for _ in file) + num_oov_buckets + 1
    return rows


def vocabulary_bytes(folder: str | Path, schema: ClickLogSchema) -> int:
    """Bytes of the vocabulary files, which every model that is served with this graph has among its assets.

    Args:
        folder: Folder of the transform graph.
        schema: Schema of the log.
    """
    return sum(tf.io.gfile.stat(path).length for path in _vocabularies(folder, schema).values())


def _vocabularies(folder: str | Path, schema: ClickLogSchema) -> dict[str, str]:
    """Paths of the vocabulary files by feature."""
    assets = join(tft.TFTransformOutput(str(folder)).transform_savedmodel_dir, "assets")
    return {name: join(assets, vocabulary_file(name)) for name in schema.sparse_features}
