"""Every command as a process of its own, in the installed form, on what earlier processes wrote.

They stand in a folder with packages named like ours and like what we need (`shadowing_folder`): nothing that a command
starts, the check before the push included, may import those.
"""

import json
import re
import signal
import socket
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from tests_support import TIMEOUT

import mlet_tf.models  # noqa: F401 (Keras has to know the DLRM.)

SWEEP = {
    "name": "tiny",
    "model": {"bottom_units": [4], "top_units": [4]},
    "train": {"batch_size": 256, "epochs": 1},
    "sweep": {
        "workers": 1,
        "generated": {"rows": 3000, "categoricals": 2, "integers": 1, "rank": 2, "vocabulary": 20},
        "tuning": {"trials": 1},
        "seeds": [0],
        "grid": [{"embedding": ["direct"], "model.output_dim": [2]}],
    },
}
KUBEFLOW = (
    "kubeflow.image=registry.example/mlet:1",
    "kubeflow.pipeline_root=gs://bucket/root",
    "serving.push_to=gs://bucket/serving",
    "data.train=gs://bucket/train.tsv",
)


@pytest.fixture
def call(installed_command):
    """Runs `mlet-tf` to its end; returns standard output."""

    def run(*arguments, code=0, **environment):
        process = installed_command(*arguments, **environment)
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return out if code == 0 else err

    return run


def _settings(values):
    return [text for value in values for text in ("--set", value)]


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_run_to_prediction(shrunk, call, installed_command, tmp_path):
    """synth, run, shrink, push, rollback, serve, predict; a shrink of the past could not load a run's model."""
    log, base = tmp_path / "log.tsv", tmp_path / "ctr"
    assert "20 rows" in call("synth", log, "--rows", 20, "--vocabulary", 60)
    model = shrunk.folder / "Format-Serving"
    assert f"model   {model}\n" in shrunk.printed
    assert call("push", model, base) == f"{base}/1\n"
    assert call("push", model, base, "--warmup", log, "--rows", 2) == f"{base}/2\n"
    assert call("rollback", base) == f"{base}/1\n"
    grpc_port, rest_port = _free_port(), _free_port()
    server = installed_command(
        *("serve", "--stand_in", "--model_base_path", base),
        *("--port", grpc_port, "--rest_api_port", rest_port),
    )
    try:
        for protocol, port in (("rest", rest_port), ("grpc", grpc_port)):
            options = ("--protocol", protocol, "--server", f"127.0.0.1:{port}", "--wait", TIMEOUT)
            answers = call("predict", log, "--rows", 3, *options).split()
            assert len(answers) == 3 and all(0 < float(answer) < 1 for answer in answers)
    finally:
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=TIMEOUT)
    assert server.returncode == 0, err


def test_report(report):
    page = Path(report.printed.strip()).read_text()
    failed = re.findall(r"<td>failed</td>", page)
    assert ">blessed<" in page and not failed
    assert "<td>auc of all rows</td>" in page and "at least 0.5" in page


def test_collapse(finished_run, call, tmp_path):
    trained = Path(finished_run.result["artifacts"]["uncollapsed_model"], "Format-Keras", "model.keras")
    lines = call("collapse", trained, tmp_path / "served.keras").splitlines()
    assert len(lines) == 26 and all(" -> " in line for line in lines)
    assert keras.models.load_model(tmp_path / "served.keras").count_params() > 0
    error = call("collapse", trained, tmp_path / "served.keras", code=2)
    assert error == f"Error: {tmp_path}/served.keras exists; --force writes over it\n"


def test_shrink_of_a_keras_file(finished_run, call, tmp_path):
    """A subclassed model with inputs in a dict."""
    trained = Path(finished_run.result["artifacts"]["uncollapsed_model"], "Format-Keras", "model.keras")
    rng, rows = np.random.default_rng(0), 500
    arrays = {
        "dense_features": rng.normal(size=(rows, 26)).astype("float32"),
        "sparse_features": rng.integers(0, 5, (rows, 26)).astype("int32"),
        "label": rng.integers(0, 2, rows),
    }
    np.savez(tmp_path / "rows.npz", **arrays)
    options = ("--data", tmp_path / "rows.npz", "--output", tmp_path / "small", "--ratio", 4)
    out = call("shrink", trained, *options)
    served = keras.models.load_model(tmp_path / "small" / "Format-Keras" / "model.keras")
    assert f"tables  {finished_run.result['table_bytes']['collapsed']:,} -> " in out
    assert arrays.pop("label").shape == np.shape(served(arrays))


def test_sweep_and_frontier_draw(call, tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump({**SWEEP, "output": str(tmp_path / "sweep")}))
    trials = Path(call("sweep", "--config", config).strip())
    assert trials == tmp_path / "sweep" / "trials.jsonl"
    assert {json.loads(line)["stage"] for line in trials.read_text().splitlines()} == {"tune", "final"}
    drawn = call("frontier", "draw", trials, "--output", tmp_path / "frontier.png")
    assert "direct" in drawn and (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_compile_and_submit(finished_run, call, tmp_path):
    package = tmp_path / "pipeline.yaml"
    out = call("compile", "--config", finished_run.config, "--output", package, *_settings(KUBEFLOW))
    assert "hidden_dim=16" in out
    assert yaml.safe_load(package.read_text())["pipelineInfo"]["name"] == "little"
    options = ("--endpoint", "http://127.0.0.1:9", "--package", package)
    assert "has no parameter 'hiden_dim'" in call("submit", *options, "--parameter", "hiden_dim=3", code=2)


def test_plan(finished_run, call, tmp_path):
    (tmp_path / "sizes.yaml").write_text("{rows: 1000, vocabulary: [10, 2000]}")
    out = call("plan", "--config", finished_run.config, "--data", tmp_path / "sizes.yaml")
    assert "k=16, d=4" in out


def test_worker_refuses_the_part_of_the_chief(finished_run, call):
    error = call("worker", "--config", finished_run.config, code=2)
    assert error.startswith("Error: TF_CONFIG should name this process") and error.count("\n") == 1


def test_worker_refuses_where_no_chief_comes(finished_run, call, tmp_path):
    cluster = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 1}}
    options = _settings([f"output={tmp_path / 'output'}"])
    error = call(
        "worker",
        *("--config", finished_run.config, "--timeout", 0, *options),
        code=2,
        TF_CONFIG=json.dumps(cluster),
    )
    assert "expected the chief's Trainer to write it within 0 s" in error
    assert "KERAS" not in error  # A warning of TFX asks for Keras 2.


def test_help_of_every_command(call):
    names = re.findall(r"^  (\w+) +\S", call("--help").partition("Commands:")[2], re.MULTILINE)
    assert {"synth", "run", "serve", "frontier", "worker"} <= set(names)
