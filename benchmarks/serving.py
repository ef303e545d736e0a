"""The collapsed model against the uncollapsed and the quantised ones on a server: bytes, load time, memory, throughput.

`fused` is the best uncollapsed form (one table, gathered once), `tables` the usual one (26 layers); `float16` and
`int8` are the collapsed model with quantised tables. The server of each form runs beside that of the collapsed one,
and the two are asked in turn; throughput is taken from the server's CPU time, the latency is the client's. The
server is the stand-in, or the one that TENSORFLOW_MODEL_SERVER names.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from benchmarks import _harness
from benchmarks._harness import Result
from benchmarks._serving_models import (
    DENSE,
    FEATURES,
    HIDDEN_DIM,
    OUTPUT_DIM,
    TABLE_DTYPES,
    vocabulary_sizes,
)
from mlet_tf.serving import CTRClient, ServeOptions
from mlet_tf.serving.server import MODEL_SERVER_VARIABLE, find_model_server

UNCOLLAPSED = ("fused", "tables")
FORMS = ("collapsed", *UNCOLLAPSED, *TABLE_DTYPES)
# Largest bytes relative to the best uncollapsed tables: d / k, and a row of each dtype, with 2 % for the rest.
ROW_BYTES = {"collapsed": 4 * OUTPUT_DIM, "float16": 2 * OUTPUT_DIM, "int8": OUTPUT_DIM + 4}
# At batch 64 and more, over gRPC: the throughput of the collapsed model relative to the uncollapsed forms, and of
# the quantised forms relative to the collapsed one.
GOALS = {"fused": 1.15, "tables": 1.3, "float16": 0.95, "int8": 0.95}
BATCHES = (1, 32, 64, 512)
# A turn's length: the CPU time of another process is told in hundredths of a second.
TURN_SECONDS = 1.0

STAND_IN = """
import sys
from mlet_tf.serving import ServeOptions, run_server
port, rest_api_port, limit = map(int, sys.argv[2:])
run_server(ServeOptions("ctr", sys.argv[1], port=port, rest_api_port=rest_api_port, max_request_bytes=limit))
"""
LOAD = """
import sys, time, psutil
import tensorflow as tf
from mlet_tf.serving.local.servable import Servable
before, begin = psutil.Process().memory_info().rss, time.perf_counter()
servable = Servable("ctr", 1, sys.argv[1])
print(time.perf_counter() - begin, psutil.Process().memory_info().rss - before)
"""


class Server:
    """A server process of one form."""

    def __init__(self, base_path: Path, max_request_bytes: int = 2**28) -> None:
        """Starts it; `wait` waits until it answers. A real server has no limit of its own."""
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.port, self.rest_port = first.getsockname()[1], second.getsockname()[1]
        if os.environ.get(MODEL_SERVER_VARIABLE):
            options = ServeOptions("ctr", str(base_path), port=self.port, rest_api_port=self.rest_port)
            self._command = find_model_server().command(options)
        else:
            numbers = map(str, (self.port, self.rest_port, max_request_bytes))
            self._command = [sys.executable, "-c", STAND_IN, str(base_path), *numbers]
        self.start()

    def start(self) -> None:
        """Starts the process, on the same ports each time."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(self._command, stderr=self._log, stdout=self._log)
        self._usage = psutil.Process(self._process.pid)

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def memory(self) -> float:
        """Resident memory in MB."""
        return self._usage.memory_info().rss / 1e6

    def wait(self) -> None:
        """Waits until the model is available."""
        with CTRClient(f"127.0.0.1:{self.rest_port}", protocol="rest", retries=0) as client:
            for _ in range(600):
                try:
                    client.status()
                    return
                except RuntimeError:
                    if self._process.poll() is not None:
                        break
                    time.sleep(0.2)
        self._log.seek(0)
        raise RuntimeError(f"the server did not come up: {self._log.read()[-2000:]}")

    def cpu_seconds(self) -> float:
        """CPU time so far."""
        times = self._usage.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Builds the models, serves them, asks them."""
    results = []
    for rows in [20_000] if arguments.quick else arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            results += _measure_size(Path(scratch), rows, arguments)
    return results


def _measure_size(folder: Path, rows: int, arguments: argparse.Namespace) -> list[Result]:
    command = [sys.executable, "-m", "benchmarks._serving_models", str(folder), str(rows)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    title = f"V={sum(vocabulary_sizes(rows)):,}"
    results = _disk(folder, title) + _load(folder, title, 1 if arguments.quick else 3)
    turns, turn_seconds = (3, 0.1) if arguments.quick else (arguments.turns, TURN_SECONDS)
    collapsed = Server(folder / "collapsed")
    try:
        for form in FORMS[1:]:
            other = Server(folder / form)
            try:
                collapsed.wait()
                other.wait()
                servers = {"collapsed": collapsed, form: other}
                for protocol, ask in (("gRPC", _grpc_asker), ("REST", _rest_asker)):
                    for batch in BATCHES:
                        askers = {name: ask(server, batch, rows) for name, server in servers.items()}
                        name = f"{title} {protocol} batch {batch}"
                        results.append(_throughput(servers, askers, name, batch, turns, turn_seconds))
            finally:
                other.close()
    finally:
        collapsed.close()
    return results


def _disk(folder: Path, title: str) -> list[Result]:
    sizes = {
        form: sum(path.stat().st_size for path in (folder / form / "1" / "variables").iterdir())
        for form in FORMS
    }
    note = ", ".join(f"{form} {size / 1e6:.1f} MB" for form, size in sizes.items())
    results = []
    for form, row_bytes in ROW_BYTES.items():
        value, goal = sizes[form] / sizes["fused"], row_bytes / (4 * HIDDEN_DIM) + 0.02
        results.append(
            Result(f"{title} bytes on disk, {form} / fused", value, value, value, goal, "lower", note)
        )
        note = ""
    return results


def _load(folder: Path, title: str, turns: int) -> list[Result]:
    seconds, memory = ({form: [] for form in FORMS} for _ in range(2))
    for _ in range(turns):
        for form in FORMS:
            run = subprocess.run(
                [sys.executable, "-c", LOAD, folder / form / "1"], check=True, capture_output=True, text=True
            )
            took, used = map(float, run.stdout.split())
            seconds[form].append(took)
            memory[form].append(used / 1e6)
    results = []
    for what, values, unit in (("load time", seconds, "s"), ("memory of the loaded model", memory, "MB")):
        note = ", ".join(f"{form} {statistics.median(found):.2f} {unit}" for form, found in values.items())
        for form in ROW_BYTES:
            name = f"{title} {what}, {form} / fused"
            results.append(_harness.ratio(name, values[form], values["fused"], None, "lower", note))
            note = ""
    return results


def _throughput(
    servers: dict[str, Server],
    askers: dict[str, Callable[[], None]],
    title: str,
    batch: int,
    turns: int,
    turn_seconds: float,
) -> Result:
    """Asks the collapsed model and another in turn."""
    for asker in askers.values():
        for _ in range(5):
            asker()
    cpu, wall = ({form: [] for form in servers} for _ in range(2))
    for _ in range(turns):
        for form, asker in askers.items():
            start, count, end = servers[form].cpu_seconds(), 0, time.perf_counter() + turn_seconds
            while time.perf_counter() < end or count < 10:
                begin = time.perf_counter()
                asker()
                wall[form].append(time.perf_counter() - begin)
                count += 1
            cpu[form].append((servers[form].cpu_seconds() - start) / count)
    milliseconds = {form: np.percentile(np.array(values) * 1e3, [50, 99]) for form, values in wall.items()}
    note = "; ".join(
        f"{form}: {statistics.median(cpu[form]) * 1e3:.2f} ms CPU, p50 {p50:.1f} p99 {p99:.1f} ms, "
        f"{batch / (p50 / 1e3):,.0f} examples/s"
        for form, (p50, p99) in milliseconds.items()
    )
    other = next(form for form in servers if form != "collapsed")
    # CPU time is the inverse of throughput: quantised / collapsed throughput is collapsed / quantised time.
    above, below = (other, "collapsed") if other in UNCOLLAPSED else ("collapsed", other)
    goal = GOALS[other] if "gRPC" in title and batch >= 64 else None
    return _harness.ratio(
        f"{title} throughput, {below} / {above}", cpu[above], cpu[below], goal, "higher", note
    )


def _inputs(batch: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(batch)
    sizes = vocabulary_sizes(rows)
    # Skewed, as the categories of a log are.
    ids = (np.array(sizes) * generator.random((batch, FEATURES)) ** 4).astype(np.int64)
    return generator.normal(size=(batch, DENSE)).astype(np.float32), ids


def _grpc_asker(server: Server, batch: int, rows: int) -> Callable[[], None]:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{server.port}")
    )
    dense, sparse = _inputs(batch, rows)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ctr"
    request.inputs["dense_features"].CopyFrom(tf.make_tensor_proto(dense))
    request.inputs["sparse_features"].CopyFrom(tf.make_tensor_proto(sparse))
    return lambda: stub.Predict(request, timeout=60)


def _rest_asker(server: Server, batch: int, rows: int) -> Callable[[], None]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    dense, sparse = _inputs(batch, rows)
    body = json.dumps({"inputs": {"dense_features": dense.tolist(), "sparse_features": sparse.tolist()}})

    def ask() -> None:
        connection.request("POST", "/v1/models/ctr:predict", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(answer.decode())

    return ask


if __name__ == "__main__":
    _harness.main(
        __doc__.splitlines()[0],
        measure,
        rows={"type": int, "nargs": "+", "default": [1_000_000], "help": "rows of all tables together"},
        turns={"type": int, "default": 10, "help": "turns for each batch size"},
        scratch={"help": "folder for the models (V=10M takes 6 GB)"},
    )
