"""`mlet-tf sweep` and `mlet-tf frontier`."""

from __future__ import annotations

import contextlib
import datetime
import time
from typing import TYPE_CHECKING

import click
from mlet_tf.pipeline.cli._logging import quiet
from mlet_tf.pipeline.cli._types import FiniteRange

from mlet_tf.errors import InputError
from mlet_tf.outputs import output_file, output_folder
from mlet_tf.progress import ProgressLine
from mlet_tf.storage import writing

if TYPE_CHECKING:
    from mlet_tf.experiments.statistics import Group
    from mlet_tf.experiments.sweep import Progress
    from mlet_tf.types import JsonObject


@click.command()
@click.option(
    "--config", "config_path", required=True, type=click.Path(), help="YAML file, see configs/sweep_*.yaml."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes; default: `sweep.workers` of the configuration, otherwise one for each core.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `run`.")
def sweep(config_path: str, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Train a grid of embeddings and record what each of them reaches.

    Learning rates are tuned on validation rows for every kind and size; final seeds are scored on test rows.
    Records are appended to trials.jsonl in the output folder. A sweep that was stopped continues where it was.
    """
    from mlet_tf.datasets.files import list_files
    from mlet_tf.experiments.cells import load_sweep

    config = load_sweep(config_path, (*overrides, *([f"sweep.workers={workers}"] if workers else ())))
    output_folder(config.output)
    if config.data.train is not None:
        list_files(config.data.train)  # Refused before the imports of `run_sweep`, which take a while.
    with quiet(), contextlib.closing(_Display(config.name)) as display:
        from mlet_tf.experiments.sweep import run_sweep

        path = run_sweep(config, display.note, display.progress)
    click.echo(path)


class _Display:
    """A line for each trial and the time that is left; on a terminal also a bar."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._line = ProgressLine(in_logs=False)
        self._started, self._fresh = 0.0, 0

    def note(self, line: str) -> None:
        self._line.note(line)

    def progress(self, state: Progress) -> None:
        if state.record is None:  # The rows are prepared, trials begin.
            self._started = time.monotonic()
        elif state.fresh:
            self._fresh += 1
            self.note(f"{state.done}/{state.total} {_line(state.record)}{self._left(state)}")
        self._line.show(
            state.done, state.total, lambda: f"{self._name} {state.done}/{state.total}{self._left(state)}"
        )

    def close(self) -> None:
        self._line.end()

    def _left(self, state: Progress) -> str:
        """The time that the other trials take, if they take as long as those trained so far."""
        if not self._fresh or state.done == state.total:
            return ""
        seconds = (time.monotonic() - self._started) / self._fresh * (state.total - state.done)
        return f", {datetime.timedelta(seconds=round(seconds))} left"


def _line(record: JsonObject) -> str:
    from mlet_tf.experiments.statistics import label

    split = "test" if "test" in record else "validation"
    rates = " ".join(f"{value:g}" for value in record["learning_rates"].values())
    return (
        f"{label(record)} {record['stage']} seed {record['seed']} rates {rates}: {_reached(record, split)}, epoch "
        f"{record['best_epoch']} of {len(record['epochs'])}, {record['train_seconds']:.0f} s"
    )


def _reached(record: JsonObject, split: str) -> str:
    from mlet_tf.experiments.statistics import FAULTS

    names = {"auc": "AUC", "logloss": "logloss"}
    found = [f"{names[name]} {value:.4f}" for name, value in record[split].items() if name in names]
    return " ".join([split, *found, *(fault for fault in FAULTS if record.get(fault))])


@click.group()
def frontier() -> None:
    """Weigh AUC against bytes: plot sweeps."""


@frontier.command()
@click.argument("results", nargs=-1, required=True, type=click.Path())
@click.option("--output", default="frontier.png", show_default=True, type=click.Path(), help="The PNG file.")
@click.option("--best_auc", type=FiniteRange(0, 1), help="Best reachable AUC, drawn as a line.")
def draw(results: tuple[str, ...], output: str, best_auc: float | None) -> None:
    """Draw AUC against bytes from the trials.jsonl files RESULTS.

    Of one study all cells are drawn; of several each has a panel, with the best cell of each kind and size, chosen on
    validation rows.
    """
    target = output_file(output, ".png")
    from mlet_tf.experiments.store import read_records

    records = [record for path in results for record in read_records(path)]
    from mlet_tf.experiments.frontier import plot_headline, plot_sweep
    from mlet_tf.experiments.statistics import groups

    found = groups(records)
    if not found:
        raise InputError(f"{', '.join(results)}: no final trial has finished yet")
    studies: dict[str, list[Group]] = {}
    for group in found:
        studies.setdefault(group.record["study"], []).append(group)
    (first, *others) = studies
    if others and best_auc is not None:
        raise InputError(f"'--best_auc' is of one study. Received: trials of {', '.join(studies)}")
    figure = plot_headline(studies) if others else plot_sweep(found, first, best_auc)
    with writing(target):
        figure.savefig(target, dpi=110)
    for study, members in studies.items():
        if others:
            click.echo(study)
        for group in sorted(members, key=lambda group: group.record["bytes"]):
            click.echo(_group_line(group))
    click.echo(output)


def _group_line(group: Group) -> str:
    line = f"{group.record['bytes']:>12,} B  AUC {group.mean():.5f} +- {group.interval():.5f}  {group.label}"
    return f"{line}, {group.fault}" if group.fault else line
