"""The report of an ingestion, and counting its rows and values again."""

from typing import Any

import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.features.counts import Run, open_run
from mlet_tf.features.ingestion.config import EVAL, TRAIN
from mlet_tf.features.records import count_records

REPORT_FILE = "ingest_report.json"
COUNTS_FOLDER = "counts"


def read_ingest_report(uri: str) -> dict[str, Any]:
    """Reads the report from the folder of an Examples artifact; its keys are described in the README."""
    return strict_json.read(f"{uri}/{REPORT_FILE}")


def write_ingest_report(uri: str, report: dict[str, Any]) -> None:
    """Writes the report into the folder of an Examples artifact."""
    strict_json.write(f"{uri}/{REPORT_FILE}", report, indent=2)


def count_rows(uri: str) -> dict[str, int]:
    """Counts the rows of each split of an Examples artifact by reading all of its shards."""
    return {
        split: sum(map(count_records, tf.io.gfile.glob(f"{uri}/Split-{split}/data_tfrecord-*.gz")))
        for split in (TRAIN, EVAL)
    }


def value_counts(uri: str) -> list[Run]:
    """Opens the counts of the values in `train` of an Examples artifact.

    Raises:
        RuntimeError: They do not cover the rows of `train`.
    """
    runs = [open_run(path) for path in sorted(tf.io.gfile.glob(f"{uri}/{COUNTS_FOLDER}/*.arrow"))]
    counted, rows = sum(run.rows for run in runs), read_ingest_report(uri)["rows"][TRAIN]
    if counted != rows:
        raise RuntimeError(f"{uri}: the values of {counted} rows were counted, split 'train' has {rows}")
    return runs
