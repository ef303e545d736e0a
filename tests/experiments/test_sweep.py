"""A tiny sweep through the command: what it records, that it resumes, what is made of the records."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
import yaml

from mlet_tf.config import ModelConfig, from_mapping
from mlet_tf.config.sweep import SweepConfig, SweepSplitConfig
from mlet_tf.errors import InputError
from mlet_tf.experiments.cells import Cell, cells, load_sweep, train_config
from mlet_tf.experiments.preparation import digest_of, prepare
from mlet_tf.experiments.results import fill
from mlet_tf.experiments.splits import SPLITS, split_of_rows
from mlet_tf.experiments.statistics import difference, groups
from mlet_tf.experiments.store import TrialStore, read_records
from mlet_tf.experiments.tables import embedding_collection
from mlet_tf.experiments.trial import Trial, build_model, fit, make_embeddings
from mlet_tf.layers import EmbeddingFeature, variable_role
from mlet_tf.names import Optimizer
from mlet_tf.optimizers.names import OPTIMIZERS
from mlet_tf.training import build

SWEEP = {
    "name": "tiny",
    "vocabulary": {"rare_below": 50},
    "model": {"bottom_units": [4], "top_units": [8]},
    "train": {"batch_size": 64, "steps_per_execution": 25, "epochs": 3, "early_stopping_patience": 0},
    "sweep": {
        "generated": {"rows": 3000, "categoricals": 3, "integers": 1, "rank": 2, "vocabulary": 30},
        "tuning": {"trials": 1},
        "seeds": [0],
        "workers": 1,
        "grid": [
            {
                "embedding": ["direct"],
                "model.output_dim": [4],
                "truncate_to": [1],
                "fine_tune": 0.5,
                "compress_to": [4],
            },
            {
                "embedding": ["mlet"],
                "model.output_dim": [2],
                "model.hidden_dim": [8],
                "rescaled_control": True,
            },
        ],
    },
}


RATES = {
    "train.tables.learning_rate": 0.1,
    "train.projections.learning_rate": 0.1,
    "train.dense.learning_rate": 0.05,
}


def load_tiny(folder):
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**SWEEP, "output": str(folder / "out")}))
    return load_sweep(folder / "sweep.yaml")


def sweep_of(*grids, **groups):
    """The configuration of a sweep with these entries of its grid."""
    study = {"generated": {}, "grid": grids} | groups.pop("sweep", {})
    return from_mapping(SweepConfig, {"name": "s", "output": "runs/s", "sweep": study} | groups)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    load_tiny(folder)
    return folder


def test_sweep_records_resumes_and_draws(folder, command, monkeypatch):
    monkeypatch.setattr(
        "mlet_tf.experiments.processes.TASKS_A_PROCESS", 3
    )  # Processes are replaced on the way.
    results = folder / "out" / "trials.jsonl"
    code, out, err = command("sweep", "--config", folder / "sweep.yaml")
    assert (code, out.strip()) == (0, str(results)), err
    records = read_records(results)
    assert [r["stage"] for r in records].count("tune") == 2
    found = {group.label: group for group in groups(records)}
    assert set(found) == {
        "direct d=4",
        "direct d=4 -> 1 (common)",
        "direct d=4 -> 1 (per_table)",
        "direct d=4 -> 1 (interaction)",
        "direct d=4 -> 1 (allocated)",
        "direct d=4 -> 1 (fine_tuned)",
        "direct d=4 -> 1 (compressed)",
        "mlet d=2 k=8",
        "direct_rescaled d=2",
    }
    mlet, rescaled = found["mlet d=2 k=8"].record, found["direct_rescaled d=2"].record
    assert rescaled["learning_rates"]["tables"] == pytest.approx(
        mlet["learning_rates"]["tables"] / 2, rel=0.01
    )
    assert rescaled["bytes"] == mlet["bytes"] == found["direct d=4"].record["bytes"] / 2
    compressed = found["direct d=4 -> 1 (compressed)"].record
    assert compressed["bytes"] <= found["direct d=4"].record["bytes"] / 4
    assert found["direct d=4 -> 1 (fine_tuned)"].mean("logloss") < found["direct d=4 -> 1 (common)"].mean(
        "logloss"
    )
    assert all(0 < r["test_rare"]["rows"] < 300 for r in records if "test" in r)
    for record in (record for record in records if record["method"] is None):
        losses = [epoch["logloss"] for epoch in record["epochs"]]
        assert record["best_epoch"] == 1 + losses.index(min(losses))
        assert record["validation"]["logloss"] == pytest.approx(min(losses), abs=2e-6)
        assert len(losses) == min(3, record["best_epoch"] + 1), "no epoch after one that was no better"
    tuned = [record["train_cpu_seconds"] for record in records if record["stage"] == "tune"]
    assert mlet["tuning"] == {
        "trials": 1,
        "train_cpu_seconds": tuned[1],
        "searched": [
            "train.tables.learning_rate",
            "train.projections.learning_rate",
            "train.dense.learning_rate",
        ],
        "output_dim": 2,
    }

    # A kill in the middle of a line loses that trial alone; a finished sweep trains nothing.
    lines = results.read_text().splitlines(keepends=True)
    last = [line for line in lines if json.loads(line)["key"] != records[-1]["key"]]
    results.write_text("".join(last) + lines[-1][:40])
    assert command("sweep", "--config", folder / "sweep.yaml")[0] == 0
    again = {r["key"]: r for r in read_records(results)}
    before = {r["key"]: r for r in records}
    assert again.keys() == before.keys()
    assert again[records[-1]["key"]]["test"] == before[records[-1]["key"]]["test"], "training is repeatable"

    code, out, _ = command("frontier", "draw", results, "--output", folder / "frontier.png")
    assert code == 0
    assert "direct_rescaled d=2" in out
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_named(folder, command):
    def run(*overrides):
        options = [f"--set={override}" for override in (f"output={folder / 'bad'}", *overrides)]
        code, _, err = command("sweep", "--config", folder / "sweep.yaml", *options)
        assert code == 2
        assert "Traceback" not in err
        return err

    assert "'sweep.grid[0].embedding[0]' should be 'direct', 'mlet', 'mlet_frozen'" in run(
        "sweep.grid=[{embedding: [mlett]}]"
    )
    assert "did you mean 'seeds'" in run("sweep.seed=[1]").lower()
    assert "'data.train' or 'sweep.generated' should be given" in run("sweep.generated=null")
    assert "vocabulary.min" in run("vocabulary.min=2")
    assert "too few" in run("sweep.generated.rows=5")
    assert "not_there" in run("sweep.generated=null", f"data.train={folder / 'not_there.tsv'}")
    code, _, err = command("frontier", "draw", folder / "none.jsonl")
    assert code == 2
    assert "none.jsonl" in err


def test_rows_are_split_once_and_vocabularies_come_from_train(tmp_path):
    rows = {"rows": 4000, "categoricals": 2, "integers": 1, "vocabulary": 400, "power": 0.7}
    split = {"method": "sequential", "validation_share": 0.2, "test_share": 0.2}
    config = sweep_of({}, sweep={"generated": rows, "split": split}, vocabulary={"min_count": 1})
    data = prepare(config, tmp_path)
    assert [data.splits[split].rows for split in SPLITS] == [2400, 800, 800]
    assert prepare(config, tmp_path).digest == data.digest
    assert data.best["auc"] > 0.6
    for i, (name, rows) in enumerate(data.table_rows.items()):
        oov = rows - 2
        counts = data.counts()[i]
        assert counts.sum() == 2400
        assert counts[oov] == 0, f"{name}: no value of train is out of its own vocabulary"
        assert (np.diff(counts[:oov]) <= 0).all(), "ids by falling frequency"
    ids = data.splits["test"].sparse_features
    largest = int(np.argmax(list(data.table_rows.values())))
    assert (ids[:, largest] == list(data.table_rows.values())[largest] - 2).any(), (
        "test has values of its own"
    )
    rare = data.rare_rows("test")
    expected = np.zeros(800, bool)
    for i, counts in enumerate(data.counts()):
        expected |= counts[ids[:, i]] < 10
    np.testing.assert_array_equal(rare, expected)


def test_sequential_split_trains_on_the_first_rows():
    split = split_of_rows(1000, SweepSplitConfig(method="sequential", validation_share=0.1, test_share=0.2))
    assert (split[:700] == 0).all()
    assert sorted(np.bincount(split[700:])[1:]) == [100, 200]
    assert (np.diff(split[700:].astype(int)) < 0).any(), "validation and test are mixed"


def test_hidden_dims_follow_the_vocabulary():
    cell = Cell("mlet", 4, 64, "fixed_variance", direct_threshold=10, hidden_scale=1.0)
    rows = {"direct": 10, "floor": 11, "middle": 120, "up": 1000, "ceiling": 90_000}
    features = [EmbeddingFeature(name, size) for name, size in rows.items()]
    layer = make_embeddings(cell, features, 4, 64, direct_threshold=10)
    layer.build((None, len(rows)))
    assert [table.hidden_dim for table in layer.factorizations()] == [4, 8, 32, 64, None]


def test_penalties_act_on_tables_and_projections_apart(tmp_path):
    config = load_tiny(tmp_path)
    data = prepare(config, tmp_path / "data")

    def norms(**penalties):
        cell = Cell("mlet", 2, 8, "fixed_variance", direct_threshold=0)
        tuned = RATES | {f"train.{role}.l2": l2 for role, l2 in penalties.items()}
        trial = Trial(cell, "tune", 0, tuple(tuned.items()))
        model = build_model(trial, config, data)
        fit(model, data.splits, trial.train_config(config))
        variables = embedding_collection(model).trainable_variables
        return {variable_role(v): float(np.linalg.norm(v)) for v in variables}

    tables, projections = norms(tables=1.0), norms(projections=1.0)
    # Where one of the factors shrinks, the gradients of the other shrink with it, but far less.
    assert tables["table"] < 0.6 * projections["table"]
    assert projections["projection"] < 0.3 * tables["projection"]


def test_a_trial_starts_from_the_model_of_a_run(tmp_path):
    """The same builder, the same seed: the same initial values."""
    config = load_tiny(tmp_path)
    data = prepare(config, tmp_path / "data")
    cell = Cell("mlet", 2, 8, direct_threshold=0)
    trial = build_model(Trial(cell, "tune", 3), config, data)
    keras.utils.set_random_seed(3)
    model = ModelConfig(
        output_dim=2,
        hidden_dim=8,
        direct_threshold=0,
        bottom_units=(4,),
        top_units=(8,),
        mixed_precision="off",
    )
    run = build.build_model(model, data.table_rows, data.splits["train"].dense)
    for received, expected in zip(trial.get_weights(), run.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_a_trial_ends_where_a_run_ends(tmp_path):
    """After `train.max_steps`, at the end of its schedule."""
    load_tiny(tmp_path)
    config = load_sweep(
        tmp_path / "sweep.yaml", ["train.max_steps=3", "train.schedule.decay=linear", "train.batch_size=32"]
    )
    data = prepare(config, tmp_path / "data")
    trial = Trial(Cell("mlet", 2, 8, "fixed_variance", direct_threshold=0), "tune", 0)
    model = build_model(trial, config, data)
    fit(model, data.splits, trial.train_config(config))
    assert int(model.optimizer.iterations) == 3
    assert [float(part.learning_rate) for part in model.optimizer.optimizers] == [0, 0, 0]


def test_direct_tables_get_every_penalty_of_the_tables():
    penalties = {"train.tables.l2": [0, 1e-4], "train.projections.l2": [0, 1e-3]}
    config = sweep_of({"embedding": ["direct", "mlet_frozen", "mlet"], **penalties})
    found = [(cell.kind, *dict(cell.settings).values()) for cell in cells(config, config.sweep.grid[0])]
    assert sorted(found) == [
        ("direct", 0.0),
        ("direct", 1e-4),
        ("mlet", 0.0, 0.0),
        ("mlet", 0.0, 1e-3),
        ("mlet", 1e-4, 0.0),
        ("mlet", 1e-4, 1e-3),
        ("mlet_frozen", 0.0),
        ("mlet_frozen", 1e-4),
    ]


def test_a_grid_without_embeddings_has_the_models_of_runs():
    """A null `model.hidden_dim` is a direct table, as in a run; keys that are not listed are the run's own."""
    config = sweep_of({"model.hidden_dim": [None, 32]}, model={"output_dim": 4, "direct_threshold": 7})
    assert cells(config, config.sweep.grid[0]) == [
        Cell("direct", 4),
        Cell("mlet", 4, 32, "fixed_variance", direct_threshold=7),
    ]


