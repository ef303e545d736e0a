"""A finished run again with a budget: the gate judges, and the server gets, the compressed model."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tests_support import TIMEOUT

from mlet_tf.compression import COMPRESSION_FILE
from mlet_tf.compression.files import FRONTIER_FILE
from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.reading import read_log
from mlet_tf.export import SERVING_MODEL
from mlet_tf.gate import GATE_FILE
from mlet_tf.predictions import load_predictions
from mlet_tf.serving import CTRClient, LocalServer, ServeOptions, list_versions

BUDGET = "compress={budget: {ratio: 4}, baseline: true}"
# Half of so few rows are too few for the entropy of a model that has overfitted.
BOUNDS = "gate.bounds={calibration: {min: 0.5, max: 2}, normalized_entropy: {max: 1.1}}"


@pytest.fixture(scope="module")
def kept(finished_run, tmp_path_factory):
    """What the finished run notes down, put back afterwards."""
    folder = tmp_path_factory.mktemp("kept")
    for name in ("run.json", "config.yaml"):
        shutil.copy(finished_run.output / name, folder / name)
    yield folder
    for name in ("run.json", "config.yaml"):
        shutil.copy(folder / name, finished_run.output / name)


def _options(run, *keys):
    return [text for key in run.overrides(BOUNDS, *keys) for text in ("--set", key)]


def _newest(run, pattern):
    """The newest file below the artifacts of a run."""
    return max((run.output / "artifacts").glob(pattern), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def compressed(finished_run, kept, installed_command, tmp_path_factory):
    """The finished run with a budget: what it wrote, where it pushed to, and what it printed."""
    push = tmp_path_factory.mktemp("push") / "ctr"
    options = _options(finished_run, BUDGET, f"serving.push_to={push}")
    process = installed_command("run", "--config", finished_run.config, *options)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    report = json.loads(_newest(finished_run, f"ModelCompressor/report/*/{COMPRESSION_FILE}").read_text())
    return json.loads((finished_run.output / "run.json").read_text()), report, push, err


def test_only_what_comes_after_the_collapse_is_done(compressed, finished_run):
    _, _, _, err = compressed
    assert "WeightCollapser: unchanged" in err and "ModelCompressor: unchanged" not in err
    assert re.search(r"Compression: 4[.\d]* times smaller, 2\.4 KiB", err)
    assert not (finished_run.output / "work").exists()


def test_the_report_keeps_to_the_budget(compressed, finished_run):
    _, report, _, _ = compressed
    before, after = report["bytes_before"], report["bytes_after"]
    assert after["rows"] + after["addresses"] <= before["rows"] / 4
    assert before["vocabulary"] == after["vocabulary"] > 0
    (chosen,) = (point for point in report["points"] if point["chosen"])
    assert chosen["within_budget"] and chosen["bytes"] == after["rows"] + after["addresses"]
    assert len(report["tables"]) == 26
    plot = _newest(finished_run, f"ModelCompressor/report/*/{FRONTIER_FILE}")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_rows_that_chose_do_not_judge(compressed, finished_run):
    run, report, _, _ = compressed
    arrays = load_predictions(run["artifacts"]["evaluation"])
    assert {name for name in arrays if name.startswith("ctr.")} == {
        "ctr.compressed",
        "ctr.uncollapsed",
        "ctr.last_blessed",
        "ctr.baseline",
    }
    others = finished_run.result["rows"]["eval"] - len(arrays["label"])
    assert report["choosing_rows"] == (others + 1) // 2, "the rest says what rare ids have learned by heart"
    assert len(arrays["label"]) > 0.4 * finished_run.result["rows"]["eval"]


def test_the_gate_knows_the_compressed_model(compressed):
    run, _, _, _ = compressed
    gate = json.loads(Path(run["artifacts"]["evaluation"], GATE_FILE).read_text())
    against = [check for check in gate["checks"] if "before the compression" in check["expected"]]
    assert {check["metric"] for check in against} == {"auc"} and all(check["passed"] for check in against)
    slices = {check["slice"] for check in against}
    assert "all rows" in slices and "C3 frequency=frequent" in slices
    overall = next(row for row in gate["metrics"]["compressed"] if not row["slice"])
    (check,) = (check for check in against if check["slice"] == "all rows")
    uncollapsed = next(row for row in gate["metrics"]["uncollapsed"] if not row["slice"])
    # A budget of bytes: what AUC may be lost is `gate.max_auc_drop`.
    assert check["min"] == pytest.approx(uncollapsed["auc"] - 0.01 - 3 * overall["auc_drop_error"])


def test_the_run_file_has_what_it_cost_and_what_a_direct_table_reaches(compressed):
    run, report, _, _ = compressed
    assert set(run["metrics"]) == {"uncollapsed", "compressed", "baseline"}
    compression, baseline = run["compression"], run["baseline"]
    for key in ("budget", "bytes_before", "bytes_after"):
        assert compression[key] == report[key]
    assert compression["auc_before"] == run["metrics"]["uncollapsed"]["auc"]
    assert compression["auc_after"] == run["metrics"]["compressed"]["auc"]
    assert compression["fine_tuned"] is False
    size = report["bytes_after"]["rows"] + report["bytes_after"]["addresses"]
    assert run["table_bytes"]["after"] == baseline["allowed_bytes"] == size
    assert run["table_bytes"]["collapsed"] == report["bytes_before"]["rows"]
    column = 4 * sum(table["rows"] for table in report["tables"])
    assert baseline["output_dim"] == max(1, size // column)
    assert baseline["bytes"] == baseline["output_dim"] * column
    assert {name: baseline[name] for name in ("auc", "logloss")} == {
        name: run["metrics"]["baseline"][name] for name in ("auc", "logloss")
    }
    artifacts = run["artifacts"]
    assert json.loads(Path(artifacts["compression_report"]).read_text()) == report
    for name in ("compressed_model", "baseline_model"):
        assert Path(artifacts[name], SERVING_MODEL, "saved_model.pb").exists()


def test_the_report_shows_sizes_and_the_direct_table(compressed, finished_run, command, tmp_path):
    run, report, _, _ = compressed
    code, out, err = command("report", finished_run.output, "--output", tmp_path / "report")
    assert code == 0, err
    page = Path(out.strip()).read_text()
    assert page.count("data:image/png;base64,") == 7 and 'alt="AUC against bytes"' in page
    assert (tmp_path / "report" / "auc_against_bytes.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "Budget: 4 times fewer bytes than the collapsed tables." in page
        and "collapsed, then compressed" in page
    )
    for line, name in (("rows", "rows"), ("addresses", "addresses"), ("vocabulary", "vocabulary files")):
        before, after = (f"{report[key][line]:,}" for key in ("bytes_before", "bytes_after"))
        assert f"<tr><td>{name}</td><td>{before}</td><td>{after}</td></tr>" in page
    bands = sum(len(table["bands"]) for table in report["tables"])
    assert page.partition("<h2>Compressed tables</h2>")[2].count("<tr") == bands + 1
    assert "<td>baseline, all rows</td>" in page and f"has {run['baseline']['auc']:.6f}" in page


def test_the_compressed_model_is_pushed_and_answers(compressed, finished_run):
    _, report, push, _ = compressed
    (pushed,) = list_versions(push).values()
    assert Path(pushed, "assets.extra", "tf_serving_warmup_requests").exists()
    rows = next(iter(read_log(str(finished_run.log), CRITEO, columns=CRITEO.raw_features))).slice(0, 50)
    examples = tf.constant(encode_examples(rows).to_pylist())

    def answers(path):
        """Bytes of all variables, and CTRs."""
        model = tf.saved_model.load(str(path))
        ctr = model.signatures["serving_default"](examples=examples)["ctr"].numpy()
        saved = tf.train.load_checkpoint(f"{path}/variables/variables")
        shapes, dtypes = saved.get_variable_to_shape_map(), saved.get_variable_to_dtype_map()
        sizes = [np.prod(shapes[name]) * dtype.size for name, dtype in dtypes.items() if dtype != tf.string]
        return sum(map(int, sizes)), ctr

    compressed_bytes, expected = answers(pushed)
    collapsed = Path(finished_run.result["artifacts"]["collapsed_model"], SERVING_MODEL)
    collapsed_bytes, before = answers(collapsed)
    assert 0 < np.abs(expected - before).max() < 0.2
    saved = report["bytes_before"]["rows"] - sum(report["bytes_after"][key] for key in ("rows", "addresses"))
    assert collapsed_bytes - compressed_bytes == saved
    with LocalServer(ServeOptions(model_base_path=str(push), port=0, rest_api_port=0)) as server:
        for protocol, port in (("grpc", server.port), ("rest", server.rest_api_port)):
            with CTRClient(f"127.0.0.1:{port}", protocol=protocol, schema=CRITEO) as client:
                client.wait_until_ready()
                np.testing.assert_allclose(client.predict(rows), expected, atol=1e-6)


@pytest.mark.slow
def test_nothing_is_compressed_twice(compressed, finished_run, command):
    """Another gate: the compressed model comes from the cache."""
    _, _, push, _ = compressed
    strict = "gate.slice_bounds={auc: {min: 0.99}}"
    options = _options(finished_run, BUDGET, f"serving.push_to={push}", strict)
    code, _, err = command("run", "--config", finished_run.config, *options)
    assert code == 3, err
    assert "BaselineTrainer: unchanged" in err
    assert "ModelCompressor: unchanged" in err and "auc of C3 frequency=frequent is" in err
    assert list(list_versions(push)) == [1]


def test_a_budget_that_cannot_be_met_ends_the_run_with_the_smallest(
    compressed, finished_run, command, tmp_path
):
    push = tmp_path / "push"
    options = _options(finished_run, "compress={budget: {bytes: 10}}", f"serving.push_to={push}")
    code, _, err = command("run", "--config", finished_run.config, *options)
    error = err[err.find("Error: ") :]
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in err
    assert "Budget: expected at least" in error and "the smallest" in error and "Received: 10 bytes" in error
    assert not push.exists()


@pytest.mark.slow
def test_a_compression_that_was_killed_goes_on(finished_run, kept, installed_command, tmp_path):
    """Sizes that were scored before the kill are not scored again, and nothing is pushed before the end."""
    push, work = tmp_path / "push", finished_run.output / "work"
    # A budget that no other test has, so that nothing of it is in the cache.
    options = _options(finished_run, "compress={budget: {ratio: 4.5}}", f"serving.push_to={push}")
    process = installed_command("run", "--config", finished_run.config, *options)
    deadline = time.monotonic() + TIMEOUT
    while len(_scores(work)) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    scores = _scores(work)
    assert len(scores) >= 4 and not push.exists()
    marked = list(scores)[2]
    scores[marked]["logloss"] = 0.123  # A score that only the killed run's memory has.
    next(work.glob("compression-*/scores.json")).write_text(json.dumps(scores))

    process = installed_command("run", "--config", finished_run.config, *options)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    report = json.loads(_newest(finished_run, f"ModelCompressor/report/*/{COMPRESSION_FILE}").read_text())
    assert 0.123 in [point["logloss"] for point in report["points"]]
    assert list(list_versions(push)) == [1] and not work.exists()


def _scores(work):
    for path in work.glob("compression-*/scores.json"):
        return json.loads(path.read_text())
    return {}
