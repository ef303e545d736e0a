"""The object store S3, from a local server: data, artifacts, push, client."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pytest

BUCKET = "mlet"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Starts a server; returns the settings of a client as environment variables."""
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        if _answers(server, port):
            break
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,  # fsspec's and Beam's
        "S3_ENDPOINT": address,  # TensorFlow's
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # A client has the credentials of its first use.
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield settings
    os.environ.clear()
    os.environ.update(before)
    server.kill()
    server.wait()


def _answers(server: subprocess.Popen, port: int) -> bool:
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    server.kill()
    return False


@pytest.fixture(params=["tensorflow", "fsspec"])
def reader(request, monkeypatch):
    """Both ways to an object store: TensorFlow's file systems, and fsspec where they lack a scheme."""
    if request.param == "fsspec":
        monkeypatch.setattr("mlet_tf.storage.tensorflow_opens", lambda path: False)
    return request.param


def test_a_log_is_read_as_from_disk(s3, reader, little_log, tmp_path):
    from mlet_tf.datasets import CRITEO
    from mlet_tf.datasets.reading import list_files, plan_chunks, read_chunk, read_log

    folder = f"s3://{BUCKET}/logs-{reader}"
    files = fsspec.filesystem("s3")
    files.put(str(little_log), f"{folder}/day_0.tsv")
    files.pipe(f"{folder}/_SUCCESS", b"")
    assert list_files(folder) == list_files(f"{folder}/day_*") == [f"{folder}/day_0.tsv"]

    def labels(path: str) -> np.ndarray:
        return np.concatenate([table["label"].to_numpy() for table in read_log(path, CRITEO)])

    np.testing.assert_array_equal(labels(folder), labels(str(little_log)))
    chunks = plan_chunks([f"{folder}/day_0.tsv"], CRITEO, 100_000)
    rows = sum(len(block.table) for chunk in chunks for block in read_chunk(chunk, CRITEO))
    assert len(chunks) > 2 and rows == len(labels(str(little_log)))


def test_push_and_rollback(s3, reader, tmp_path):
    import tensorflow as tf

    from mlet_tf.serving import list_versions, push, rollback

    module = tf.Module()
    module.weight = tf.Variable(tf.ones(1000))
    tf.saved_model.save(module, str(tmp_path / "model"))
    base = f"s3://{BUCKET}/models-{reader}/ctr"
    assert push(tmp_path / "model", base) == f"{base}/1"
    assert push(tmp_path / "model", base) == f"{base}/2"
    assert rollback(base) == f"{base}/1"
    assert push(tmp_path / "model", base, keep=1) == f"{base}/3"
    assert list(list_versions(base)) == [3]
    names = [name.rsplit("/ctr/", 1)[1] for name in fsspec.filesystem("s3").find(base)]
    assert sorted(names) == sorted(
        f"3/{path.relative_to(tmp_path / 'model')}"
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    )


@pytest.mark.slow
def test_the_whole_pipeline_with_everything_on_s3(s3, little_log, tmp_path, monkeypatch):
    """Data, artifacts, checkpoints and pushed model; only the metadata is local."""
    from conftest import CONFIG

    files = fsspec.filesystem("s3")
    files.put(str(little_log), f"s3://{BUCKET}/pipeline/train.tsv")
    config = tmp_path / "s3.yaml"
    config.write_text(CONFIG)
    overrides = [f"data.train=s3://{BUCKET}/pipeline/*.tsv", f"output=s3://{BUCKET}/pipeline/run"]
    command = [sys.executable, "-m", "mlet_tf.pipeline.cli.main", "run", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for override in overrides:
        command += ["--set", override]
    first = subprocess.run(  # noqa: PLW1510 (looked at below)
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert first.returncode == 0, first.stderr[-4000:]
    result = json.loads((tmp_path / "runs" / "little" / "run.json").read_text())
    assert result["pushed"] == f"s3://{BUCKET}/pipeline/run/serving/ctr/1"
    assert result["max_abs_ctr_difference"] < 1e-5
    names = [name.split("/run/", 1)[1] for name in files.find(f"s3://{BUCKET}/pipeline/run")]
    assert "serving/ctr/1/saved_model.pb" in names
    assert not [name for name in names if name.startswith("work/")]
    again = subprocess.run(  # noqa: PLW1510 (looked at below)
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert again.returncode == 0 and "Nothing to do" in again.stdout
    report = [sys.executable, "-m", "mlet_tf.pipeline.cli.main", "report", str(tmp_path / "runs" / "little")]
    assert subprocess.run(report, cwd=tmp_path, env=environment, check=False, timeout=300).returncode == 0
