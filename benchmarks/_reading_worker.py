"""Reads packed rows, or trains on one batch of them: the two ends of the trainer's input pipeline."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks import _click_data, _harness
from benchmarks._tf_worker import build_ours
from mlet_tf.features.packed_rows import PackedRows

ROWS = 1 << 18
TABLE_ROWS = 1_000_000


def write_rows(path: Path, sizes: list[int]) -> PackedRows:
    """Packed rows of Criteo's shape, as `mlet_tf.features.packed_rows` describes them."""
    ((dense, ids, labels),) = _click_data.batches(sizes, ROWS, 1)
    words = [labels[:, None].view(np.int32), dense.view(np.int32), ids.astype(np.int32)]
    np.concatenate(words, axis=1).tofile(path)
    return PackedRows(str(path), ROWS, dense.shape[1], ids.shape[1])


def main() -> None:
    """Serves the variant named on the command line."""
    spec = json.loads(sys.argv[1])
    sizes = _click_data.vocabulary_sizes(TABLE_ROWS)
    rows = write_rows(Path(spec["scratch"]) / f"{spec['variant']}.bin", sizes)
    epochs = (rows.shuffled_batches(spec["batch"], seed, 65_536) for seed in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    if spec["variant"] == "read":

        def step(runs: int) -> float:
            for _ in itertools.islice(batches, runs):
                pass
            return 0.0

    else:
        model = build_ours({**spec, "k": 64, "d": 16}, sizes)
        inputs, label = next(batches)

        def step(runs: int) -> float:
            return [float(model.train_on_batch(inputs, label)[0]) for _ in range(runs)][-1]

    _harness.serve(step)


if __name__ == "__main__":
    main()
