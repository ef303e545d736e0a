"""Predicts the evaluation rows with all models on Beam's workers, checks the gate and writes TFMA's files."""

import json
from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
import tensorflow as tf
import tensorflow_model_analysis as tfma
from absl import logging
from google.protobuf import json_format
from mlet_tf.components.beam import BeamExecutor
from mlet_tf.components.common import split_files
from mlet_tf.components.types import Artifacts, Properties
from tensorflow_model_analysis.proto import config_pb2, metrics_for_slice_pb2
from tfx import types
from tfx.types import artifact_utils

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.evaluation import ModelComparison
from mlet_tf.export import SERVING_MODEL
from mlet_tf.features.halves import ALL_ROWS, JUDGING_ROWS
from mlet_tf.gate import Metrics, Slice, check_metrics, write_gate
from mlet_tf.network import bypass_proxy_for_loopback
from mlet_tf.predictions import PREDICTIONS, load_predictions, save_predictions, slice_metrics
from mlet_tf.storage import join, make_folder
from mlet_tf.types import JsonObject

COLLAPSED, COMPRESSED = "collapsed", "compressed"  # The candidate.
UNCOLLAPSED, LAST_BLESSED = "uncollapsed", "last_blessed"


class Executor(BeamExecutor):
    """Executor of `GatedEvaluator`."""

    def Do(  # noqa: N802 (TFX's name)
        self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties
    ) -> None:
        """Evaluates the models, checks the gate and writes the verdict.

        Args:
            input_dict: `examples`, `transform_graph`, `model` (collapsed, perhaps compressed), `uncollapsed_model`,
                and `baseline_model` (last blessed) and `direct_baseline_model`, which may be absent or empty.
            output_dict: `evaluation` gets TFMA's metrics file, `predictions/*.npz` (label, one array a
                model, one a slice column) and `gate.json`; `blessing` the verdict.
            exec_properties: `schema`, `gate` and `compress` (null where the model is not compressed), all JSON, and
                `table_dtype`.
        """
        schema = ClickLogSchema.from_dict(json.loads(exec_properties["schema"]))
        gate = json.loads(exec_properties["gate"])
        compress = json.loads(exec_properties["compress"])
        candidate = COMPRESSED if compress else COLLAPSED
        models = {candidate: input_dict["model"], UNCOLLAPSED: input_dict["uncollapsed_model"]}
        if input_dict.get("baseline_model"):
            models[LAST_BLESSED] = input_dict["baseline_model"]
        if input_dict.get("direct_baseline_model"):
            models["baseline"] = input_dict["direct_baseline_model"]
        paths = {name: join(artifacts[0].uri, SERVING_MODEL) for name, artifacts in models.items()}
        evaluation = artifact_utils.get_single_uri(output_dict["evaluation"])
        predict = PredictShard(
            paths,
            schema,
            gate["slices"],
            gate["frequency_slices"],
            input_dict["transform_graph"][0].uri,
            evaluation,
            JUDGING_ROWS if compress else ALL_ROWS,
        )
        make_folder(join(evaluation, PREDICTIONS))
        bypass_proxy_for_loopback()  # Where Beam's workers are processes on this machine.
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(list(enumerate(split_files(input_dict["examples"], "eval"))))
                | "Spread" >> beam.Reshuffle()
                | "Predict" >> beam.ParDo(predict)
            )
        compared = (candidate, UNCOLLAPSED) if compress else None
        metrics = slice_metrics(load_predictions(evaluation), list(paths), gate["min_slice_rows"], compared)
        checks = check_metrics(
            metrics[candidate],
            metrics[UNCOLLAPSED],
            metrics.get(LAST_BLESSED),
            gate,
            exec_properties["table_dtype"],
            _max_drop(compress, gate) if compress else None,
        )
        for check in checks:
            if not check.passed:
                logging.error("Gate: %s", check)
        write_gate(evaluation, metrics, checks)
        write_tfma_results(evaluation, metrics)
        self._bless(output_dict["blessing"][0], models[candidate][0], all(check.passed for check in checks))

    def _bless(self, blessing: types.Artifact, candidate: types.Artifact, passed: bool) -> None:
        """Marks the blessing as TFX's own Evaluator does, so that Resolver and Pusher understand it."""
        blessing.set_string_custom_property("current_model", candidate.uri)
        blessing.set_int_custom_property("current_model_id", candidate.id)
        blessing.set_int_custom_property("blessed", int(passed))
        with tf.io.gfile.GFile(join(blessing.uri, "BLESSED" if passed else "NOT_BLESSED"), "w") as file:
            file.write("")


class PredictShard(beam.DoFn):
    """Writes labels, predictions and slice values of one shard of examples as NumPy arrays.

    Args:
        models: SavedModel folders by name.
        schema: Schema of the log.
        slices: Raw columns whose values are slices.
        frequency_slices: Categorical columns sliced by how often their id occurs in `train`.
        transform_graph: URI of the transform graph.
        evaluation: Folder of the evaluation.
        positions: Which rows of the shard to predict, see `ModelComparison`.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        schema: ClickLogSchema,
        slices: Sequence[str],
        frequency_slices: Sequence[str],
        transform_graph: str,
        evaluation: str,
        positions: tuple[int, int],
    ) -> None:
        columns = tuple(slices), tuple(frequency_slices)
        self._arguments = dict(models), schema, transform_graph, *columns, positions
        self._evaluation = evaluation

    def setup(self) -> None:
        """Loads the models, once per worker."""
        self._models = ModelComparison(*self._arguments)

    def process(self, element: tuple[int, str]) -> Iterator[int]:
        """Predicts one shard, given as `(index, file)`; yields its number of rows."""
        index, path = element
        if arrays := self._models.predict(path):
            save_predictions(self._evaluation, index, arrays)
            yield len(arrays["label"])


def _max_drop(compress: JsonObject, gate: JsonObject) -> float:
    """AUC that the compression may cost; where the budget is one of bytes, as much as from one run to the next."""
    budget = compress["budget"].get("max_auc_drop")
    return gate["max_auc_drop"] if budget is None else budget


def write_tfma_results(evaluation: str, metrics: Mapping[str, Metrics]) -> None:
    """Writes the files that `tfma.load_eval_result` reads."""
    with tf.io.TFRecordWriter(join(evaluation, "metrics-00000-of-00001.tfrecord")) as writer:
        for model, by_slice in metrics.items():
            for key, values in by_slice.items():
                writer.write(_to_proto(model, key, values).SerializeToString())
    run = config_pb2.EvalRun(version=tfma.version.VERSION, model_locations=dict.fromkeys(metrics, ""))
    run.eval_config.model_specs.extend(config_pb2.ModelSpec(name=name) for name in metrics)
    with tf.io.gfile.GFile(join(evaluation, "eval_config.json"), "w") as file:
        file.write(json_format.MessageToJson(run))


def _to_proto(model: str, key: Slice, values: Mapping[str, float]) -> metrics_for_slice_pb2.MetricsForSlice:
    proto = metrics_for_slice_pb2.MetricsForSlice()
    if key:
        proto.slice_key.single_slice_keys.add(column=key[0], bytes_value=key[1].encode())
    for name, value in values.items():
        entry = proto.metric_keys_and_values.add()
        entry.key.name, entry.key.model_name = name, model
        entry.value.double_value.value = value
    return proto
