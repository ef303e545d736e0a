"""Runs a sweep: tunes every cell and trains the final seeds, in parallel.

A chain is the cells of one kind in order of increasing `d`. Tuning of a cell starts from what was best in the one
before it, or takes it unchanged (`tuning.output_dim`); chains run in parallel. Trials that are already in the store are
not run again, so an interrupted sweep resumes.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import optuna

from mlet_tf.child_processes import safe_path
from mlet_tf.config.sweep import GridConfig, SweepConfig
from mlet_tf.experiments.cells import Cell, cells, has_key, of_kind, train_config
from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.preparation import prepare
from mlet_tf.experiments.processes import Processes
from mlet_tf.experiments.store import TrialStore
from mlet_tf.experiments.trial import Trial, run_alone
from mlet_tf.experiments.tuning import Choice, Records, count_tuning, round_rate, tune, warnings_of

_Chain = Generator[list[Trial], list[Records], None]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a sweep reports after every trial.

    Attributes:
        done: Trials that are finished, those of earlier runs included.
        total: Trials of the whole sweep.
        record: Record of the latest one, None at the start.
        fresh: Whether it was trained now rather than found in the store.
    """

    done: int
    total: int
    record: dict[str, Any] | None = None
    fresh: bool = False


def run_sweep(
    config: SweepConfig,
    note: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Runs all trials that are not in the store yet.

    Args:
        config: The study.
        note: Called with a line about each step before the trials, and with warnings after them.
        progress: Called at the start and after each trial.

    Returns:
        The file with the records.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output = Path(config.output)
    data = prepare(config, output / "data", note)
    store = TrialStore(output / "trials.jsonl")
    report = progress or (lambda state: None)
    runner = _Runner(config, data, store, report)
    grids = config.sweep.grid
    records = runner.run([_chain(chain, grid, config) for grid in grids for chain in _chains(grid, config)])
    if note:
        for line in warnings_of(records, config.sweep.tuning):
            note(line)
    return store.path


def count_trials(config: SweepConfig) -> int:
    """Trials of the whole sweep."""
    total, study = 0, config.sweep
    for grid in study.grid:
        for chain in _chains(grid, config):
            controls = sum(grid.rescaled_control and cell.kind == "mlet" for cell in chain)
            tuned = chain[:1] if study.tuning.output_dim else chain
            total += sum(count_tuning(cell, study.tuning) for cell in tuned)
            total += (len(chain) + controls) * len(study.seeds)
    return total


def _chains(grid: GridConfig, config: SweepConfig) -> Iterator[list[Cell]]:
    def of_chain(cell: Cell) -> Cell:
        return dataclasses.replace(cell, output_dim=0)

    for _, group in itertools.groupby(cells(config, grid), of_chain):
        yield list(group)


def _chain(group: list[Cell], grid: GridConfig, config: SweepConfig) -> _Chain:
    """Yields lists of trials that may run at once, takes their records."""
    seeds, choice, tuned_dim = config.sweep.seeds, None, config.sweep.tuning.output_dim
    if tuned_dim is not None:
        choice = yield from tune(dataclasses.replace(group[0], output_dim=tuned_dim), config)
    for cell in group:
        if choice is None or tuned_dim is None:
            choice = yield from tune(cell, config, choice.values if choice else None)
        to = tuple(n for n in grid.truncate_to if n < cell.output_dim)
        tuned, share = tuple(choice.values.items()), grid.fine_tune if to else 0.0
        finals = [
            Trial(cell, "final", seed, tuned, to, share, grid.compress_to, choice.notes) for seed in seeds
        ]
        if grid.rescaled_control and cell.kind == "mlet":
            finals += _controls(cell, choice, config)
        yield finals


def _controls(cell: Cell, choice: Choice, config: SweepConfig) -> list[Trial]:
    """Direct tables with the learning rate that an SGD step on an `mlet` cell's product amounts to.

    At the authors' initialisation that is its tables' own times `0.0625 k`.
    """
    direct = of_kind(dataclasses.replace(cell, kind="direct"))
    rate = train_config(config, cell, choice.values).tables.learning_rate
    tuned = {key: value for key, value in choice.values.items() if has_key("direct", key)}
    tuned["train.tables.learning_rate"] = round_rate(rate * 0.0625 * (cell.hidden_dim or 0))
    return [Trial(direct, "control", seed, tuple(tuned.items())) for seed in config.sweep.seeds]


class _Runner:
    """Drives the chains over a pool of processes."""

    def __init__(
        self,
        config: SweepConfig,
        data: PreparedData,
        store: TrialStore,
        report: Callable[[Progress], None],
    ) -> None:
        self._config, self._data, self._store, self._report = config, data, store, report
        self._finished = store.load()
        self._records: dict[str, Records] = {}  # Those of this sweep.
        self._done, self._total = 0, count_trials(config)

    def run(self, chains: list[_Chain]) -> list[dict[str, Any]]:
        """Runs the chains to their end; returns the record of each trial."""
        self._report(Progress(0, self._total))
        workers = self._config.sweep.workers or os.cpu_count() or 1
        with safe_path(), Processes(workers) as pool:
            waiting = [_Waiting(chain, next(chain)) for chain in chains]
            while waiting:
                # As many chains as processes: the order of the grid is the order of what gets finished.
                finished = {id(state) for state in waiting[:workers] if not self._advance(state, pool)}
                if finished:  # Others take their place at once.
                    waiting = [state for state in waiting if id(state) not in finished]
                    continue
                running = [future for state in waiting for future in state.futures.values()]
                if running:
                    wait(running, return_when=FIRST_COMPLETED)
        return [records[0] for records in self._records.values()]

    def _advance(self, state: _Waiting, pool: Processes) -> bool:
        """Takes what is finished, starts what can be; whether the chain goes on."""
        while True:
            for number, trial in enumerate(state.trials):
                if number not in state.records:
                    self._look(state, number, trial, pool)
            if len(state.records) < len(state.trials):
                return True
            try:
                state.next_trials()
            except StopIteration:
                return False

    def _look(self, state: _Waiting, number: int, trial: Trial, pool: Processes) -> None:
        key = trial.key(self._config, self._data.digest)
        fresh = key not in self._finished
        if fresh:
            if number not in state.futures:
                state.futures[number] = pool.submit(run_alone, trial, self._config, self._data)
                return
            if not state.futures[number].done():
                return
            records = state.futures.pop(number).result()
            records = [record | {"study": self._config.name} for record in records]
            self._store.append(records)
            self._finished[key] = records
        elif key not in self._records and _differ(self._finished[key][0], trial.notes):
            # Of a search in other ranges, or with more trials, which has found the same.
            self._finished[key] = [{**record, **trial.notes} for record in self._finished[key]]
            self._store.append(self._finished[key])
        self._records.setdefault(key, self._finished[key])
        state.records[number] = self._finished[key]
        self._done += 1
        self._report(Progress(self._done, self._total, state.records[number][0], fresh))


@dataclasses.dataclass
class _Waiting:
    """A chain, the trials it asked for and what is known of them."""

    chain: _Chain
    trials: list[Trial]
    futures: dict[int, Future] = dataclasses.field(default_factory=dict)
    records: dict[int, Records] = dataclasses.field(default_factory=dict)

    def next_trials(self) -> None:
        records = [self.records[number] for number in range(len(self.trials))]
        self.records = {}
        self.trials = self.chain.send(records)


def _differ(record: Mapping[str, Any], notes: Mapping[str, Any]) -> bool:
    return any(record.get(name) != value for name, value in notes.items())
