"""What is searched, from where, what it costs and what is said of it; trainings are made up."""

import re
import types
from concurrent.futures import Future

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlet_tf.config import from_mapping
from mlet_tf.config.sweep import RangeConfig, SweepConfig
from mlet_tf.experiments import sweep
from mlet_tf.experiments.cells import Cell
from mlet_tf.experiments.statistics import groups
from mlet_tf.experiments.store import read_records
from mlet_tf.experiments.tuning import at_edge, tune

TABLES, PROJECTIONS, DENSE = (f"train.{role}.learning_rate" for role in ("tables", "projections", "dense"))


def sweep_of(folder="runs/s", grid=({},), **tuning):
    study = {"generated": {}, "grid": grid, "seeds": [0, 1], "tuning": tuning}
    return from_mapping(SweepConfig, {"name": "s", "output": str(folder), "sweep": study})


def record_of(trial, validation_auc, **more):
    record = {"stage": trial.stage, **trial.cell.to_dict(), "method": None, "seed": trial.seed}
    record |= {"learning_rates": {"tables": 0.1}, "bytes": 4, "epochs": [{}], "best_epoch": 1}
    record |= {"train_seconds": 3.0, "train_cpu_seconds": 2.0, **trial.notes, **more}
    splits = ("validation",) if trial.stage == "tune" else ("validation", "test")
    return record | {split: {"auc": validation_auc} for split in splits}


def drive(search, reach):
    """Runs a search whose trainings reach `reach(values)`; returns the values tried and the choice."""
    tried, records = [], None
    try:
        while True:
            (trial,) = search.send(records)
            tried.append(dict(trial.tuned))
            records = [[record_of(trial, reach(tried[-1]))]]
    except StopIteration as stop:
        return tried, stop.value


def closeness(**best):
    """The AUC of a training that is best at these values."""
    return lambda values: 0.8 - 0.01 * sum(abs(values[key] - value) for key, value in best.items())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("direct", [TABLES, DENSE]),
        ("mlet", [TABLES, PROJECTIONS, DENSE]),
        ("mlet_frozen", [TABLES, DENSE]),
        ("projected", [TABLES, PROJECTIONS, DENSE]),
        ("hash", [TABLES, DENSE]),
    ],
)
def test_each_kind_has_as_many_trials_over_the_keys_it_has(kind, expected):
    tried, choice = drive(tune(Cell(kind, 4, 8), sweep_of(trials=7)), lambda values: 0.7)
    assert len(tried) == 7 and all(list(values) == expected for values in tried)
    assert choice.notes["tuning"] == {
        "trials": 7,
        "train_cpu_seconds": 14.0,
        "searched": expected,
        "output_dim": 4,
    }


def test_the_search_begins_at_the_runs_own_values_or_the_nearer_end():
    search = {TABLES: {"low": 0.1, "high": 1.0}, "train.tables.l2": {"low": 1e-6, "high": 1e-2}}
    search[DENSE] = {"low": 0.001, "high": 0.1}
    config = sweep_of(trials=2, search=search)
    (first, second), _ = drive(tune(Cell("direct", 4), config), lambda values: 0.7)
    assert first == {TABLES: 0.1, "train.tables.l2": 1e-6, DENSE: 0.002}
    assert second != first
    start = {TABLES: 0.3, "train.tables.l2": 1e-4, DENSE: 5.0}
    (first, _), _ = drive(tune(Cell("direct", 8), config, start), lambda values: 0.7)
    assert first == {TABLES: 0.3, "train.tables.l2": 1e-4, DENSE: 0.1}


def test_the_best_is_chosen_and_asked_for_again_in_the_same_order():
    config = sweep_of(trials=12)
    tried, choice = drive(tune(Cell("direct", 4), config), closeness(**{TABLES: 0.2}))
    assert choice.values == min(tried, key=lambda values: abs(values[TABLES] - 0.2))
    assert drive(tune(Cell("direct", 4), config), closeness(**{TABLES: 0.2}))[0] == tried


def test_a_training_that_diverged_is_never_best():
    search = tune(Cell("direct", 4), sweep_of(trials=3))
    (trial,) = next(search)
    records = [record_of(trial, 0.99, diverged=True)]
    del records[0]["validation"]["auc"]
    (second,) = search.send([records])
    search.send([[record_of(second, 0.4)]])
    with pytest.raises(StopIteration) as stop:
        search.send([[record_of(second, 0.3)]])
    assert stop.value.value.values == dict(second.tuned)


