"""One training as the pipeline does it, for `benchmarks.planning`; prints its peak memory as JSON."""

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _click_data

_TRAIN_BATCHES, _EVAL_ROWS = 60, 8192


def main() -> None:
    """Trains what the JSON in the first argument says."""
    spec = json.loads(sys.argv[1])
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from mlet_tf.config import ModelConfig, TrainConfig, from_mapping
    from mlet_tf.training.build import build_model, compile_model
    from mlet_tf.training.loop import total_steps, train

    model_config = from_mapping(ModelConfig, spec["model"], "model")
    config = from_mapping(TrainConfig, spec["train"], "train")
    sizes = spec["sizes"]
    with tempfile.TemporaryDirectory() as folder:
        rows = _TRAIN_BATCHES * config.batch_size
        splits = [
            _packed(Path(folder) / name, sizes, n, spec["dense"])
            for name, n in (("t", rows), ("e", _EVAL_ROWS))
        ]
        peaks = {"started": _peak()}
        model = build_model(model_config, {f"c{i}": size for i, size in enumerate(sizes)}, spec["dense"])
        compile_model(model, config, total_steps(config, rows))
        model.optimizer.build(model.trainable_variables)
        peaks["built"] = _peak()
        train(model, *splits, config, f"{folder}/work", f"{folder}/board")
        peaks["trained"] = _peak()
        model.save(f"{folder}/model.keras")
        peaks["saved"] = _peak()
    print(json.dumps(peaks))


def _packed(path: Path, sizes: list[int], rows: int, dense: int) -> Any:
    """Rows in the trainer's format, Zipf ids."""
    from mlet_tf.features.packed_rows import PackedRows

    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for low in range(0, rows, 4096):
            count = min(4096, rows - low)
            words = np.empty((count, 1 + dense + len(sizes)), np.int32)
            words[:, 0] = (rng.random(count) < 0.25).astype(np.float32).view(np.int32)
            words[:, 1 : 1 + dense] = rng.normal(size=(count, dense)).astype(np.float32).view(np.int32)
            for i, size in enumerate(sizes):
                words[:, 1 + dense + i] = _click_data.zipf(rng, size, count)
            words.tofile(file)
    return PackedRows(str(path), rows, dense, len(sizes))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
