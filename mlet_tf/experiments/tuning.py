"""Tuning: Optuna proposes learning rates and L2 penalties of a cell, validation rows choose.

A repeated run asks the same questions and finds the answers stored.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from mlet_tf.config.sweep import RangeConfig, SweepConfig, TuningConfig
from mlet_tf.experiments.cells import Cell, has_key, train_config
from mlet_tf.experiments.statistics import FAULTS, label
from mlet_tf.experiments.trial import Trial

Records = list[dict[str, Any]]
Values = Mapping[str, float]

_EDGE = 0.1  # Share of a range, on the logarithmic scale, that counts as its end.


@dataclass(frozen=True)
class Choice:
    """What a cell is trained with.

    Attributes:
        values: The keys that were searched, dotted, and their best values.
        notes: For the records of the trainings that take them: `tuning` has what it cost (`trials`,
            `train_cpu_seconds`), the keys `searched` and the `output_dim` it was done at; `at_edge` has the keys whose
            best value lies within 10 % of an end of its range, on the logarithmic scale.
    """

    values: dict[str, float]
    notes: dict[str, Any]


def tune(
    cell: Cell, config: SweepConfig, start: Values | None = None
) -> Generator[list[Trial], list[Records], Choice]:
    """Yields trials one at a time, takes their records.

    Args:
        cell: What is tuned.
        config: The study.
        start: Where the search begins; by default at the cell's own values. What lies outside of its range begins
            at the nearer end.

    Returns:
        The best values on the validation rows.
    """
    tuning, bounds = config.sweep.tuning, searched(cell, config.sweep.tuning)
    own = train_config(config, cell)
    best = {key: _clipped((start or {}).get(key, _value(own, key)), of) for key, of in bounds.items()}
    worst = -math.inf if tuning.metric == "auc" else math.inf
    best_value, cpu_seconds, study = worst, 0.0, _study(tuning, cell.output_dim)
    study.enqueue_trial(best)  # What was best at another `d` is none of the points proposed for this one.
    trials = tuning.trials if bounds else 0
    for _ in range(trials):
        asked = study.ask()
        values = {
            key: round_rate(asked.suggest_float(key, of.low, of.high, log=True)) for key, of in bounds.items()
        }
        record = (yield [Trial(cell, "tune", tuning.seed, tuple(values.items()))])[0][0]
        value = worst if record.get("diverged") else record["validation"].get(tuning.metric, worst)
        study.tell(asked, value)
        cpu_seconds += record["train_cpu_seconds"]
        if value > best_value if tuning.metric == "auc" else value < best_value:
            best, best_value = values, value
    notes = {
        "tuning": {
            "trials": trials,
            "train_cpu_seconds": round(cpu_seconds, 2),
            "searched": list(bounds),
            "output_dim": cell.output_dim,
        },
        "at_edge": at_edge(best, bounds) if trials else [],
    }
    return Choice(best, notes)


def searched(cell: Cell, tuning: TuningConfig) -> dict[str, RangeConfig]:
    """The ranges of the keys that a cell has; none where nothing is tuned."""
    return {key: of for key, of in tuning.search.items() if tuning.trials and has_key(cell.kind, key)}


def count_tuning(cell: Cell, tuning: TuningConfig) -> int:
    """Trials that tune a cell."""
    return tuning.trials if searched(cell, tuning) else 0


def at_edge(values: Values, search: Mapping[str, RangeConfig]) -> list[str]:
    """The keys whose value lies within 10 % of an end of its range, on the logarithmic scale."""
    return [
        key
        for key, of in search.items()
        if not _EDGE < math.log(values[key] / of.low) / math.log(of.high / of.low) < 1 - _EDGE
    ]


def warnings_of(records: Iterable[Mapping[str, Any]], tuning: TuningConfig) -> list[str]:
    """Lines about what makes final records say less than they seem to: best values at the ends, constant models."""
    lines, finals = [], [record for record in records if record["stage"] == "final"]
    for key, of in tuning.search.items():
        cells = dict.fromkeys(label(record) for record in finals if key in record.get("at_edge", ()))
        if cells:
            lines.append(
                f"warning: the best '{key}' is at an end of its range, {of.low:g} to {of.high:g}, for "
                f"{', '.join(cells)}: widen it in 'sweep.tuning.search'"
            )
    for fault in FAULTS:
        cells = dict.fromkeys(label(record) for record in finals if record.get(fault))
        if cells:
            count = sum(bool(record.get(fault)) for record in finals)
            lines.append(
                f"warning: {count} of {len(finals)} final trials are {fault} and left out of all means: "
                + ", ".join(cells)
            )
    return lines


def round_rate(rate: float) -> float:
    """Three digits: enough for a learning rate, and the same after JSON."""
    return float(f"{rate:.3g}")


def _study(tuning: TuningConfig, seed: int) -> optuna.Study:
    """A study that proposes the same for all kinds at the same seed."""
    # A handful of trials: low-discrepancy points beat a model that has nothing to learn from.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    return optuna.create_study(
        direction="maximize" if tuning.metric == "auc" else "minimize", sampler=sampler
    )


def _value(group: Any, key: str) -> float:
    """The value of a dotted key below the group, whose own name it begins with."""
    return functools.reduce(getattr, key.split(".")[1:], group)


def _clipped(value: float, of: RangeConfig) -> float:
    return min(max(value, of.low), of.high)
