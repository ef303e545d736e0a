"""From the trained model to the one that is served: collapsed, checked on real rows, quantised if asked, written."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mlet_tf.collapse import collapse_model, collapse_report
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import GateError
from mlet_tf.export import SERVING_MODEL, save_model
from mlet_tf.features.examples import Transform
from mlet_tf.features.records import example_batches
from mlet_tf.quantize import quantization_report, quantize_model
from mlet_tf.serving.warmup import write_warmup
from mlet_tf.storage import join

# Largest difference of a CTR that another order of float32 sums explains.
TOLERANCE = 1e-5


def make_served_model(
    trained: keras.Model, batches: Sequence[Mapping[str, tf.Tensor]], table_dtype: str = "float32"
) -> tuple[keras.Model, dict[str, Any]]:
    """Collapses a trained model, and quantises it if `table_dtype` is narrow.

    Args:
        trained: The trained model.
        batches: Inputs, of real rows, on which both models must agree.
        table_dtype: `float32`, or the dtype to quantise tables to, see `mlet_tf.quantize_model`.

    Returns:
        The model to serve, and a report: `tables` (see `mlet_tf.collapse_report`, with the effect of quantisation),
        `table_dtype`, `table_bytes`, `optimizer_bytes`, `max_abs_difference` and `compared_rows`.

    Raises:
        GateError: The collapsed model does not agree with the trained one.
        InputError: A weight is not finite.
    """
    collapsed = collapse_model(trained, inputs=batches[0])
    difference = max(_difference(trained, collapsed, batch) for batch in batches)
    logging.info("Collapsed and trained model differ by at most %.3g on real rows.", difference)
    if not difference <= TOLERANCE:
        raise GateError(
            f"the collapsed model differs from the trained one by {difference:.3g} in CTR on real rows, "
            f"expected at most {TOLERANCE:g}"
        )
    served, quantized_ctr = collapsed, 0.0
    if table_dtype != "float32":
        served = quantize_model(collapsed, table_dtype)
        quantized_ctr = max(_difference(collapsed, served, batch) for batch in batches)
        logging.info("With %s tables it differs by at most %.3g.", table_dtype, quantized_ctr)
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
        "compared_rows": sum(len(keras.tree.flatten(batch)[0]) for batch in batches),
    }
    return served, report


def write_served_model(
    model: keras.Model,
    schema: ClickLogSchema,
    transform: Transform,
    folder: str,
    examples: Sequence[str],
    warmup_rows: int,
) -> None:
    """Writes a model in both of its forms, with warm-up requests inside.

    Args:
        model: The model, see `mlet_tf.export.save_model`.
        schema: Schema of the log.
        transform: The preprocessing graph.
        folder: Folder to write, the URI of a Model artifact.
        examples: Files of raw tf.Examples; the first rows are the warm-up requests.
        warmup_rows: Number of requests; 0 writes no file of them.
    """
    save_model(model, schema, transform, folder)
    if warmup_rows:
        write_warmup(join(folder, SERVING_MODEL), next(example_batches(examples, warmup_rows)))


def _table_records(trained: keras.Model, collapsed: keras.Model, served: keras.Model) -> list[dict[str, Any]]:
    """The report of the collapse, extended by the served form of each table; `served` may be `collapsed`."""
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


def _difference(trained: keras.Model, collapsed: keras.Model, inputs: Mapping[str, tf.Tensor]) -> float:
    return float(
        np.max(np.abs(trained(inputs, training=False).numpy() - collapsed(inputs, training=False).numpy()))
    )
