"""`mlet-tf sweep` and `mlet-tf frontier`."""

import logging
import sys
from typing import Any

import click


@click.command()
@click.option(
    "--config", "config_path", required=True, type=click.Path(), help="YAML file, see configs/sweep_*.yaml."
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes; default: as configured, else one a core."
)
def sweep(config_path: str, workers: int | None) -> None:
    """Train a grid of embeddings and record what each of them reaches.

    Learning rates are tuned on validation rows for every kind and size; final seeds are scored on test rows.
    Records are appended to trials.jsonl in the output folder. Stop it at any time: run again, it goes on.
    """
    import dataclasses

    from mlet_tf.experiments.config import load_sweep

    config = load_sweep(config_path)
    if workers is not None:
        config = dataclasses.replace(config, workers=workers)
    logging.disable(logging.WARNING)  # Of TFX and TensorFlow, which have nothing to say to the user here.
    from mlet_tf.experiments.sweep import run_sweep

    with _Display(config.name) as display:
        path = run_sweep(config, display.note, display.progress)
    click.echo(path)


class _Display:
    """A progress bar on a terminal, lines elsewhere."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self._bar = Progress(*columns, console=self._console, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def progress(self, state: Any) -> None:
        self._bar.update(self._task, total=state.total, completed=state.done)
        if state.record is not None and state.fresh:
            self.note(f"{state.done}/{state.total} {_line(state.record)}")


def _line(record: dict[str, Any]) -> str:
    from mlet_tf.experiments.statistics import label

    split = "test" if "test" in record else "validation"
    rates = " ".join(f"{value:g}" for value in record["learning_rates"].values())
    return (
        f"{label(record)} {record['stage']} seed {record['seed']} rates {rates}: {split} AUC "
        f"{record[split]['auc']:.4f} logloss {record[split]['logloss']:.4f}, {record['train_seconds']:.0f} s"
    )
