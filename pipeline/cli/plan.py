"""`mlet-tf plan`: what a configuration takes, before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlet_tf.documents import read_document
from mlet_tf.errors import InputError
from mlet_tf.units import bytes_text

if TYPE_CHECKING:
    from mlet_tf.config import PipelineConfig
    from mlet_tf.planning import Line
    from mlet_tf.sizes import Sizes

# Rows of the tables of the 26 categorical columns, and rows of the training split.
PRESETS: dict[str, tuple[tuple[int, ...], int]] = {
    # Distinct values of the whole log; six of its seven days.
    "criteo-kaggle": (
        (
            1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
            27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
        ),
        39_291_957,
    ),
    # As in MLPerf's DLRM, at most 40 million per column; 23 of the 24 days.
    "criteo-terabyte": (
        (
            40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
            2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
        ),
        4_195_197_692,
    ),
}  # fmt: skip
# The same columns, five of them with two billion rows each; int32 ids end at 2^31 - 1.
PRESETS["ten-billion"] = (
    tuple(2_000_000_000 if rows == 40_000_000 else rows for rows in PRESETS["criteo-terabyte"][0]),
    PRESETS["criteo-terabyte"][1],
)


@click.command()
@click.option("--config", "config_path", required=True, type=click.Path(), help="YAML file, see configs/.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in `run`.")
@click.option(
    "--data",
    default="criteo-kaggle",
    show_default=True,
    help=f"Vocabulary sizes and rows: {', '.join(PRESETS)}, or a YAML file with `rows` and `vocabulary`.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Workers of the training; default: as many as the memory needs."
)
@click.option("--memory-gib", default=64.0, show_default=True, help="Memory of a worker.")
@click.option(
    "--gflops", default=500.0, show_default=True, help="Speed of a worker's matrix products, GFLOP/s."
)
@click.option(
    "--memory-gbs", default=20.0, show_default=True, help="Speed of reading and writing table rows, GB/s."
)
@click.option(
    "--network-gbs", default=2.5, show_default=True, help="Speed of the network between workers, GB/s."
)
@click.option(
    "--ingest-rows", default=20_000.0, show_default=True, help="Rows a Beam worker reads in a second."
)
@click.option("--beam-workers", type=click.IntRange(1), help="Default: `beam.workers` of the configuration.")
@click.option("--price", default=1.0, show_default=True, help="Price of a worker for an hour.")
@click.option("--zipf", default=1.1, show_default=True, help="Exponent of the distribution of ids.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def plan(
    config_path: str,
    overrides: tuple[str, ...],
    data: str,
    workers: int | None,
    beam_workers: int | None,
    markdown: bool,
    **machine: float,
) -> None:
    """Estimate memory, bytes moved, time and cost of a configuration, with the formulas.

    Nothing is read or run. Times are as good as the speeds given; on one machine memory was within 15 % of what was
    measured (python -m benchmarks.planning).
    """
    from mlet_tf import planning
    from mlet_tf.config import load_config

    config = load_config(config_path, overrides)
    vocabulary, rows = read_data(data)
    sizes = sizes_of(config, vocabulary, rows)
    try:
        lines = planning.make_plan(
            sizes, planning.Machine(**machine), workers, beam_workers or config.beam.workers
        )
    except ValueError as error:
        raise InputError(f"--memory-gib {machine['memory_gib']:g} is too little: {error}") from None
    click.echo(
        f"k={sizes.hidden_dim}, d={sizes.output_dim}, B={sizes.batch_size}, F={len(vocabulary)}, D={sizes.num_dense}, "
        f"{sizes.optimizer} on tables; data {data}"
    )
    click.echo(_table(lines, markdown))


def sizes_of(config: PipelineConfig, vocabulary: tuple[int, ...], rows: int) -> Sizes:
    """The sizes of a configuration's training.

    Args:
        config: The configuration of a run.
        vocabulary: Table rows by feature.
        rows: Rows of the training split.
    """
    from mlet_tf.sizes import Sizes

    model, train = config.model, config.train
    return Sizes(
        vocabulary=vocabulary,
        rows=rows,
        num_dense=2 * len(config.schema.integers),  # A value, and whether it is missing.
        output_dim=model.output_dim,
        hidden_dim=model.hidden_dim,
        direct_threshold=model.direct_threshold,
        bottom_units=model.bottom_units,
        top_units=model.top_units,
        dot_skip=model.dot_skip,
        batch_size=train.for_rows(rows).rows_a_step,
        epochs=train.epochs,
        optimizer=train.tables.name,
        shuffle_rows=min(train.shuffle_rows, rows),
    )


def read_data(data: str) -> tuple[tuple[int, ...], int]:
    """Table rows by feature and training rows, of a preset or a YAML file.

    Raises:
        InputError: The file cannot be read or does not hold them.
    """
    if data in PRESETS:
        return PRESETS[data]
    if Path(data).suffix not in (".yaml", ".yml", ".json"):
        raise InputError(f"--data should be one of {', '.join(PRESETS)} or a YAML file. Received: {data!r}")
    values = read_document(data, f"--data {data}")
    try:
        found = values["vocabulary"]
        counts = tuple(found.values() if isinstance(found, dict) else found)
        rows = values["rows"]
    except (KeyError, TypeError):
        raise InputError(f"{data} should hold `rows` and `vocabulary`, the table rows by feature") from None
    for key, value in (("rows", rows), *(("vocabulary", count) for count in counts)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{data}: {key!r} should be positive integers. Received: {value!r}")
    return counts, rows


def _table(lines: list[Line], markdown: bool) -> str:
    cells = [(line.part, line.name, _amount(line.value, line.unit), line.formula) for line in lines]
    # The first column names a group once.
    shown = [(row[0] if i == 0 or cells[i - 1][0] != row[0] else "", *row[1:]) for i, row in enumerate(cells)]
    if markdown:
        head = "| | | | how |\n|---|---|---:|---|"
        return "\n".join([head, *("| " + " | ".join(row) + " |" for row in shown)])
    widths = [max(len(row[i]) for row in shown) for i in range(3)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in shown
    )


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return bytes_text(value, digits=2)
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "FLOP":
        return f"{value / 1e9:,.1f} GFLOP"
    if unit == "seconds":
        return f"{1e3 * value:.2f} ms"
    if unit == "hours":
        return f"{value:,.2f} h" if value >= 0.1 else f"{60 * value:.2f} min"
    return f"{value:,.2f}"
