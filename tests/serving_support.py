"""Servers for tests: the stand-in, or a real one that TENSORFLOW_MODEL_SERVER names."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from types import SimpleNamespace

from mlet_tf.serving.server import MODEL_SERVER_VARIABLE, LocalServer, ServeOptions, find_model_server


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def server_kinds():
    """What the tests run against: the stand-in, and a real server where there is one."""
    return ["stand-in", *(["real"] if os.environ.get(MODEL_SERVER_VARIABLE) else [])]


@contextlib.contextmanager
def start_server(kind, folder, **options):
    if kind == "real":
        options = ServeOptions(**options, port=free_port(), rest_api_port=free_port())
        with real_server(options, folder / f"{options.port}.log"):
            yield described(options, options.port, options.rest_api_port, real=True)
    else:
        options = ServeOptions(**options, port=0, rest_api_port=0)
        with LocalServer(options) as server:
            yield described(options, server.port, server.rest_api_port, real=False)


def described(options, port, rest_api_port, *, real):
    return SimpleNamespace(
        grpc=f"127.0.0.1:{port}",
        rest=f"127.0.0.1:{rest_api_port}",
        port=port,
        rest_api_port=rest_api_port,
        options=options,
        real=real,
    )


@contextlib.contextmanager
def real_server(options, log):
    command = find_model_server().command(options)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            name = options.model_configs()[0].name
            url = f"http://127.0.0.1:{options.rest_api_port}/v1/models/{name}"
            end = time.monotonic() + 300
            while not answers(url):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).read()
    except OSError:
        return False
    return True


def predict_request(name="hp2", signature="", inputs=None, version=None, label=None, output_filter=()):
    """A PredictRequest; inputs are tensor protos, or what `tf.make_tensor_proto` takes."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    for key, value in (inputs or {}).items():
        is_proto = isinstance(value, tf.make_tensor_proto(0).__class__)
        request.inputs[key].CopyFrom(value if is_proto else tf.make_tensor_proto(value))
    return request