def test_a_grid_varies_any_key_of_model_and_training():
    grid = {"train.batch_size": [64, 128], "train.schedule.decay": ["linear"], "model.output_dim": [8, 4]}
    config = sweep_of(grid | {"embedding": ["direct"]})
    found = cells(config, config.sweep.grid[0])
    assert [(cell.output_dim, dict(cell.settings)["train.batch_size"]) for cell in found] == [
        (4, 64),
        (8, 64),
        (4, 128),
        (8, 128),
    ], "those of one chain by growing d"
    assert found[3].to_dict()["settings"] == {"train.batch_size": 128, "train.schedule.decay": "linear"}
    train = train_config(config, found[3], RATES, seed=5)
    assert (train.batch_size, train.schedule.decay, train.seed) == (128, "linear", 5)
    assert train.dense.learning_rate == 0.05
    keys = {Trial(cell, "final", 0).key(config, "rows") for cell in found}
    assert len(keys) == 4
    common = {"study": "s", "stage": "final", "method": None, "seed": 0, "test": {"auc": 0.7}}
    assert [group.label for group in groups(cell.to_dict() | common for cell in found)] == [
        "direct d=4 train.batch_size=64 train.schedule.decay=linear",
        "direct d=8 train.batch_size=64 train.schedule.decay=linear",
        "direct d=4 train.batch_size=128 train.schedule.decay=linear",
        "direct d=8 train.batch_size=128 train.schedule.decay=linear",
    ]


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ("{model.output_dim: [8], model.hidden_dim: [16, 4]}", "'model.hidden_dim' (k=4) should be at least"),
        (
            "{embedding: [nested], model.hidden_dim: [null]}",
            "'model.hidden_dim' should be a number for 'nested'",
        ),
        (
            "{train.dense.name: [sgd]}",
            "'train.dense.initial_accumulator' should be given for adagrad and row_wise_adagrad only",
        ),
    ],
)
def test_combinations_that_no_run_takes_are_refused(tmp_path, grid, line):
    load_tiny(tmp_path)
    overrides = [f"sweep.grid=[{{}}, {grid}]", "train.dense.initial_accumulator=0.1"]
    with pytest.raises(InputError) as error:
        load_sweep(tmp_path / "sweep.yaml", overrides)
    assert str(error.value).startswith(f"--set {overrides[0]}: 'sweep.grid[1]': {line}")
    assert "\n" not in str(error.value)


