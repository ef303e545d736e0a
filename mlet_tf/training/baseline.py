"""What a compressed model is measured against: a direct table of as many bytes, trained with the same effort."""

import dataclasses
import os
from collections.abc import Mapping
from typing import TypedDict

from absl import logging

from mlet_tf import strict_json
from mlet_tf.config import VocabularyConfig, from_mapping
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.distributed import Cluster, Workers
from mlet_tf.features.transform_graph import table_rows
from mlet_tf.storage import join
from mlet_tf.training.processes import TrainingArguments
from mlet_tf.training.trainer import fit_and_export

BASELINE_FILE = "baseline.json"

_VALUE_BYTES = 4


class BaselineSize(TypedDict):
    """Size of the baseline's tables.

    Attributes:
        output_dim: Columns of each table.
        bytes: Bytes of all tables.
        allowed_bytes: Bytes of the compressed model's rows and addresses.
    """

    output_dim: int
    bytes: int
    allowed_bytes: int


def baseline_size(rows: Mapping[str, int], allowed_bytes: int) -> BaselineSize:
    """The direct float32 tables with as many columns as fit into a number of bytes.

    Args:
        rows: Table rows V by feature.
        allowed_bytes: Bytes of all tables together.

    Returns:
        Their size; it is above `allowed_bytes` where even one column does not fit.
    """
    column = _VALUE_BYTES * sum(rows.values())
    columns = max(1, allowed_bytes // column)
    return {"output_dim": columns, "bytes": columns * column, "allowed_bytes": allowed_bytes}


def fit_baseline(arguments: TrainingArguments, allowed_bytes: int) -> None:
    """Trains the baseline as the Trainer trains its model, in this process alone, and exports it.

    It has the same groups `train` and `model` but for direct tables of fewer columns, and resumes as the Trainer does.
    A baseline that learns nothing is a result, not an error. `BASELINE_FILE`, a `BaselineSize`, goes next to the
    model.

    Args:
        arguments: Those of the Trainer; the model is exported to their `serving_model_dir`.
        allowed_bytes: Bytes of rows and addresses of the compressed model.
    """
    config = arguments.custom_config
    schema = ClickLogSchema.from_dict(config["schema"])
    vocabulary = from_mapping(VocabularyConfig, config["vocabulary"], "vocabulary")
    rows = table_rows(arguments.transform_output, schema, vocabulary.num_oov_buckets)
    size = baseline_size(rows, allowed_bytes)
    logging.info("Baseline: direct tables of d=%d, %d bytes; the compressed model has %d.", *size.values())
    model = {**config["model"], "output_dim": size["output_dim"], "hidden_dim": None}
    direct = dataclasses.replace(arguments, custom_config={**config, "model": model})
    fit_and_export(direct, Workers(Cluster()), must_learn=False)
    folder = os.path.dirname(arguments.serving_model_dir)  # noqa: PTH120 (may be remote)
    strict_json.write(join(folder, BASELINE_FILE), size, indent=1)
