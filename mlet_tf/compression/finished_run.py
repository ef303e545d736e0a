"""The model of a finished run, compressed to another budget than the run's."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mlet_tf.compression.packed import compress_packed
from mlet_tf.features.halves import ALL_ROWS, JUDGING_ROWS, choosing_step

from mlet_tf.collapse import collapse_model
from mlet_tf.compression.files import write_files
from mlet_tf.compression.judging import Judgement, judge
from mlet_tf.config import CompressConfig, load_config
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.evaluation import ModelComparison
from mlet_tf.export import KERAS_MODEL, SERVING_MODEL, load_keras_model, save_model
from mlet_tf.features.examples import example_files
from mlet_tf.features.packing import pack_examples
from mlet_tf.features.transform_graph import TransformGraph, vocabulary_bytes
from mlet_tf.outputs import folder_aside
from mlet_tf.predictions import CTR, LABEL
from mlet_tf.run_file import Run, read_run_file
from mlet_tf.storage import exists, join, writing
from mlet_tf.types import JsonObject

_BEFORE, _AFTER = "uncollapsed", "compressed"


def compress_run(
    folder: Path, output: Path, config: CompressConfig, note: Callable[[str], None]
) -> JsonObject:
    """Compresses the trained model of a run and writes the result, whole or not at all.

    The rows of `eval` that choose and those that judge are those of a run that compresses.

    Args:
        folder: Output folder of the run.
        output: Folder for the model in both forms, the report and the plot; it must not exist.
        config: Budget and methods.
        note: Called with a line about each step.

    Returns:
        The report, and in `judged` a `Judgement` of the trained and the compressed model.

    Raises:
        InputError: There is no complete run in the folder, the budget cannot be met, or the output cannot be written.
    """
    run = read_run_file(folder)
    run_config = load_config(folder / "config.yaml")
    trained, transform_graph = (run["artifacts"][key] for key in ("uncollapsed_model", "transform_graph"))
    if not exists(join(trained, KERAS_MODEL)):
        raise InputError(f"{join(trained, KERAS_MODEL)}: expected the model of {folder}, found no such file")
    schema, transform = run_config.schema, TransformGraph(transform_graph)
    with tempfile.TemporaryDirectory() as temporary:
        packed = {}
        for split, every in (("train", ALL_ROWS[1]), ("eval", choosing_step(run["rows"]["eval"]))):
            note(f"preprocessing {split}")
            packed[split] = pack_examples(
                [_pattern(run, split)], schema, transform, Path(temporary, split), every
            )
        compression = compress_packed(
            collapse_model(load_keras_model(trained)),
            packed["train"],
            packed["eval"],
            config,
            run_config.vocabulary.num_oov_buckets + 1,
            vocabulary_bytes=vocabulary_bytes(transform_graph, schema),
            note=note,
        )
    with folder_aside(output) as aside:
        note("exporting")
        with writing(output):
            save_model(compression.model, schema, transform, str(aside))
        models = {_BEFORE: join(trained, SERVING_MODEL), _AFTER: str(aside / SERVING_MODEL)}
        report = {**compression.report, "judged": _judge(models, run, schema)}
        with writing(output):
            write_files(report, aside)
    return report


def _judge(models: dict[str, str], run: Run, schema: ClickLogSchema) -> Judgement:
    """Asks both SavedModels about the rows that judge."""
    comparison = ModelComparison(models, schema, run["artifacts"]["transform_graph"], (), (), JUDGING_ROWS)
    parts = [part for path in example_files([_pattern(run, "eval")]) if (part := comparison.predict(path))]
    return judge(
        *(np.concatenate([part[name] for part in parts]) for name in (LABEL, CTR + _BEFORE, CTR + _AFTER))
    )


def _pattern(run: Run, split: str) -> str:
    return join(run["artifacts"]["examples"], f"Split-{split}", "*")