def test_all_that_a_training_depends_on_is_in_its_key():
    trial = Trial(Cell("mlet", 4, 8), "final", 0)
    configs = [
        sweep_of({}, **groups)
        for groups in (
            {},
            {"model": {"top_units": [8]}},
            {"train": {"max_steps": 5}},
            {"train": {"schedule": {"decay": "linear"}}},
            {"train": {"projections": {"name": "lazy_adam"}}},
            {"train": {"projections": {"initial_accumulator": 0.5}}},
            {"train": {"tables": {"l2": 0.5}}},
            {"train": {"early_stopping_patience": 0}},
            {"train": {"early_stopping_metric": "auc"}},
        )
    ]
    assert len({trial.key(config, "rows") for config in configs}) == len(configs)
    others = [
        dataclasses.replace(trial, **change)
        for change in (
            {"cell": Cell("nested", 4, 8)},
            {"stage": "control"},
            {"seed": 1},
            {"tuned": (("train.tables.learning_rate", 0.3),)},
            {"truncate_to": (1,)},
        )
    ]
    assert len({one.key(configs[0], "rows") for one in (trial, *others)}) == 1 + len(others)
    assert trial.key(configs[0], "rows") != trial.key(configs[0], "other rows")
    noted = dataclasses.replace(trial, notes={"at_edge": ["train.tables.learning_rate"]})
    assert noted.key(configs[0], "rows") == trial.key(configs[0], "rows")


