"""The model of a finished run, compressed to another budget than the run's."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlet_tf.compression.artifacts import CompressionTask, compress_artifacts
from mlet_tf.compression.files import write_files
from mlet_tf.compression.judging import JudgedReport, Judgement, judge
from mlet_tf.config import CompressConfig, load_config
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.evaluation import ModelComparison
from mlet_tf.export import KERAS_MODEL, SERVING_MODEL, save_model
from mlet_tf.features.examples import example_files
from mlet_tf.features.halves import JUDGING_ROWS
from mlet_tf.features.transform_graph import TransformGraph
from mlet_tf.outputs import folder_aside
from mlet_tf.predictions import CTR, LABEL
from mlet_tf.run_file import Run, read_run_file
from mlet_tf.storage import exists, join, writing

_BEFORE, _AFTER = "uncollapsed", "compressed"


def shrink_run(
    folder: Path, output: Path, config: CompressConfig, note: Callable[[str], None]
) -> JudgedReport:
    """Compresses the trained model of a run and writes the result, whole or not at all.

    The rows of `eval` that choose and those that judge are those of a run that compresses.

    Args:
        folder: Output folder of the run.
        output: Folder for the model in both forms, the report and the plot; it must not exist.
        config: Budget and methods.
        note: Called with a line about each step.

    Returns:
        The report, judged by the AUC of the trained and the compressed model.

    Raises:
        InputError: There is no complete run in the folder, the budget cannot be met, or the output cannot be written.
    """
    run = read_run_file(folder)
    run_config = load_config(folder / "config.yaml")
    schema, artifacts = run_config.schema, run["artifacts"]
    trained = artifacts["uncollapsed_model"]  # What was served may be narrow already.
    if not exists(join(trained, KERAS_MODEL)):
        raise InputError(f"{join(trained, KERAS_MODEL)}: expected the model of {folder}, found no such file")
    transform = TransformGraph(artifacts["transform_graph"])
    with tempfile.TemporaryDirectory() as temporary:
        task = CompressionTask(
            model=trained,
            transform_graph=artifacts["transform_graph"],
            train_files=[_pattern(run, "train")],
            eval_files=[_pattern(run, "eval")],
            schema=schema,
            compress=config,
            train=run_config.train,
            num_oov_buckets=run_config.vocabulary.num_oov_buckets,
            code_version="",
        )
        compression = compress_artifacts(task, transform, temporary, note)
    with folder_aside(output) as aside:
        note("exporting")
        with writing(output):
            save_model(compression.model, schema, transform, str(aside))
        models = {_BEFORE: join(trained, SERVING_MODEL), _AFTER: str(aside / SERVING_MODEL)}
        report: JudgedReport = {**compression.report, "judged": _judge(models, run, schema)}
        with writing(output):
            write_files(report, aside)
    return report


def _judge(models: dict[str, str], run: Run, schema: ClickLogSchema) -> Judgement:
    """Asks both SavedModels about the rows that judge."""
    comparison = ModelComparison(models, schema, run["artifacts"]["transform_graph"], (), (), JUDGING_ROWS)
    pattern = _pattern(run, "eval")
    parts = [part for path in example_files([pattern]) if (part := comparison.predict(path))]
    if not parts:
        raise InputError(f"{pattern}: expected rows at odd positions, to judge. Received: one row a file")
    return judge(
        *(np.concatenate([part[name] for part in parts]) for name in (LABEL, CTR + _BEFORE, CTR + _AFTER))
    )


def _pattern(run: Run, split: str) -> str:
    return join(run["artifacts"]["examples"], f"Split-{split}", "*")
