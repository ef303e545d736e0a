"""Training by two processes: the same as one, whatever is killed on the way."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests_support import DENSE, VOCABULARY, write_packed_rows

from mlet_tf.config import ModelConfig, TablesConfig, TrainConfig
from mlet_tf.distributed import Cluster, RowShardedEmbeddings, Workers, gather_model
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection
from mlet_tf.training.build import build_model, compile_model
from mlet_tf.training.checkpoints import Checkpoints
from mlet_tf.training.loop import total_steps, train
from mlet_tf.training.trainer import distribution_strategy

MODEL = ModelConfig(output_dim=4, hidden_dim=8, bottom_units=(8,), top_units=(8,))
# An odd number of rows, a factorised and a direct table.
ROWS = {"a": VOCABULARY + 1, "b": VOCABULARY, "c": 7}
TIMEOUT = 600


def train_part(folder: Path, workers: Workers, changes: dict) -> None:
    """What each process does: trains, going on from its checkpoints; the chief writes weights and history."""
    import keras

    config = TrainConfig(
        **{
            "batch_size": 32,
            "epochs": 2,
            "checkpoint_steps": 3,
            "shuffle_rows": 200,
            "tables": TablesConfig(name="row_wise_adagrad", learning_rate=0.05),
            **changes,
        }
    )
    work = folder / f"worker-{workers.rank}"
    work.mkdir(parents=True, exist_ok=True)
    splits = [
        write_packed_rows(work / name, rows, seed, 3) for name, rows, seed in (("t", 320, 0), ("e", 100, 1))
    ]
    keras.utils.set_random_seed(config.seed)
    sharded = config.shard_tables and workers.size > 1
    embeddings = functools.partial(RowShardedEmbeddings, workers=workers) if sharded else EmbeddingCollection
    with distribution_strategy(workers, sharded).scope():
        model = build_model(MODEL, ROWS, DENSE, embeddings)
        compile_model(model, config, total_steps(config, 320), workers)
        progress = train(model, *splits, config, work, str(folder / "board"), workers)
    if sharded:
        rows = sum(
            int(t.shape[0]) for t in model.get_layer("embeddings").trainable_weights if "table" in t.path
        )
        assert rows <= sum(ROWS.values()) / workers.size + 2 * len(ROWS)
        model = gather_model(model)
        assert (model is not None) == workers.is_chief
    if workers.is_chief:
        table = model.get_layer("embeddings").effective_table
        history = [{k: v for k, v in record.items() if k != "seconds"} for record in progress.history]
        np.savez(
            folder / "result.npz",
            history=json.dumps(history),
            **{f"effective_{name}": table(name) for name in ROWS},
            **{f"weight_{i}": value for i, value in enumerate(model.get_weights())},
        )
    workers.wait()


def child(folder: str, changes: str, pause: str) -> None:
    """A process of its own; with a pause at each checkpoint it leaves time to be killed between two."""
    save = Checkpoints.save

    def slow_save(self) -> None:
        time.sleep(float(pause))
        save(self)

    Checkpoints.save = slow_save
    train_part(Path(folder), Workers.join(), json.loads(changes))


def start(folder: Path, cluster: list[str], rank: int, changes: dict, pause: float) -> subprocess.Popen:
    paths = [str(folder) for folder in Path(__file__).parents[:3]]
    script = f"import sys; sys.path[:0] = {paths}; import test_distributed as t; t.child(*sys.argv[1:])"
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_NUM_INTRAOP_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CONFIG": json.dumps({"cluster": {"worker": cluster}, "task": {"type": "worker", "index": rank}}),
    }
    folder.mkdir(exist_ok=True)
    log = (folder / f"log-{rank}").open("ab")
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), json.dumps(changes), str(pause)],
        env=environment,
        stdout=log,
        stderr=log,
    )


def start_two(folder: Path, changes: dict, pause: float = 0.0) -> list[subprocess.Popen]:
    with socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
        cluster = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (one, two)]
    return [start(folder, cluster, rank, changes, pause) for rank in range(2)]


def wait(processes: list[subprocess.Popen], folder: Path) -> list[int]:
    """Exit codes; nothing is left running."""
    deadline = time.monotonic() + TIMEOUT
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_two(folder: Path, changes: dict) -> dict:
    for _ in range(3):
        codes = wait(start_two(folder, changes), folder)
        log = (folder / "log-0").read_text() + (folder / "log-1").read_text()
        if codes == [0, 0] or "Could not start gRPC server" not in log:  # Else another program took the port.
            break
    assert codes == [0, 0], log[-4000:]
    return result(folder)


def result(folder: Path) -> dict:
    with np.load(folder / "result.npz") as file:
        return {name: file[name] for name in file.files}


def assert_alike(received: dict, expected: dict, tolerance: float = 2e-5, without: str = "") -> None:
    assert received.keys() == expected.keys()
    histories = [json.loads(str(x["history"])) for x in (received, expected)]
    for got, want in zip(*histories, strict=True):
        for record in (got, want):
            record.pop(without, None)
        assert got == pytest.approx(want, rel=tolerance)
    for name in expected.keys() - {"history"}:
        np.testing.assert_allclose(
            received[name], expected[name], rtol=10 * tolerance, atol=tolerance, err_msg=name
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """One process on the whole batches."""
    folder = tmp_path_factory.mktemp("alone")
    train_part(folder, Workers(Cluster()), {})
    return result(folder)


@pytest.mark.parametrize("sharded", [False, True], ids=["mirrored", "sharded"])
def test_two_processes_train_as_one(tmp_path, alone, sharded):
    received = run_two(tmp_path, {"shard_tables": sharded})
    assert_alike(received, alone)
    assert not list((tmp_path / "worker-1").glob("result*"))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["mirrored", "sharded"])
def test_a_killed_process_goes_on_from_the_checkpoint(tmp_path, alone, sharded):
    changes = {"shard_tables": sharded}
    processes = start_two(tmp_path, changes, pause=0.5)
    deadline = time.monotonic() + TIMEOUT
    # Into the second epoch: four checkpoints an epoch.
    while newest(tmp_path) < 6 and processes[1].poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    codes = wait(processes, tmp_path)
    assert codes[0] not in (0, -signal.SIGKILL), "the survivor should have noticed"
    assert "Unavailable" in (tmp_path / "log-0").read_text()
    assert not (tmp_path / "result.npz").exists()
    # The loss of an epoch is the mean over the steps since the last start.
    assert_alike(run_two(tmp_path, changes), alone, without="loss")
    assert (tmp_path / "log-0").read_text().count("epoch 1, step 1/10") == 1, (
        "it should have gone on, not begun anew"
    )


def newest(folder: Path) -> int:
    paths = (folder / "worker-1").glob("checkpoints/*.index")
    return max((int(path.stem.split("-")[1]) for path in paths), default=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"TF_CONFIG should be JSON like"),
        (
            '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "parameter servers",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}',
            "task worker 3 should be one of",
        ),
    ],
)
def test_tf_config_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        Cluster.from_environment({"TF_CONFIG": text})


def test_ranks_count_the_chief_first():
    text = '{"cluster": {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, "task": {"type": "worker", "index": 1}}'
    cluster = Cluster.from_environment({"TF_CONFIG": text})
    assert (cluster.size, cluster.rank, cluster.is_chief) == (3, 2, False)
    assert Cluster.from_environment({}).is_chief


@pytest.mark.slow
def test_a_pipeline_and_a_worker(tmp_path, finished_run):
    """`mlet-tf run` and `mlet-tf worker` under one TF_CONFIG give what one process gives."""
    with socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (one, two)]
    arguments = ["--config", str(finished_run.config)]
    for override in (
        f"data.train={finished_run.log}",
        f"output={tmp_path / 'run'}",
        "train.shard_tables=true",
    ):
        arguments += ["--set", override]
    processes = []
    for rank, name in enumerate(("run", "worker")):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        log = (tmp_path / name).with_suffix(".log").open("wb")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "mlet_tf.pipeline.cli.main", name, *arguments],
                env={**os.environ, "TF_CONFIG": json.dumps(task), "TF_NUM_INTRAOP_THREADS": "1"},
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )
        )
    codes = wait(processes, tmp_path)
    assert codes == [0, 0], "".join(
        (tmp_path / f"{name}.log").read_text()[-3000:] for name in ("run", "worker")
    )
    received = json.loads((tmp_path / "run" / "run.json").read_text())
    assert received["pushed"]
    for metric, value in finished_run.result["metrics"]["collapsed"].items():
        assert received["metrics"]["collapsed"][metric] == pytest.approx(value, rel=1e-3), metric
