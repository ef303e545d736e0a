"""Runs a sweep: tunes the learning rates of every cell and trains the final seeds, in parallel.

A chain is the cells of one kind in order of increasing `d`. Tuning of a cell starts from the best rates of the one
before it; chains run in parallel. Trials that are already in the store are not run again, so an interrupted sweep
resumes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import optuna

from mlet_tf.child_processes import safe_path
from mlet_tf.config.sweep import GridConfig, SweepConfig, TuningConfig
from mlet_tf.experiments.cells import ROLES, Cell, cells, of_kind, train_config
from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.preparation import prepare
from mlet_tf.experiments.processes import Processes
from mlet_tf.experiments.store import TrialStore
from mlet_tf.experiments.trial import Trial, run_alone

Records = list[dict[str, Any]]
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
        note: Called with a line about each step before the trials.
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
    runner.run([chain for grid in config.sweep.grid for chain in _chains(grid, config)])
    return store.path


def count_trials(config: SweepConfig) -> int:
    """Trials of the whole sweep."""
    total, study = 0, config.sweep
    for grid in study.grid:
        for cell in cells(config, grid):
            total += study.tuning.trials + len(study.seeds)
            if grid.rescaled_control and cell.kind == "mlet":
                total += len(study.seeds)
    return total


def _chains(grid: GridConfig, config: SweepConfig) -> Iterator[_Chain]:
    def of_chain(cell: Cell) -> Cell:
        return dataclasses.replace(cell, output_dim=0)

    for _, group in itertools.groupby(cells(config, grid), of_chain):
        yield _chain(list(group), grid, config)


def _chain(group: list[Cell], grid: GridConfig, config: SweepConfig) -> _Chain:
    """Yields lists of trials that may run at once, takes their records."""
    train, seeds = train_config(config, group[0]), config.sweep.seeds
    rates = tuple(getattr(train, role).learning_rate for role in ROLES)
    for cell in group:
        rates = yield from _tune(cell, rates, config.sweep.tuning)
        to = tuple(n for n in grid.truncate_to if n < cell.output_dim)
        tune = grid.fine_tune if to else 0.0
        finals = [Trial(cell, "final", seed, rates, to, tune) for seed in seeds]
        if grid.rescaled_control and cell.kind == "mlet":
            direct = of_kind(dataclasses.replace(cell, kind="direct"))
            # What an SGD step on a product amounts to at the authors' initialisation.
            rescaled = (_round(rates[0] * 0.0625 * (cell.hidden_dim or 0)), *rates[1:])
            finals += [Trial(direct, "control", seed, rescaled) for seed in seeds]
        yield finals


def _tune(
    cell: Cell, start: tuple[float, ...], tuning: TuningConfig
) -> Generator[list[Trial], list[Records], tuple[float, ...]]:
    """Asks Optuna for learning rates; a repeated run asks the same questions and finds the answers stored."""
    bounds = {key.split(".")[1]: (of.low, of.high) for key, of in tuning.search.items()}
    if cell.hidden_dim is None or cell.kind == "mlet_frozen":
        bounds.pop("projections", None)
    # A handful of trials: low-discrepancy points beat a model that has nothing to learn from.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(seed=0, scramble=True, warn_independent_sampling=False)
    study = optuna.create_study(
        direction="maximize" if tuning.metric == "auc" else "minimize", sampler=sampler
    )
    best, best_value = dict(zip(ROLES, start, strict=True)), math.nan
    free = [role for role in ROLES if role in bounds]
    study.enqueue_trial({role: best[role] for role in free})
    for _ in range(tuning.trials):
        asked = study.ask()
        rates = best | {n: _round(asked.suggest_float(n, *bounds[n], log=True)) for n in free}
        records = yield [Trial(cell, "tune", tuning.seed, tuple(rates.values()))]
        value = records[0][0]["validation"][tuning.metric]
        study.tell(asked, value)
        if study.best_trial.number == asked.number or math.isnan(best_value):
            best, best_value = rates, value
    return tuple(best[role] for role in ROLES)


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
        self._done, self._total = 0, count_trials(config)

    def run(self, chains: list[_Chain]) -> None:
        self._report(Progress(0, self._total))
        workers = self._config.sweep.workers or os.cpu_count() or 1
        with safe_path(), Processes(workers) as pool:
            waiting = [_Waiting(chain, next(chain)) for chain in chains]
            while waiting:
                # As many chains as processes: the order of the grid is the order of what gets finished.
                for state in waiting[:workers]:
                    if not self._advance(state, pool):
                        waiting.remove(state)
                running = [future for state in waiting for future in state.futures.values()]
                if running:
                    wait(running, return_when=FIRST_COMPLETED)

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


def _round(rate: float) -> float:
    """Three digits: enough for a learning rate, and the same after JSON."""
    return float(f"{rate:.3g}")
