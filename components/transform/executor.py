"""Vocabularies from counts, on Beam, and the graph that looks them up."""

import dataclasses
import functools
import uuid
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from mlet_tf.components.beam import BeamExecutor, run_tasks
from mlet_tf.components.click_log_example_gen import value_counts
from mlet_tf.components.common import join, remove_folder
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform import impl_helper
from tensorflow_transform.tf_metadata import metadata_io, schema_utils
from tfx import types
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import import_utils, io_utils, json_utils

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.features.counts import Run, merge_counts
from mlet_tf.features.vocabulary import rank, vocabulary_file, write_vocabulary


class Executor(BeamExecutor):
    """Executor of `Transform`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Makes the vocabularies and the transform graph.

        Args:
            input_dict: `examples`: of ClickLogExampleGen, with the counts of their values; `schema`.
            output_dict: `transform_graph`: read by `tft.TFTransformOutput` like any other.
            exec_properties: `preprocessing_fn`: an import path; `custom_config`: JSON with `schema`
                (`ClickLogSchema.to_dict()`), `min_count`, `max_size`, `rare_below` and `max_values_in_memory`.
                The function gets it with one key more, `vocabularies`: of each feature `file`, `size` and
                `rare_start`, see `mlet_tf.features.vocabulary`.

        Raises:
            RuntimeError: The counts do not cover the examples, or Beam lost a vocabulary.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = json_utils.loads(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        graph = artifact_utils.get_single_uri(output_dict[standard_component_specs.TRANSFORM_GRAPH_KEY])
        schema = artifact_utils.get_single_uri(input_dict[standard_component_specs.SCHEMA_KEY])
        folder = join(graph, ".vocabularies")
        runs = [
            run
            for examples in input_dict[standard_component_specs.EXAMPLES_KEY]
            for run in value_counts(examples.uri)
        ]
        features = ClickLogSchema.from_dict(config["schema"]).sparse_features
        tf.io.gfile.makedirs(folder)
        write = functools.partial(write_feature, runs=runs, config=config, folder=folder)
        numbered = list(enumerate(features))
        made = run_tasks(self._make_beam_pipeline, write, numbered, join(folder, "results"))
        config["vocabularies"] = dict(zip(features, made, strict=True))
        function = import_utils.import_class_by_path(
            exec_properties[standard_component_specs.PREPROCESSING_FN_KEY]
        )
        _write_graph(functools.partial(function, custom_config=config), schema, graph)
        remove_folder(folder)


def _write_graph(preprocess: Callable[..., dict[str, tf.Tensor]], schema: str, graph: str) -> None:
    """Writes what `tft.TFTransformOutput` reads.

    TFX's own executor would do the same, but takes the lookups for analyzers and builds the graph nine times.
    """
    proto = io_utils.parse_pbtxt_file(io_utils.get_only_uri_in_dir(schema), schema_pb2.Schema())
    metadata_io.write_metadata(
        tft.DatasetMetadata(proto), join(graph, tft.TFTransformOutput.RAW_METADATA_DIR)
    )
    spec = schema_utils.schema_as_feature_spec(proto).feature_spec
    types_of = {name: tf.SparseTensorSpec([None, None], feature.dtype) for name, feature in spec.items()}
    impl_helper.analyze_in_place(preprocess, False, spec, types_of, graph)


def write_feature(
    numbered: tuple[int, str], runs: list[Run], config: dict[str, Any], folder: str
) -> dict[str, Any]:
    """Writes the vocabulary of one feature.

    Args:
        numbered: The feature's number and name.
        runs: Counts of the values of all features.
        config: `min_count`, `max_size`, `rare_below` and `max_values_in_memory`.
        folder: Where to write.

    Returns:
        `file`, `size` and `rare_start`.
    """
    number, feature = numbered
    aside = join(folder, uuid.uuid4().hex)
    tf.io.gfile.makedirs(aside)
    counts = merge_counts(runs, number, config["max_values_in_memory"], aside)
    ranked = rank(counts, config["min_count"], config["max_size"])
    remove_folder(aside)
    path = join(folder, vocabulary_file(feature))
    with tf.io.gfile.GFile(path, "wb") as file:
        vocabulary = write_vocabulary(ranked, config["rare_below"], file)
    return {"file": path, **dataclasses.asdict(vocabulary)}
