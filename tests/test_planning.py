"""Arithmetic of `mlet-tf plan`."""

import numpy as np
import pytest

from mlet_tf.planning import Machine, make_plan, served_memory, training_memory, workers_needed
from mlet_tf.sizes import Sizes, dense_parameters, touched_rows

SIZES = Sizes(
    vocabulary=(5000, 300, 20), rows=10_000, num_dense=6, output_dim=8, hidden_dim=32, batch_size=256
)


def value(lines, name):
    return next(line.value for line in lines if line.name == name)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "row_wise_adagrad", "lazy_adam"])
def test_weights_and_state_are_those_of_the_model(optimizer):
    from mlet_tf.config import ModelConfig, TablesConfig, TrainConfig
    from mlet_tf.training.build import build_model, compile_model

    config = ModelConfig(output_dim=8, hidden_dim=32)
    model = build_model(config, {f"c{i}": rows for i, rows in enumerate(SIZES.vocabulary)}, SIZES.num_dense)
    compile_model(model, TrainConfig(tables=TablesConfig(name=optimizer, learning_rate=0.1)), 10)
    model.optimizer.build(model.trainable_variables)
    tables = [v for v in model.trainable_variables if v.path.rsplit("/", 1)[1].endswith("table")]
    names = [table.path.replace("/", "_") for table in tables]
    state = [v for v in model.optimizer.variables if any(name in v.name for name in names)]
    lines = training_memory(Sizes(**{**SIZES.__dict__, "optimizer": optimizer}))
    assert value(lines, "tables") == 4 * sum(int(np.prod(v.shape)) for v in tables)
    assert value(lines, "their optimizer state") == 4 * sum(int(np.prod(v.shape)) for v in state)
    mlps = sum(int(np.prod(v.shape)) for v in model.trainable_variables if "embeddings" not in v.path)
    assert dense_parameters(SIZES) == mlps
    assert value(served_memory(SIZES), "collapsed tables") == 4 * 8 * sum(SIZES.vocabulary)


def test_touched_rows_are_those_of_random_batches():
    rng = np.random.default_rng(0)
    sizes = Sizes(vocabulary=(100_000, 50), rows=1, num_dense=1, output_dim=4, hidden_dim=8, batch_size=2000)
    counts = []
    for _ in range(20):
        for rows in sizes.vocabulary:
            shares = np.arange(1, rows + 1) ** -1.1
            counts.append(len(np.unique(rng.choice(rows, 2000, p=shares / shares.sum()))))
    assert touched_rows(sizes) == pytest.approx(sum(counts) / 20, rel=0.03)


def test_as_many_workers_as_memory_needs():
    sizes = Sizes(vocabulary=(50_000_000,), rows=10**6, num_dense=26, output_dim=16, hidden_dim=64)
    machine = Machine(memory_gib=8)
    workers = workers_needed(sizes, machine)
    memory = [sum(line.value for line in training_memory(sizes, n)) / 2**30 for n in (workers - 1, workers)]
    assert memory[1] <= 8 < memory[0]
    plan = make_plan(sizes, machine)
    assert value(plan, "planned N") == workers
    assert value(plan, "a step: network") > 0
    with pytest.raises(ValueError, match="needed in every worker"):
        workers_needed(sizes, Machine(memory_gib=0.5))


def test_command(command, tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text("rows: 1000000\nvocabulary: {C1: 1000, C2: 2000000}\n")
    code, out, _ = command("plan", "--config", "configs/demo.yaml", "--data", str(data), "--workers", "2")
    assert code == 0
    assert "rows of all tables V" in out and "2,001,000" in out and "hours N price" in out
    data.write_text("rows: 1000000\nvocabulary: {C1: -3}\n")
    code, _, err = command("plan", "--config", "configs/demo.yaml", "--data", str(data))
    assert code == 2 and "'vocabulary' should be positive integers. Received: -3" in err
    code, _, err = command("plan", "--config", "configs/demo.yaml", "--memory-gib", "0.1")
    assert code == 2 and "--memory-gib 0.1 is too little" in err
    code, _, err = command("plan", "--config", "configs/demo.yaml", "--data", "criteo")
    assert code == 2 and "criteo-kaggle" in err