def test_stored_rows_are_found_again():
    """The digest of a generated log is that of the trials that were trained on it."""
    root = Path(__file__).parents[2]
    for study in ("accumulator", "large", "rank8", "rank16", "rank32", "variants", "sgd"):
        config = load_sweep(root / "configs" / f"sweep_{study}.yaml")
        records = read_records(root / "docs" / "results" / f"{study}.jsonl")
        assert {record["data"] for record in records} == {digest_of(config)}


def test_every_optimizer_of_a_configuration_can_be_made():
    assert set(OPTIMIZERS) == set(get_args(Optimizer))


def test_paired_differences_take_out_what_seeds_share(tmp_path):
    generator = np.random.default_rng(0)
    store = TrialStore(tmp_path / "trials.jsonl")
    for seed, common in enumerate(generator.normal(0.8, 0.05, 6)):
        for kind, gain in (("direct", 0.0), ("mlet", 0.01)):
            value = common + gain + generator.normal(0, 0.001)
            record = {"key": f"{kind}{seed}", "study": "s", "stage": "final", "kind": kind, "seed": seed}
            record |= {"output_dim": 4, "hidden_dim": None, "initialization": None, "optimizer": "adagrad"}
            store.append([record | {"method": None, "bytes": 1, "test": {"auc": value}}])
    direct, mlet = groups(read_records(store.path))
    result = difference(mlet, direct)
    assert result.low < 0.01 < result.high
    assert result.high - result.low < 0.005 < mlet.interval()
    assert result.is_clear
    assert result.seeds == 6


def test_shipped_configurations_load():
    files = sorted(Path(__file__).parents[2].glob("configs/sweep_*.yaml"))
    assert files
    for file in files:
        load_sweep(file, [] if "generated:" in file.read_text() else ["data.train=log.tsv"])


@pytest.mark.parametrize("name", ["results.md", "results_generated.md"])
def test_a_page_of_results_is_what_its_trials_give(tmp_path, name):
    docs = Path(__file__).parents[2] / "docs"
    shutil.copytree(docs / "results", tmp_path / "results")
    page = shutil.copy(docs / name, tmp_path)
    fill(Path(page))
    assert Path(page).read_text() == (docs / name).read_text()
