"""Truncating the tables of a finished run."""

import json
import logging

import numpy as np
import tensorflow as tf
from mlet_tf.pipeline.cli._logging import quiet

from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.reading import read_log


def test_shrink_writes_the_smallest_model_that_passes(finished_run, shrunk):
    output, out = shrunk
    report = json.loads((output / "frontier.json").read_text())
    sizes = [point["bytes"] for point in report["points"]]
    assert report["chosen"]["bytes"] == min(sizes) < report["points"][0]["bytes"] == max(sizes)
    assert f"-> {min(sizes):,} bytes" in out
    assert (output / "frontier.png").stat().st_size > 1000

    model = tf.saved_model.load(str(output / "Format-Serving"))
    rows = next(iter(read_log(str(finished_run.log), CRITEO, columns=CRITEO.raw_features)))[:7]
    ctr = model.signatures["serving_default"](examples=tf.constant(encode_examples(rows).to_pylist()))["ctr"]
    assert ctr.shape == (7,) and np.isfinite(ctr).all() and 0 < float(ctr[0]) < 1


def test_quiet_imports_leave_logs_as_they_were():
    """A pipeline that ran after `frontier shrink` in the same process did not show its progress."""
    with quiet():
        assert not logging.getLogger().isEnabledFor(logging.WARNING)
    assert logging.getLogger().isEnabledFor(logging.WARNING)


def test_a_folder_without_a_run_is_named(command, tmp_path):
    code, _, err = command("frontier", "shrink", str(tmp_path))
    assert code == 2 and "found no run.json" in err and str(tmp_path) in err
