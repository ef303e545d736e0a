"""The stand-in server under load for minutes: versions come, go and are corrupt, callers misbehave, it is killed.

Each model has an answer of its own to each row, so that the answer to another row, or of a version that should
not serve, shows. Counts those, well-formed requests that failed, misbehaving ones that were not refused as they
should be, and how memory grows.
"""

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from benchmarks import _harness
from benchmarks._harness import Result
from benchmarks.serving import Server
from mlet_tf.serving import CTRClient, ServingError, list_versions, push, rollback
from mlet_tf.serving.push import version_number
from mlet_tf.serving.server import MODEL_SERVER_VARIABLE

MODELS = 4
MAX_REQUEST_BYTES = 2**22
MAX_ROWS = 32
# A model's answer to a row is (number of the model * LARGEST + the row's I1) * STEP, which float32 holds exactly.
LARGEST, STEP = 2**16, 2.0**-20
EVENT_SECONDS = 60.0
_PREDICT = "/tensorflow.serving.PredictionService/Predict"


def write_models(folder: Path) -> list[Path]:
    """SavedModels with different known answers; 64 MB each, so that a leak would show."""
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self, number: int) -> None:
            self.offset = tf.Variable(float(number * LARGEST))
            self.ballast = tf.Variable(tf.zeros([16_000_000]))

        @tf.function
        def serve(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
            features = tf.io.parse_example(examples, {"I1": tf.io.FixedLenFeature([], tf.int64, 0)})
            return {"ctr": (self.offset + tf.cast(features["I1"], tf.float32)) * STEP + self.ballast[0]}

    paths = []
    for number in range(MODELS):
        model = Model(number)
        paths.append(folder / f"model{number}")
        signature = model.serve.get_concrete_function(examples=tf.TensorSpec([None], tf.string))
        tf.saved_model.save(model, str(paths[-1]), {"serving_default": signature})
    return paths


def model_of(rows: np.ndarray, answer: np.ndarray) -> int | None:
    """Which model gave this answer to these rows; None if it is not one model's answer to them, in order."""
    if answer.shape != rows.shape:
        return None
    numbers, rest = np.divmod(answer.astype(np.float64) / STEP - rows, LARGEST)
    return int(numbers[0]) if not rest.any() and len(set(numbers)) == 1 else None


def rest_nuisances() -> dict[str, tuple[str, bytes, str]]:
    """Model to ask, body, and the HTTP status that each should get."""
    return {
        "malformed JSON": ("ctr", b'{"instances": [', "400"),
        "wrong type": ("ctr", b'{"inputs": [1.5]}', "400"),
        "no such signature": ("ctr", b'{"signature_name": "nope", "inputs": [1]}', "400"),
        "no such model": ("nope", b'{"inputs": [1]}', "404"),
        "no tf.Example": ("ctr", b'{"inputs": ["garbage"]}', "400"),
        "deep": ("ctr", b"[" * 100_000, "400"),
        "oversized": ("ctr", b" " * (MAX_REQUEST_BYTES + 1), "413"),
    }


def grpc_nuisances() -> dict[str, tuple[str, bytes, str]]:
    """Method, message, and the code that each should get."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    def predict(value: object, model: str = "ctr", signature: str = "") -> bytes:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        request.inputs["examples"].CopyFrom(tf.make_tensor_proto(value))
        return request.SerializeToString()

    return {
        "no message": (_PREDICT, b"\xff garbage", "INTERNAL"),
        "wrong type": (_PREDICT, predict([1.5]), "INVALID_ARGUMENT"),
        "no such signature": (_PREDICT, predict([b""], signature="nope"), "FAILED_PRECONDITION"),
        "no such model": (_PREDICT, predict([b""], "nope"), "NOT_FOUND"),
        "no such method": (f"{_PREDICT}ion", b"", "UNIMPLEMENTED"),
        "no tf.Example": (_PREDICT, predict([b"garbage"]), "INVALID_ARGUMENT"),
        "oversized": (_PREDICT, b" " * (MAX_REQUEST_BYTES + 1), "RESOURCE_EXHAUSTED"),
    }


@dataclass(frozen=True)
class _Begun:
    """How things stood when a call began."""

    outages: int
    down: bool
    allowed: frozenset[int]


class Soak:
    """The callers, and what became of their requests."""

    def __init__(self, server: Server) -> None:
        """Starts nothing yet."""
        self.server = server
        self.right = self.excused = 0
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self.surprises: list[str] = []
        self.nuisances: Counter = Counter()
        self.allowed = frozenset({0})
        self._outages, self._down = 0, False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        runs: list[Callable[[], None]] = [
            *(
                lambda p=protocol, s=seed: self._ask(p, s)
                for seed, protocol in enumerate(["grpc", "rest"] * 2)
            ),
            lambda: self._misbehave("REST", rest_nuisances(), self._rest_code),
            self._misbehave_over_grpc,
        ]
        self._threads = [threading.Thread(target=run) for run in runs]

    def __enter__(self) -> "Soak":
        """Starts the callers."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Excuses the calls that begin while it lasts, and those on their way when it begins."""
        self._down = True
        self._outages += 1
        yield
        self._down = False

    def _begin(self) -> _Begun:
        outages = self._outages  # First: an outage that begins after this line is then seen to be a new one.
        return _Begun(outages, self._down, self.allowed)

    def _is_excused(self, begun: _Begun) -> bool:
        return begun.down or self._outages != begun.outages

    def _ask(self, protocol: str, seed: int) -> None:
        port = self.server.port if protocol == "grpc" else self.server.rest_port
        generator = np.random.default_rng(seed)
        with CTRClient(f"127.0.0.1:{port}", protocol=protocol, retries=0) as client:
            while not self._stop.is_set():
                rows = generator.integers(0, LARGEST, generator.integers(1, MAX_ROWS + 1))
                begun = self._begin()
                try:
                    answer = client.predict([{"I1": row} for row in rows.tolist()])
                except ServingError as error:
                    self._count_failure(begun, error)
                    time.sleep(0.05)
                    continue
                number, allowed = model_of(rows, answer), begun.allowed | self.allowed
                with self._lock:
                    if number in allowed:
                        self.right += 1
                    else:
                        self.wrong.append(f"{protocol}: model {number}, expected {sorted(allowed)}")

    def _count_failure(self, begun: _Begun, error: ServingError) -> None:
        with self._lock:
            if self._is_excused(begun):
                self.excused += 1
            else:
                self.failed.append(str(error))

    def _misbehave_over_grpc(self) -> None:
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        with grpc.insecure_channel(f"127.0.0.1:{self.server.port}", options) as channel:
            self._misbehave("gRPC", grpc_nuisances(), lambda *request: _grpc_code(channel, *request))

    def _misbehave(
        self,
        protocol: str,
        nuisances: Mapping[str, tuple[str, bytes, str]],
        code_of: Callable[[str, bytes], str],
    ) -> None:
        for name, (target, body, expected) in itertools.cycle(nuisances.items()):
            if self._stop.wait(0.1):
                return
            begun = self._begin()
            code = code_of(target, body)
            with self._lock:
                if code == expected:
                    self.nuisances[f"{protocol} {code}"] += 1
                elif self._is_excused(begun):
                    self.nuisances[f"{protocol} while the process was down"] += 1
                else:
                    self.surprises.append(f"{protocol}, {name}: {code}, expected {expected}")

    def _rest_code(self, model: str, body: bytes) -> str:
        url = f"http://127.0.0.1:{self.server.rest_port}/v1/models/{model}:predict"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
                return str(answer.status)
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return str(error)


def _grpc_code(channel: grpc.Channel, method: str, message: bytes) -> str:
    try:
        # Waiting: the channel pauses between its attempts to reconnect, and calls would fail meanwhile.
        channel.unary_unary(method)(message, timeout=30, wait_for_ready=True)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


class Events:
    """What happens to the versions and to the process meanwhile.

    Args:
        soak: the callers, who are told which models may answer.
        client: over REST, to ask for the versions' states.
        base: the folder that the server watches; version 1 is the first of `models`.
        models: the SavedModels.
        corrupt: one that cannot be loaded.
    """

    def __init__(self, soak: Soak, client: CTRClient, base: Path, models: list[Path], corrupt: Path) -> None:
        self._soak, self._client, self._server, self._base = soak, client, soak.server, base
        self._models, self._corrupt = models, corrupt
        self._contents: dict[int, int] = {1: 0}  # Which model a version is; corrupt ones are left out.
        self._serving = 1
        self._turn = 0
        self.memory: list[list[float]] = [[]]

    def run(self, seconds: float, every: float) -> None:
        """Lets one thing happen each `every` seconds; memory is noted for each life of the process."""
        begin, turns = time.monotonic(), round(seconds / every)
        for self._turn in range(1, turns):
            self._watch(begin + every * self._turn)
            if self._turn == turns // 2:
                self._kill()
            else:
                (self._swap, self._swap_back, self._push_corrupt, self._swap)[(self._turn - 1) % 4]()
        self._watch(begin + seconds)

    def _watch(self, end: float) -> None:
        """Notes the memory until `end`, and for some seconds at least where events took long."""
        end = max(end, time.monotonic() + 3.0)
        while time.monotonic() < end:
            self.memory[-1].append(self._server.memory())
            time.sleep(0.5)

    def _swap(self) -> None:
        number = self._turn % MODELS
        with self._change(number):
            version = _pushed(self._models[number], self._base)
            self._contents[version] = number
            self._wait_for(version)

    def _swap_back(self) -> None:
        self._swap()
        newest = self._serving
        versions = [version for version in list_versions(self._base) if version in self._contents]
        earlier = max(version for version in versions if version != newest)
        with self._change(self._contents[earlier]):
            rollback(self._base)
            self._wait_for(earlier)
        self._swap()

    def _push_corrupt(self) -> None:
        version = _pushed(self._corrupt, self._base)
        self._until(lambda states: states.get(version) == "END", f"version {version} to be found corrupt")

    def _kill(self) -> None:
        with self._soak.outage():
            self._server.kill()
            self._server.start()
            self._server.wait()
            # The callers' channels reconnect with this one, which is to the same address with the same options.
            with CTRClient(f"127.0.0.1:{self._server.port}") as client:
                client.wait_until_ready(timeout=EVENT_SECONDS)
        self.memory.append([])

    @contextlib.contextmanager
    def _change(self, number: int) -> Iterator[None]:
        """Until the change is done both models may answer, then only the new one."""
        self._soak.allowed |= {number}
        yield
        self._soak.allowed = frozenset({number})

    def _wait_for(self, version: int) -> None:
        """Waits until this version is the only one that answers."""
        self._until(
            lambda states: [v for v, state in states.items() if state != "END"] == [version],
            f"version {version} alone to be there",
        )
        self._serving = version

    def _until(self, condition: Callable[[Mapping[int, str]], bool], words: str) -> None:
        end = time.monotonic() + EVENT_SECONDS
        while not condition(states := self._client.status()):
            if time.monotonic() > end:
                raise RuntimeError(f"waited {EVENT_SECONDS:.0f} s for {words}; the states are {states}")
            time.sleep(0.05)


def _pushed(model: Path, base: Path) -> int:
    return version_number(Path(push(model, base)).name)


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Runs the load and the events."""
    if os.environ.get(MODEL_SERVER_VARIABLE):
        sys.exit(f"{MODEL_SERVER_VARIABLE}: expected none, since limits and retries are the stand-in's")
    seconds, every = (40.0, 5.0) if arguments.quick else (arguments.seconds, 20.0)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        models = write_models(folder)
        corrupt = folder / "corrupt"
        shutil.copytree(models[0], corrupt)
        index = corrupt / "variables" / "variables.index"
        index.write_bytes(index.read_bytes()[:20])
        push(models[0], folder / "ctr")
        server = Server(folder / "ctr", MAX_REQUEST_BYTES)
        try:
            server.wait()
            address = f"127.0.0.1:{server.rest_port}"
            with Soak(server) as soak, CTRClient(address, protocol="rest") as client:
                events = Events(soak, client, folder / "ctr", models, corrupt)
                events.run(seconds, every)
        finally:
            server.close()
    # The warm-up is a large part of a quick run.
    return _counts(soak) + _growth(events.memory, None if arguments.quick else 1.05)


def _counts(soak: Soak) -> list[Result]:
    for complaint in (*soak.wrong[:5], *soak.failed[:5], *soak.surprises[:5]):
        print(complaint)
    asked = soak.right + len(soak.wrong) + len(soak.failed)
    misbehaved = ", ".join(f"{name}: {count:,}" for name, count in sorted(soak.nuisances.items()))
    return [
        Result(name, len(found), len(found), len(found), 0, "lower", note)
        for name, found, note in (
            ("wrong answers", soak.wrong, f"{asked:,} well-formed requests of 1 to {MAX_ROWS} rows"),
            ("failed requests", soak.failed, f"besides {soak.excused:,} while the process was down"),
            ("misbehaving requests not refused as they should be", soak.surprises, misbehaved),
        )
    ]


def _growth(memory: list[list[float]], goal: float | None) -> list[Result]:
    results = []
    for life, samples in enumerate(memory, start=1):
        # The first third holds the warm-up: thread pools, the first swaps.
        third = max(1, len(samples) // 3)
        middle, last = np.median(samples[third : 2 * third]), np.median(samples[-third:])
        note = f"{middle:.0f} MB, then {last:.0f} MB; peak {max(samples):.0f} MB"
        value = float(last / middle)
        name = f"memory, last third / middle third of life {life}"
        results.append(Result(name, value, value, value, goal, "lower", note))
    return results


if __name__ == "__main__":
    found = _harness.main(
        __doc__.splitlines()[0],
        measure,
        seconds={"type": float, "default": 300.0, "help": "length of the load"},
        scratch={"help": "folder for the models"},
    )
    sys.exit(any(result.passed is False for result in found))
