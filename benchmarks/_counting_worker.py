"""Counts the values of one column into runs, or adds the runs up with so many values in memory at a time."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import _harness
from mlet_tf.datasets import CRITEO
from mlet_tf.features.counts import ValueCounter, merge_counts, open_run

SCHEMA = dataclasses.replace(CRITEO, categoricals=("id",), integers=(), columns=("label", "id"))
ROWS = 1 << 18


def write_runs(folder: Path, runs: int) -> float:
    """Writes runs of `ROWS` rows of a power law without an end."""
    rng = np.random.default_rng(0)
    for number in range(runs):
        ids = pa.array((rng.zipf(1.1, ROWS) % 10**9).astype(str)).cast(pa.binary())
        counter = ValueCounter(SCHEMA)
        counter.add(pa.table({"id": ids}), np.ones(ROWS, bool))
        counter.take_run(str(folder / f"{number}.arrow"))
    return 0.0


def add_up(folder: Path, max_values: int) -> float:
    """Returns the number of distinct values."""
    runs = [open_run(str(path)) for path in sorted(folder.glob("*.arrow"))]
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        return float(sum(table.num_rows for table in merge_counts(runs, 0, max_values, aside)))


def main() -> None:
    """Serves what the command line names."""
    spec = json.loads(sys.argv[1])
    folder = Path(spec["folder"])
    if spec["max_values"] is None:
        _harness.serve(lambda _: write_runs(folder, spec["runs"]))
    else:
        _harness.serve(lambda _: add_up(folder, spec["max_values"]))


if __name__ == "__main__":
    main()
