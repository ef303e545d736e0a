"""`mlet-tf synth`: click logs to try things on."""

from pathlib import Path

import click

from mlet_tf.outputs import output_file
from mlet_tf.progress import ProgressLine


@click.command()
@click.argument("path", type=click.Path())
@click.option("--schema", default="criteo", show_default=True, help="criteo, avazu or a YAML schema.")
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(1), help="Rows to write.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="The same seed gives the same rows."
)
@click.option(
    "--rank",
    default=8,
    show_default=True,
    type=click.IntRange(1, 65_536),
    help="Rank of the interactions behind the clicks.",
)
@click.option(
    "--vocabulary",
    default=20_000,
    show_default=True,
    type=click.IntRange(4, 2**31 - 1),
    help="Largest number of categories of a column.",
)
@click.option("--force", is_flag=True, help="Overwrite PATH.")
def synth(path: str, schema: str, rows: int, seed: int, rank: int, vocabulary: int, force: bool) -> None:
    """Write a synthetic click log to PATH, compressed if it ends in .gz, as Parquet if in .parquet.

    Clicks are drawn from known probabilities, so the best reachable AUC is known; it is stored beside the file.
    """
    if Path(path).is_file() and not force:
        click.echo(f"{path} exists; --force writes it again.")
        return
    output_file(path, make_folder=True)
    from mlet_tf.datasets import load_schema
    from mlet_tf.datasets.synthetic import write_log

    line = ProgressLine(in_logs=False)

    def progress(done: int) -> None:
        line.show(done, rows, lambda: f"{done:,} of {rows:,} rows")

    report = write_log(
        path, load_schema(schema), rows, seed, rank=rank, vocabulary=vocabulary, progress=progress
    )
    click.echo(
        f"{path}: {report.rows:,} rows, CTR {report.ctr:.4f}; no model can reach more than AUC {report.auc:.4f} "
        f"or less than logloss {report.logloss:.4f}."
    )
