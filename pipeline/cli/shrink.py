"""`mlet-tf shrink`: the smallest model within a budget, made of a finished run's or of a Keras file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from mlet_tf.pipeline.cli._keras_files import load_keras_file
from mlet_tf.pipeline.cli._logging import quiet
from mlet_tf.pipeline.cli._types import FiniteRange

from mlet_tf.errors import InputError
from mlet_tf.names import COMPRESSION_METHODS
from mlet_tf.outputs import new_folder
from mlet_tf.run_file import read_run_file
from mlet_tf.storage import open_binary

if TYPE_CHECKING:
    from mlet_tf.compression.judging import JudgedReport

_BUDGETS = ("max_auc_drop", "bytes", "ratio")


@click.command()
@click.argument("source", metavar="RUN|MODEL.keras", type=click.Path())
@click.option("--output", required=True, type=click.Path(), help="Folder to write to; it must not exist.")
@click.option(
    "--max_auc_drop",
    type=FiniteRange(0, 1, max_open=True),
    help="Budget: AUC that may be lost, such as 0.0005.",
)
@click.option("--bytes", type=click.IntRange(1, 10**15), help="Budget: bytes of rows and addresses.")
@click.option("--ratio", type=FiniteRange(1, 10**6), help="Budget: how many times fewer bytes, such as 16.")
@click.option(
    "--methods",
    default=",".join(COMPRESSION_METHODS),
    show_default=True,
    help="What may be saved: columns of the tables, bits of the values, rows that rare ids share.",
)
@click.option("--data", type=click.Path(), help="For MODEL.keras: rows that it was trained on, .npz.")
@click.option(
    "--validation_data", type=click.Path(), help="For MODEL.keras: rows that it was not trained on, .npz."
)
def shrink(
    source: str,
    output: str,
    methods: str,
    data: str | None,
    validation_data: str | None,
    **budgets: float | None,
) -> None:
    """Make the smallest model within a budget out of a trained one.

    RUN is the output folder of a finished run: half of its evaluation rows choose, the other half judge. What is
    written can be given to `mlet-tf push`.

    MODEL.keras is any Keras model of click probabilities whose tables are `keras.layers.Embedding`, `MLETEmbedding`
    or `EmbeddingCollection`. The .npz files hold an array `label` of 0 and 1, and the inputs by their names in the
    model; the name of a single one does not matter. Half of the rows in --validation_data choose, the other half judge;
    --max_auc_drop needs them.
    """
    budget = _budget(budgets)
    chosen = _chosen(methods)
    if Path(source).is_dir():
        read_run_file(Path(source))  # Refused before the imports of `shrink_run`, which take a while.
        if data or validation_data:
            raise InputError(
                f"--data and --validation_data are for a .keras file. Received: the run {source}"
            )
        target = new_folder(output)
        with quiet():
            from mlet_tf.compression.finished_run import shrink_run
            from mlet_tf.config import BudgetConfig, CompressConfig

            config = CompressConfig(budget=BudgetConfig(**budget), methods=chosen)
            report = shrink_run(Path(source), target, config, _note)
        model = target / "Format-Serving"
    elif not Path(source).is_file():
        raise InputError(f"{source}: no such file or folder; expected the folder of a run or a .keras file")
    else:
        if data is None:
            raise InputError(f"--data: expected rows that {source} was trained on. Received: none")
        if "max_auc_drop" in budget and validation_data is None:
            raise InputError(
                f"--validation_data: expected rows that {source} was not trained on, for --max_auc_drop. Received: none"
            )
        for path in filter(None, (data, validation_data)):
            open_binary(path).close()  # Refused before the imports below.
        target = new_folder(output)
        with quiet():
            from mlet_tf.compression.keras_file import compress_keras_model

            report = compress_keras_model(
                load_keras_file(source), data, validation_data, target, budget, chosen, _note
            )
        model = target / "Format-Keras" / "model.keras"
    _show(report)
    click.echo(f"model   {model}")


def _budget(budgets: dict[str, float | None]) -> dict[str, float]:
    """The one that is given."""
    given = {name: value for name in _BUDGETS if (value := budgets[name]) is not None}
    if len(given) != 1:
        flags = " and ".join(f"--{name}" for name in given)
        raise InputError(f"expected one of --max_auc_drop, --bytes and --ratio. Received: {flags or 'none'}")
    return given


def _chosen(methods: str) -> tuple[str, ...]:
    chosen = tuple(methods.split(","))
    if not set(chosen) <= set(COMPRESSION_METHODS) or len(set(chosen)) < len(chosen):
        raise InputError(
            f"--methods: expected some of {','.join(COMPRESSION_METHODS)}. Received: {methods!r}"
        )
    return chosen


def _show(report: JudgedReport) -> None:
    before, after = (
        report[key]["rows"] + report[key]["addresses"] for key in ("bytes_before", "bytes_after")
    )
    click.echo(f"tables  {before:,} -> {after:,} bytes ({before / after:.2f} times)")
    if judged := report["judged"]:
        click.echo(
            f"AUC     {judged['auc_before']:.5f} -> {judged['auc_after']:.5f} on rows that did not choose, standard "
            f"error of the difference {judged['auc_drop_error']:.2g}"
        )


def _note(line: str) -> None:
    click.echo(line, err=True)
