"""The check itself, run as `python -m components.serving_validator.check` with a JSON task on standard input."""

import json
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import SIGNATURES, raw_feature_spec

BATCH_SIZES = (1, 2, 64)


def check(model: str, files: list[str], schema: ClickLogSchema) -> int:
    """Answers real rows through every signature of a SavedModel.

    Args:
        model: Folder of the SavedModel.
        files: TFRecord files of raw tf.Examples.
        schema: Schema of the log.

    Returns:
        Rows answered.

    Raises:
        ValueError: If a signature is missing, an answer is no probability or two signatures disagree.
    """
    signatures = tf.saved_model.load(model).signatures
    missing = set(SIGNATURES) - set(signatures)
    if missing:
        raise ValueError(f"{model} has no signature {', '.join(sorted(missing))}")
    compression = "GZIP" if files[0].endswith(".gz") else ""
    rows = 0
    for size in BATCH_SIZES:
        batch = next(iter(tf.data.TFRecordDataset(files, compression).batch(size)))
        answers = {
            "serving_default": signatures["serving_default"](examples=batch)["ctr"],
            "predict_raw": signatures["predict_raw"](**_raw_columns(batch, schema))["ctr"],
            "classify": signatures["classify"](inputs=batch)["scores"][:, 1],
            "regress": signatures["regress"](inputs=batch)["outputs"],
        }
        _compare({name: answer.numpy() for name, answer in answers.items()}, len(batch))
        rows += len(batch)
    return rows


def _raw_columns(serialized: tf.Tensor, schema: ClickLogSchema) -> dict[str, tf.Tensor]:
    """The columns of tf.Examples as texts, missing ones empty."""
    columns = {}
    for name, sparse in tf.io.parse_example(serialized, raw_feature_spec(schema)).items():
        values = tf.strings.as_string(sparse.values) if sparse.dtype == tf.int64 else sparse.values
        columns[name] = tf.scatter_nd(sparse.indices[:, :1], values, tf.shape(serialized, out_type=tf.int64))
    return columns


def _compare(answers: dict[str, np.ndarray], rows: int) -> None:
    expected = answers["serving_default"]
    for name, answer in answers.items():
        if answer.shape != (rows,) or not np.all((answer >= 0) & (answer <= 1)):
            raise ValueError(
                f"signature {name!r} gave {answer!r} for {rows} rows, expected as many probabilities"
            )
        if not np.allclose(answer, expected, atol=1e-6):
            raise ValueError(
                f"signatures {name!r} and 'serving_default' give different CTRs for the same rows"
            )


def main() -> None:
    """Reads the task, checks and says so."""
    task: dict[str, Any] = json.load(sys.stdin)
    rows = check(task["model"], task["files"], ClickLogSchema.from_dict(task["schema"]))
    print(f"{rows} rows answered through {', '.join(SIGNATURES)}")


if __name__ == "__main__":
    main()
