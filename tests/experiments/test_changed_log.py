"""Rows that a sweep prepared are those of the log as it was."""

import json
import os

from mlet_tf.config import from_mapping
from mlet_tf.config.sweep import SweepConfig
from mlet_tf.experiments.preparation import digest_of


def test_a_changed_log_of_the_same_size_is_another_log(tmp_path):
    """It was known by its name and size alone: the old rows were trained on."""
    log, schema = tmp_path / "log.tsv", tmp_path / "shop.yaml"
    schema.write_text(json.dumps({"name": "shop", "label": "y", "categoricals": ["c"]}))
    log.write_text("1\ta\n0\tb\n")
    data = {"train": str(log), "schema": str(schema)}
    config = from_mapping(SweepConfig, {"name": "s", "output": "s", "data": data, "sweep": {"grid": [{}]}})
    first = digest_of(config)
    assert digest_of(config) == first
    log.write_text("0\ta\n1\tb\n")
    os.utime(log, ns=(1, 1))  # Whatever the clock of the disk resolves.
    assert digest_of(config) != first
