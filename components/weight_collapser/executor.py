"""Collapses the trained model, compares it on real rows, saves it and reports the savings."""

import itertools
import json

from mlet_tf.components.common import split_files
from mlet_tf.components.types import Artifacts, Properties
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils

from mlet_tf import strict_json
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import load_keras_model
from mlet_tf.features.examples import model_inputs
from mlet_tf.features.records import example_batches
from mlet_tf.features.transform_graph import TransformGraph
from mlet_tf.storage import join
from mlet_tf.training.served_model import make_served_model, write_served_model

REPORT = "collapse_report.json"

_BATCH = 4096
_BATCHES = 8


class Executor(base_executor.BaseExecutor):
    """Executor of `WeightCollapser`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Collapses the model, and quantises it if `table_dtype` says so.

        Args:
            input_dict: `model`, `transform_graph` and `examples`, one artifact each.
            output_dict: `collapsed_model` gets `Format-Keras` and `Format-Serving`, with warm-up requests
                inside; `report` gets `collapse_report.json`.
            exec_properties: `schema` (JSON), `warmup_rows` and `table_dtype`.

        Raises:
            GateError: If the two models do not agree on real rows.
        """
        schema = ClickLogSchema.from_dict(json.loads(exec_properties["schema"]))
        transform = TransformGraph(artifact_utils.get_single_uri(input_dict["transform_graph"]))
        trained = load_keras_model(artifact_utils.get_single_uri(input_dict["model"]))
        files = split_files(input_dict["examples"], "eval")
        batches = list(itertools.islice(example_batches(files, _BATCH), _BATCHES))
        inputs = [model_inputs(batch, schema, transform) for batch in batches]
        served, report = make_served_model(trained, inputs, exec_properties["table_dtype"])
        uri = artifact_utils.get_single_uri(output_dict["collapsed_model"])
        write_served_model(served, schema, transform, uri, files, exec_properties["warmup_rows"])
        uri = artifact_utils.get_single_uri(output_dict["report"])
        strict_json.write(join(uri, REPORT), report, indent=1)
