"""Makes vocabularies from counts, on Beam, and the graph that looks values up in them."""

import functools

import tensorflow as tf
from mlet_tf.components.beam import BeamExecutor, run_tasks
from mlet_tf.components.common import read_schema
from mlet_tf.components.types import Artifacts, Properties
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import import_utils, json_utils

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.features.ingestion import value_counts
from mlet_tf.features.transform_graph import write_transform_graph
from mlet_tf.features.vocabulary import make_vocabulary
from mlet_tf.storage import join, remove

_SETTINGS = ("min_count", "max_size", "rare_below", "max_values_in_memory")


class Executor(BeamExecutor):
    """Executor of `Transform`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Makes the vocabularies and the transform graph.

        Args:
            input_dict: `examples`: of ClickLogExampleGen, with the counts of their values; `schema`.
            output_dict: `transform_graph`: read by `tft.TFTransformOutput` like any other.
            exec_properties: `preprocessing_fn`: an import path; `custom_config`: JSON with `schema`
                (`ClickLogSchema.to_dict()`), `min_count`, `max_size`, `rare_below` and `max_values_in_memory`.
                The function gets it with one more key, `vocabularies`: `file`, `size` and `rare_start` of each
                feature, see `mlet_tf.features.vocabulary`.

        Raises:
            RuntimeError: The counts do not cover the examples, or Beam lost a vocabulary.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = json_utils.loads(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        graph = artifact_utils.get_single_uri(output_dict[standard_component_specs.TRANSFORM_GRAPH_KEY])
        folder = join(graph, ".vocabularies")
        runs = [
            run
            for examples in input_dict[standard_component_specs.EXAMPLES_KEY]
            for run in value_counts(examples.uri)
        ]
        features = ClickLogSchema.from_dict(config["schema"]).sparse_features
        tf.io.gfile.makedirs(folder)
        settings = {name: config[name] for name in _SETTINGS}
        write = functools.partial(make_vocabulary, runs=runs, folder=folder, **settings)
        numbered = list(enumerate(features))
        made = run_tasks(self._make_beam_pipeline, write, numbered, join(folder, "results"))
        config["vocabularies"] = dict(zip(features, made, strict=True))
        function = import_utils.import_class_by_path(
            exec_properties[standard_component_specs.PREPROCESSING_FN_KEY]
        )
        write_transform_graph(
            functools.partial(function, custom_config=config), read_schema(input_dict), graph
        )
        remove(folder)
