"""`mlet-tf run` and `mlet-tf report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from mlet_tf.pipeline.cli._logging import quiet

from mlet_tf.outputs import output_folder
from mlet_tf.run_file import read_run_file
from mlet_tf.units import bytes_text

if TYPE_CHECKING:
    from mlet_tf.pipeline.local_runner import RunResult

    from mlet_tf.run_file import Compression

_NOT_PUSHED = 3
_SIZES = ("bytes_before", "bytes_after")


@click.command()
@click.option("--config", "config_path", required=True, type=click.Path(), help="YAML file, see configs/.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as train.epochs=2."
)
def run(config_path: str, overrides: tuple[str, ...]) -> None:
    """Run the pipeline: ingest, validate, preprocess, train, collapse, compress, gate, push.

    Ends with a table and with `run.json` in the output folder. A second run does nothing if nothing has changed.
    Exits with 3 if the gate or the serving check kept the model from being pushed.
    """
    from mlet_tf.pipeline.checks import check_run

    from mlet_tf.config import load_config

    config = load_config(config_path, overrides)
    click.echo(f"Pipeline {config.name!r}; everything it writes is in {config.output}", err=True)
    check_run(config)
    with quiet():
        from mlet_tf.pipeline import local_runner

    result = local_runner.run(config)
    click.echo(_summary(result))
    if not result["pushed"]:
        for failure in result["gate_failures"]:
            click.echo(f"Gate: {failure}", err=True)
        click.echo("Not pushed.", err=True)
        sys.exit(_NOT_PUSHED)


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option("--output", type=click.Path(), help="Folder for the page and its plots; default RUN/report.")
def report(run_folder: str, output: str | None) -> None:
    """Write an HTML report of the finished run in folder RUN: one page that needs no network, and its plots."""
    read_run_file(Path(run_folder))  # Refused before the imports of the report, which take a while.
    target = output_folder(output or Path(run_folder) / "report")
    from mlet_tf.report import write_report

    click.echo(write_report(Path(run_folder), target))


def _summary(result: RunResult) -> str:
    rows, before, after = result["rows"], result["table_bytes"]["before"], result["table_bytes"]["after"]
    lines = []
    if result["unchanged"]:
        lines.append("Nothing to do: data, configuration and code are those of the last run.")
        lines.append("(--set enable_cache=false runs it again)")
    lines.append("rows          " + ", ".join(f"{count:,} {what}" for what, count in rows.items()))
    for name, metrics in result["metrics"].items():
        lines.append(f"{name:13} " + ", ".join(_metric(*item) for item in metrics.items()))
    lines.append(
        f"tables        {bytes_text(before)} -> {bytes_text(after)} ({before / after:.1f} times smaller)"
    )
    lines.append(f"collapse      max |difference| of effective rows {result['max_abs_difference']:.3g}")
    quantization = result["quantization"]
    if quantization["table_dtype"] != "float32":
        lines.append(
            f"quantisation  to {quantization['table_dtype']}: max |difference| of rows "
            f"{quantization['max_abs_difference']:.3g}, of CTRs {quantization['max_abs_ctr_difference']:.3g}"
        )
    if result["compression"]:
        lines.append(_compression(result["compression"]))
    if result["baseline"]:
        baseline = result["baseline"]
        lines.append(
            f"baseline is   a direct table of d={baseline['output_dim']}, {bytes_text(baseline['bytes'])}"
        )
    lines.append(f"gate          {'blessed' if result['blessed'] else 'NOT blessed'}")
    lines.append(f"pushed        {result['pushed'] or 'no'}")
    lines.append(f"details       {result['output']}/run.json")
    return "\n".join(lines)


def _compression(compression: Compression) -> str:
    before, after = (compression[key]["rows"] + compression[key]["addresses"] for key in _SIZES)
    return (
        f"compression   {bytes_text(before)} of collapsed tables -> {bytes_text(after)} "
        f"({before / after:.1f} times smaller)"
    )


def _metric(name: str, value: float | None) -> str:
    return f"{name} undefined" if value is None else f"{name} {value:.6f}"
