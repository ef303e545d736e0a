"""What the component says about its rows, and counting them again."""

import json
from typing import Any

import tensorflow as tf

from components.click_log_example_gen.config import EVAL, TRAIN
from components.click_log_example_gen.shards import count_records

REPORT_FILE = "ingest_report.json"


def read_ingest_report(uri: str) -> dict[str, Any]:
    """Reads the report from the folder of an Examples artifact; its keys are described in the README."""
    with tf.io.gfile.GFile(f"{uri}/{REPORT_FILE}") as file:
        return json.load(file)


def write_ingest_report(uri: str, report: dict[str, Any]) -> None:
    """Writes the report into the folder of an Examples artifact."""
    with tf.io.gfile.GFile(f"{uri}/{REPORT_FILE}", "w") as file:
        file.write(json.dumps(report, indent=2) + "\n")


def count_rows(uri: str) -> dict[str, int]:
    """Counts the rows of each split of an Examples artifact by reading all of its shards."""
    return {
        split: count_records(sorted(tf.io.gfile.glob(f"{uri}/Split-{split}/data_tfrecord-*.gz")))
        for split in (TRAIN, EVAL)
    }
