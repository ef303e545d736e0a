"""From raw rows to an answered query: one real TFX run, looked at from all sides."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tests_support import ROWS, raw_columns

from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.reading import read_log
from mlet_tf.export import SIGNATURES
from mlet_tf.predictions import load_predictions
from mlet_tf.serving import CTRClient, LocalServer, ServeOptions, list_versions


@pytest.fixture(scope="module")
def models(finished_run):
    """Signatures of the uncollapsed and of the pushed, collapsed SavedModel."""
    paths = {
        "uncollapsed": Path(finished_run.result["artifacts"]["uncollapsed_model"]) / "Format-Serving",
        "collapsed": finished_run.result["pushed"],
    }
    loaded = {name: tf.saved_model.load(str(path)) for name, path in paths.items()}
    yield {name: model.signatures for name, model in loaded.items()}


@pytest.fixture(scope="module")
def table(finished_run):
    return next(iter(read_log(str(finished_run.log), CRITEO, columns=CRITEO.raw_features)))


def test_run_file(finished_run):
    run = json.loads((finished_run.output / "run.json").read_text())
    assert run["rows"] == {**run["rows"], "read": ROWS, "rejected": 0}
    assert run["rows"]["train"] + run["rows"]["eval"] == ROWS
    assert run["blessed"] and run["gate_failures"] == []
    assert set(run["seconds"]) >= {
        "ClickLogExampleGen",
        "Transform",
        "Trainer",
        "WeightCollapser",
        "GatedEvaluator",
    }
    for model in ("uncollapsed", "collapsed"):
        assert set(run["metrics"][model]) == {"auc", "logloss", "calibration", "normalized_entropy"}
    assert run["metrics"]["collapsed"]["auc"] > 0.55
    assert run["metrics"]["collapsed"]["auc"] == pytest.approx(run["metrics"]["uncollapsed"]["auc"], abs=1e-6)
    assert run["table_bytes"]["after"] * 3 < run["table_bytes"]["before"]
    assert 0 <= run["max_abs_difference"] < 1e-5


def test_resolved_configuration_is_stored(finished_run):
    from mlet_tf.config import load_config

    stored = load_config(finished_run.output / "config.yaml")
    assert stored == load_config(finished_run.config, finished_run.overrides())


def test_pushed_version_is_whole(finished_run):
    version = Path(finished_run.result["pushed"])
    assert version.parent == finished_run.output / "serving" / "ctr"
    assert (version / "saved_model.pb").exists()
    assert (version / "assets.extra" / "tf_serving_warmup_requests").exists()
    assert list(list_versions(version.parent)) == [1]


@pytest.mark.parametrize("rows", [1, 2, 7, 1000, 4096])
def test_collapsed_and_uncollapsed_answer_alike_at_any_batch_size(models, table, rows):
    examples = encode_examples(table.take(np.arange(rows) % len(table))).to_pylist()
    answers = [
        signatures["serving_default"](examples=tf.constant(examples))["ctr"].numpy()
        for signatures in models.values()
    ]
    assert answers[0].shape == (rows,)
    assert answers[0].std() > 1e-3 or rows == 1
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-6)


def test_unseen_and_missing_values_are_answered_alike(models):
    nothing = dict.fromkeys(CRITEO.raw_features, "")
    rows = [
        nothing,
        {**nothing, **dict.fromkeys(CRITEO.categoricals, "never seen")},
        {**nothing, **dict.fromkeys(CRITEO.integers, "-3")},
        {**nothing, "I1": str(2**62), "C1": "\u00e9" * 100},
    ]
    answers = [
        signatures["predict_raw"](**raw_columns(rows))["ctr"].numpy() for signatures in models.values()
    ]
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-6)
    assert len(set(np.round(answers[0], 6))) > 1
    assert np.all((answers[0] > 0) & (answers[0] < 1))


def test_signatures_agree_with_each_other(models, table):
    signatures = models["collapsed"]
    rows = table.slice(0, 50)
    examples = tf.constant(encode_examples(rows).to_pylist())
    texts = [
        {name: "" if v is None else v.decode() if isinstance(v, bytes) else str(v) for name, v in row.items()}
        for row in rows.to_pylist()
    ]
    expected = signatures["serving_default"](examples=examples)["ctr"].numpy()
    classified = signatures["classify"](inputs=examples)
    np.testing.assert_allclose(signatures["predict_raw"](**raw_columns(texts))["ctr"], expected, atol=1e-6)
    np.testing.assert_allclose(classified["scores"][:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(signatures["regress"](inputs=examples)["outputs"], expected, atol=1e-6)
    assert classified["classes"][0].numpy().tolist() == [b"0", b"1"]
    assert set(signatures) == set(SIGNATURES)


def test_a_number_that_is_none_is_refused(models):
    row = {**dict.fromkeys(CRITEO.raw_features, ""), "I1": "three"}
    with pytest.raises(tf.errors.InvalidArgumentError, match="three"):
        models["collapsed"]["predict_raw"](**raw_columns([row]))


def test_evaluation_is_read_by_tfma_and_agrees_with_it(finished_run):
    folder = finished_run.result["artifacts"]["evaluation"]
    overall = finished_run.result["metrics"]["collapsed"]
    result = tfma.load_eval_result(folder, model_name="collapsed")
    by_slice = {key: values[""][""] for key, values in result.slicing_metrics}
    assert by_slice[()]["auc"]["doubleValue"] == pytest.approx(overall["auc"])
    assert (("C3 frequency", "frequent"),) in by_slice
    arrays = load_predictions(folder)
    auc = tf.keras.metrics.AUC(num_thresholds=10_000)
    auc.update_state(arrays["label"], arrays["ctr.collapsed"])
    assert float(auc.result()) == pytest.approx(overall["auc"], abs=1e-4)
    assert arrays["ctr.collapsed"].mean() / arrays["label"].mean() == pytest.approx(
        overall["calibration"], rel=1e-5
    )


def test_collapse_report(finished_run):
    report = json.loads(Path(finished_run.result["artifacts"]["collapse_report"]).read_text())
    assert len(report["tables"]) == 26
    large = max(report["tables"], key=lambda table: table["rows"])
    assert large["hidden_dim"] == 16 and large["output_dim"] == 4 and len(large["singular_values"]) == 4
    assert large["bytes_before"] == 4 * (16 * large["rows"] + 16 * 4)
    assert large["bytes_after"] == 4 * 4 * large["rows"]
    assert large["optimizer_bytes"] == 4 * large["rows"]  # one accumulator a row
    assert report["compared_rows"] > 500


def test_nothing_is_done_twice(finished_run, command):
    before = list_versions(finished_run.output / "serving" / "ctr")
    options = [text for override in finished_run.overrides() for text in ("--set", override)]
    code, out, _ = command("run", "--config", finished_run.config, *options)
    assert code == 0
    assert out.startswith("Nothing to do")
    assert list_versions(finished_run.output / "serving" / "ctr") == before


def test_gate_names_metric_and_slice_and_keeps_the_model_from_being_pushed(finished_run, command, tmp_path):
    """A stricter gate on the same run: everything before it comes from the cache."""
    output = tmp_path / "output"
    shutil.copytree(finished_run.output, output)
    options = [
        f"data.train={finished_run.log}",
        f"output={finished_run.output}",
        f"serving.push_to={tmp_path / 'push'}",
    ]
    options += ["gate.slice_bounds={auc: {min: 0.99}}", "gate.bounds={logloss: {max: 0.01}}"]
    code, _, err = command(
        "run", "--config", finished_run.config, *[t for o in options for t in ("--set", o)]
    )
    assert code == 3
    assert "Trainer: unchanged" in err
    assert re.search(r"logloss of all rows is 0\.\d+, expected at most 0\.01", err)
    assert re.search(r"auc of C3 frequency=frequent is 0\.\d+, expected at least 0\.99", err)
    assert not (tmp_path / "push").exists()
    run = json.loads((finished_run.output / "run.json").read_text())
    assert run["pushed"] is None and not run["blessed"]
    shutil.copy(output / "run.json", finished_run.output / "run.json")


def test_report_is_one_page_without_network(report):
    page = Path(report.printed.strip()).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 6
    assert "C3 frequency=frequent" in page and ">blessed<" in page
    assert {path.stem for path in report.folder.glob("*.png")} >= {
        "roc",
        "calibration",
        "singular_values",
    }


def test_served_answers_are_the_models(finished_run, models, table, command):
    rows = table.slice(0, 20)
    expected = models["collapsed"]["serving_default"](
        examples=tf.constant(encode_examples(rows).to_pylist())
    )["ctr"]
    base = finished_run.output / "serving" / "ctr"
    with LocalServer(ServeOptions(model_base_path=str(base), port=0, rest_api_port=0)) as server:
        for protocol, port in (("grpc", server.port), ("rest", server.rest_api_port)):
            with CTRClient(f"127.0.0.1:{port}", protocol=protocol, schema=CRITEO) as client:
                client.wait_until_ready()
                np.testing.assert_allclose(client.predict(rows), expected, atol=1e-6)
            code, out, _ = command(
                "predict",
                finished_run.log,
                "--rows",
                3,
                "--protocol",
                protocol,
                "--server",
                f"127.0.0.1:{port}",
            )
            assert code == 0
            assert [float(line) for line in out.split()] == pytest.approx(
                expected[:3].numpy().tolist(), abs=2e-6
            )
