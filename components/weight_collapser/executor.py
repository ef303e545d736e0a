"""Collapses the trained model, checks it on real rows, quantises it if asked and reports what was saved."""

import itertools
import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from absl import logging
from mlet_tf.components.common import (
    SERVING_MODEL,
    TransformGraph,
    join,
    load_keras_model,
    save_model,
    split_files,
)
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils

from mlet_tf import strict_json
from mlet_tf.collapse import collapse_model, collapse_report
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import GateError
from mlet_tf.export import MODEL_INPUTS, raw_feature_spec
from mlet_tf.features.records import example_batches
from mlet_tf.quantize import quantization_report, quantize_model
from mlet_tf.serving import write_warmup

REPORT = "collapse_report.json"

# Largest difference of a CTR that float32 sums in another order explain.
TOLERANCE = 1e-5

_BATCH = 4096
_BATCHES = 8


class Executor(base_executor.BaseExecutor):
    """Executor of `WeightCollapser`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Collapses, and quantises.

        Args:
            input_dict: `model`, `transform_graph` and `examples`, one artifact each.
            output_dict: `collapsed_model` gets `Format-Keras` and `Format-Serving`, with warm-up requests
                inside; `report` gets `collapse_report.json`.
            exec_properties: `schema` (JSON), `warmup_rows` and `table_dtype`.

        Raises:
            GateError: If the two models do not agree on real rows.
        """
        schema = ClickLogSchema.from_dict(json.loads(exec_properties["schema"]))
        transform = TransformGraph(
            tft.TFTransformOutput(artifact_utils.get_single_uri(input_dict["transform_graph"]))
        )
        trained = load_keras_model(artifact_utils.get_single_uri(input_dict["model"]))
        files = split_files(input_dict["examples"], "eval")
        batches = list(itertools.islice(example_batches(files, _BATCH), _BATCHES))
        inputs = [_model_inputs(batch, schema, transform) for batch in batches]
        collapsed = collapse_model(trained, inputs=inputs[0])
        difference = max(_difference(trained, collapsed, batch) for batch in inputs)
        logging.info("Collapsed and trained model differ by at most %.3g on real rows.", difference)
        if not difference <= TOLERANCE:
            raise GateError(
                f"the collapsed model differs from the trained one by {difference:.3g} in CTR on real rows, "
                f"expected at most {TOLERANCE:g}"
            )
        served, quantized_ctr = collapsed, 0.0
        if (table_dtype := exec_properties["table_dtype"]) != "float32":
            served = quantize_model(collapsed, table_dtype)
            quantized_ctr = max(_difference(collapsed, served, batch) for batch in inputs)
            logging.info("With %s tables it differs by at most %.3g.", table_dtype, quantized_ctr)
        uri = artifact_utils.get_single_uri(output_dict["collapsed_model"])
        save_model(served, schema, transform, uri)
        write_warmup(join(uri, SERVING_MODEL), itertools.islice(batches[0], exec_properties["warmup_rows"]))
        tables = _table_records(trained, collapsed, served)
        report = {
            "tables": tables,
            "table_dtype": table_dtype,
            "table_bytes": {
                "before": sum(table["bytes_before"] for table in tables),
                "collapsed": sum(table["bytes_collapsed"] for table in tables),
                "after": sum(table["bytes_after"] for table in tables),
            },
            "optimizer_bytes": sum(table["optimizer_bytes"] for table in tables),
            "max_abs_difference": {
                "effective_rows": max(table["max_abs_difference"] for table in tables),
                "ctr": difference,
                "quantized_rows": max(table["max_abs_quantization"] for table in tables),
                "quantized_ctr": quantized_ctr,
            },
            "compared_rows": sum(len(batch) for batch in batches),
        }
        with tf.io.gfile.GFile(
            join(artifact_utils.get_single_uri(output_dict["report"]), REPORT), "w"
        ) as file:
            file.write(strict_json.dumps(report, indent=1))


def _model_inputs(serialized: list[bytes], schema: ClickLogSchema, transform: Any) -> dict[str, tf.Tensor]:
    columns = tf.io.parse_example(serialized, raw_feature_spec(schema))
    outputs = transform(columns)
    return {name: outputs[name] for name in MODEL_INPUTS}


def _table_records(trained: keras.Model, collapsed: keras.Model, served: keras.Model) -> list[dict[str, Any]]:
    """The report of the collapse, and what became of each table afterwards; `served` may be `collapsed`."""
    quantized = {}
    if served is not collapsed:
        quantized = {record["name"]: record for record in quantization_report(collapsed, served)}
    records = []
    for table in collapse_report(trained):
        after = quantized.get(table["name"], {"bytes_after": table["bytes_after"], "max_abs_difference": 0.0})
        records.append(
            {
                **table,
                "bytes_collapsed": table["bytes_after"],
                "bytes_after": after["bytes_after"],
                "max_abs_quantization": after["max_abs_difference"],
            }
        )
    return records


def _difference(trained: Any, collapsed: Any, inputs: dict[str, tf.Tensor]) -> float:
    return float(
        np.max(np.abs(trained(inputs, training=False).numpy() - collapsed(inputs, training=False).numpy()))
    )