@given(st.floats(1e-6, 1), st.floats(1.5, 1e4), st.floats(0, 1))
def test_the_tenth_of_a_range_at_each_end_is_its_edge(low, factor, share):
    of = RangeConfig(low=low, high=low * factor)
    found = at_edge({TABLES: low * factor**share}, {TABLES: of})
    if abs(share - 0.1) > 1e-6 and abs(share - 0.9) > 1e-6:
        assert found == ([TABLES] if share < 0.1 or share > 0.9 else [])


class Here:
    """`Processes` that trains in this one."""

    def __init__(self, count):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


@pytest.fixture
def trained(monkeypatch):
    """Makes up the trainings of sweeps; returns the list of them, and `reach`, which may be replaced."""
    state = types.SimpleNamespace(trials=[], reach=lambda trial: {"validation_auc": 0.7})

    def run(trial, config, data):
        state.trials.append(trial)
        return [record_of(trial, **state.reach(trial)) | {"key": trial.key(config, data.digest)}]

    monkeypatch.setattr(sweep, "prepare", lambda *_: types.SimpleNamespace(digest="rows"))
    monkeypatch.setattr(sweep, "Processes", Here)
    monkeypatch.setattr(sweep, "run_alone", run)
    return state


def best_tables_rate(rate):
    return lambda trial: {"validation_auc": 0.8 - abs(dict(trial.tuned)[TABLES] - rate)}


def test_a_chain_is_tuned_at_each_size_or_at_one(trained, tmp_path):
    grid = [{"embedding": ["direct", "mlet"], "model.output_dim": [2, 4, 8]}]
    trained.reach = best_tables_rate(0.3)
    for dim, tunings in ((None, 6), (4, 2)):
        config = sweep_of(tmp_path / str(dim), grid, trials=4, output_dim=dim)
        trained.trials.clear()
        progress = []
        records = read_records(sweep.run_sweep(config, progress=progress.append))
        assert len(trained.trials) == 4 * tunings + 6 * 2 == sweep.count_trials(config)
        assert (progress[-1].done, progress[-1].total) == (len(trained.trials),) * 2
        finals = [record for record in records if record["stage"] == "final"]
        assert {r["tuning"]["output_dim"] for r in finals} == ({2, 4, 8} if dim is None else {4})
        assert {r["tuning"]["train_cpu_seconds"] for r in finals} == {8.0}
    rates = {dict(trial.tuned)[TABLES] for trial in trained.trials if trial.stage == "final"}
    assert len(rates) <= 2, "one a chain"


def test_nothing_to_search_is_not_tuned(trained, tmp_path):
    config = sweep_of(tmp_path, [{"embedding": ["direct"]}], search={PROJECTIONS: {"low": 0.1, "high": 1.0}})
    records = read_records(sweep.run_sweep(config))
    assert [record["stage"] for record in records] == ["final", "final"]
    assert records[0]["tuning"]["trials"] == sweep.count_trials(config) - 2 == 0
    assert records[0]["at_edge"] == []


def test_best_values_at_the_end_of_their_range_are_told_until_it_is_wider(trained, tmp_path):
    trained.reach = best_tables_rate(0.5)

    def run(high, trials):
        notes = []
        search = {TABLES: {"low": 0.01, "high": high}}
        config = sweep_of(tmp_path, [{"embedding": ["direct"]}], trials=trials, search=search)
        config = config.replace(
            train=config.train.replace(tables=config.train.tables.replace(learning_rate=0.5))
        )
        records = read_records(sweep.run_sweep(config, notes.append))
        return notes, [record["at_edge"] for record in records if record["stage"] == "final"]

    notes, edges = run(0.5, 1)
    assert edges == [[TABLES]] * 2
    assert notes == [
        f"warning: the best '{TABLES}' is at an end of its range, 0.01 to 0.5, for direct d=8: widen it in "
        "'sweep.tuning.search'"
    ]
    trained.trials.clear()
    assert run(50.0, 1) == ([], [[], []])
    assert not trained.trials, "the same trainings, found again; only what is said of them is new"
    lines = (tmp_path / "trials.jsonl").read_text()
    assert run(50.0, 1) == ([], [[], []])
    assert (tmp_path / "trials.jsonl").read_text() == lines, "written once"


