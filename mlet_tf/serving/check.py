"""Checks a SavedModel on real rows: every signature, and a model server if there is one.

`python -m mlet_tf.serving.check` takes a JSON task on standard input.
"""

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import SIGNATURES, raw_arguments
from mlet_tf.features.examples import raw_feature_spec
from mlet_tf.features.records import example_batches
from mlet_tf.serving.client import CTRClient
from mlet_tf.serving.server import ModelServer, ServeOptions, find_model_server
from mlet_tf.storage import copy_file, is_remote, tree

BATCH_SIZES = (1, 2, 64)

_START_SECONDS = 120.0


def check(model: str, files: list[str], schema: ClickLogSchema) -> int:
    """Runs real rows through every signature of a SavedModel.

    Args:
        model: Folder of the SavedModel.
        files: TFRecord files of raw tf.Examples.
        schema: Schema of the log.

    Returns:
        Number of rows answered.

    Raises:
        ValueError: If a signature is missing, an answer is not a probability, or two signatures disagree.
    """
    signatures = tf.saved_model.load(model).signatures
    missing = set(SIGNATURES) - set(signatures)
    if missing:
        raise ValueError(f"{model} has no signature {', '.join(sorted(missing))}")
    rows = 0
    for size in BATCH_SIZES:
        batch = tf.constant(next(example_batches(files, size)))
        answers = {
            "serving_default": signatures["serving_default"](examples=batch)["ctr"],
            "predict_raw": signatures["predict_raw"](**_raw_columns(batch, schema))["ctr"],
            "classify": signatures["classify"](inputs=batch)["scores"][:, 1],
            "regress": signatures["regress"](inputs=batch)["outputs"],
        }
        _compare({name: answer.numpy() for name, answer in answers.items()}, len(batch))
        rows += len(batch)
    return rows


def check_with_server(server: ModelServer, model: str, files: list[str], schema: ClickLogSchema) -> int:
    """Sends real rows to a model server on this machine, and compares its answers with the model's own.

    Args:
        server: The server to start.
        model: See `check`.
        files: See `check`.
        schema: See `check`.

    Returns:
        Number of rows answered.

    Raises:
        ValueError: If the answers differ from those of the model in this process.
        ServingError: If the server does not start or refuses a row.
    """
    batch = tf.constant(next(example_batches(files, BATCH_SIZES[-1])))
    expected = tf.saved_model.load(model).signatures["serving_default"](examples=batch)["ctr"].numpy()
    port, rest_port = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as base:
        _bring(model, f"{base}/1")
        options = ServeOptions(model_base_path=base, port=port, rest_api_port=rest_port)
        command = server.command(options)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with CTRClient(f"127.0.0.1:{port}", schema=schema) as client:
                    client.wait_until_ready(timeout=_START_SECONDS)
                    answers = client.predict(_rows(batch, schema))
            finally:
                process.kill()  # Nothing else talks to it.
    _compare({"serving_default": expected, "model server": answers}, len(batch))
    return len(batch)


def _bring(model: str, folder: str) -> None:
    """Links a local model into a folder, or copies a remote one."""
    if not is_remote(model):
        Path(folder).symlink_to(Path(model).absolute())
        return
    for name in tree(model):
        copy_file(f"{model}/{name}", f"{folder}/{name}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rows(serialized: tf.Tensor, schema: ClickLogSchema) -> list[dict[str, int | bytes]]:
    """tf.Examples as rows of their values."""
    rows: list[dict[str, int | bytes]] = [{} for _ in range(len(serialized))]
    for name, sparse in tf.io.parse_example(serialized, raw_feature_spec(schema)).items():
        for row, value in zip(sparse.indices.numpy()[:, 0], sparse.values.numpy(), strict=True):
            rows[row][name] = value if isinstance(value, bytes) else int(value)
    return rows


def _raw_columns(serialized: tf.Tensor, schema: ClickLogSchema) -> dict[str, tf.Tensor]:
    """The columns of tf.Examples as the texts that `predict_raw` takes, by argument; missing ones are empty."""
    columns, arguments, time = {}, raw_arguments(schema), schema.time
    for name, sparse in tf.io.parse_example(serialized, raw_feature_spec(schema)).items():
        values = tf.strings.as_string(sparse.values) if sparse.dtype == tf.int64 else sparse.values
        if time is not None and name == time.name and time.format == "iso8601":
            seconds = sparse.values.numpy().astype("datetime64[s]")
            values = tf.constant(np.datetime_as_string(seconds))
        columns[arguments[name]] = tf.scatter_nd(
            sparse.indices[:, :1], values, tf.shape(serialized, out_type=tf.int64)
        )
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
    """Reads the task, checks, and prints the result."""
    task = json.load(sys.stdin)
    arguments = task["model"], task["files"], ClickLogSchema.from_dict(task["schema"])
    print(f"{check(*arguments)} rows answered through {', '.join(SIGNATURES)}")
    server = find_model_server()
    if server is not None and server.kind == "binary":
        print(f"{check_with_server(server, *arguments)} rows answered through {server.path}")


if __name__ == "__main__":
    main()
