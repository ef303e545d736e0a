"""Memory of training: what `mlet-tf plan` predicts against the peak of a real one.

`python -m benchmarks.planning [--quick] [--json FILE]`

Each line is one training in a process of its own, as the Trainer does it: packed rows, shuffle buffer, checkpoints,
evaluation. DLRM 512-256-16 / 512-256-1, 26 categorical features of Criteo's proportions, batch 2048. The value is
predicted / measured peak resident memory.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import _click_data
from benchmarks._harness import Result, main
from mlet_tf.planning import training_memory
from mlet_tf.sizes import Sizes

_MILLION = 1_000_000
# Rows of all tables, k, optimizer of the tables.
_CASES = (
    (_MILLION, 64, "adagrad"),
    (_MILLION, 64, "row_wise_adagrad"),
    (5 * _MILLION, 64, "adagrad"),
    (5 * _MILLION, 64, "row_wise_adagrad"),
    (10 * _MILLION, 16, "adagrad"),
    (10 * _MILLION, 16, "row_wise_adagrad"),
)
_TOLERANCE = 0.15


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Trains all sizes, or with `--quick` the first, once each."""
    results = []
    for rows, k, optimizer in _CASES[:1] if arguments.quick else _CASES:
        sizes = Sizes(
            vocabulary=tuple(_click_data.vocabulary_sizes(rows)),
            rows=60 * 2048,
            num_dense=2 * _click_data.NUM_DENSE,
            output_dim=16,
            hidden_dim=k,
            batch_size=2048,
            optimizer=optimizer,
        )
        predicted = sum(line.value for line in training_memory(sizes))
        measured = _peak_of_training(sizes)
        ratio = predicted / measured
        note = f"{predicted / 2**30:.2f} / {measured / 2**30:.2f} GiB"
        print(f"    {rows:,} rows, k={k}, {optimizer}: {note}", file=sys.stderr, flush=True)
        name = f"predicted / measured peak, {rows // _MILLION}M rows, k={k}, {optimizer}"
        results.append(Result(f"{name}: too much", ratio, ratio, ratio, 1 + _TOLERANCE, "lower", note))
        results.append(Result(f"{name}: too little", ratio, ratio, ratio, 1 - _TOLERANCE, "higher"))
    return results


def _peak_of_training(sizes: Sizes) -> int:
    """Bytes of resident memory at the peak, up to the end of training."""
    values = dataclasses.asdict(sizes)
    model = {key: values[key] for key in ("output_dim", "hidden_dim", "bottom_units", "top_units")}
    spec = {
        "sizes": sizes.vocabulary,
        "dense": sizes.num_dense,
        "model": {**model, "mixed_precision": "off"},
        "train": {
            "batch_size": sizes.batch_size,
            "checkpoint_steps": 20,
            "shuffle_rows": sizes.shuffle_rows,
            "tables": {"name": sizes.optimizer},
        },
    }
    command = [sys.executable, "-m", "benchmarks._planning_worker", json.dumps(spec)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    output = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1], env=environment
    ).stdout
    return json.loads(output.splitlines()[-1])["trained"]


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
