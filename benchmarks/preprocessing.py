"""From raw logs to examples: ClickLogExampleGen against TFX's CsvExampleGen, and against itself on more rows.

CPU seconds of one process each, on the same generated log of Criteo's columns (CSV with a header, which is what
the stock component reads).
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Result, Worker
from mlet_tf.datasets import CRITEO, write_log

SCHEMA = dataclasses.replace(CRITEO, separator=",", header=True)


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Ingests the same log with both components, then a larger one with ours."""
    rows, growth = arguments.rows or (10_000 if arguments.quick else 200_000), arguments.growth
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        small, large = (Path(scratch) / f"rows_{n}" / "log.csv" for n in (rows, growth * rows))
        write_log(small, SCHEMA, rows)
        write_log(large, SCHEMA, growth * rows)
        stock = _ingest("CsvExampleGen", small, scratch)
        ours = _ingest("ClickLogExampleGen", small, scratch)
        more = _ingest("ClickLogExampleGen", large, scratch)
    note = f"{_rate(rows, ours)} against {_rate(rows, stock)}"
    size = f"{growth * rows:,} rows: {_rate(growth * rows, more)}"
    per_row = (more[0] / growth) / ours[0]
    memory = more[1] / 3e9
    return [
        _once(
            f"ClickLogExampleGen / CsvExampleGen, rows/s at {rows:,} rows",
            stock[0] / ours[0],
            15,
            "higher",
            note,
        ),
        _once(
            f"ClickLogExampleGen / CsvExampleGen, peak RSS at {rows:,} rows",
            ours[1] / stock[1],
            None,
            "lower",
        ),
        _once(f"ClickLogExampleGen, time per row at {growth}x rows / at 1x", per_row, 1.2, "lower", size),
        _once(f"ClickLogExampleGen, peak RSS at {growth * rows:,} rows / 3 GB", memory, 1, "lower"),
    ]


def _ingest(variant: str, path: Path, scratch: str) -> tuple[float, int]:
    """CPU seconds and peak RSS of one run in a fresh process, without its imports."""
    spec = {"variant": variant, "schema": SCHEMA.to_dict(), "path": str(path), "scratch": scratch}
    worker = Worker("_ingest_worker", spec)
    try:
        worker.read()
        answer = worker.run(1)
    finally:
        worker.close()
    return answer["seconds"], answer["peak_bytes"]


def _rate(rows: int, run: tuple[float, int]) -> str:
    return f"{rows / run[0]:,.0f} rows/s with {run[1] / 1e9:.2f} GB"


def _once(name: str, value: float, goal: float | None, better: str, note: str = "") -> Result:
    return Result(name, value, value, value, goal, better, note)


if __name__ == "__main__":
    _harness.main(
        __doc__.splitlines()[0],
        measure,
        rows={"type": int, "help": "rows of the smaller log (200,000; with --quick 10,000)"},
        growth={"type": int, "default": 5, "help": "how many times larger the second log is (5)"},
        scratch={"help": "folder for the generated logs and examples"},
    )
