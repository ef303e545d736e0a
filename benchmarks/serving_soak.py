"""A server under load for minutes: versions come, go and are corrupt, callers misbehave, the process is killed.

Counts wrong answers, well-formed requests that failed while the process was up, and how memory grows.
"""

import argparse
import itertools
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import _harness
from benchmarks._harness import Result
from benchmarks.serving import Server
from mlet_tf.serving import CTRClient, ServingError, push, rollback

SWAP_SECONDS = 20.0
MODELS = 4
MAX_REQUEST_BYTES = 2**22
NUISANCES = {
    "malformed JSON": b'{"instances": [',
    "wrong type": b'{"signature_name": "raw", "inputs": {"I1": ["x"]}}',
    "no such signature": b'{"signature_name": "nope", "inputs": [1]}',
    "no tf.Example": b'{"inputs": ["garbage"]}',
    "deep": b"[" * 100_000,
}


def write_models(folder: Path) -> list[Path]:
    """SavedModels that answer I1=1 with different known numbers; 64 MB each, so that a leak would show."""
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self, weight: float) -> None:
            self.weight = tf.Variable(weight)
            self.ballast = tf.Variable(tf.zeros([16_000_000]))

        @tf.function
        def serve(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
            features = tf.io.parse_example(examples, {"I1": tf.io.FixedLenFeature([], tf.int64, 0)})
            return {"ctr": tf.sigmoid(self.weight * tf.cast(features["I1"], tf.float32)) + self.ballast[0]}

        @tf.function
        def raw(self, I1: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"ctr": tf.sigmoid(self.weight * tf.cast(I1, tf.float32))}

    paths = []
    for number in range(MODELS):
        model = Model(float(number + 1))
        paths.append(folder / f"model{number}")
        signatures = {
            "serving_default": model.serve.get_concrete_function(examples=tf.TensorSpec([None], tf.string)),
            "raw": model.raw.get_concrete_function(I1=tf.TensorSpec([None], tf.int64)),
        }
        tf.saved_model.save(model, str(paths[-1]), signatures)
    return paths


def expected(number: int) -> float:
    """What model `number` answers to I1=1."""
    return float(1 / (1 + np.exp(-np.float32(number + 1))))


class Soak:
    """The callers, and what became of their requests."""

    def __init__(self, server: Server) -> None:
        """Starts nothing yet."""
        self.server = server
        self.right = self.wrong = self.failed = self.failed_while_down = 0
        self.nuisances: Counter = Counter()
        self.failures: list[str] = []
        self.current = {expected(0)}
        self.down = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        runs: list[Callable[[], None]] = [lambda p=p: self._ask(p) for p in ("grpc", "grpc", "rest", "rest")]
        self._threads = [threading.Thread(target=run) for run in [*runs, self._misbehave]]

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

    def _ask(self, protocol: str) -> None:
        port = self.server.port if protocol == "grpc" else self.server.rest_port
        rows = [{"I1": 1}] * 16
        with CTRClient(f"127.0.0.1:{port}", protocol=protocol, retries=0) as client:
            while not self._stop.is_set():
                down, allowed = self.down, self.current
                try:
                    answer = client.predict(rows)
                except ServingError as error:
                    self._count_failure(down, error)
                    time.sleep(0.05)
                    continue
                allowed = allowed | self.current
                fits = any(np.allclose(answer, value, rtol=1e-5) for value in allowed)
                with self._lock:
                    self.right += fits
                    self.wrong += not fits

    def _count_failure(self, was_down: bool, error: ServingError) -> None:
        with self._lock:
            if was_down or self.down:
                self.failed_while_down += 1
            else:
                self.failed += 1
                self.failures.append(str(error))

    def _misbehave(self) -> None:
        url = f"http://127.0.0.1:{self.server.rest_port}/v1/models/ctr:predict"
        requests = {**NUISANCES, "oversized": b" " * (MAX_REQUEST_BYTES + 1)}
        for name, body in itertools.cycle(requests.items()):
            if self._stop.wait(0.1):
                return
            try:
                urllib.request.urlopen(urllib.request.Request(url, body), timeout=30).read()
                self.nuisances[f"{name}: answered"] += 1
            except urllib.error.HTTPError as error:
                self.nuisances[f"{name}: {error.code}"] += 1
            except OSError:
                self.nuisances[f"{name}: connection closed"] += 1


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Runs the load and the events."""
    seconds = 60.0 if arguments.quick else arguments.seconds
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
            with Soak(server) as soak:
                memory = _events(soak, server, folder / "ctr", models, corrupt, seconds)
        finally:
            server.close()
    return _results(soak, memory)


def _events(
    soak: Soak, server: Server, base: Path, models: list[Path], corrupt: Path, seconds: float
) -> list[list[float]]:
    """Swaps, a rollback, corrupt versions and one kill; returns memory samples of each life of the process."""
    memory: list[list[float]] = [[]]
    end, next_event, turn = time.monotonic() + seconds, time.monotonic() + SWAP_SECONDS, 0
    serving = 0
    kill_at = int(seconds / SWAP_SECONDS / 2)
    while time.monotonic() < end:
        time.sleep(0.5)
        memory[-1].append(server.memory())
        if time.monotonic() < next_event:
            continue
        next_event += SWAP_SECONDS
        turn += 1
        if turn == kill_at:
            soak.down = True
            server.kill()
            server.start()
            server.wait()
            # Calls that were on their way while it was down end in this time.
            time.sleep(2.0)
            soak.down = False
            memory.append([])
        elif turn % 4 == 3:
            push(corrupt, base)
        else:
            before, serving = serving, turn % MODELS
            soak.current = {expected(before), expected(serving)}
            push(models[serving], base)
            time.sleep(8.0)
            soak.current = {expected(serving)}
            if turn % 4 == 2:
                # The version before this one may be corrupt; then the one before that serves.
                soak.current = {expected(number) for number in range(MODELS)}
                rollback(base)
                time.sleep(8.0)
                push(models[serving], base)
                time.sleep(4.0)
                soak.current = {expected(serving)}
    return memory


def _results(soak: Soak, memory: list[list[float]]) -> list[Result]:
    for failure in soak.failures[:5]:
        print(f"failed: {failure}")
    asked = soak.right + soak.wrong + soak.failed
    note = f"{asked:,} well-formed requests of 16 rows; {soak.failed_while_down} failed while the process was down"
    misbehaved = ", ".join(f"{name} {count}" for name, count in sorted(soak.nuisances.items()))
    results = [
        Result("wrong answers", soak.wrong, soak.wrong, soak.wrong, 0, "lower", note),
        Result("failed well-formed requests", soak.failed, soak.failed, soak.failed, 0, "lower", misbehaved),
    ]
    for life, samples in enumerate(memory, start=1):
        # The first third holds the warm-up: thread pools, the first swaps.
        third = max(1, len(samples) // 3)
        middle, last = np.median(samples[third : 2 * third]), np.median(samples[-third:])
        note = f"{middle:.0f} MB, then {last:.0f} MB; peak {max(samples):.0f} MB"
        value = float(last / middle)
        results.append(
            Result(
                f"memory, last third / middle third of life {life}", value, value, value, 1.05, "lower", note
            )
        )
    return results


if __name__ == "__main__":
    _harness.main(
        __doc__.splitlines()[0],
        measure,
        seconds={"type": float, "default": 300.0, "help": "length of the load"},
        scratch={"help": "folder for the models"},
    )