def test_trainings_that_learned_nothing_are_told_and_left_out_of_means(trained, tmp_path):
    def reach(trial):
        failed = trial.seed == 1 and trial.cell.kind == "direct"
        return {"validation_auc": 0.5, "constant": True} if failed else {"validation_auc": 0.8}

    trained.reach, notes = reach, []
    config = sweep_of(tmp_path, [{"embedding": ["direct", "mlet"]}], trials=0)
    direct, mlet = groups(read_records(sweep.run_sweep(config, notes.append)))
    assert notes == ["warning: 1 of 4 final trials are constant and left out of all means: direct d=8"]
    assert (direct.mean(), direct.fault) == (0.8, "constant (1 of 2)")
    assert (mlet.mean(), mlet.fault) == (0.8, "")


def test_a_sweep_that_was_interrupted_goes_on_where_it_was(trained, tmp_path):
    config = sweep_of(tmp_path, [{"embedding": ["direct", "mlet"], "model.output_dim": [2, 4]}], trials=3)
    reach = best_tables_rate(0.2)

    def interrupted(trial):
        if len(trained.trials) == 9:
            raise KeyboardInterrupt
        return reach(trial)

    trained.reach = interrupted
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(config)
    trained.reach, progress = reach, []
    stored = {record["key"] for record in read_records(tmp_path / "trials.jsonl")}
    assert len(stored) >= 6
    trained.trials.clear()
    sweep.run_sweep(config, progress=progress.append)
    assert len(trained.trials) == sweep.count_trials(config) - len(stored)
    assert stored.isdisjoint(trial.key(config, "rows") for trial in trained.trials)
    assert sum(state.fresh for state in progress) == len(trained.trials)
    assert progress[-1].done == progress[-1].total == sweep.count_trials(config)


def test_the_command_tells_each_trial_and_the_time_left_and_goes_on_after_an_interruption(
    trained, tmp_path, command
):
    study = {"generated": {}, "seeds": [0, 1], "tuning": {"trials": 2}, "grid": [{"embedding": ["direct"]}]}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "output": str(tmp_path / "out"), "sweep": study}))

    def interrupted(trial):
        if len(trained.trials) == 3:
            raise KeyboardInterrupt
        return {"validation_auc": 0.7}

    trained.reach = interrupted
    code, _, err = command("sweep", "--config", file)
    assert code != 0 and "Traceback" not in err
    lines = [line for line in err.splitlines() if "direct" in line]
    line = r"{}/4 direct d=8 tune seed 1000 rates 0\.1: validation AUC 0\.7000, epoch 1 of 1, 3 s, 0:00:\d\d left"
    assert len(lines) == 2
    for number, text in enumerate(lines, 1):
        assert re.fullmatch(line.format(number), text), text
    trained.reach = lambda trial: {"validation_auc": 0.7}
    code, out, err = command("sweep", "--config", file)
    assert (code, out.strip()) == (0, str(tmp_path / "out" / "trials.jsonl"))
    lines = [line for line in err.splitlines() if re.match(r"\d/4", line)]
    assert [text[:24] for text in lines] == ["3/4 direct d=8 final see", "4/4 direct d=8 final see"]
    assert "left" in lines[0] and "left" not in lines[1]


def test_every_process_has_work_while_trials_are_left(trained, tmp_path, monkeypatch):
    """Chains of a single trial: another one begins where one ends."""
    running, counts = [], []

    class Slow(Here):
        def submit(self, function, *args):
            running.append((Future(), function, args))
            return running[-1][0]

    def finish_the_first(futures, return_when):
        counts.append(len(running))
        future, function, args = running.pop(0)
        future.set_result(function(*args))

    monkeypatch.setattr(sweep, "Processes", Slow)
    monkeypatch.setattr(sweep, "wait", finish_the_first)
    grid = [{"embedding": ["mlet"], "model.hidden_dim": [8, 16, 32, 64]}]
    config = sweep_of(tmp_path, grid, trials=0)
    config = config.replace(sweep=config.sweep.replace(seeds=(0,), workers=2))
    sweep.run_sweep(config)
    assert counts == [2, 2, 2, 1]
