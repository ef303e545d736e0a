"""A finished run again with quantised tables: the gate judges, and the server gets, the quantised model."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.reading import read_log

pytestmark = pytest.mark.slow


@pytest.fixture
def run_int8(finished_run, command, tmp_path):
    """Runs it with int8 tables and more keys; gives exit code, standard error and `run.json`."""
    kept = tmp_path / "run.json"
    shutil.copy(finished_run.output / "run.json", kept)

    def run(*more):
        keys = [f"serving.push_to={tmp_path / 'push'}", "serving.table_dtype=int8", *more]
        options = [text for key in finished_run.overrides(*keys) for text in ("--set", key)]
        code, out, err = command("run", "--config", finished_run.config, *options)
        return code, out, err, json.loads((finished_run.output / "run.json").read_text())

    yield run
    shutil.copy(kept, finished_run.output / "run.json")


def answers(model, examples):
    return tf.saved_model.load(str(model)).signatures["serving_default"](examples=examples)["ctr"].numpy()


def test_the_gate_decides_on_the_quantised_model(finished_run, run_int8, command, tmp_path):
    code, _, err, run = run_int8("gate.max_quantization_loss=0")
    assert code == 3 and run["pushed"] is None and not (tmp_path / "push").exists()
    assert "Trainer: unchanged" in err
    assert re.search(
        r"(auc|logloss|normalized_entropy) of .+ is [\d.]+, expected [\d.]+ as before collapse and quantisation "
        r"to int8, within [\de.-]+",
        err,
    )

    code, out, err, run = run_int8("gate.max_quantization_loss=0.01")
    assert code == 0, err
    assert "WeightCollapser: unchanged" in err and "quantisation  to int8" in out
    before, collapsed, after = (run["table_bytes"][key] for key in ("before", "collapsed", "after"))
    assert before > collapsed == finished_run.result["table_bytes"]["after"]
    assert after == collapsed / 16 * 8  # d = 4: 4 integers, scale and offset instead of 4 floats.
    assert run["quantization"]["table_dtype"] == "int8"
    assert 0 < run["quantization"]["max_abs_difference"] < 0.05
    assert 0 < run["quantization"]["max_abs_ctr_difference"] < 0.02
    assert run["metrics"]["collapsed"]["auc"] != run["metrics"]["uncollapsed"]["auc"]
    assert run["metrics"]["collapsed"]["auc"] == pytest.approx(run["metrics"]["uncollapsed"]["auc"], abs=0.01)
    report = json.loads(Path(run["artifacts"]["collapse_report"]).read_text())
    assert sum(table["bytes_after"] for table in report["tables"]) == after
    assert all(0 <= table["max_abs_quantization"] < 0.05 for table in report["tables"])

    table = next(iter(read_log(str(finished_run.log), CRITEO, columns=CRITEO.raw_features))).slice(0, 200)
    examples = tf.constant(encode_examples(table).to_pylist())
    expected = answers(finished_run.result["pushed"], examples)
    received = answers(run["pushed"], examples)
    np.testing.assert_allclose(received, expected, atol=0.02)
    assert np.abs(received - expected).max() > 0

    code, out, _ = command("report", finished_run.output, "--output", tmp_path / "report")
    assert code == 0 and "collapsed, then quantised to int8" in Path(out.strip()).read_text()
