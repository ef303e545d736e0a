"""Ingestion and vocabularies on several Beam engines: the same bytes as from one process."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from tests_support import run_example_gen, run_statistics_gen, run_transform

from mlet_tf.config import BeamConfig
from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.synthetic import write_log
from mlet_tf.features.ingestion import count_rows

pytestmark = pytest.mark.slow
ROWS = 3000


@contextlib.contextmanager
def _process(module: str, *arguments: str):
    # A worker pool starts its workers as `python`, as found on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], env={**os.environ, "PATH": path})
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"the process behind port {port} ended")


@contextlib.contextmanager
def _multi_processing(_: Path):
    yield BeamConfig(workers=2)


@contextlib.contextmanager
def _multi_processing_behind_a_proxy(_: Path):
    """Beam's workers are on loopback, where no proxy may come between; this one's port is closed."""
    proxy = f"http://127.0.0.1:{_free_port()}"
    with mock.patch.dict(os.environ, http_proxy=proxy, https_proxy=proxy):
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            os.environ.pop(name, None)
        yield BeamConfig(workers=2)


@contextlib.contextmanager
def _job_server_and_worker_pool(_: Path):
    """A portable job server, and workers in processes that a pool of its own starts: as on a cluster."""
    job, pool = _free_port(), _free_port()
    with (
        _process("apache_beam.runners.portability.local_job_service_main", f"--port={job}") as server,
        _process("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}") as workers,
    ):
        _wait_for(job, server)
        _wait_for(pool, workers)
        yield BeamConfig(
            runner="PortableRunner",
            options=(
                f"--job_endpoint=localhost:{job}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{pool}",
            ),
        )


@contextlib.contextmanager
def _dask(_: Path):
    from dask import distributed

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield BeamConfig(
            runner="apache_beam.runners.dask.dask_runner.DaskRunner",
            options=(f"--dask_client_address={cluster.scheduler_address}",),
        )


def _outputs(folder: Path, log: Path, beam: BeamConfig) -> dict[str, bytes]:
    """Content of every file of examples, counts and vocabularies, and the statistics."""
    examples = run_example_gen(folder / "examples", CRITEO, log, chunk_bytes=100_000, beam=beam.args())
    assert sum(count_rows(examples.uri).values()) == ROWS
    graph = run_transform(folder, CRITEO, examples, beam=beam.args())
    statistics = run_statistics_gen(folder, CRITEO, examples, beam=beam.args())
    files = [*Path(examples.uri).glob("*/*"), *Path(graph.transform_savedmodel_dir).glob("assets/*")]
    contents = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    return contents | {
        split: value.SerializeToString(deterministic=True) for split, value in statistics.items()
    }


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    write_log(path, CRITEO, ROWS, seed=2, vocabulary=500, rank=2)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory, log) -> dict[str, bytes]:
    outputs = _outputs(tmp_path_factory.mktemp("one"), log, BeamConfig())
    assert len(outputs) > 3 * 5 + 26
    return outputs


@pytest.mark.parametrize(
    "engine", [_multi_processing, _multi_processing_behind_a_proxy, _job_server_and_worker_pool, _dask]
)
def test_engines_with_several_workers_give_the_same_bytes(tmp_path, log, expected, engine):
    with engine(tmp_path) as beam:
        assert _outputs(tmp_path, log, beam) == expected
